// Verifies proofs, exports and bundles of DataStorage. It was written from docs/design.md and docs/vectors alone and shares no line
// with the service; where they left something open, they were mended.
//
//	go_verifier FILE… --key VKEY
//
// VKEY is a public key as /tlog/key shows it, or a file of such keys; it may be repeated. Several files are the parts of one export,
// or proofs. Exit code 0: everything holds; 1: defects, one line each; 2: nothing could be verified.
package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
)

func main() {
	var files []string
	var keys []Key
	args := os.Args[1:]
	for i := 0; i < len(args); i++ {
		if args[i] != "--key" {
			files = append(files, args[i])
			continue
		}
		i++
		if i == len(args) {
			unusable("--key needs a key")
		}
		keys = append(keys, readKeys(args[i])...)
	}
	if len(files) == 0 || len(keys) == 0 {
		unusable("usage: go_verifier FILE… --key VKEY")
	}
	if verify(files, keys) > 0 {
		os.Exit(1)
	}
}

func verify(files []string, keys []Key) (defects int) {
	report := func(format string, values ...any) {
		defects++
		fmt.Printf(format+"\n", values...)
	}
	export := newExport(keys, report)
	isExport := false
	for _, name := range files {
		file, err := os.Open(name)
		if err != nil {
			unusable(err.Error())
		}
		defer file.Close()
		start := make([]byte, 64)
		n, _ := file.Read(start)
		if _, err := file.Seek(0, 0); err != nil {
			unusable(err.Error())
		}
		what := ""
		switch start = start[:n]; {
		case bytes.HasPrefix(start, []byte(proofHeader)):
			text, err2 := os.ReadFile(name)
			if err = err2; err == nil {
				_, what, err = verifyProof(string(text), nil, keys)
			}
		case bytes.HasPrefix(start, bundleStart):
			text, err2 := os.ReadFile(name)
			found := defects
			if err = err2; err == nil {
				what = verifyBundle(text, keys, func(format string, values ...any) { report(name+": "+format, values...) })
			}
			if defects > found {
				continue
			}
		case isJSONDocument(start):
			what, err = verifyDocument(name, keys)
		default:
			isExport = true
			export.read(name, file)
			continue
		}
		if err != nil {
			report("%s: %v", name, err)
		} else {
			fmt.Printf("%s: %s\n", name, what)
		}
	}
	if isExport {
		if what := export.end(); defects == 0 {
			fmt.Println(what)
		}
	}
	return defects
}

// isJSONDocument: not a record of an export, each of which begins with event_id, and not a manifest.
func isJSONDocument(start []byte) bool {
	return bytes.HasPrefix(start, []byte("{")) &&
		!bytes.HasPrefix(start, []byte(`{"event_id":`)) && !bytes.HasPrefix(start, []byte(`{"payloadType":`))
}

func verifyDocument(name string, keys []Key) (string, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	document, err := parseObject(text)
	if err != nil {
		return "", err
	}
	_, what, err := verifyOpened(document, keys)
	return what, err
}

func readKeys(text string) (keys []Key) {
	if content, err := os.ReadFile(text); err == nil {
		text = string(content)
	}
	for _, line := range strings.Fields(text) {
		key, err := parseKey(line)
		if err != nil {
			unusable(err.Error())
		}
		keys = append(keys, key)
	}
	return keys
}

func unusable(why string) {
	fmt.Fprintln(os.Stderr, why)
	os.Exit(2)
}
