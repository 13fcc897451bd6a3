package storage_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/disk"
	"github.com/athensctl/athensctl/storage/memory"
	"github.com/athensctl/athensctl/storage/storagetest"
)

func openDisk(t *testing.T, dir string, now func() time.Time) (storage.Store, storage.Ledger) {
	s, err := disk.Open(dir, disk.Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, s
}

func openMemory(t *testing.T, _ string, now func() time.Time) (storage.Store, storage.Ledger) {
	s := memory.New(0, now)
	return s, s
}

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

type opener = func(*testing.T, string, func() time.Time) (storage.Store, storage.Ledger)

func overHTTP(open opener) opener {
	return func(t *testing.T, dir string, now func() time.Time) (storage.Store, storage.Ledger) {
		s, l := open(t, dir, now)
		e := echo.New()
		e.HTTPErrorHandler = goproxy.ErrorHandler
		e.Any("/*", (&storage.Server{Store: s, Ledger: l, TempDir: t.TempDir()}).Handler())
		srv := httptest.NewServer(e)
		t.Cleanup(srv.Close)
		base, err := url.Parse(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		c := closable{&storage.Client{Client: goproxy.Client{Base: base, HTTP: &http.Client{Transport: &http.Transport{}}}}, s}
		return c, c
	}
}

func TestMemory(t *testing.T) {
	storagetest.Run(t, storagetest.Backend{Open: openMemory, Volatile: true, InMemory: true})
}

func TestDisk(t *testing.T) {
	storagetest.Run(t, storagetest.Backend{Open: openDisk})
}

func TestMemoryOverHTTP(t *testing.T) {
	storagetest.Run(t, storagetest.Backend{Open: overHTTP(openMemory), Volatile: true, InMemory: true})
}

func TestDiskOverHTTP(t *testing.T) {
	storagetest.Run(t, storagetest.Backend{Open: overHTTP(openDisk)})
}
