// go run client.go URL CA FILE...: posts each file with net/http; SSL_CERT_FILE names the CA. Every other one waits for 100.
package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
)

func main() {
	for i, name := range os.Args[3:] {
		body, err := os.ReadFile(name)
		check(err)
		request, err := http.NewRequest("POST", os.Args[1], bytes.NewReader(body))
		check(err)
		request.Header.Set("Content-Type", "application/json")
		if i%2 == 1 {
			request.Header.Set("Expect", "100-continue")
			request.Body = io.NopCloser(bytes.NewReader(body))
			request.ContentLength = -1
		}
		answer, err := http.DefaultClient.Do(request)
		check(err)
		_, err = io.ReadAll(answer.Body)
		check(err)
		fmt.Println(answer.StatusCode)
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
