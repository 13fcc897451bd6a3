package main

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// upstream is the origin that every server under test fetches from: a GOPROXY
// over modules made up by the bench, or over the download folder of a real
// module cache. It counts what it is asked, and waits before it answers where
// it is told to.
type upstream struct {
	url string
	srv *http.Server

	mu      sync.Mutex
	modules map[string]*genModule // by path
	corpus  string                // folder; "" for none
	delays  []delayRule
	asked   map[askKey]int
}

// fileKind is what an upstream request is for.
type fileKind string

const (
	kindList   fileKind = "list"
	kindLatest fileKind = "latest"
	kindInfo   fileKind = "info"
	kindMod    fileKind = "mod"
	kindZip    fileKind = "zip"
)

type askKey struct {
	kind fileKind
	path string // of the module
}

// delayRule makes the answers of one kind ("": any), for module paths with a
// prefix, late. A later rule goes before an earlier one.
type delayRule struct {
	kind   fileKind
	prefix string
	delay  time.Duration
}

func startUpstream(addr string) (*upstream, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("--upstream-listen: %w", err)
	}
	u := &upstream{
		url:     "http://" + l.Addr().String(),
		modules: map[string]*genModule{},
		asked:   map[askKey]int{},
	}
	u.srv = &http.Server{Handler: u, ReadHeaderTimeout: 10 * time.Second}
	go u.srv.Serve(l) // ends with Close
	return u, nil
}

func (u *upstream) close() { u.srv.Close() }

// add makes modules known.
func (u *upstream) add(ms ...*genModule) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, m := range ms {
		u.modules[m.path] = m
	}
}

// remove forgets the modules with the prefix, which frees their zips.
func (u *upstream) remove(prefix string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for path := range u.modules {
		if strings.HasPrefix(path, prefix) {
			delete(u.modules, path)
		}
	}
}

func (u *upstream) setCorpus(dir string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.corpus = dir
}

func (u *upstream) delay(kind fileKind, prefix string, d time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.delays = append(u.delays, delayRule{kind, prefix, d})
}

// count is how many requests of a kind have come for module paths with the
// prefix, whatever their answer.
func (u *upstream) count(kind fileKind, prefix string) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := 0
	for k, c := range u.asked {
		if k.kind == kind && strings.HasPrefix(k.path, prefix) {
			n += c
		}
	}
	return n
}

// splitPath takes a request path apart; ok is false when it is none of the
// protocol's. Module paths and versions stay as they are escaped.
func splitPath(p string) (kind fileKind, path, version string, ok bool) {
	p = strings.TrimPrefix(p, "/")
	if path, ok = strings.CutSuffix(p, "/@latest"); ok {
		return kindLatest, path, "", true
	}
	path, file, ok := strings.Cut(p, "/@v/")
	if !ok {
		return "", "", "", false
	}
	if file == "list" {
		return kindList, path, "", true
	}
	ext := filepath.Ext(file)
	switch kind = fileKind(strings.TrimPrefix(ext, ".")); kind {
	case kindInfo, kindMod, kindZip:
		return kind, path, strings.TrimSuffix(file, ext), true
	}
	return "", "", "", false
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind, path, version, ok := splitPath(r.URL.Path)
	if !ok {
		http.NotFound(w, r)
		return
	}
	u.mu.Lock()
	u.asked[askKey{kind, path}]++
	m, corpus := u.modules[path], u.corpus
	var wait time.Duration
	for _, rule := range u.delays {
		if (rule.kind == kind || rule.kind == "") && strings.HasPrefix(path, rule.prefix) {
			wait = rule.delay
		}
	}
	u.mu.Unlock()

	select {
	case <-time.After(wait):
	case <-r.Context().Done():
		return
	}
	w.Header().Set("Content-Type", contentType(kind))
	if m != nil {
		body, ok := m.file(kind, version)
		if !ok {
			http.Error(w, "not found: "+path+"@"+version, http.StatusNotFound)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
		return
	}
	if corpus != "" && serveCorpus(w, r, corpus, kind, path, version) {
		return
	}
	http.Error(w, "not found: "+path, http.StatusNotFound)
}

func contentType(kind fileKind) string {
	switch kind {
	case kindInfo, kindLatest:
		return "application/json"
	case kindZip:
		return "application/zip"
	}
	return "text/plain; charset=utf-8"
}

// serveCorpus answers from a module cache's download folder, which has the
// protocol's own layout. A cache may lack an .info that the protocol needs;
// then its version is answer enough.
func serveCorpus(w http.ResponseWriter, r *http.Request, dir string, kind fileKind, path, version string) bool {
	if kind == kindLatest || !filepath.IsLocal(path) {
		return false
	}
	base := filepath.Join(dir, filepath.FromSlash(path), "@v")
	if kind == kindList {
		return serveFile(w, r, filepath.Join(base, "list"))
	}
	if !filepath.IsLocal(version) {
		return false
	}
	if serveFile(w, r, filepath.Join(base, version+"."+string(kind))) {
		return true
	}
	if kind != kindInfo {
		return false
	}
	if _, err := os.Stat(filepath.Join(base, version+".mod")); err != nil {
		return false
	}
	fmt.Fprintf(w, `{"Version":%q}`, unescape(version))
	return true
}

func serveFile(w http.ResponseWriter, r *http.Request, name string) bool {
	f, err := os.Open(name)
	if err != nil {
		return false
	}
	defer f.Close()
	http.ServeContent(w, r, "", time.Time{}, f)
	return true
}

// unescape turns "!a" back into "A".
func unescape(s string) string {
	var b strings.Builder
	upper := false
	for _, c := range []byte(s) {
		switch {
		case c == '!':
			upper = true
			continue
		case upper:
			c -= 'a' - 'A'
		}
		upper = false
		b.WriteByte(c)
	}
	return b.String()
}
