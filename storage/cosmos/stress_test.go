package cosmos

import (
	"context"
	"errors"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/cosmosfake"
	"github.com/athensctl/athensctl/internal/fleet"
	"github.com/athensctl/athensctl/internal/testazure"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/storagetest"
)

// The region that is written to is lost, and another takes over; then one that is read
// from is out of service: reads and writes go on, and nothing is lost.
func TestFailover(t *testing.T) {
	ctx := context.Background()
	f := &cosmosfake.Server{Key: testazure.CosmosKey}
	account, a, b := httptest.NewServer(f), httptest.NewServer(f), httptest.NewServer(f)
	for _, srv := range []*httptest.Server{account, a, b} {
		t.Cleanup(srv.Close)
	}
	region := func(srv *httptest.Server) string { return "Region " + srv.URL[strings.LastIndexByte(srv.URL, ':')+1:] }
	host := func(srv *httptest.Server) string { return strings.TrimPrefix(srv.URL, "http://") }
	var failed atomic.Bool
	f.Regions = func() (write, read []string) {
		if failed.Load() {
			return []string{b.URL}, []string{b.URL, a.URL}
		}
		return []string{a.URL}, []string{a.URL, b.URL}
	}
	s := open(t, Account{Endpoint: account.URL, Key: testazure.CosmosKey, Regions: []string{region(a), region(b)}}, t.TempDir(), Options{})
	before := storagetest.New("example.com/before", "v1.0.0", "")
	if err := s.Put(ctx, before.Version, before.Files()); err != nil {
		t.Fatal(err)
	}
	f.Calls()
	// A says that it is not written to any more (403, substatus 3), as a region does
	// that has lost that to another; a second later the account says so too.
	lost := time.Now()
	f.SetFault(func(c cosmosfake.Call) *cosmosfake.Fault {
		if c.Op == "read account" && time.Since(lost) > time.Second {
			failed.Store(true)
		}
		if c.Host == host(a) && !strings.HasPrefix(c.Op, "read") && c.Op != "query" {
			return &cosmosfake.Fault{Status: 403, Substatus: 3}
		}
		return nil
	})
	after := storagetest.New("example.com/after", "v1.0.0", "")
	if err := s.Put(ctx, after.Version, after.Files()); err != nil {
		t.Fatalf("a Put while the region is lost: %v", err)
	}
	t.Logf("the Put took %v", time.Since(lost))
	written := false
	for _, c := range f.Calls() {
		written = written || c.Host == host(b) && c.Op == "create item" && c.Status == 201
	}
	if !written {
		t.Error("nothing was written to the region that took over")
	}
	// A is out of service for readers too.
	f.SetFault(func(c cosmosfake.Call) *cosmosfake.Fault {
		if c.Host == host(a) {
			return &cosmosfake.Fault{Status: 503}
		}
		return nil
	})
	for _, v := range []storagetest.Version{before, after} {
		if info, err := s.Resolve(ctx, v.Path, v.Version.Version); err != nil || string(info.Raw) != string(v.Info) {
			t.Errorf("%s: %v, %v", v, info, err)
		}
	}
}

// What is read is asked of the preferred regions, in their order, and what is written of
// the one that takes writes. A preferred region that answers 503 is passed over.
func TestPreferredRegions(t *testing.T) {
	ctx := context.Background()
	f := &cosmosfake.Server{Key: testazure.CosmosKey}
	var url, host [4]string // the account's, and those of the regions
	for i := range url {
		srv := httptest.NewServer(f)
		t.Cleanup(srv.Close)
		url[i], host[i] = srv.URL, strings.TrimPrefix(srv.URL, "http://")
	}
	const writes, second, first = 1, 2, 3
	f.Regions = func() (write, read []string) { return url[writes : writes+1], url[writes:] }
	region := func(i int) string { return "Region " + url[i][strings.LastIndexByte(url[i], ':')+1:] }
	s := open(t, Account{Endpoint: url[0], Key: testazure.CosmosKey, Regions: []string{region(first), region(second)}}, t.TempDir(), Options{})
	put := func(path string) storagetest.Version {
		v := storagetest.New(path, "v1.0.0", "")
		if err := s.Put(ctx, v.Version, v.Files()); err != nil {
			t.Fatal(err)
		}
		return v
	}
	// reads are a look at a version, a list, and a look at small state: two are items, one a query.
	reads := func(v storagetest.Version) {
		if info, err := s.Resolve(ctx, v.Path, v.Version.Version); err != nil || string(info.Raw) != string(v.Info) {
			t.Errorf("%s: %v, %v", v, info, err)
		}
		if list, err := s.List(ctx, v.Path); err != nil || len(list.Versions) != 1 {
			t.Errorf("the list of %s: %v, %v", v.Path, list, err)
		}
		if _, err := s.Load(ctx, "x"); err != nil {
			t.Error(err)
		}
	}
	isRead := func(c cosmosfake.Call) bool { return c.Op == "read item" || c.Op == "query" }
	f.Calls()
	v := put("example.com/before")
	reads(v)
	n := map[string]int{}
	for _, c := range f.Calls() {
		want := host[writes]
		switch {
		case c.Op == "read account":
			continue
		case isRead(c):
			want = host[first]
		}
		if n[c.Op]++; c.Host != want {
			t.Errorf("%s was asked of the region of number %d", c.Op, slices.Index(host[:], c.Host))
		}
	}
	if n["read item"] == 0 || n["query"] == 0 || n["create item"]+n["batch"] == 0 {
		t.Errorf("what was asked: %v", n)
	}

	f.SetFault(func(c cosmosfake.Call) *cosmosfake.Fault {
		if c.Host == host[first] {
			return &cosmosfake.Fault{Status: 503}
		}
		return nil
	})
	reads(v)
	reads(put("example.com/after"))
	clear(n)
	for _, c := range f.Calls() {
		switch {
		case c.Op == "read account" || c.Status == 503:
		case isRead(c) && c.Host == host[second]:
			n["read"]++
		case !isRead(c) && c.Host == host[writes]:
			n["written"]++
		default:
			t.Errorf("with the first region away %s was asked of that of number %d", c.Op, slices.Index(host[:], c.Host))
		}
	}
	if n["read"] < 6 || n["written"] == 0 {
		t.Errorf("with the first region away: %v", n)
	}
}

// Work in the background costs no more units a second than it may; work that somebody
// waits for does not wait for it.
func TestBackgroundUnits(t *testing.T) {
	ctx := context.Background()
	f, a := fake(t)
	const units = 150
	s := open(t, a, t.TempDir(), Options{BackgroundUnits: units})
	f.Calls()
	began := time.Now()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			v := storagetest.New("example.com/m"+string(rune('a'+i)), "v1.0.0", "")
			if err := s.Put(fleet.WithBackground(ctx), v.Version, v.Files()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	spent := 0.0
	for _, c := range f.Calls() {
		spent += c.Units
	}
	// The first second's units may be spent at once, and each operation that goes on
	// when they are may cost more than is left.
	if least := time.Duration((spent - units - 8*60) / units * float64(time.Second)); took < least || spent < 2*units {
		t.Errorf("%.0f units in %v: at %d a second it takes %v at least", spent, took, units, least)
	}
	t.Logf("%.0f units in %v", spent, took)

	key := storage.Key{Path: "example.com/m", File: storage.FileList}
	busy, cancel := context.WithCancel(fleet.WithBackground(ctx))
	defer cancel()
	for range 4 {
		wg.Go(func() {
			for busy.Err() == nil {
				s.SetKnown(busy, key, &storage.Known{Checked: time.Now()})
			}
		})
	}
	for range 20 {
		asked := time.Now()
		if err := s.SetKnown(ctx, key, &storage.Known{Checked: time.Now()}); err != nil || time.Since(asked) > 2*time.Second {
			t.Errorf("somebody waited %v for work in the background: %v", time.Since(asked), err)
		}
	}
	// It says so when it would wait for longer than it may.
	short, stop := context.WithTimeout(fleet.WithBackground(ctx), 5*time.Millisecond)
	defer stop()
	if err := s.SetKnown(short, key, &storage.Known{Checked: time.Now()}); err == nil {
		t.Error("work in the background did not wait")
	}
	cancel()
	wg.Wait()
}

// What the service asks to wait for longer than a request has is 503 with Retry-After,
// at once; so is a deadline that passes after the service has refused. Where it has
// said nothing, and where who asked has left, the error is the context's.
func TestDeadline(t *testing.T) {
	f, a := fake(t)
	s := open(t, a, t.TempDir(), Options{})
	for _, tt := range []struct {
		name     string
		first    cosmosfake.Fault
		then     cosmosfake.Fault
		deadline time.Duration
		cancel   bool
		want     error // nil: 503
		least    time.Duration
	}{
		{name: "429 that asks for too long", first: cosmosfake.Fault{Status: 429, RetryAfter: 50 * time.Second}, deadline: 45 * time.Second, least: 50 * time.Second},
		{name: "503, and then no answer", first: cosmosfake.Fault{Status: 503}, then: cosmosfake.Fault{Delay: time.Minute}, deadline: 4 * time.Second, least: time.Second},
		{name: "no answer", first: cosmosfake.Fault{Delay: time.Minute}, deadline: 300 * time.Millisecond, want: context.DeadlineExceeded},
		{name: "nobody waits", first: cosmosfake.Fault{Status: 429, RetryAfter: 40 * time.Second}, deadline: time.Minute, cancel: true, want: context.Canceled},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), tt.deadline)
		var n atomic.Int64
		f.SetFault(func(cosmosfake.Call) *cosmosfake.Fault {
			if tt.cancel {
				cancel()
			}
			if n.Add(1) == 1 {
				return &tt.first
			}
			return &tt.then
		})
		began := time.Now()
		_, err := s.Load(ctx, "x")
		took := time.Since(began)
		f.SetFault(nil)
		cancel()
		var e *goproxy.Error
		switch {
		case tt.want != nil && !errors.Is(err, tt.want):
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		case tt.want == nil && (goproxy.Status(err) != 503 || !errors.As(err, &e) || e.RetryAfter < tt.least):
			t.Errorf("%s: %d %v, want 503 with Retry-After of %v", tt.name, goproxy.Status(err), err, tt.least)
		}
		if took > 30*time.Second {
			t.Errorf("%s: the answer took %v", tt.name, took)
		}
	}
}

// Where somebody waits, what is done for several at once does not wait for the units of
// work in the background, whoever came first.
func TestBackgroundFirst(t *testing.T) {
	ctx := context.Background()
	behind := fleet.WithBackground(ctx)
	f, a := fake(t)
	dir := t.TempDir()
	s, other := open(t, a, dir, Options{BackgroundUnits: 20}), open(t, a, dir, Options{})
	// From then on work in the background waits for a minute.
	spendAll := func() {
		for range 60 {
			s.background.ReserveN(time.Now(), 20)
		}
	}
	eventually := func(what string, f func() bool) {
		t.Helper()
		for began := time.Now(); !f(); time.Sleep(time.Millisecond) {
			if time.Since(began) > 30*time.Second {
				t.Errorf("%s: not within 30 s", what)
				return
			}
		}
	}
	var wg sync.WaitGroup
	defer wg.Wait()

	// The feed's writer, started by work in the background, finds an entry of a Put.
	first := storagetest.New("example.com/first", "v1.0.0", "")
	if err := s.Put(ctx, first.Version, first.Files()); err != nil { // the page is there
		t.Fatal(err)
	}
	demand := storagetest.New("example.com/demand", "v1.0.0", "")
	took := make(chan time.Duration, 1)
	var once sync.Once
	f.SetFault(func(c cosmosfake.Call) *cosmosfake.Fault {
		if c.Op == "batch" {
			once.Do(func() {
				spendAll()
				wg.Go(func() {
					began := time.Now()
					if err := s.Put(ctx, demand.Version, demand.Files()); err != nil {
						t.Errorf("a Put that somebody waits for: %v", err)
					}
					took <- time.Since(began)
				})
				eventually("the Put's entry", func() bool {
					s.index.mu.Lock()
					defer s.index.mu.Unlock()
					return len(s.index.pending) > 0
				})
			})
		}
		return nil
	})
	if _, err := s.index.append(behind, entry{ID: "behind", Path: "example.com/behind", Version: "v1.0.0"}, 1); err != nil {
		t.Fatal(err)
	}
	if d := <-took; d > 30*time.Second {
		t.Errorf("a Put that somebody waits for took %v", d)
	}
	f.SetFault(nil)

	// A job that is waited for in the background first, and ends at another replica.
	k := storage.Key{Path: "example.com/m", Query: "v1.0.0", File: storage.FileZip}
	job, err := other.Start(ctx, storage.Job{Key: k}, "w", time.Minute)
	if job == nil || err != nil {
		t.Fatalf("start: %v, %v", job, err)
	}
	left, leave := context.WithCancel(behind)
	wg.Go(func() {
		if err := s.Wait(left, k); !errors.Is(err, context.Canceled) {
			t.Errorf("who waits in the background: %v", err)
		}
	})
	looks := func() bool {
		s.queue.mu.Lock()
		defer s.queue.mu.Unlock()
		w := s.queue.waiting[waitKey{k, true}]
		return w != nil && w.looking
	}
	eventually("the look in the background", looks)
	ended := make(chan error, 1)
	var seen atomic.Int64
	f.SetFault(func(c cosmosfake.Call) *cosmosfake.Fault {
		if c.Op == "read item" && strings.HasPrefix(c.PK, "j/") {
			seen.Add(1)
		}
		return nil
	})
	wg.Go(func() { ended <- s.Wait(ctx, k) })
	eventually("two looks of who waits", func() bool { return seen.Load() >= 2 }) // an end after the first is seen
	if err := other.Done(ctx, job, goproxy.NotFound("no such thing")); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if goproxy.Status(err) != 404 {
			t.Errorf("who waits got %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("who waits was not told within 10 s")
	}
	leave()
}
