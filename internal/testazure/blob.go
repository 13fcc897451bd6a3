package testazure

import (
	"cmp"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	neturl "net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/athensctl/athensctl/internal/cosmosfake"
)

// Blob is Azurite, behind a server that counts what is asked of it and may fail in its place. It is
// safe for concurrent use.
type Blob struct {
	Connection string // with which it is reached

	proxy *httputil.ReverseProxy
	mu    sync.Mutex
	fault func(*http.Request) *cosmosfake.Fault
	calls []BlobCall
}

// BlobCall is one request that was answered.
type BlobCall struct {
	Method, Comp string // Comp: "" is a blob itself; "block", "blocklist", "list", …
	Status       int
}

// Write reports whether a call is charged as a write; others are as reads are. Source:
// Microsoft's "Azure Blob Storage pricing", what its operations are.
func (c BlobCall) Write() bool { return c.Method == http.MethodPut || c.Comp == "list" }

// StartBlob starts it, for one test; see Azurite.
func StartBlob(t testing.TB) *Blob {
	t.Helper()
	target, err := neturl.Parse(url(t, azurite))
	if err != nil {
		t.Fatal(err)
	}
	b := &Blob{proxy: &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport: &http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Second}, // below Azurite's own
		ErrorLog:  log.New(io.Discard, "", 0),
	}}
	srv := httptest.NewServer(b)
	t.Cleanup(srv.Close)
	b.Connection = BlobConnection(srv.URL)
	return b
}

// SetFault sets what is asked before each request and may make it fail; nil: nothing.
func (b *Blob) SetFault(f func(*http.Request) *cosmosfake.Fault) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fault = f
}

// Calls returns and forgets the log.
func (b *Blob) Calls() []BlobCall {
	b.mu.Lock()
	defer b.mu.Unlock()
	calls := b.calls
	b.calls = nil
	return calls
}

// ServeHTTP implements http.Handler.
func (b *Blob) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	ask := b.fault
	b.mu.Unlock()
	fault := &cosmosfake.Fault{}
	if ask != nil {
		fault = cmp.Or(ask(r), fault)
	}
	if fault.Delay > 0 {
		// That who asked has left is seen when the body is read.
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		select {
		case <-time.After(fault.Delay):
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		}
	}
	// Before the answer: who has it, and looks at the log then, finds the call there.
	record := func(code int) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.calls = append(b.calls, BlobCall{Method: r.Method, Comp: r.URL.Query().Get("comp"), Status: code})
	}
	if fault.Status == 0 && !fault.Drop {
		b.proxy.ServeHTTP(&status{ResponseWriter: w, written: record}, r)
		return
	}
	if fault.After {
		b.proxy.ServeHTTP(httptest.NewRecorder(), r)
	}
	record(fault.Status)
	if fault.Drop {
		panic(http.ErrAbortHandler)
	}
	io.Copy(io.Discard, r.Body)
	if fault.RetryAfter > 0 {
		w.Header().Set("x-ms-retry-after-ms", strconv.FormatInt(fault.RetryAfter.Milliseconds(), 10))
	}
	w.Header().Set("x-ms-error-code", map[int]string{429: "TooManyRequests", 503: "ServerBusy"}[fault.Status])
	w.WriteHeader(fault.Status)
}

// status tells of the status before it is written.
type status struct {
	http.ResponseWriter
	written func(code int)
}

func (s *status) WriteHeader(code int) {
	if s.written != nil && code >= 200 {
		s.written(code)
		s.written = nil
	}
	s.ResponseWriter.WriteHeader(code)
}

func (s *status) Unwrap() http.ResponseWriter { return s.ResponseWriter }
