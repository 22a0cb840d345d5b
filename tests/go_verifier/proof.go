package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

const proofHeader = "c2sp.org/tlog-proof@v1"

// verifyProof is section 8.1; it returns what the proof proves, in words.
func verifyProof(text string, keys []Key) (*Object, string, error) {
	head, note, found := strings.Cut(text, "\n\n")
	lines := strings.Split(head, "\n")
	if !found || len(lines) < 3 || lines[0] != proofHeader {
		return nil, "", errors.New("not a proof: " + proofHeader + ", extra, index, hashes, an empty line and a checkpoint are expected")
	}
	encoded, isExtra := strings.CutPrefix(lines[1], "extra ")
	extra, err := unbase64(encoded)
	if !isExtra || err != nil {
		return nil, "", errors.New("the second line must be `extra` and base64")
	}
	number, isIndex := strings.CutPrefix(lines[2], "index ")
	index, err := parseDecimal(number)
	if !isIndex || err != nil {
		return nil, "", errors.New("the third line must be `index` and a decimal number")
	}
	proof := make([][]byte, 0, 64)
	for _, line := range lines[3:] {
		one, err := unbase64(line)
		if err != nil || len(one) != 32 {
			return nil, "", errors.New("a line of the proof is no hash in base64")
		}
		proof = append(proof, one)
	}
	checkpoint, err := openCheckpoint(note, keys)
	if err != nil {
		return nil, "", err
	}
	root := rootFromProof(leafHash(extra), index, checkpoint.Size, proof)
	if !bytes.Equal(root, checkpoint.Root) {
		return nil, "", fmt.Errorf("the proof does not lead from this record at position %d to the checkpoint's root", index)
	}
	record, err := parseObject(extra)
	if err != nil {
		return nil, "", fmt.Errorf("extra: %w", err)
	}
	if record.Values["log"] != checkpoint.Origin || record.Values["log_index"] != Number(number) {
		return nil, "", errors.New("the record is not of this log and position")
	}
	what := fmt.Sprintf("event %v at position %d of %s, under a checkpoint of size %d signed by %s",
		record.Values["event_id"], index, checkpoint.Origin, checkpoint.Size, strings.Join(checkpoint.SignedBy, ", "))
	return record, what, nil
}

// verifyOpened is the same with the committed members, if they are there.
func verifyOpened(opened *Object, keys []Key) (string, error) {
	text, ok := opened.Values["proof"].(string)
	if !ok {
		return "", errors.New("the member proof is no text")
	}
	record, what, err := verifyProof(text, keys)
	if err != nil {
		return "", err
	}
	if opened.has("timestamp") {
		what += " (its timestamp is not checked here)"
	}
	if opened.Values["salt"] == nil && opened.Values["committed"] == nil {
		return what + "; its content is not in the file", nil
	}
	committed, ok := opened.Values["committed"].(*Object)
	if !ok || opened.Values["salt"] == nil {
		return "", errors.New("salt and committed must be both there, or both null")
	}
	digest, err := commitment(opened.Values["salt"], committed)
	if err != nil {
		return "", err
	}
	if hex.EncodeToString(digest) != record.Values["commitment"] {
		return "", errors.New("salt and committed are not what the record's commitment was made of")
	}
	return what + ", and its content", nil
}
