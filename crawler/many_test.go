package crawler

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/memory"
)

// versionsOfMany is how many versions the tests below are about: 50,000, and a tenth of
// it where the race detector watches. make test runs them both ways.
func versionsOfMany() int {
	if underRace || testing.Short() {
		return 5_000
	}
	return 50_000
}

// fakeHost is an upstream proxy with an index and a catalog, and a log of what it was
// asked: who asked, when, and what for. Its time is the bubble's.
type fakeHost struct {
	entries []storage.IndexEntry
	byPath  map[string][]string

	mu       sync.Mutex
	log      []request
	now      map[string]int // requests being answered, by who asks
	most     map[string]int
	served   map[string]int // by path, answers with 200
	pauseAt  int            // the request that is answered with 429; 0: none
	pausedAt []request
}

type request struct {
	at   time.Time
	who  string
	path string
}

const (
	hostPause  = 40 * time.Second // that the 429 asks for
	hostTakes  = 10 * time.Millisecond
	hostRate   = 400
	hostAtOnce = 16
	manyWork   = 8 // workers of a crawler
)

func newFakeHost(n int) *fakeHost {
	h := &fakeHost{byPath: map[string][]string{}, now: map[string]int{}, most: map[string]int{}, served: map[string]int{}}
	at := time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range n {
		path, version := fmt.Sprintf("example.com/m%d", i%(n/10)), fmt.Sprintf("v1.%d.0", i/(n/10))
		if i%7 == 0 { // six in seven share a time with the one before
			at = at.Add(time.Millisecond)
		}
		h.byPath[path] = append(h.byPath[path], version)
		h.entries = append(h.entries, storage.IndexEntry{Path: path, Version: version, Timestamp: at})
	}
	return h
}

// client is a crawler's way to the host, within the bounds of a host.
func (h *fakeHost) client(who string) *http.Client {
	return &http.Client{Transport: NewHosts(HostOptions{Connections: hostAtOnce, Rate: hostRate, Failures: 10}).Wrap(roundTripper(func(req *http.Request) (*http.Response, error) {
		return h.answer(who, req)
	}))}
}

func (h *fakeHost) answer(who string, req *http.Request) (*http.Response, error) {
	r := request{time.Now(), who, req.URL.RequestURI()}
	h.mu.Lock()
	h.log = append(h.log, r)
	h.now[who]++
	h.most[who] = max(h.most[who], h.now[who])
	paused := len(h.log) == h.pauseAt
	if paused {
		h.pausedAt = append(h.pausedAt, r)
	}
	h.mu.Unlock()
	ended := sleep(req.Context(), hostTakes)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now[who]--
	resp := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Request: req, ContentLength: -1}
	if !ended {
		return nil, req.Context().Err()
	}
	body := h.content(req.URL)
	switch {
	case paused:
		resp.StatusCode, body = http.StatusTooManyRequests, []byte("slowly")
		resp.Header.Set("Retry-After", strconv.Itoa(int(hostPause/time.Second)))
	case body == nil:
		resp.StatusCode, body = http.StatusNotFound, []byte("not found")
	default:
		h.served[r.path]++
	}
	resp.Status = http.StatusText(resp.StatusCode)
	resp.ContentLength = int64(len(body))
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

// content is what the host has at a URL; nil: nothing.
func (h *fakeHost) content(u *url.URL) []byte {
	q := u.Query()
	limit, _ := strconv.Atoi(q.Get("limit") + q.Get("pagesize"))
	var b bytes.Buffer
	switch u.Path {
	case "/index":
		since, _ := time.Parse(time.RFC3339Nano, q.Get("since"))
		i, _ := slices.BinarySearchFunc(h.entries, since, func(e storage.IndexEntry, s time.Time) int { return e.Timestamp.Compare(s) })
		enc := json.NewEncoder(&b)
		for _, e := range h.entries[i:min(len(h.entries), i+limit)] {
			enc.Encode(e)
		}
		return append(b.Bytes(), '\n')[:b.Len()]
	case "/catalog":
		from, _ := strconv.Atoi(q.Get("token"))
		to := min(len(h.entries), from+limit)
		var answer struct {
			Modules []map[string]string `json:"modules"`
			Next    string              `json:"next,omitempty"`
		}
		for _, e := range h.entries[from:to] {
			answer.Modules = append(answer.Modules, map[string]string{"module": e.Path, "version": e.Version})
		}
		if to < len(h.entries) {
			answer.Next = strconv.Itoa(to)
		}
		json.NewEncoder(&b).Encode(answer)
		return b.Bytes()
	}
	path, file, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/@v/")
	versions := h.byPath[path]
	if file == "list" {
		return []byte(strings.Join(versions, "\n") + "\n")
	}
	dot := strings.LastIndexByte(file, '.')
	if dot < 0 || !slices.Contains(versions, file[:dot]) {
		return nil
	}
	m := module.Version{Path: path, Version: file[:dot]}
	switch file[dot:] {
	case ".info":
		return infoOf(m.Version)
	case ".mod":
		return modOf(m.Path)
	case ".zip":
		return zipOf(m)
	}
	return nil
}

// mortal is a store and a ledger as a process has them that dies: from then on nothing
// that it says arrives.
type mortal struct {
	storage.Store
	storage.Ledger
	dead atomic.Bool
}

var errDead = errors.New("the process is dead")

func alive[T any](m *mortal, f func() (T, error)) (T, error) {
	if m.dead.Load() {
		var none T
		return none, errDead
	}
	return f()
}

func alone(m *mortal, f func() error) error {
	_, err := alive(m, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

func (m *mortal) Put(ctx context.Context, v module.Version, f storage.Files) error {
	return alone(m, func() error { return m.Store.Put(ctx, v, f) })
}
func (m *mortal) SetKnown(ctx context.Context, k storage.Key, a *storage.Known) error {
	return alone(m, func() error { return m.Ledger.SetKnown(ctx, k, a) })
}
func (m *mortal) Enqueue(ctx context.Context, j storage.Job) (bool, error) {
	return alive(m, func() (bool, error) { return m.Ledger.Enqueue(ctx, j) })
}
func (m *mortal) Start(ctx context.Context, j storage.Job, w string, d time.Duration) (*storage.Job, error) {
	return alive(m, func() (*storage.Job, error) { return m.Ledger.Start(ctx, j, w, d) })
}
func (m *mortal) Claim(ctx context.Context, w string, d time.Duration) (*storage.Job, error) {
	return alive(m, func() (*storage.Job, error) { return m.Ledger.Claim(ctx, w, d) })
}
func (m *mortal) Extend(ctx context.Context, j *storage.Job, d time.Duration) error {
	return alone(m, func() error { return m.Ledger.Extend(ctx, j, d) })
}
func (m *mortal) Done(ctx context.Context, j *storage.Job, cause error) error {
	return alone(m, func() error { return m.Ledger.Done(ctx, j, cause) })
}
func (m *mortal) Retry(ctx context.Context, j *storage.Job, d time.Duration, cause error) error {
	return alone(m, func() error { return m.Ledger.Retry(ctx, j, d, cause) })
}
func (m *mortal) CompareAndSwap(ctx context.Context, key string, old, new []byte) error {
	return alone(m, func() error { return m.Ledger.CompareAndSwap(ctx, key, old, new) })
}

// crawlMany has one crawler bring all versions of the host, kills it in the middle, and
// has two others go on, until all are there. Work says what each is to do.
func crawlMany(t *testing.T, n int, work func(*storage.Client) Ahead) *fakeHost {
	h := newFakeHost(n)
	h.pauseAt = n / 2
	s := memory.New(0, nil)
	base := &url.URL{Scheme: "https", Host: "host.example"}
	run := func(name string) (die func()) {
		client := goproxy.Client{Base: base, HTTP: h.client(name)}
		m := &mortal{Store: s, Ledger: s}
		a := work(&storage.Client{Client: client})
		a.Parallel = 2 * manyWork
		c := New(m, m, Options{
			Name: name, Origins: []Origin{{Name: "host", Source: &client}}, TempDir: t.TempDir(), Freshness: time.Hour, Workers: manyWork, ZipWorkers: manyWork,
			InflightBytes: 1 << 30, Lease: 15 * time.Second, Attempts: 5, Ahead: a, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { c.Run(ctx); close(done) }()
		return func() { m.dead.Store(true); cancel(); <-done }
	}
	kept := func() int { return len(complete(t, s)) }
	began := time.Now()
	until := func(many int) {
		t.Helper()
		for kept() < many {
			if time.Since(began) > 2*time.Hour { // of the bubble's time
				jobs, _ := s.Jobs(t.Context(), 5)
				t.Fatalf("%d of %d versions after 2 hours; jobs %+v", kept(), many, jobs)
			}
			time.Sleep(20*time.Second + 3*time.Millisecond) // workers are in the middle of a request then
		}
	}
	die := run("first")
	until(n / 3)
	die()
	crashed := time.Now()
	stop1, stop2 := run("second"), run("third")
	until(n)
	took := time.Since(began)
	time.Sleep(10 * time.Minute) // some more looks: nothing is fetched again
	stop1()
	stop2()

	for what, times := range complete(t, s) {
		if times != 1 {
			t.Errorf("%s is %d times in the catalog", what, times)
		}
	}
	if got := kept(); got != n {
		t.Errorf("%d versions are kept, want %d", got, n)
	}
	index, err := s.Index(t.Context(), time.Time{}, n+1)
	if err != nil || len(index) != n {
		t.Errorf("the index has %d entries, %v; want %d", len(index), err, n)
	}
	// What the first had in hand when it died is fetched again, and what was refused.
	asked := map[string]int{}
	for _, r := range h.log {
		asked[r.path]++
	}
	twice := 0
	for _, e := range h.entries {
		path := "/" + e.Path + "/@v/" + e.Version + ".zip"
		if len(h.pausedAt) == 1 && h.pausedAt[0].path == path {
			asked[path]--
		}
		switch times := asked[path]; {
		case times == 2:
			twice++
		case times != 1:
			t.Errorf("%s@%s was asked for %d times", e.Path, e.Version, times)
		}
	}
	if twice > manyWork {
		t.Errorf("%d versions were fetched twice, more than the %d workers that died had in hand", twice, manyWork)
	}
	t.Logf("%d versions in %v of the bubble's time, a crash after %v: each kept once, %d fetched twice; %d requests", n, took, crashed.Sub(began), twice, len(h.log))
	h.checkPoliteness(t)
	return h
}

// checkPoliteness reads the host's log: no crawler has asked more often than it may in any
// second, nor more at once than work ahead of demand has, nor during the pause that the
// host asked for.
func (h *fakeHost) checkPoliteness(t *testing.T) {
	t.Helper()
	byWho := map[string][]time.Time{}
	for _, r := range h.log {
		byWho[r.who] = append(byWho[r.who], r.at)
	}
	if len(byWho) != 3 {
		t.Errorf("%d crawlers have asked", len(byWho))
	}
	for who, at := range byWho {
		busiest := 0
		for first, i := 0, 0; i < len(at); i++ {
			for at[i].Sub(at[first]) >= time.Second {
				first++
			}
			busiest = max(busiest, i-first+1)
		}
		if busiest > hostRate+1 { // one at either end of the second
			t.Errorf("%s made %d requests within a second; %d are allowed", who, busiest, hostRate)
		}
		if h.most[who] > hostAtOnce/2 {
			t.Errorf("%s made %d requests at once; %d are allowed ahead of demand", who, h.most[who], hostAtOnce/2)
		}
		t.Logf("%s: %d requests, %d in its busiest second, %d at once", who, len(at), busiest, h.most[who])
	}
	if len(h.pausedAt) != 1 {
		t.Fatalf("the host asked %d times for a pause", len(h.pausedAt))
	}
	p := h.pausedAt[0]
	answered := p.at.Add(hostTakes)
	for _, r := range h.log {
		if r.who == p.who && r.at.After(answered) && r.at.Before(answered.Add(hostPause)) {
			t.Errorf("%s asked for %s %v after it was asked for a pause of %v", r.who, r.path, r.at.Sub(answered), hostPause)
			break
		}
	}
}

// A feed of 50,000 versions is followed, with a crash in the middle: each is fetched and
// kept once, and the host is treated as it wants to be.
func TestManyFollowed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := versionsOfMany()
		h := crawlMany(t, n, func(c *storage.Client) Ahead {
			return Ahead{Feeds: []Feed{{Name: "feed", Index: c.Index}}, Poll: time.Minute}
		})
		for path, times := range h.served {
			if strings.HasSuffix(path, "/list") {
				t.Fatalf("%s was asked for %d times, and nobody wanted it", path, times)
			}
		}
	})
}

// A catalog of 50,000 versions is walked, with a crash in the middle: each is fetched and
// kept once, no list is asked for twice but those in hand, and no page that was done.
func TestManyWalked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := versionsOfMany()
		h := crawlMany(t, n, func(c *storage.Client) Ahead {
			return Ahead{Catalogs: []Catalog{{Name: "catalog", Page: c.Catalog}}, Every: 24 * time.Hour, Versions: "all"}
		})
		pages, again, lists := 0, 0, 0
		for path, times := range h.served {
			switch {
			case strings.HasPrefix(path, "/catalog"):
				pages++
				again += times - 1
			case strings.HasSuffix(path, "/list"):
				lists += times
			}
		}
		if pages != n/catalogPage || again > 1 {
			t.Errorf("%d pages, %d of them again; want %d, and the one that was cut", pages, again, n/catalogPage)
		}
		if modules := len(h.byPath); lists < modules || lists > modules+manyWork {
			t.Errorf("%d lists were fetched of %d modules", lists, modules)
		}
	})
}
