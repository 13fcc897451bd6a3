package cosmos

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/cosmosfake"
	"github.com/athensctl/athensctl/storage/storagetest"
)

// The account does not say which regions it has, and the regions are well: the SDK asks
// under a lock that all requests take, and they don't wait for a minute.
func TestAccountDoesNotAnswer(t *testing.T) {
	ctx := context.Background()
	f, a := fake(t)
	dir := t.TempDir()
	open(t, a, dir, Options{}) // makes the database
	var asked atomic.Int64
	f.SetFault(func(c cosmosfake.Call) *cosmosfake.Fault {
		if c.Op != "read account" {
			return nil
		}
		asked.Add(1)
		return &cosmosfake.Fault{Delay: 2 * time.Minute, Status: 503}
	})
	name, _ := databases.Load(dir)
	a.Database = name.(string)
	began := time.Now()
	s, err := Open(ctx, a, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > time.Minute { // the account takes two
		t.Errorf("Open took %v", took)
	}
	began = time.Now()
	for range 3 {
		v := storagetest.New("example.com/m", "v1.0.0", "")
		if err := s.Put(ctx, v.Version, v.Files()); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("three Puts took %v", took)
	}
	if n := asked.Load(); n == 0 || n > 2 {
		t.Errorf("the account was asked %d times", n)
	}
}

// What is tried for so long ends then, though an attempt has not.
func TestPatience(t *testing.T) {
	f, a := fake(t)
	s := open(t, a, t.TempDir(), Options{Patience: 2 * time.Second})
	for name, fault := range map[string]func(n int64) *cosmosfake.Fault{
		"no answer": func(int64) *cosmosfake.Fault { return &cosmosfake.Fault{Delay: time.Minute} },
		"429, and then no answer": func(n int64) *cosmosfake.Fault {
			if n == 1 {
				return &cosmosfake.Fault{Status: 429, RetryAfter: 1500 * time.Millisecond}
			}
			return &cosmosfake.Fault{Delay: time.Minute}
		},
	} {
		var n atomic.Int64
		f.SetFault(func(cosmosfake.Call) *cosmosfake.Fault { return fault(n.Add(1)) })
		began := time.Now()
		_, err := s.Load(context.Background(), "x")
		took := time.Since(began)
		if goproxy.Status(err) != 503 || took > 30*time.Second {
			t.Errorf("%s: %v after %v, want 503 after 2 s", name, err, took)
		}
		f.SetFault(nil)
	}
}

// A container that was dropped is the operator's concern, and never says that a module
// is not there.
func TestDroppedContainer(t *testing.T) {
	ctx := context.Background()
	_, a := fake(t)
	dir := t.TempDir()
	s := open(t, a, dir, Options{})
	v := storagetest.New("example.com/m", "v1.0.0", "")
	if err := s.Put(ctx, v.Version, v.Files()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.modules.Delete(ctx, nil); err != nil {
		t.Fatal(err)
	}
	for name, work := range map[string]func() error{
		"mod":     func() error { _, err := s.Mod(ctx, v.Version); return err },
		"info":    func() error { _, err := s.Resolve(ctx, v.Path, v.Version.Version); return err },
		"zip":     func() error { _, err := s.Zip(ctx, v.Version); return err },
		"list":    func() error { _, err := s.List(ctx, v.Path); return err },
		"delete":  func() error { return s.Delete(ctx, v.Version) },
		"put":     func() error { return s.Put(ctx, v.Version, v.Files()) },
		"index":   func() error { _, err := s.Index(ctx, time.Time{}, 10); return err },
		"catalog": func() error { _, err := s.Catalog(ctx, "", 10); return err },
	} {
		if err := work(); goproxy.Status(err) != http.StatusInternalServerError || !strings.Contains(err.Error(), "no such container") {
			t.Errorf("%s: %d %v, want 500 and no such container", name, goproxy.Status(err), err)
		}
	}
	name, _ := databases.Load(dir)
	a.Database = name.(string)
	if _, err := Open(ctx, a, Options{}); err == nil || !strings.Contains(err.Error(), "athensctl storage init") {
		t.Errorf("open: %v", err)
	}
	a.Database = "other"
	if _, err := Open(ctx, a, Options{}); err == nil || !strings.Contains(err.Error(), "athensctl storage init") {
		t.Errorf("open a database that is not there: %v", err)
	}
}

// A token goes to https alone, and to this machine, where tests are.
func TestTokenInClear(t *testing.T) {
	for endpoint, refused := range map[string]bool{
		"http://account.documents.example.com": true, "http://192.0.2.1:8081": true, "http://127.0.0.1.example.com": true, "http://localhost.example.com:1": true,
		"http://127.0.0.1:1": false, "http://localhost:1": false, "http://[::1]:1": false, "https://account.documents.example.com": false,
	} {
		_, err := Account{Endpoint: endpoint}.client()
		if got := err != nil && strings.Contains(err.Error(), "in clear"); got != refused || err != nil && !got {
			t.Errorf("%s: %v", endpoint, err)
		}
		if _, err := (Account{Endpoint: endpoint, Key: "a2V5"}).client(); err != nil { // stays here
			t.Errorf("%s with a key: %v", endpoint, err)
		}
	}
}
