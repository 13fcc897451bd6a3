package testupstream

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Kind is what a request is for.
type Kind string

// The kinds of requests. Other is what is none of the protocol.
const (
	List   Kind = "list"
	Latest Kind = "latest"
	Info   Kind = "info"
	Mod    Kind = "mod"
	Zip    Kind = "zip"
	SumDB  Kind = "sumdb"
	Other  Kind = "other"
)

// maxLogEntries bounds the log; the oldest half goes when it is full.
const maxLogEntries = 20000

// Request is one request that came in.
type Request struct {
	Method  string
	URL     string // as the client wrote it
	Kind    Kind
	Path    string // module path; for SumDB, of a lookup, else "latest", "supported", "tile/…"
	Version string // or query; "" for a list
	Header  http.Header

	Begin    time.Time
	Duration time.Duration // 0 while it is under way
	Status   int           // 0: not answered
	Bytes    int64         // of the body that were sent
}

// Counts is what was counted since the start or Reset.
type Counts struct {
	Requests      int                `json:"requests"`
	MaxConcurrent int                `json:"maxConcurrent"`
	Bytes         int64              `json:"bytes"` // of bodies sent
	Kinds         map[Kind]KindCount `json:"kinds"`
}

// KindCount counts the requests of one kind.
type KindCount struct {
	Requests      int            `json:"requests"`
	MaxConcurrent int            `json:"maxConcurrent"`
	Bytes         int64          `json:"bytes"`
	Paths         map[string]int `json:"paths"`    // requests by module path
	Versions      map[string]int `json:"versions"` // requests by path@version
}

type counter struct {
	mu          sync.Mutex
	counts      Counts
	inFlight    int
	inFlightOf  map[Kind]int
	log         []*Request
	generation  int
	sinceNotify chan struct{} // closed at the next request; nil: nobody waits
}

// Requests returns how many requests of a kind came in for a module path, or
// for a "path@version". Empty: any kind, any path. A request counts when it
// arrives, whatever becomes of it.
func (u *Upstream) Requests(kind Kind, path string) int {
	c := &u.count
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.requests(kind, path)
}

func (c *counter) requests(kind Kind, path string) int {
	n := 0
	for k, kc := range c.counts.Kinds {
		switch {
		case kind != "" && kind != k:
		case path == "":
			n += kc.Requests
		case strings.Contains(path, "@"):
			n += kc.Versions[path]
		default:
			n += kc.Paths[path]
		}
	}
	return n
}

// Wait returns when at least n such requests came in, or false after the time.
func (u *Upstream) Wait(kind Kind, path string, n int, timeout time.Duration) bool {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	c := &u.count
	for {
		c.mu.Lock()
		if c.requests(kind, path) >= n {
			c.mu.Unlock()
			return true
		}
		if c.sinceNotify == nil {
			c.sinceNotify = make(chan struct{})
		}
		next := c.sinceNotify
		c.mu.Unlock()
		select {
		case <-next:
		case <-timer.C:
			return false
		}
	}
}

// MaxConcurrent returns how many requests of a kind (empty: of any) were under
// way at the same moment, at most.
func (u *Upstream) MaxConcurrent(kind Kind) int {
	u.count.mu.Lock()
	defer u.count.mu.Unlock()
	if kind == "" {
		return u.count.counts.MaxConcurrent
	}
	return u.count.counts.Kinds[kind].MaxConcurrent
}

// Counts returns a copy of all counters.
func (u *Upstream) Counts() Counts {
	u.count.mu.Lock()
	defer u.count.mu.Unlock()
	c := u.count.counts
	c.Kinds = map[Kind]KindCount{}
	for k, kc := range u.count.counts.Kinds {
		kc.Paths, kc.Versions = maps.Clone(kc.Paths), maps.Clone(kc.Versions)
		c.Kinds[k] = kc
	}
	return c
}

// Log returns the requests in the order in which they came: all of them, or the
// last 10,000 and more when there were very many. What a request ended with may
// come a moment after its client has the answer.
func (u *Upstream) Log() []Request {
	u.count.mu.Lock()
	defer u.count.mu.Unlock()
	log := make([]Request, len(u.count.log))
	for i, r := range u.count.log {
		log[i] = *r
	}
	return log
}

// Reset sets all counters to zero and empties the log. Requests under way still
// count as concurrent.
func (u *Upstream) Reset() {
	u.count.mu.Lock()
	defer u.count.mu.Unlock()
	u.count.counts, u.count.log = Counts{}, nil
	u.count.generation++
}

// begin counts a request; end must be called with what it returns.
func (c *counter) begin(r Request) (*Request, int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inFlightOf == nil {
		c.inFlightOf = map[Kind]int{}
	}
	if c.counts.Kinds == nil {
		c.counts.Kinds = map[Kind]KindCount{}
	}
	c.inFlight++
	c.inFlightOf[r.Kind]++
	c.counts.Requests++
	c.counts.MaxConcurrent = max(c.counts.MaxConcurrent, c.inFlight)
	kc := c.counts.Kinds[r.Kind]
	if kc.Paths == nil {
		kc.Paths, kc.Versions = map[string]int{}, map[string]int{}
	}
	kc.Requests++
	kc.MaxConcurrent = max(kc.MaxConcurrent, c.inFlightOf[r.Kind])
	kc.Paths[r.Path]++
	if r.Version != "" {
		kc.Versions[r.Path+"@"+r.Version]++
	}
	c.counts.Kinds[r.Kind] = kc
	if len(c.log) >= maxLogEntries {
		c.log = slices.Clone(c.log[maxLogEntries/2:])
	}
	c.log = append(c.log, &r)
	if c.sinceNotify != nil {
		close(c.sinceNotify)
		c.sinceNotify = nil
	}
	return &r, c.generation
}

func (c *counter) end(r *Request, generation, status int, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.Status, r.Bytes, r.Duration = status, bytes, time.Since(r.Begin)
	c.inFlight--
	c.inFlightOf[r.Kind]--
	if generation != c.generation {
		return
	}
	c.counts.Bytes += bytes
	kc := c.counts.Kinds[r.Kind]
	kc.Bytes += bytes
	c.counts.Kinds[r.Kind] = kc
}
