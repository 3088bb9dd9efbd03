// A constant response from Go's net/http, which reads the body as any verifying server must.
package main

import (
	"io"
	"net/http"
	"os"
)

func main() {
	answer := []byte(`{"valid":true,"hello":"world"}`)
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		w.Write(answer)
	})
	http.ListenAndServe("127.0.0.1:"+os.Args[1], nil)
}
