// Package testupstream is a GOPROXY to test against: an origin whose content,
// faults and counters a test or a benchmark decides. It shares no code with
// package goproxy, so that it is a peer of it and not its mirror.
//
// An [Upstream] serves modules made in memory ([Upstream.Add],
// [Upstream.AddGraph]), the download folder of a real module cache
// ([Upstream.ServeModCache]), and below /sumdb/ a checksum database of its own
// over what it serves, which the go command accepts when GOSUMDB has the value
// of [Upstream.GOSUMDB]. Every request is counted ([Upstream.Requests]) and
// logged ([Upstream.Log]), also one that meets a fault ([Upstream.Fault]).
//
// All methods are safe for concurrent use, while requests are served too. What
// a test adds last wins: a module over an older one of the same version and
// over the module cache, a fault over older faults.
//
// Waiting is on timers and channels alone. Inside a testing/synctest bubble,
// make the Upstream in the bubble and reach it through [Upstream.Dial].
package testupstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/module"
)

// Upstream is an http.Handler, and a server once it listens. Make it with NewUpstream
// or Start.
type Upstream struct {
	sums  *sumDB
	count counter

	latestOff atomic.Bool
	closed    chan struct{}

	mu       sync.Mutex
	modules  map[string]map[string]*memVersion // by path, by version
	lists    map[string][]byte                 // what SetList said
	queries  map[module.Version]string         // path and query → version
	modCache string                            // cache/download folder; "": none
	faults   []*fault                          // newest last
	dir      string                            // of big zips; "": not made yet
	files    int                               // made in dir
	url      string
	server   *http.Server
	pipe     *pipeListener
	isClosed bool
}

var _ http.Handler = (*Upstream)(nil)

// NewUpstream returns an empty upstream that does not listen yet. Its checksum database
// has a name and a key that no other has, so that nothing which a client kept
// from another one gets in the way.
func NewUpstream() (*Upstream, error) {
	u := &Upstream{
		closed:  make(chan struct{}),
		modules: map[string]map[string]*memVersion{},
		lists:   map[string][]byte{},
		queries: map[module.Version]string{},
	}
	var err error
	u.sums, err = newSumDB(u)
	return u, err
}

// TB is the part of testing.TB that Start needs.
type TB interface {
	Helper()
	Cleanup(func())
	Fatalf(format string, args ...any)
}

// Start returns an upstream with these modules that listens on a free port of
// the loopback interface until the test ends.
func Start(t TB, modules ...Module) *Upstream {
	t.Helper()
	u, err := NewUpstream()
	if err != nil {
		t.Fatalf("testupstream: %v", err)
	}
	t.Cleanup(u.Close)
	if err := u.Add(modules...); err != nil {
		t.Fatalf("testupstream: %v", err)
	}
	if err := u.Listen("127.0.0.1:0"); err != nil {
		t.Fatalf("testupstream: %v", err)
	}
	return u
}

// Listen starts serving on a TCP address. Use it again after Stop, with the
// same address, to bring the upstream back.
func (u *Upstream) Listen(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	return u.Serve(l, u)
}

// Serve starts serving on l, in the background, and owns l from then on. The
// handler is u, or one that hands u what it does not answer itself.
func (u *Upstream) Serve(l net.Listener, h http.Handler) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.isClosed || u.server != nil {
		l.Close()
		return errors.New("testupstream: already serving, or closed")
	}
	u.url = "http://" + l.Addr().String()
	u.server = newServer(h)
	go u.server.Serve(l)
	return nil
}

func newServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: time.Minute,
		ErrorLog:          log.New(io.Discard, "", 0), // faults are meant
	}
}

// Stop closes the TCP listener and cuts every connection to it: the upstream
// is gone. URL and content stay.
func (u *Upstream) Stop() {
	u.mu.Lock()
	s := u.server
	u.server = nil
	u.mu.Unlock()
	if s != nil {
		s.Close()
	}
}

// Close stops serving for good and removes what is on disk.
func (u *Upstream) Close() {
	u.Stop()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.isClosed {
		return
	}
	u.isClosed = true
	close(u.closed)
	if u.pipe != nil {
		u.pipe.server.Close()
	}
	if u.dir != "" {
		os.RemoveAll(u.dir)
	}
}

// URL is the value for GOPROXY; "" before the first Listen.
func (u *Upstream) URL() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.url
}

// GoEnv is the environment for a go command that uses the proxy (this upstream
// when it is empty) and this upstream's checksum database, keeps what it
// downloads below dir, and asks nobody else. Its files can be deleted.
func (u *Upstream) GoEnv(proxy, dir string) []string {
	if proxy == "" {
		proxy = u.URL()
	}
	return append(os.Environ(),
		"GOPROXY="+proxy, "GOSUMDB="+u.GOSUMDB(),
		"GONOPROXY=", "GONOSUMDB=", "GOPRIVATE=", "GOINSECURE=", "GOVCS=*:off",
		"GOPATH="+dir, "GOMODCACHE="+filepath.Join(dir, "pkg", "mod"),
		"GOFLAGS=-modcacherw -buildvcs=false", "GOENV=off", "GOWORK=off", "GO111MODULE=", "GOTOOLCHAIN=local",
	)
}

// tempFile names a file for a big zip; it does not exist yet.
func (u *Upstream) tempFile() (string, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.isClosed {
		return "", errors.New("testupstream: closed")
	}
	if u.dir == "" {
		dir, err := os.MkdirTemp("", "testupstream-")
		if err != nil {
			return "", err
		}
		u.dir = dir
	}
	u.files++
	return filepath.Join(u.dir, fmt.Sprintf("%d.zip", u.files)), nil
}

// Dial connects to the upstream without a network, whatever the address: the
// DialContext of an http.Transport. Stop does not end such connections.
func (u *Upstream) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	u.mu.Lock()
	if u.isClosed {
		u.mu.Unlock()
		return nil, errors.New("testupstream: closed")
	}
	if u.pipe == nil {
		u.pipe = &pipeListener{conns: make(chan net.Conn), done: make(chan struct{}), server: newServer(u)}
		go u.pipe.server.Serve(u.pipe)
	}
	p := u.pipe
	u.mu.Unlock()
	client, server := net.Pipe()
	select {
	case p.conns <- server:
		return client, nil
	case <-p.done:
		return nil, net.ErrClosed
	case <-u.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// pipeListener is a net.Listener for Dial.
type pipeListener struct {
	conns  chan net.Conn
	done   chan struct{}
	once   sync.Once
	server *http.Server
}

func (p *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipeListener) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "testupstream", Net: "pipe"} }
