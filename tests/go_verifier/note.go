package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Key is a public key that the user trusts (section 5.7).
type Key struct {
	Name      string
	ID        string // 4 bytes
	Algorithm byte
	Public    []byte
}

const (
	logKey     = 0x01
	witnessKey = 0x04
)

func (k Key) String() string { return k.Name + "+" + hex.EncodeToString([]byte(k.ID)) }

func parseKey(vkey string) (Key, error) {
	parts := strings.SplitN(vkey, "+", 3)
	if len(parts) != 3 || parts[0] == "" || strings.ContainsAny(parts[0], " \t\r\n") {
		return Key{}, errors.New("a key has the form <name>+<key id>+<base64>")
	}
	bytes, err := unbase64(parts[2])
	if err != nil || len(bytes) < 2 {
		return Key{}, errors.New("the last part of a key is base64 of algorithm and public key")
	}
	digest := sha256.Sum256([]byte(parts[0] + "\n" + string(bytes)))
	if parts[1] != hex.EncodeToString(digest[:4]) {
		return Key{}, fmt.Errorf("the key id %.20q is not that of this key", parts[1])
	}
	key := Key{parts[0], string(digest[:4]), bytes[0], bytes[1:]}
	if (key.Algorithm == logKey || key.Algorithm == witnessKey) && len(key.Public) != ed25519.PublicKeySize {
		return Key{}, errors.New("an Ed25519 key has 32 bytes")
	}
	return key, nil
}

// unbase64 refuses what is not the one spelling of its bytes, line breaks too.
func unbase64(text string) ([]byte, error) {
	bytes, err := base64.StdEncoding.Strict().DecodeString(text)
	if err == nil && base64.StdEncoding.EncodeToString(bytes) != text {
		err = errors.New("not canonical base64")
	}
	return bytes, err
}

// Checkpoint is the text of a note (section 5.7); SignedBy are the keys of the user whose signatures hold.
type Checkpoint struct {
	Origin   string
	Size     int64
	Root     []byte
	SignedBy []string
}

var decimalText = regexp.MustCompile(`^(0|[1-9][0-9]{0,17})$`)

func parseDecimal(text string) (int64, error) {
	if !decimalText.MatchString(text) {
		return 0, fmt.Errorf("%.30q is no decimal number", text)
	}
	return strconv.ParseInt(text, 10, 64)
}

// openCheckpoint splits the note and verifies it. Without a signature by one of the keys of its origin it is refused.
func openCheckpoint(note string, keys []Key) (*Checkpoint, error) {
	end := strings.LastIndex(note, "\n\n")
	if end < 0 || !strings.HasSuffix(note, "\n") || end+2 >= len(note) {
		return nil, errors.New("the checkpoint is no signed note")
	}
	text, signatures := note[:end+1], note[end+2:]
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(lines) < 3 || lines[0] == "" {
		return nil, errors.New("the checkpoint has fewer than three lines")
	}
	size, err := parseDecimal(lines[1])
	if err != nil {
		return nil, fmt.Errorf("the checkpoint's size: %w", err)
	}
	root, err := unbase64(lines[2])
	if err != nil || len(root) != 32 {
		return nil, errors.New("the checkpoint's root is no hash in base64")
	}
	checkpoint := &Checkpoint{Origin: lines[0], Size: size, Root: root}
	right, signed := map[string]bool{}, false // right: of the keys that have lines, those that have signed in one of them
	for _, line := range strings.Split(strings.TrimSuffix(signatures, "\n"), "\n") {
		name, encoded, found := strings.Cut(strings.TrimPrefix(line, "— "), " ")
		signature, err := unbase64(encoded)
		if !strings.HasPrefix(line, "— ") || !found || name == "" || err != nil || len(signature) < 5 {
			return nil, errors.New("a signature line of the checkpoint is malformed")
		}
		for _, key := range keys {
			if key.Name != name || key.ID != string(signature[:4]) || key.Algorithm != logKey && key.Algorithm != witnessKey {
				continue
			}
			what, ok := key.verifyNote(text, signature[4:])
			right[key.String()] = right[key.String()] || ok
			if !ok {
				continue
			}
			checkpoint.SignedBy = append(checkpoint.SignedBy, what)
			signed = signed || key.Algorithm == logKey && key.Name == checkpoint.Origin
		}
	}
	for name, ok := range right {
		if !ok {
			return nil, fmt.Errorf("the signature of %s on the checkpoint is wrong", name)
		}
	}
	if !signed {
		return nil, fmt.Errorf("no given key of %q has signed the checkpoint", checkpoint.Origin)
	}
	return checkpoint, nil
}

func (k Key) verifyNote(text string, signature []byte) (what string, ok bool) {
	switch {
	case k.Algorithm == logKey:
		return k.String(), ed25519.Verify(k.Public, []byte(text), signature)
	case k.Algorithm == witnessKey && len(signature) == 8+ed25519.SignatureSize:
		at := binary.BigEndian.Uint64(signature)
		signed := fmt.Sprintf("cosignature/v1\ntime %d\n%s", at, text)
		when := time.Unix(int64(at), 0).UTC().Format(time.RFC3339)
		return k.String() + " (witness, " + when + ")", ed25519.Verify(k.Public, []byte(signed), signature[8:])
	default:
		return "", false
	}
}

func leafHash(record []byte) []byte { return hash([]byte{0}, record) }

func hash(parts ...[]byte) []byte {
	digest := sha256.Sum256(bytes.Join(parts, nil))
	return digest[:]
}

// rootFromProof is RFC 9162, section 2.1.3.2; nil if the proof has the wrong length.
func rootFromProof(leaf []byte, index, size int64, proof [][]byte) []byte {
	if index >= size {
		return nil
	}
	fn, sn, r := index, size-1, leaf
	for _, p := range proof {
		if sn == 0 {
			return nil
		}
		if fn&1 == 1 || fn == sn {
			r = hash([]byte{1}, p, r)
			for fn&1 == 0 && fn != 0 {
				fn, sn = fn>>1, sn>>1
			}
		} else {
			r = hash([]byte{1}, r, p)
		}
		fn, sn = fn>>1, sn>>1
	}
	if sn != 0 {
		return nil
	}
	return r
}

// isConsistent is RFC 9162, section 2.1.4.2, with section 8.5's rule for trees that are empty or equal.
func isConsistent(from, to int64, oldRoot, newRoot []byte, proof [][]byte) bool {
	if from == 0 || from == to {
		return len(proof) == 0 && (from == 0 && from != to || bytes.Equal(oldRoot, newRoot))
	}
	if from > to || len(proof) == 0 {
		return false
	}
	if from&(from-1) == 0 {
		proof = append([][]byte{oldRoot}, proof...)
	}
	fn, sn := from-1, to-1
	for fn&1 == 1 {
		fn, sn = fn>>1, sn>>1
	}
	fr, sr := proof[0], proof[0]
	for _, c := range proof[1:] {
		if sn == 0 {
			return false
		}
		if fn&1 == 1 || fn == sn {
			fr, sr = hash([]byte{1}, c, fr), hash([]byte{1}, c, sr)
			for fn&1 == 0 && fn != 0 {
				fn, sn = fn>>1, sn>>1
			}
		} else {
			sr = hash([]byte{1}, sr, c)
		}
		fn, sn = fn>>1, sn>>1
	}
	return sn == 0 && bytes.Equal(fr, oldRoot) && bytes.Equal(sr, newRoot)
}

// rootOf is the root of a tree of these leaves (RFC 6962, section 2.1).
func rootOf(leaves [][]byte) []byte {
	switch len(leaves) {
	case 0:
		return hash()
	case 1:
		return leaves[0]
	}
	split := 1
	for split*2 < len(leaves) {
		split *= 2
	}
	return hash([]byte{1}, rootOf(leaves[:split]), rootOf(leaves[split:]))
}
