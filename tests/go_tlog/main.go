// Verifies a running service's log with other people's code: key and signature with golang.org/x/mod/sumdb/note, tiles,
// inclusion and consistency with golang.org/x/mod/sumdb/tlog, checkpoint, paths and proof files with filippo.io/torchwood,
// signatures with ML-DSA-44 with github.com/transparency-dev/formats. And has github.com/transparency-dev/witness cosign it.
//
//	go_tlog vectors FILE…          verifies docs/vectors/checkpoints
//	go_tlog witness KEYFILE        serves a witness of the log whose keys are in the file
//	go_tlog verify URL WITNESS     posts to the service at the URL and verifies its log; WITNESS is what `witness` printed
//	go_tlog fork URL               posts to a service with the same keys until the witness has refused it
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"filippo.io/torchwood"
	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const batch = 700 // more than two tiles, and a partial one of level 1

var service string

func main() {
	switch os.Args[1] {
	case "vectors":
		for _, file := range os.Args[2:] {
			vector(file)
		}
	case "witness":
		serveWitness(os.Args[2])
	case "verify":
		service = os.Args[2]
		verify()
		witnessed(get("/tlog/key"), os.Args[3])
	case "fork":
		service = os.Args[2]
		forked(len(post())+len(post())+len(post()), get("/tlog/key"))
	}
}

// vector verifies the checkpoint of a vector with both of its keys.
func vector(file string) {
	text, err := os.ReadFile(file)
	check(err)
	var given struct {
		Ed25519 string `json:"ed25519_vkey"`
		MLDSA   string `json:"ml_dsa_44_vkey"`
		Note    string
	}
	check(json.Unmarshal(text, &given))
	first, err := note.NewVerifier(given.Ed25519)
	check(err)
	second, err := fnote.NewMLDSAVerifier(given.MLDSA)
	check(err)
	opened, err := note.Open([]byte(given.Note), note.VerifierList(first, second))
	check(err)
	if len(opened.Sigs) != 2 {
		fail(file + ": not both signatures are valid")
	}
}

// verify posts events and verifies checkpoint, tiles and proofs with the log's first key alone.
func verify() {
	var ids []string
	for range 2 {
		ids = append(ids, post()...)
		time.Sleep(1200 * time.Millisecond) // so that a checkpoint lies between
	}
	verifier, err := note.NewVerifier(firstLine(get("/tlog/key")))
	check(err)
	policy := torchwood.ThresholdPolicy(2, torchwood.OriginPolicy(verifier.Name()), torchwood.SingleVerifierPolicy(verifier))
	tree := checkpoint(policy, len(ids))

	// Every 97th event: its proof file, and its leaf by way of the tiles.
	reader := tlog.TileHashReader(tree, &tiles{})
	for place := 0; place < len(ids); place += 97 {
		proof := get("/api/v1/audit/events/" + ids[place] + "/proof")
		record, err := torchwood.ProofExtraData(proof)
		check(err)
		leaf := tlog.RecordHash(record)
		check(torchwood.VerifyProof(policy, leaf, proof))
		var named struct {
			EventID string `json:"event_id"`
			Index   int64  `json:"log_index"`
		}
		check(json.Unmarshal(record, &named))
		if named.EventID != ids[place] {
			fail("the record is of another event")
		}
		byTiles, err := tlog.ProveRecord(tree.N, named.Index, reader)
		check(err)
		check(tlog.CheckRecord(byTiles, tree.N, tree.Hash, named.Index, leaf))
	}

	for _, old := range []int64{1, 256, 511, batch, tree.N - 1} {
		hash, err := tlog.TreeHash(old, reader)
		check(err)
		var answer struct{ Proof []string }
		check(json.Unmarshal(get(fmt.Sprintf("/api/v1/audit/consistency?from=%d&to=%d", old, tree.N)), &answer))
		check(tlog.CheckTree(hashes(answer.Proof), tree.N, tree.Hash, old, hash))
	}
	fmt.Printf("verified a log of %d leaves\n", tree.N)
}

// tiles reads the service's tiles; tlog checks each against the checkpoint's root.
type tiles struct{}

func (*tiles) Height() int                     { return 8 }
func (*tiles) SaveTiles([]tlog.Tile, [][]byte) {}
func (*tiles) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	var found [][]byte
	for _, tile := range wanted {
		found = append(found, get("/tlog/"+torchwood.TilePath(tile)))
	}
	return found, nil
}

// checkpoint waits until one of that size is served.
func checkpoint(policy torchwood.Policy, size int) tlog.Tree {
	var found torchwood.Checkpoint
	waitFor("a checkpoint of all events", func() bool {
		var err error
		found, _, err = torchwood.VerifyCheckpoint(get("/tlog/checkpoint"), policy)
		check(err)
		return found.N == int64(size)
	})
	return found.Tree
}

func waitFor(what string, happened func() bool) {
	for range 300 {
		if happened() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	fail("there is not " + what)
}

func hashes(lines []string) []tlog.Hash {
	var found []tlog.Hash
	for _, line := range lines {
		hash, err := tlog.ParseHash(line)
		check(err)
		found = append(found, hash)
	}
	return found
}

func post() []string {
	event := map[string]any{
		"version": "1.0", "event_type": "orchestrator.lifecycle.started", "event_category": "orchestration",
		"event_timestamp": time.Now().UTC().Format(time.RFC3339Nano), "event_action": "started",
		"event_outcome": "success", "correlation_id": "rr-go",
		"event_data": map[string]any{
			"event_type": "orchestrator.lifecycle.started", "rr_name": "rr-go", "namespace": "payments",
		},
	}
	events := make([]any, batch)
	for place := range events {
		events[place] = event
	}
	body, err := json.Marshal(events)
	check(err)
	answer, err := http.Post(service+"/api/v1/audit/events/batch", "application/json", bytes.NewReader(body))
	check(err)
	defer answer.Body.Close()
	var receipt struct {
		EventIDs []string `json:"event_ids"`
	}
	check(json.NewDecoder(answer.Body).Decode(&receipt))
	return receipt.EventIDs
}

func get(path string) []byte {
	answer, err := http.Get(service + path)
	check(err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	check(err)
	if answer.StatusCode != http.StatusOK {
		fail(fmt.Sprintf("GET %s: %s %s", path, answer.Status, body))
	}
	return body
}

func check(err error) {
	if err != nil {
		fail(err.Error())
	}
}

func fail(why string) {
	fmt.Fprintln(os.Stderr, "go_tlog:", why)
	os.Exit(1)
}
