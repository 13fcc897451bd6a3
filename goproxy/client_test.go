package goproxy

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/labstack/echo/v4"
)

// "Not modified" is an answer to a condition, and to nothing else.
func TestNotModified(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNotModified) }))
	defer srv.Close()
	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	c := &Client{Base: u, HTTP: srv.Client()}
	for validator, status := range map[string]int{"": 502, srv.URL + " ": 502, "https://other.example \"1\"": 502, srv.URL + " \"1\"": 0} {
		_, err := c.List(WithValidator(t.Context(), validator), "example.com/m")
		if status == 0 && !errors.Is(err, ErrNotModified) || status != 0 && (Status(err) != status || errors.Is(err, ErrNotModified)) {
			t.Errorf("validator %q: %d %v", validator, Status(err), err)
		}
	}
	if _, err := c.List(t.Context(), "example.com/m"); Status(err) != 502 {
		t.Errorf("no validator: %d %v", Status(err), err)
	}
}

// What a list has besides versions takes no memory, and one that is too long is refused.
func TestHostileList(t *testing.T) {
	for _, tc := range []struct {
		line  string
		size  int
		want  int // versions; -1: an error
		alloc uint64
	}{
		{"a\n", MaxListBytes, 0, 16}, {"\n", MaxListBytes, 0, 16}, {"v0.0.0\n", MaxListBytes, 1, 128}, {"v0.0.0\n", MaxListBytes + 8, -1, 16},
	} {
		body := strings.Repeat(tc.line, tc.size/len(tc.line))
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, body) }))
		u, err := url.Parse(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		took := int64(0)
		ctx := WithMemory(t.Context(), func(n int64) error { took += n; return nil })
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		l, err := (&Client{Base: u, HTTP: srv.Client()}).List(ctx, "example.com/m")
		runtime.ReadMemStats(&after)
		if (err != nil) != (tc.want < 0) || err == nil && len(l.Versions) != tc.want {
			t.Errorf("%d bytes of %q: %v, %v", tc.size, tc.line, l, err)
		}
		if n := (after.TotalAlloc - before.TotalAlloc) >> 20; n > tc.alloc {
			t.Errorf("%d bytes of %q: %d MiB were allocated", tc.size, tc.line, n)
		}
		if err == nil && took != int64(len(body)) {
			t.Errorf("%d bytes of %q: %d were counted", tc.size, tc.line, took)
		}
		srv.Close()
	}
	refused := errors.New("no memory")
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "v1.0.0\n") }))
	defer srv.Close()
	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (&Client{Base: u, HTTP: srv.Client()}).List(WithMemory(t.Context(), func(int64) error { return refused }), "example.com/m"); !errors.Is(err, refused) {
		t.Errorf("no memory for it: %v", err)
	}
}

func TestRecover(t *testing.T) {
	f := func(v any) (err error) {
		defer Recover(&err)
		if v != nil {
			panic(v)
		}
		return errors.ErrUnsupported
	}
	if err := f(nil); err != errors.ErrUnsupported {
		t.Errorf("no panic: %v", err)
	}
	err := f("index out of range")
	var p *Panic
	if Status(err) != 500 || !errors.As(err, &p) || p.Value != "index out of range" || len(p.Stack) == 0 {
		t.Errorf("%d %v", Status(err), err)
	}
}

// A server that says "not found" for now says so in Cache-Control.
func TestNotFoundForNow(t *testing.T) {
	for cache, want := range map[string]bool{"no-store": true, "no-cache, no-store, max-age=0": true, "public, max-age=60": false, "": false} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", cache)
			w.WriteHeader(http.StatusNotFound)
		}))
		u, err := url.Parse(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		_, err = (&Client{Base: u, HTTP: srv.Client()}).List(t.Context(), "example.com/m")
		var e *Error
		if !errors.As(err, &e) || e.Status != 404 || e.NoStore != want {
			t.Errorf("%q: %+v", cache, err)
		}
		srv.Close()
	}
}

// How old a refusal is survives the way between the roles; a failure has no age.
func TestRefusalChecked(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)
	for _, want := range []*Error{{Status: 404, Message: "not found: x", Checked: at}, {Status: 403, Message: "no", Checked: at}, {Status: 404, Message: "not found: x"}} {
		e := echo.New()
		e.HTTPErrorHandler = ErrorHandler
		e.GET("/*", func(echo.Context) error { return want })
		srv := httptest.NewServer(e)
		u, err := url.Parse(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		_, err = (&Client{Base: u, HTTP: srv.Client()}).List(t.Context(), "example.com/m")
		var got *Error
		if !errors.As(err, &got) || got.Status != want.Status || !got.Checked.Equal(want.Checked) {
			t.Errorf("%+v arrives as %+v", want, err)
		}
		srv.Close()
	}
}
