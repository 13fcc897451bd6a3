package vcs

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/internal/testgit"
	"github.com/athensctl/athensctl/vcs/remote"
)

// Hosts that send a byte now and then hold up nobody who wants another.
func TestSlowHostsHoldUpNobody(t *testing.T) {
	root := t.TempDir()
	host := testgit.New(t, root)
	testgit.Script(t, root, "repo lib; gomod go.mod git.test.example/lib.git; src a.go; commit; tag v1.0.0\n")
	packet := func(s string) string { return fmt.Sprintf("%04x%s", len(s)+4, s) }
	var mu sync.Mutex
	dripping := 0
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
			io.WriteString(w, packet("version 2\n")+packet("ls-refs\n")+packet("fetch=shallow filter\n")+"0000")
			return
		}
		if body, _ := io.ReadAll(r.Body); len(body) > 0 && string(body[4:19]) == "command=ls-refs" {
			io.WriteString(w, packet("1111111111111111111111111111111111111111 refs/tags/v1.0.0\n")+"0000")
			return
		}
		io.WriteString(w, packet("packfile\n")+"fff0\x01PACK")
		mu.Lock()
		dripping++
		mu.Unlock()
		for r.Context().Err() == nil {
			io.WriteString(w, "0")
			w.(http.Flusher).Flush()
			time.Sleep(50 * time.Millisecond)
		}
	}))
	defer slow.Close()
	r, err := remote.New(remote.Options{InsteadOf: []string{"https://git.test.example/=" + host.URL + "/", "https://slow.example/=" + slow.URL + "/"}})
	if err != nil {
		t.Fatal(err)
	}
	s := New(r, Options{TempDir: t.TempDir()})
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			z, err := s.Zip(ctx, module.Version{Path: fmt.Sprintf("slow.example/m%d.git", i), Version: "v1.0.0"})
			if err == nil {
				z.Close()
				t.Error("a zip came from a host that never ends")
			}
		})
	}
	all := func() bool { mu.Lock(); defer mu.Unlock(); return dripping == 8 }
	for end := time.Now().Add(20 * time.Second); !all(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			mu.Lock()
			t.Fatalf("%d of 8 slow hosts were asked: the others wait", dripping)
		}
	}
	one, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	z, err := s.Zip(one, module.Version{Path: "git.test.example/lib.git", Version: "v1.0.0"})
	if err != nil {
		t.Fatalf("beside slow hosts: %v", err)
	}
	z.Close()
	cancel()
	wg.Wait()
	slow.CloseClientConnections()
}
