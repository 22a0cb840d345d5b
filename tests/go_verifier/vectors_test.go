package main

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"
)

const vectors = "../../docs/vectors"

// The hash of each vector's events comes from its row, salt and positions alone.
func TestVectors(t *testing.T) {
	files, _ := filepath.Glob(filepath.Join(vectors, "*.json"))
	seen := 0
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		document, err := parseObject(text)
		if err != nil {
			t.Fatal(name, err)
		}
		events, _ := document.Values["events"].([]any)
		previous := map[any]any{}
		for _, one := range events {
			event := one.(*Object)
			row, err := parseObject([]byte(event.Values["row"].(string)))
			if err != nil {
				t.Fatal(name, err)
			}
			for _, name := range []string{"payload_salt", "log_index", "chain_index"} {
				row.Values[name] = event.Values[name]
			}
			row.Values["log"] = "example.test/datastorage"
			if event.has("log") {
				row.Values["log"] = event.Values["log"]
			}
			row.Values["previous_event_hash"] = previous[row.Values["correlation_id"]]
			hash, err := eventHash(row)
			if err != nil || hex.EncodeToString(hash) != event.Values["event_hash"] {
				t.Error(name, event.Values["log_index"], err)
			}
			previous[row.Values["correlation_id"]] = event.Values["event_hash"]
			seen++
		}
	}
	if seen < 14 {
		t.Error("too few vectors")
	}
}

// A checkpoint with a second signature, by ML-DSA-44, which is not checked here.
func TestCheckpoints(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(vectors, "checkpoints", "0001-ml-dsa-44.json"))
	if err != nil {
		t.Fatal(err)
	}
	vector, err := parseObject(text)
	if err != nil {
		t.Fatal(err)
	}
	var keys []Key
	for _, name := range []string{"ed25519_vkey", "ml_dsa_44_vkey"} {
		key, err := parseKey(vector.Values[name].(string))
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	note := vector.Values["note"].(string)
	if checkpoint, err := openCheckpoint(note, keys); err != nil || hex.EncodeToString(checkpoint.Root) != vector.Values["root"] {
		t.Error(err)
	}
	if _, err := openCheckpoint(note, keys[1:]); err == nil {
		t.Error("a key that cannot be checked has vouched for a checkpoint")
	}
}

// The table of section 4.3.
func TestNumbers(t *testing.T) {
	for token, want := range map[string]string{
		"-0": "0", "0.0": "0", "0e-400": "0", "5.0": "5", "1.50": "1.5", "1E2": "100", "1e21": "1e+21",
		"1000000000000000000000": "1e+21", "0.00000099": "9.9e-7", "0.000001": "0.000001", "9.9e-6": "0.0000099",
		"123e306": "1.23e+308", "1e23": "1e+23", "9007199254740993.0": "9007199254740993",
		"18446744073709551615": "18446744073709551615", "1000000000000000000001": "1000000000000000000001",
		"0.1000000000000000055": "0.1000000000000000055", "-0.30000000000000000004": "-0.30000000000000000004",
	} {
		if form, err := canonicalNumber(token); form != want || err != nil {
			t.Error(token, form, err)
		}
	}
}

// The example of section 4.6.
func TestOlderHash(t *testing.T) {
	row, err := parseObject([]byte(`{"event_id":"82eb5642-b148-4ceb-a167-aac7e7dba9c4","event_hash":"x",
		"event_timestamp":"2026-11-22T17:59:33.227096Z","event_type":"gateway.signal.received","event_version":"1.0",
		"event_category":"gateway","event_action":"received","event_outcome":"success","correlation_id":"hv-819550",
		"resource_type":"gateway","resource_id":"hv-819550","severity":"info","actor_id":"gateway-service",
		"actor_type":"service","retention_days":2555,"is_sensitive":false,"event_data":{"signal_type":"alert",
		"event_type":"gateway.signal.received","fingerprint":"fp-1","namespace":"default","signal_name":"HighCPU"}}`))
	if err != nil {
		t.Fatal(err)
	}
	hash, ok := olderHash(row)
	if !ok || hash != "f2491b2514760326fd21557167ea69edbf89da6277582ec6cb4452cc4fc14f1d" {
		t.Error(hash, ok)
	}
}

// What is not JSON as the standard and section 4.3 have it is refused.
func TestRefused(t *testing.T) {
	for _, text := range []string{
		`{"a":1,"a":1}`, `{"a":1,"\u0061":1}`, `"\ud800"`, `"\udc00\ud800"`, "\"\xff\"", "\"\n\"", `01`, `1.`, `.5`, `+1`, `1 2`, `[1,]`,
		`{"a":1,}`, `nul`, `NaN`, ``, `"`, `"\x"`, `{1:2}`, `[`,
	} {
		if value, err := parseJSON([]byte(text)); err == nil {
			t.Error(text, value)
		}
	}
}

// The tree of section 5.5, and one that no proof may lead out of.
func TestTree(t *testing.T) {
	var leaves [][]byte
	for _, leaf := range []string{
		"cadbdc1948697efc6dce17b177af1726c026e05d46c24d4f7b55f1a9cd2d2732",
		"a28ebb0e41a3f3b90880fcccb0ddac3e48acaa0397d6a0880147c7878aed1973",
	} {
		raw, _ := hex.DecodeString(leaf)
		leaves = append(leaves, raw)
	}
	root := rootOf(leaves)
	if hex.EncodeToString(root) != "939d62adabb7e6577f991f7382a05a81f6c0b6d1f0262e467e9038ce39c3c43b" {
		t.Error(hex.EncodeToString(root))
	}
	if got := rootFromProof(leaves[1], 1, 2, leaves[:1]); string(got) != string(root) {
		t.Error("the proof of the second leaf")
	}
	if rootFromProof(leaves[1], 2, 2, leaves[:1]) != nil || rootFromProof(root, 0, 1, leaves[:1]) != nil {
		t.Error("a proof of the wrong length")
	}
}
