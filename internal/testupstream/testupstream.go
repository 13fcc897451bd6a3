// Package testupstream is a GOPROXY upstream to test against: made-up modules,
// counted requests, and faults on demand. It shares no code with athensctl's own
// handler and client.
package testupstream

import (
	"archive/zip"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/module"
)

// Server is the upstream. Its fields are set before use; its methods are safe
// for concurrent use.
type Server struct {
	URL string
	// Delay is how long each answer waits.
	Delay time.Duration

	mu       sync.Mutex
	modules  map[string][]module.Version // by path
	mods     map[module.Version]string
	zips     map[module.Version][]byte
	requests map[string]int
	fault    http.HandlerFunc
}

// New starts an upstream that ends with the test.
func New(t testing.TB) *Server {
	s := &Server{modules: map[string][]module.Version{}, mods: map[module.Version]string{}, zips: map[module.Version][]byte{}, requests: map[string]int{}}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	s.URL = srv.URL
	return s
}

// Add makes a version: its go.mod needs the given modules, its zip has about
// size bytes that cannot be compressed.
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

// AddFiles makes a version with any .mod and any files in its zip.
func (s *Server) AddFiles(m module.Version, mod string, files [][2]string) {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, f := range files {
		name := f[0]
		if !strings.HasPrefix(name, "/") {
			name = m.String() + "/" + name
		}
		w, err := z.CreateHeader(&zip.FileHeader{Name: strings.TrimPrefix(name, "/"), Method: zip.Store})
		if err != nil {
			panic(err)
		}
		io.WriteString(w, f[1])
	}
	if err := z.Close(); err != nil {
		panic(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.modules[m.Path] = append(s.modules[m.Path], m)
	s.mods[m], s.zips[m] = mod, b.Bytes()
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
	s.mu.Lock()
	defer s.mu.Unlock()
	escaped, rest, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/@")
	path, err := module.UnescapePath(escaped)
	versions := s.modules[path]
	if !ok || err != nil || versions == nil {
		http.Error(w, "not found: "+r.URL.Path, http.StatusNotFound)
		return
	}
	info := func(v string) { fmt.Fprintf(w, `{"Version":%q,"Time":"2026-01-02T03:04:05Z"}`, v) }
	if rest == "latest" {
		info(versions[len(versions)-1].Version)
		return
	}
	rest = strings.TrimPrefix(rest, "v/")
	if rest == "list" {
		for _, m := range versions {
			fmt.Fprintln(w, m.Version)
		}
		return
	}
	dot := strings.LastIndexByte(rest, '.')
	version, _ := module.UnescapeVersion(rest[:max(dot, 0)])
	if version == "main" && strings.HasSuffix(rest, ".info") {
		info(versions[0].Version)
		return
	}
	m := module.Version{Path: path, Version: version}
	mod, ok := s.mods[m]
	switch {
	case !ok:
		http.Error(w, "not found: "+m.String(), http.StatusNotFound)
	case rest[dot:] == ".info":
		info(version)
	case rest[dot:] == ".mod":
		io.WriteString(w, mod)
	case rest[dot:] == ".zip":
		content := s.zips[m]
		w.Header().Set("Content-Type", "application/zip")
		s.mu.Unlock()
		w.Write(content)
		s.mu.Lock()
	default:
		http.NotFound(w, r)
	}
}

// Gone is a fault: the connection is cut without an answer.
func (s *Server) Gone(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
