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
	"github.com/athensctl/athensctl/vcs/git"
	"github.com/athensctl/athensctl/vcs/remote"
)

// Hosts that send a byte now and then hold up nobody who wants another.
func TestSlowHostsHoldUpNobody(t *testing.T) {
	root := t.TempDir()
	host := testgit.New(t, root)
	testgit.Script(t, root, "repo lib; gomod go.mod git.test.example/lib.git; src a.go; commit; tag v1.0.0\n")
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

// One slow host has half of the places at most, however many of its repositories are
// wanted, and holds up nobody else.
func TestSlowHostHasItsShare(t *testing.T) {
	root := t.TempDir()
	quick := testgit.New(t, root)
	testgit.Script(t, root, "repo lib; gomod go.mod git.test.example/lib.git; src a.go; commit; tag v1.0.0\n")
	var mu sync.Mutex
	packs := 0
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch body, _ := io.ReadAll(r.Body); {
		case r.Method == http.MethodGet:
			w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
			io.WriteString(w, packet("version 2\n")+packet("ls-refs\n")+packet("fetch=shallow filter\n")+"0000")
		case len(body) > 18 && string(body[4:19]) == "command=ls-refs":
			io.WriteString(w, packet("1111111111111111111111111111111111111111 refs/tags/v1.0.0\n")+"0000")
		default:
			mu.Lock()
			packs++
			mu.Unlock()
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}
	}))
	defer slow.Close()
	r, err := remote.New(remote.Options{InsteadOf: []string{"https://git.test.example/=" + quick.URL + "/", "https://slow.example/=" + slow.URL + "/"}})
	if err != nil {
		t.Fatal(err)
	}
	s := New(r, Options{TempDir: t.TempDir()})
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			if z, err := s.Zip(ctx, module.Version{Path: fmt.Sprintf("slow.example/m%d.git", i), Version: "v1.0.0"}); err == nil {
				z.Close()
				t.Error("a zip came from a host that never ends")
			}
		})
	}
	asked := func() int { mu.Lock(); defer mu.Unlock(); return packs }
	for end := time.Now().Add(20 * time.Second); asked() < 8; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d packs were asked for", asked())
		}
	}
	one, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	z, err := s.Zip(one, module.Version{Path: "git.test.example/lib.git", Version: "v1.0.0"})
	if err != nil {
		t.Fatalf("beside 40 requests of a slow host: %v", err)
	}
	z.Close()
	if n := asked(); n != 8 {
		t.Errorf("the slow host has %d of 16 places", n)
	}
	cancel()
	wg.Wait()
	slow.CloseClientConnections()
}

// What is remembered of refs is bounded in bytes, and old ones are dropped.
func TestRefsAreForgotten(t *testing.T) {
	now := time.Now()
	s := &Source{refs: map[string]*refs{
		"old": {listed: now.Add(-refsFor), bytes: 1}, "first": {listed: now.Add(-3 * time.Second), bytes: maxRefs / 2},
		"second": {listed: now.Add(-2 * time.Second), bytes: maxRefs / 2}, "last": {listed: now, bytes: 1},
	}}
	s.forgetRefs(now)
	if s.refs["old"] != nil || s.refs["first"] != nil || s.refs["second"] == nil || s.refs["last"] == nil {
		t.Errorf("%v", s.refs)
	}
	s.refs["huge"] = &refs{listed: now.Add(time.Second), bytes: 10 * maxRefs}
	if s.forgetRefs(now); len(s.refs) != 1 || s.refs["huge"] == nil {
		t.Errorf("%v", s.refs)
	}
	// A minute later whoever lists another repository has it dropped.
	root := t.TempDir()
	host := testgit.New(t, root)
	testgit.Script(t, root, "repo lib; gomod go.mod git.test.example/lib.git; commit; tag v1.0.0\n")
	r, err := remote.New(remote.Options{InsteadOf: []string{"https://git.test.example/=" + host.URL + "/"}})
	if err != nil {
		t.Fatal(err)
	}
	live := New(r, Options{TempDir: t.TempDir()})
	defer live.Close()
	live.refs["aged"] = &refs{listed: now.Add(-2 * refsFor), bytes: 1}
	if _, err := live.List(t.Context(), "git.test.example/lib.git"); err != nil {
		t.Fatal(err)
	}
	for key, rs := range live.refs {
		if key == "aged" || rs.bytes < git.RefBytes {
			t.Errorf("%s: %d bytes", key, rs.bytes)
		}
	}
}
