// Posts one event with a client that another generator has made of the OpenAPI document, and finds it again by its correlation id.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"datastorage.test/goclient/other"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	client, err := other.NewClientWithResponses(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	correlation := fmt.Sprintf("oapi-%d", time.Now().UnixNano())
	event := other.PostedEvent{
		Version:        "1.0",
		EventType:      "orchestrator.lifecycle.started",
		EventTimestamp: time.Now(),
		EventCategory:  "orchestration",
		EventAction:    "started",
		EventOutcome:   "success",
		CorrelationId:  correlation,
	}
	if err := event.EventData.FromRemediationOrchestratorPayload(other.RemediationOrchestratorPayload{
		EventType: "orchestrator.lifecycle.started",
		RrName:    "rr-go",
		Namespace: "payments",
	}); err != nil {
		log.Fatal(err)
	}
	created, err := client.PostEventWithResponse(ctx, &other.PostEventParams{}, event)
	if err != nil || created.JSON201 == nil {
		log.Fatalf("post: expected 201, got %v %s", err, created.Body)
	}
	page, err := client.ListEventsWithResponse(ctx, &other.ListEventsParams{CorrelationId: &correlation})
	if err != nil || page.JSON200 == nil {
		log.Fatalf("query: expected 200, got %v %s", err, page.Body)
	}
	if found := page.JSON200.Data; len(found) != 1 || found[0].EventId != created.JSON201.EventId {
		log.Fatalf("expected event %s back, got %v", created.JSON201.EventId, found)
	}
	fmt.Println("posted and found", created.JSON201.EventId)
}
