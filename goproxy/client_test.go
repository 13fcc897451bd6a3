package goproxy

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
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
