package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

const proofHeader = "c2sp.org/tlog-proof@v1"

// verifyProof is section 8.1; it returns what the proof proves, in words. With a seam its tree is the checkpoint, else one that is signed.
func verifyProof(text string, seam *Checkpoint, keys []Key) (*Object, string, error) {
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
	checkpoint := seam
	if seam == nil {
		if checkpoint, err = openCheckpoint(note, keys); err != nil {
			return nil, "", err
		}
	} else if note != fmt.Sprintf("%s\n%d\n%s\n", seam.Origin, seam.Size, base64.StdEncoding.EncodeToString(seam.Root)) {
		return nil, "", errors.New("the checkpoint is not that of the event that continues the log")
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
func verifyOpened(opened *Object, keys []Key) (record *Object, what string, err error) {
	text, ok := opened.Values["proof"].(string)
	if !ok {
		return nil, "", errors.New("the member proof is no text")
	}
	var seam *Checkpoint
	if opened.has("seam") {
		if seam, _, _, err = throughSeam(opened.Values["seam"], keys); err != nil {
			return nil, "", fmt.Errorf("the seam: %w", err)
		}
	}
	record, what, err = verifyProof(text, seam, keys)
	if err != nil {
		return nil, "", err
	}
	if opened.has("timestamp") {
		what += " (its timestamp is not checked here)"
	}
	if opened.Values["salt"] == nil && opened.Values["committed"] == nil {
		return record, what + "; its content is not in the file", nil
	}
	committed, ok := opened.Values["committed"].(*Object)
	if !ok || opened.Values["salt"] == nil {
		return nil, "", errors.New("salt and committed must be both there, or both null")
	}
	digest, err := commitment(opened.Values["salt"], committed)
	if err != nil {
		return nil, "", err
	}
	if hex.EncodeToString(digest) != record.Values["commitment"] {
		return nil, "", errors.New("salt and committed are not what the record's commitment was made of")
	}
	return record, what + ", and its content", nil
}

// throughSeam is the tree of a closed log as the first event of the next log tells it (section 5.8), with that event's payload and log.
func throughSeam(value any, keys []Key) (tree *Checkpoint, payload *Object, next any, err error) {
	opened, ok := value.(*Object)
	if !ok {
		return nil, nil, nil, errors.New("not an opened proof")
	}
	record, what, err := verifyOpened(opened, keys)
	if err != nil {
		return nil, nil, nil, err
	}
	content, ok := opened.Values["committed"].(*Object)
	if !ok {
		return nil, nil, nil, errors.New("it is not opened")
	}
	payload, ok = content.Values["event_data"].(*Object)
	const continued = "datastorage.log.continued"
	r := record.Values
	if !ok || r["event_type"] != continued || payload.Values["event_type"] != continued || r["event_category"] != "security" ||
		r["log_index"] != Number("0") || r["correlation_id"] != fmt.Sprintf("datastorage:log:%v", payload.Values["continuation_id"]) {
		return nil, nil, nil, errors.New("it is not the event that continues a log")
	}
	number, err := integer(payload.Values["log_id"])
	if err != nil {
		return nil, nil, nil, err
	}
	closed, _ := payload.Values["closed_log"].(string)
	first := closed
	if number > 0 {
		first = strings.TrimSuffix(closed, fmt.Sprintf("/%d", number))
	}
	size, err := integer(payload.Values["tree_size"])
	if err != nil || r["log"] != fmt.Sprintf("%s/%d", first, number+1) {
		return nil, nil, nil, errors.New("it is not of the log after the closed one")
	}
	hash, _ := payload.Values["root_hash"].(string)
	root, err := unhex(hash)
	return &Checkpoint{Origin: closed, Size: size, Root: root, SignedBy: []string{"the next log (" + what + ")"}}, payload, r["log"], err
}
