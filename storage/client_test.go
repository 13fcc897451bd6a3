package storage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/fleet"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/memory"
	"github.com/athensctl/athensctl/storage/storagetest"
)

// A Put whose zip can be read again goes on to another replica where one refuses
// connections, and arrives whole.
func TestPutToAnotherReplica(t *testing.T) {
	ctx := context.Background()
	store := memory.New(0, nil)
	e := echo.New()
	e.HTTPErrorHandler = goproxy.ErrorHandler
	e.Any("/*", (&storage.Server{Store: store, Ledger: store, TempDir: t.TempDir()}).Handler())
	srv := httptest.NewServer(e)
	defer srv.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // nobody is there
	var bases []*url.URL
	for _, base := range []string{srv.URL, "http://" + l.Addr().String()} {
		u, err := url.Parse(base)
		if err != nil {
			t.Fatal(err)
		}
		bases = append(bases, u)
	}
	dir := t.TempDir()
	failed := 0
	for i, kind := range []string{"bytes", "file", "part of a file", "no zip", "stream"} {
		// The one that is away is asked first, by a client that does not know.
		transport := fleet.New(bases, "")
		c := &storage.Client{Client: goproxy.Client{Base: transport.Base(), HTTP: &http.Client{Transport: transport}}}
		v := storagetest.New("example.com/m", fmt.Sprintf("v1.%d.0", i), string(bytes.Repeat([]byte("0123456789abcdef"), 10_000)))
		files := v.Files()
		switch kind {
		case "file", "part of a file":
			f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			start := int64(0)
			if kind != "file" {
				n, _ := f.WriteString("before it")
				start = int64(n)
			}
			if _, err := f.Write(v.Zip); err != nil {
				t.Fatal(err)
			}
			if _, err := f.Seek(start, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			files.Zip = f
		case "no zip":
			files.Zip = nil
		case "stream":
			files.Zip = io.MultiReader(bytes.NewReader(v.Zip))
		}
		err := c.Put(ctx, v.Version, files)
		if kind == "stream" {
			if err != nil { // it can't be sent twice
				if failed++; goproxy.Status(err) != 503 {
					t.Errorf("%s: %v", kind, err)
				}
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		if mod, err := store.Mod(ctx, v.Version); err != nil {
			t.Errorf("%s: %v", kind, err)
		} else if b, err := io.ReadAll(mod); err != nil || !bytes.Equal(b, v.Mod) {
			t.Errorf("%s: go.mod %q, %v", kind, b, err)
		}
		if kind == "no zip" {
			continue
		}
		if zip, err := store.Zip(ctx, v.Version); err != nil {
			t.Errorf("%s: %v", kind, err)
		} else if b, err := io.ReadAll(zip); err != nil || !bytes.Equal(b, v.Zip) {
			t.Errorf("%s: %d bytes of %d, %v", kind, len(b), len(v.Zip), err)
		}
	}
	if failed != 1 {
		t.Error("a stream was sent twice, or was not sent to the replica that is away")
	}
}

// A server that does not know a question yet, since versions are changing, says nothing of
// a module: not that there is none.
func TestOlderServer(t *testing.T) {
	store := memory.New(0, nil)
	e := echo.New()
	e.HTTPErrorHandler = goproxy.ErrorHandler
	handle := (&storage.Server{Store: store, Ledger: store, TempDir: t.TempDir()}).Handler()
	e.Any("/*", func(c echo.Context) error {
		if u := c.Request().URL; u.Path != "/internal/ledger/known" {
			u.Path += "-of-later"
		}
		return handle(c)
	})
	srv := httptest.NewServer(e)
	defer srv.Close()
	base, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	c := &storage.Client{Client: goproxy.Client{Base: base, HTTP: srv.Client()}}
	k := storage.Key{Path: "example.com/m", File: storage.FileList}
	_, startErr := c.Start(t.Context(), storage.Job{Key: k}, "worker", time.Minute)
	_, deletedErr := c.Deleted(t.Context(), time.Time{}, 1)
	for what, err := range map[string]error{"start": startErr, "deleted": deletedErr, "drop": c.Drop(t.Context(), k)} {
		var e *goproxy.Error
		if !errors.As(err, &e) || e.Status != http.StatusServiceUnavailable || e.RetryAfter <= 0 || goproxy.IsAbsent(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := c.Known(t.Context(), k); !goproxy.IsAbsent(err) {
		t.Errorf("what is not known: %v", err)
	}
}

// Who waits for a job does not keep a process from ending, nor is told that the job has
// ended: the next process is asked.
func TestWaitOfAServerThatEnds(t *testing.T) {
	store := memory.New(0, nil)
	k := storage.Key{Path: "example.com/m", File: storage.FileList}
	job, err := store.Start(t.Context(), storage.Job{Key: k}, "worker", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	ending, end := context.WithCancel(t.Context())
	var asked atomic.Int64
	serve := func(s *storage.Server) http.Handler {
		e := echo.New()
		e.HTTPErrorHandler = goproxy.ErrorHandler
		handle := s.Handler()
		e.Any("/*", func(c echo.Context) error {
			asked.Add(1)
			return handle(c)
		})
		return e
	}
	first := serve(&storage.Server{Store: store, Ledger: store, Ending: ending})
	next := serve(&storage.Server{Store: store, Ledger: store})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ending.Err() == nil {
			first.ServeHTTP(w, r)
		} else {
			next.ServeHTTP(w, r)
		}
	}))
	defer srv.Close()
	base, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	c := &storage.Client{Client: goproxy.Client{Base: base, HTTP: srv.Client()}}
	waited := make(chan error, 1)
	go func() { waited <- c.Wait(t.Context(), k) }()
	until := func(n int64) {
		t.Helper()
		// A slice of a Wait, of 20 s, would bring the second question too, but later.
		for end := time.Now().Add(10 * time.Second); asked.Load() < n; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("asked %d times, want %d", asked.Load(), n)
			}
		}
	}
	until(1)
	end()
	until(2)
	if err := store.Done(t.Context(), job, goproxy.NotFound("gone")); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; !goproxy.IsAbsent(err) && err != nil {
		t.Errorf("waited: %v", err)
	}
}
