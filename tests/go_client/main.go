// Posts one event with a client generated from the OpenAPI document, and finds it again by its correlation id.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"datastorage.test/goclient/api"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	client, err := api.NewClient(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	correlation := fmt.Sprintf("go-%d", time.Now().UnixNano())
	answer, err := client.PostEvent(ctx, &api.PostedEvent{
		Version:        "1.0",
		EventType:      "orchestrator.lifecycle.started",
		EventTimestamp: time.Now(),
		EventCategory:  "orchestration",
		EventAction:    "started",
		EventOutcome:   "success",
		CorrelationID:  correlation,
		Namespace:      api.NewOptNilString("payments"),
		EventData: api.NewPostedEventEventDataOrchestratorLifecycleStartedPostedEventEventData(api.RemediationOrchestratorPayload{
			EventType: "orchestrator.lifecycle.started",
			RrName:    "rr-go",
			Namespace: "payments",
		}),
	}, api.PostEventParams{IdempotencyKey: api.NewOptString(correlation)})
	if err != nil {
		log.Fatalf("post: %v", err)
	}
	created, ok := answer.(*api.EventCreated)
	if !ok {
		log.Fatalf("post: expected 201, got %T", answer)
	}
	page, err := client.ListEvents(ctx, api.ListEventsParams{CorrelationID: api.NewOptString(correlation)})
	if err != nil {
		log.Fatalf("query: %v", err)
	}
	if len(page.Data) != 1 || page.Data[0].EventID != created.EventID {
		log.Fatalf("expected event %s back, got %v", created.EventID, page.Data)
	}
	fmt.Println("posted and found", created.EventID)
}
