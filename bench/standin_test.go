package main

import (
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestMain makes the test program its own children: those that the bench starts
// of itself, and a stand-in for athensctl, so that the bench can be tested
// without what it measures.
func TestMain(m *testing.M) {
	if code, ok := hidden(os.Args[1:]); ok {
		os.Exit(code)
	}
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		fmt.Fprintln(os.Stderr, standIn(os.Args[2:]))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// standIn understands athensctl's command line as far as the bench uses it, and
// keeps in memory whatever it has fetched once, whatever its role.
func standIn(args []string) error {
	fs := flag.NewFlagSet("serve", flag.ExitOnError)
	value := map[string]*string{}
	for _, name := range []string{"role", "listen", "data-dir", "upstream", "sumdb", "storage-url", "crawler-url", "cache-dir", "internal-token", "vcs-instead-of", "fetch-timeout"} {
		value[name] = fs.String(name, "", "")
	}
	fs.Parse(args)
	origins := strings.Split(*value["upstream"]+*value["crawler-url"], ",")
	switch role := *value["role"]; {
	case role == "proxy" && (*value["cache-dir"] == "" || *value["storage-url"] == "" || *value["internal-token"] == ""),
		role == "crawler" && (*value["upstream"] == "" || *value["storage-url"] == "" || *value["sumdb"] != "off"),
		role == "storage" && (*value["data-dir"] == "" || *value["internal-token"] == ""),
		role == "all" && (*value["data-dir"] == "" || *value["upstream"] == "" || *value["sumdb"] != "off"):
		return fmt.Errorf("%s: a flag is missing: %q", role, args)
	}

	type entry struct {
		once   sync.Once
		status int
		body   []byte
	}
	var mu sync.Mutex
	entries := map[string]*entry{}
	srv := &http.Server{Addr: *value["listen"], ReadHeaderTimeout: time.Minute}
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/readyz" {
			return
		}
		mu.Lock()
		e := entries[r.URL.Path]
		if e == nil {
			e = new(entry)
			entries[r.URL.Path] = e
		}
		mu.Unlock()
		e.once.Do(func() {
			e.status = http.StatusBadGateway
			if *value["upstream"] == "direct" {
				e.status, e.body = http.StatusOK, []byte("a zip")
				return
			}
			origin := origins[int(crc32.ChecksumIEEE([]byte(r.URL.Path)))%len(origins)]
			res, err := client.Get(origin + r.URL.Path)
			if err != nil {
				return
			}
			defer res.Body.Close()
			if body, err := io.ReadAll(res.Body); err == nil {
				e.status, e.body = res.StatusCode, body
			}
		})
		w.Header().Set("Content-Length", fmt.Sprint(len(e.body)))
		w.WriteHeader(e.status)
		_, _ = w.Write(e.body)
	})
	return srv.ListenAndServe()
}
