package testupstream

import (
	"archive/zip"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/module"
)

// Server is the short form of an [Upstream], for tests that make modules in a line and
// count requests by the end of their URL's path. The protocol is the Upstream's. Its fields are set
// before use; its methods are safe for concurrent use.
type Server struct {
	URL string
	// Delay is how long each answer waits.
	Delay time.Duration

	t        testing.TB
	u        *Upstream
	mu       sync.Mutex
	requests map[string]int
	fault    http.HandlerFunc
}

// New starts a server that ends with the test.
func New(t testing.TB) *Server {
	t.Helper()
	s := &Server{t: t, requests: map[string]int{}}
	u, err := NewUpstream()
	if err != nil {
		t.Fatalf("testupstream: %v", err)
	}
	t.Cleanup(u.Close)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err == nil {
		err = u.Serve(l, s)
	}
	if err != nil {
		t.Fatalf("testupstream: %v", err)
	}
	s.u, s.URL = u, u.URL()
	return s
}

// Add makes a version: its go.mod needs the given modules, its zip has about
// size bytes that cannot be compressed. The branch main is the first of its module.
func (s *Server) Add(path, version string, size int, needs ...module.Version) module.Version {
	m := module.Version{Path: path, Version: version}
	mod := "module " + path + "\n\ngo 1.21\n"
	for _, n := range needs {
		mod += "\nrequire " + n.Path + " " + n.Version + "\n"
	}
	noise := make([]byte, size)
	rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32.32s", path+version)))).Read(noise)
	s.AddFiles(m, mod, [][2]string{{"go.mod", mod}, {"p.go", "package p\n"}, {"noise.bin", string(noise)}})
	return m
}

// AddFiles makes a version with any .mod and any files in its zip, of any name; one that
// begins with a slash is not put below the version's prefix.
func (s *Server) AddFiles(m module.Version, mod string, files [][2]string) {
	s.t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, f := range files {
		name := f[0]
		if !strings.HasPrefix(name, "/") {
			name = m.String() + "/" + name
		}
		w, err := z.CreateHeader(&zip.FileHeader{Name: strings.TrimPrefix(name, "/"), Method: zip.Store})
		if err != nil {
			s.t.Fatal(err)
		}
		io.WriteString(w, f[1])
	}
	if err := z.Close(); err != nil {
		s.t.Fatal(err)
	}
	s.u.mu.Lock()
	first := len(s.u.modules[m.Path]) == 0
	s.u.mu.Unlock()
	if err := s.u.Add(Module{Path: m.Path, Version: m.Version, Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Mod: mod, Zip: b.Bytes()}); err != nil {
		s.t.Fatal(err)
	}
	if first {
		s.u.SetQuery(m.Path, "main", m.Version)
	}
}

// SetFault answers every request with f; nil ends that.
func (s *Server) SetFault(f http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// Requests counts the requests whose path ends so.
func (s *Server) Requests(suffix string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for path, count := range s.requests {
		if strings.HasSuffix(path, suffix) {
			n += count
		}
	}
	return n
}

// MostAsked is the path that was asked most often, of those that end so.
func (s *Server) MostAsked(suffix string) (path string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, count := range s.requests {
		if strings.HasSuffix(p, suffix) && count > n {
			path, n = p, count
		}
	}
	return path, n
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests[r.URL.Path]++
	fault := s.fault
	s.mu.Unlock()
	time.Sleep(s.Delay)
	if fault != nil {
		fault(w, r)
		return
	}
	s.u.ServeHTTP(w, r)
}

// Gone is a fault: the connection is cut without an answer.
func (s *Server) Gone(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
