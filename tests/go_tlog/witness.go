package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	fnote "github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/witness/persistence/inmemory"
	"github.com/transparency-dev/witness/witness"
	"golang.org/x/mod/sumdb/note"
)

const witnessName = "witness.example/go"

// serveWitness runs the witness of transparency-dev on a free port, with a key of each kind, and prints for each a line of
// DATASTORAGE_WITNESSES. The key of the log is read from a file when the first checkpoint comes.
func serveWitness(logKeyFile string) {
	ed25519, ed25519Key, err := note.GenerateKey(rand.Reader, witnessName)
	check(err)
	ed25519Key, err = fnote.VKeyToCosignatureV1(ed25519Key)
	check(err)
	mldsa, mldsaKey, err := fnote.GenerateMLDSAKey(witnessName)
	check(err)
	first, err := fnote.NewSignerForCosignatureV1(ed25519)
	check(err)
	second, err := fnote.NewMLDSASigner(mldsa)
	check(err)
	one, err := witness.New(context.Background(), witness.Opts{
		Persistence: inmemory.New(),
		Signers:     []note.Signer{first, second},
		VerifierForLog: func(_ context.Context, origin string) (note.Verifier, bool, error) {
			text, err := os.ReadFile(logKeyFile)
			if err != nil {
				return nil, false, err
			}
			verifier, err := note.NewVerifier(firstLine(text))
			return verifier, err == nil && verifier.Name() == origin, err
		},
	})
	check(err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	for _, key := range []string{ed25519Key, mldsaKey} {
		fmt.Printf("%s http://%s\n", key, listener.Addr())
	}
	handler := http.NewServeMux()
	handler.HandleFunc("POST /add-checkpoint", witness.NewHTTPHandler(one).AddCheckpoint)
	check(http.Serve(listener, handler))
}

// witnessed checks that the served checkpoint has the signatures of the log's two keys and the witness's two cosignatures.
func witnessed(logKeys []byte, witnessLines string) {
	ed25519, mldsa, found := strings.Cut(strings.TrimSpace(string(logKeys)), "\n")
	if !found {
		fail("the log has no key of ML-DSA-44")
	}
	lines := strings.Fields(witnessLines) // key, URL, key, URL
	var verifiers []note.Verifier
	for _, made := range []func() (note.Verifier, error){
		func() (note.Verifier, error) { return note.NewVerifier(ed25519) },
		func() (note.Verifier, error) { return fnote.NewMLDSAVerifier(mldsa) },
		func() (note.Verifier, error) { return fnote.NewVerifierForCosignatureV1(lines[0]) },
		func() (note.Verifier, error) { return fnote.NewMLDSAVerifier(lines[2]) },
	} {
		verifier, err := made()
		check(err)
		verifiers = append(verifiers, verifier)
	}
	waitFor("a checkpoint that all keys have signed", func() bool {
		opened, err := note.Open(get("/tlog/checkpoint"), note.VerifierList(verifiers...))
		check(err)
		if len(opened.UnverifiedSigs) != 0 {
			fail("an unknown key has signed")
		}
		if len(opened.Sigs) == len(verifiers) {
			return true
		}
		post() // the witness was asked for two seconds only
		time.Sleep(2 * time.Second)
		return false
	})
	fmt.Printf("verified %d signatures of %q, of two kinds, by log and witness\n", len(verifiers), ed25519)
}

// forked waits until a service with the same keys and another history has learnt from the witness that there is another log.
func forked(size int, logKeys []byte) {
	verifier, err := note.NewVerifier(firstLine(logKeys))
	check(err)
	waitFor("an alarm of the witness", func() bool {
		return bytes.Contains(get("/metrics"), []byte(`datastorage_log_alarms_total{alarm="witness_conflict"}`))
	})
	waitFor("a checkpoint", func() bool { // it is published after the witness was asked
		answer, err := http.Get(service + "/tlog/checkpoint")
		check(err)
		return answer.Body.Close() == nil && answer.StatusCode == http.StatusOK
	})
	opened, err := note.Open(get("/tlog/checkpoint"), note.VerifierList(verifier))
	check(err)
	for _, signature := range opened.UnverifiedSigs {
		if signature.Name == witnessName {
			fail("the witness has cosigned a fork")
		}
	}
	fmt.Printf("the witness refused a fork of %d leaves\n", size)
}

func firstLine(text []byte) string {
	line, _, _ := strings.Cut(string(text), "\n")
	return line
}
