package crawler

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/athensctl/athensctl/goproxy"
)

// answering is a transport whose bodies are read from what body returns.
type answering func(req *http.Request) (body func(p []byte) (int, error), err error)

func (a answering) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := a(req)
	if err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode: 200, Status: "200 OK", Header: http.Header{}, ProtoMajor: 1, ProtoMinor: 1, Request: req, ContentLength: -1,
		Body: io.NopCloser(readerFunc(body)),
	}, nil
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// pause is a sleep that ends with the request.
func pause(ctx context.Context, d time.Duration) error {
	if !sleep(ctx, d) {
		return ctx.Err()
	}
	return nil
}

// A body that comes too slowly is cut, and its host has failed: not one that pauses now
// and then, nor one that is read slowly.
func TestSlowBody(t *testing.T) {
	type body struct {
		chunk, size int
		every       time.Duration
		reader      time.Duration // between two reads
	}
	for name, tc := range map[string]struct {
		body
		cut time.Duration // 0: not
	}{
		"at once":             {body{1 << 10, 1 << 20, 0, 0}, 0},
		"a dripping byte":     {body{1, 1 << 20, 29 * time.Second, 0}, 30 * time.Second},
		"nothing":             {body{1, 1, 24 * time.Hour, 0}, 30 * time.Second},
		"4 KiB/s":             {body{4 << 10, 1 << 20, time.Second, 0}, time.Minute},
		"10 KiB/s":            {body{10 << 10, 1 << 20, time.Second, 0}, 0},
		"1 MiB every 29 s":    {body{1 << 20, 10 << 20, 29 * time.Second, 0}, 0},
		"1 MiB every 31 s":    {body{1 << 20, 10 << 20, 31 * time.Second, 0}, 30 * time.Second},
		"a reader that rests": {body{1 << 10, 100 << 10, 0, time.Minute}, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := NewHosts(HostOptions{Connections: 1, Failures: 1})
			client := &http.Client{Transport: h.Wrap(answering(func(req *http.Request) (func([]byte) (int, error), error) {
				left := tc.size
				return func(p []byte) (int, error) {
					if left <= 0 {
						return 0, io.EOF
					}
					if err := pause(req.Context(), tc.every); err != nil {
						return 0, err
					}
					n := min(tc.chunk, left, len(p))
					left -= n
					return n, nil
				}, nil
			}))}
			resp, err := client.Get("https://a.example/")
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			buf := make([]byte, 1<<20)
			for err == nil {
				_, err = resp.Body.Read(buf)
				time.Sleep(tc.reader)
			}
			took := time.Since(began)
			resp.Body.Close()
			if cut := errors.Is(err, errSlow); cut != (tc.cut > 0) || cut && took.Round(10*time.Second) != tc.cut || !cut && err != io.EOF || cut && goproxy.Status(err) != 502 {
				t.Errorf("%s: %v after %v", name, err, took)
			}
			// The place is free; the circuit is open where it was cut.
			if _, err = client.Get("https://a.example/"); isNotSent(err) != (tc.cut > 0) {
				t.Errorf("%s: the next request: %v", name, err)
			}
		})
	}
	h := NewHosts(HostOptions{Connections: 1, Timeout: 2 * time.Minute})
	if got := h.get("a.example").timeout; got != 2*time.Minute {
		t.Errorf("a timeout of 2 minutes is %v", got)
	}
}

// A request that the caller cancels has not failed; its end is not held.
func TestHeldBodyCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHosts(HostOptions{Connections: 1, Failures: 1})
		client := &http.Client{Transport: h.Wrap(answering(func(req *http.Request) (func([]byte) (int, error), error) {
			return func([]byte) (int, error) { return 0, pause(req.Context(), time.Hour) }, nil
		}))}
		ctx, cancel := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, "GET", "https://a.example/", strings.NewReader(""))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Second, cancel)
		if _, err := io.ReadAll(resp.Body); !errors.Is(err, context.Canceled) {
			t.Errorf("read: %v", err)
		}
		resp.Body.Close()
		if _, err := client.Get("https://a.example/"); err != nil {
			t.Errorf("the next request: %v", err)
		}
	})
}
