package storagetest

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/labstack/echo/v4"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// closable is a client whose Close closes the store behind the server.
type closable struct {
	*storage.Client
	behind any
}

func (c closable) Close() error {
	if closer, ok := c.behind.(io.Closer); ok {
		return closer.Close()
	}
	return nil
}

// OverHTTP puts the storage role's server and client in front of a backend.
func OverHTTP(open Opener) Opener {
	return func(t *testing.T, dir string, o Options) (storage.Store, storage.Ledger) {
		s, l := open(t, dir, o)
		c := closable{overHTTP(t, s, l), s}
		return c, c
	}
}

// overHTTP is a client of a server in front of a store and a ledger.
func overHTTP(t *testing.T, s storage.Store, l storage.Ledger) *storage.Client {
	e := echo.New()
	e.HTTPErrorHandler = goproxy.ErrorHandler
	e.Any("/*", (&storage.Server{Store: s, Ledger: l, TempDir: t.TempDir()}).Handler())
	srv := httptest.NewUnstartedServer(e)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // connections are cut on purpose
	srv.Start()
	t.Cleanup(srv.Close)
	base, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	return &storage.Client{Client: goproxy.Client{Base: base, HTTP: &http.Client{Transport: &http.Transport{}}}}
}
