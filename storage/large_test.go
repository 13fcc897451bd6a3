package storage

import (
	"bytes"
	"context"
	"mime/multipart"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/labstack/echo/v4"
	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
)

// keeps is a store that keeps nothing, and sees whether a save holds a lock.
type keeps struct {
	Store
	lock   *sync.Mutex
	locked bool
}

func (k *keeps) Put(context.Context, module.Version, Files) error {
	if k.locked = !k.lock.TryLock(); !k.locked {
		k.lock.Unlock()
	}
	return nil
}

// Of large .mod files one is in memory at a time; who saves another waits for that, and
// nobody else does.
func TestSaveLargeMods(t *testing.T) {
	s := &Server{TempDir: t.TempDir()}
	kept := &keeps{lock: &s.large}
	s.Store = kept
	e := echo.New()
	e.HTTPErrorHandler = goproxy.ErrorHandler
	e.Any("/*", s.Handler())
	save := func(comment int) int {
		var b bytes.Buffer
		w := multipart.NewWriter(&b)
		part, err := w.CreateFormFile("mod.mod", "mod.mod")
		if err != nil {
			t.Error(err)
		}
		part.Write([]byte("module example.com/m\n"))
		part.Write(bytes.Repeat([]byte("//\n"), comment/3))
		w.Close()
		req := httptest.NewRequest("POST", "/example.com/m/@v/v1.0.0.save", &b)
		req.Header.Set("Content-Type", w.FormDataContentType())
		rec := httptest.NewRecorder()
		e.ServeHTTP(rec, req)
		return rec.Code
	}
	if status := save(1 << 20); status != 200 || !kept.locked {
		t.Errorf("a large one: %d, keeps others waiting: %v", status, kept.locked)
	}
	s.large.Lock()
	if status := save(100); status != 200 {
		t.Errorf("a small one: %d", status)
	}
	s.large.Unlock()
	if status := save(goproxy.MaxModBytes); status != 413 {
		t.Errorf("one that is too large: %d", status)
	}
	if !s.large.TryLock() {
		t.Error("the lock is held still")
	}
}
