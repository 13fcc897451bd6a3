package crawler

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/fleet"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/memory"
)

// zipOf is a module zip that is not compressed: the race detector takes long over a
// compressor's memory.
func zipOf(m module.Version) []byte {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.CreateHeader(&zip.FileHeader{Name: m.String() + "/go.mod", Method: zip.Store})
	if err == nil {
		_, err = w.Write(modOf(m.Path))
	}
	if err := errors.Join(err, z.Close()); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func modOf(path string) []byte { return []byte("module " + path + "\n") }

func infoOf(version string) []byte {
	return fmt.Appendf(nil, `{"Version":%q,"Time":"2026-01-02T03:04:05Z"}`, version)
}

// upstream has every version that it is told of, and counts what it is asked.
type upstream struct {
	mu    sync.Mutex
	lists map[string][]string
	asked map[string]int
	fail  func(what string) error
}

func newUpstream() *upstream {
	return &upstream{lists: map[string][]string{}, asked: map[string]int{}}
}

func (u *upstream) add(path string, versions ...string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.lists[path] = append(u.lists[path], versions...)
}

func (u *upstream) ask(what, path, version string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.asked[what]++
	if u.fail != nil {
		if err := u.fail(what); err != nil {
			return err
		}
	}
	if list, ok := u.lists[path]; !ok || version != "" && !slices.Contains(list, version) {
		return goproxy.NotFound("%s", what)
	}
	return nil
}

func (u *upstream) count(what string) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.asked[what]
}

func (u *upstream) List(_ context.Context, path string) (*goproxy.VersionList, error) {
	if err := u.ask(path+" list", path, ""); err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return goproxy.NewVersionList(path, u.lists[path], time.Now()), nil
}

func (u *upstream) Resolve(_ context.Context, path, query string) (*goproxy.Info, error) {
	if query == goproxy.Latest {
		u.mu.Lock()
		list := u.lists[path]
		u.mu.Unlock()
		if len(list) == 0 {
			return nil, goproxy.NotFound("%s", path)
		}
		query = list[len(list)-1]
	}
	if err := u.ask(path+"@"+query+".info", path, query); err != nil {
		return nil, err
	}
	return goproxy.ParseInfo(path, query, infoOf(query))
}

func (u *upstream) Mod(_ context.Context, m module.Version) (*goproxy.Blob, error) {
	if err := u.ask(m.String()+".mod", m.Path, m.Version); err != nil {
		return nil, err
	}
	return goproxy.NewBlob(modOf(m.Path), time.Time{}), nil
}

func (u *upstream) Zip(_ context.Context, m module.Version) (*goproxy.Blob, error) {
	if err := u.ask(m.String()+".zip", m.Path, m.Version); err != nil {
		return nil, err
	}
	return goproxy.NewBlob(zipOf(m), time.Time{}), nil
}

// start runs a crawler over a store until the test ends, or stop is called.
func start(t *testing.T, s *memory.Store, u goproxy.Source, name string, a Ahead) (c *Crawler, stop func()) {
	t.Helper()
	if a.Parallel == 0 {
		a.Parallel = 4
	}
	c = New(s, s, Options{
		Name: name, Origins: []Origin{{Name: "test", Source: u}}, TempDir: t.TempDir(), Freshness: time.Minute, Workers: 8, ZipWorkers: 8,
		InflightBytes: 1 << 30, Lease: 15 * time.Second, Attempts: 2, Ahead: a, ModuleOf: bare, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { c.Run(ctx); close(done) }()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return c, stop
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 2 minutes", what)
		}
	}
}

func complete(t *testing.T, s *memory.Store) map[string]int {
	t.Helper()
	all := map[string]int{}
	for token := ""; ; {
		p, err := s.Catalog(context.Background(), token, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range p.Versions {
			all[m.String()]++
		}
		if token = p.Next; token == "" {
			return all
		}
	}
}

func TestPolicy(t *testing.T) {
	versions := []string{"v0.1.0", "v1.0.0", "v1.0.1", "v1.1.0-rc.1", "v1.1.0", "v2.0.0-rc.1"}
	for policy, want := range map[Policy]string{
		"1": "v1.1.0", "2": "v1.0.1 v1.1.0", "0": "", "99": "v0.1.0 v1.0.0 v1.0.1 v1.1.0",
		"minor": "v0.1.0 v1.0.1 v1.1.0", "all": strings.Join(versions, " "),
	} {
		if got := strings.Join(policy.Choose(versions), " "); got != want {
			t.Errorf("%s: %s, want %s", policy, got, want)
		}
	}
	if got := Policy("1").Choose([]string{"v1.0.0-a", "v1.0.0-b"}); !slices.Equal(got, []string{"v1.0.0-b"}) {
		t.Errorf("pre-releases alone: %v", got)
	}
	if got := Policy("minor").Choose(nil); len(got) != 0 {
		t.Errorf("no versions: %v", got)
	}
}

// What can't be asked for is wanted of no feed, however it is called.
func TestWanted(t *testing.T) {
	s := memory.New(0, nil)
	c := New(s, s, options(source{}))
	paths, versions := c.wanted([]module.Version{
		{Path: "example.com/a", Version: "v1.0.0"}, {Path: "example.com/" + strings.Repeat("x", 60_000), Version: "v1.0.0"},
		{Path: "example.com/" + strings.Repeat("x/", 600) + "x", Version: "v1.0.0"}, {Path: "example.com/a", Version: "v1.0.0-" + strings.Repeat("x", 300)},
		{Path: "no host", Version: "v1.0.0"}, {}, {Path: "example.com/a/../b", Version: "v1.0.0"}, {Path: "example.com/A", Version: "v2.0.0+incompatible"},
	})
	if !slices.Equal(paths, []string{"example.com/A", "example.com/a"}) || len(versions["example.com/a"]) != 1 {
		t.Errorf("%.300q, %.300q", paths, versions)
	}
}

// A feed that goes back in time, or has more at one time than a page takes, is not
// followed blindly.
func TestFollowOdd(t *testing.T) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for want, entries := range map[string][]storage.IndexEntry{
		"not in the order of time": {{Path: "example.com/a", Version: "v1.0.0", Timestamp: at.Add(time.Second)}, {Path: "example.com/b", Version: "v1.0.0", Timestamp: at}},
		"can't be followed":        slices.Repeat([]storage.IndexEntry{{Path: "example.com/a", Version: "v1.0.0", Timestamp: at}}, feedPage),
	} {
		u := newUpstream()
		u.add("example.com/a", "v1.0.0")
		c, _ := start(t, memory.New(0, nil), u, "c", Ahead{})
		feed := Feed{Name: "odd", Index: func(context.Context, time.Time, int) ([]storage.IndexEntry, error) { return entries, nil }}
		if err := c.follow(context.Background(), feed); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// A catalog is walked to its end, what is missing is fetched by the policy, and what
// is kept is not asked for; a walk that was cut goes on where it was.
func TestWalk(t *testing.T) {
	u := newUpstream()
	var all []module.Version
	for i := range 2500 {
		path := fmt.Sprintf("example.com/m%04d", i)
		u.add(path, "v1.0.0", "v1.1.0", "v1.2.0-rc.1")
		all = append(all, module.Version{Path: path, Version: "v1.0.0"})
	}
	all = append(all, module.Version{Path: "example.com/gone", Version: "v1.0.0"}) // upstream has it no more
	var mu sync.Mutex
	pages := map[string]int{}
	catalog := Catalog{Name: "other", Page: func(_ context.Context, after string, limit int) (storage.Page, error) {
		mu.Lock()
		pages[after]++
		mu.Unlock()
		from := 0
		fmt.Sscan(after, &from)
		to := min(len(all), from+limit)
		p := storage.Page{Versions: all[from:to]}
		if to < len(all) {
			p.Next = fmt.Sprint(to)
		}
		return p, nil
	}}
	s := memory.New(0, nil)
	v := module.Version{Path: "example.com/m0007", Version: "v1.1.0"}
	if err := s.Put(context.Background(), v, storage.Files{Info: infoOf(v.Version), Mod: modOf(v.Path), Zip: bytes.NewReader(zipOf(v))}); err != nil {
		t.Fatal(err)
	}
	a := Ahead{Catalogs: []Catalog{catalog}, Every: time.Hour, Versions: "1", Parallel: 16}
	_, stop := start(t, s, u, "first", a)
	eventually(t, "the second page", func() bool { return u.count("example.com/m1200@v1.1.0.zip") > 0 })
	stop()
	start(t, s, u, "second", a)
	defer func() {
		have := complete(t, s)
		for _, m := range all[:2500] {
			if what := m.Path + "@v1.1.0"; t.Failed() && have[what] == 0 {
				jobs, _ := s.Jobs(context.Background(), 10)
				_, err := s.Resolve(context.Background(), m.Path, "v1.1.0")
				t.Logf("%s is missing: .zip asked for %d times, .info %d, list %d times; .info: %v; jobs %+v", what, u.count(what+".zip"), u.count(what+".info"), u.count(m.Path+" list"), err, jobs)
			}
		}
	}()
	eventually(t, "the walk", func() bool { time.Sleep(100 * time.Millisecond); return len(complete(t, s)) == 2500 })
	eventually(t, "the end", func() bool { return u.count("example.com/gone list") == 1 })
	for _, m := range all[:2500] {
		if n := u.count(m.Path + "@v1.1.0.zip"); n != 1 && m.Path != "example.com/m0007" && n > 2 {
			t.Errorf("%s: fetched %d times", m.Path, n)
		}
		if u.count(m.Path+"@v1.0.0.zip")+u.count(m.Path+"@v1.2.0-rc.1.zip") > 0 {
			t.Errorf("%s: fetched what the policy leaves out", m.Path)
		}
	}
	if u.count("example.com/m0007@v1.1.0.zip") != 0 {
		t.Error("a version that is kept was fetched")
	}
	mu.Lock()
	defer mu.Unlock()
	if pages[""] != 1 || pages["2000"] == 0 {
		t.Errorf("pages asked for: %v", pages)
	}
}

// A walk whose place the catalog does not know any more begins again, instead of never
// getting further.
func TestWalkOfATokenThatIsNone(t *testing.T) {
	var asked []string
	catalog := Catalog{Name: "other", Page: func(_ context.Context, after string, _ int) (storage.Page, error) {
		if asked = append(asked, after); after != "" {
			return storage.Page{}, goproxy.Errorf(http.StatusBadRequest, "bad request: %q is not a catalog token", after)
		}
		return storage.Page{}, nil
	}}
	s := memory.New(0, nil)
	c := New(s, s, Options{Name: "c", Ahead: Ahead{Catalogs: []Catalog{catalog}, Every: time.Hour}, Log: slog.New(slog.DiscardHandler)})
	before := &cursor[catalogPlace]{ledger: s, key: stateKey("catalog", catalog.Name), holder: "before"}
	began := time.Now().Add(-time.Minute).UTC()
	if err := before.hold(t.Context(), func(ctx context.Context) error {
		return before.move(ctx, catalogPlace{Token: "old", Started: began})
	}); err != nil {
		t.Fatal(err)
	}
	if err := c.walk(t.Context(), catalog); goproxy.Status(err) != http.StatusBadRequest {
		t.Errorf("the first look: %v", err)
	}
	if err := c.walk(t.Context(), catalog); err != nil || !slices.Equal(asked, []string{"old", ""}) {
		t.Errorf("the second: %v; asked for %q", err, asked)
	}
	if err := before.hold(t.Context(), func(context.Context) error {
		if !before.at.Ended.Equal(began) {
			t.Errorf("the walk is at %+v", before.at)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// One crawler at a time holds a cursor; one that has lost it stops.
func TestCursor(t *testing.T) {
	s := memory.New(0, nil)
	a := &cursor[int]{ledger: s, key: "k", holder: "a"}
	b := &cursor[int]{ledger: s, key: "k", holder: "b"}
	err := a.hold(t.Context(), func(ctx context.Context) error {
		if err := b.hold(ctx, func(context.Context) error { t.Error("both hold it"); return nil }); !errors.Is(err, errHeld) {
			t.Errorf("b: %v", err)
		}
		return a.move(ctx, 7)
	})
	if err != nil {
		t.Fatal(err)
	}
	err = b.hold(t.Context(), func(ctx context.Context) error {
		if b.at != 7 {
			t.Errorf("at %d", b.at)
		}
		if err := a.move(ctx, 8); !errors.Is(err, errHeld) {
			t.Errorf("a moves what b holds: %v", err)
		}
		return b.move(ctx, 9)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.hold(t.Context(), func(context.Context) error {
		if a.at != 9 {
			t.Errorf("at %d", a.at)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	// A clock that is set back leaves times to come, of nobody, or of who has died.
	for holder, until := range map[string]time.Duration{"": time.Hour, "dead": time.Hour, "lives": holdFor} {
		raw, err := s.Load(t.Context(), "k")
		if err != nil {
			t.Fatal(err)
		}
		next, err := json.Marshal(place[int]{At: 10, Holder: holder, Until: time.Now().Add(until).UTC()})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.CompareAndSwap(t.Context(), "k", raw, next); err != nil {
			t.Fatal(err)
		}
		if err := a.hold(t.Context(), func(context.Context) error { return nil }); errors.Is(err, errHeld) != (holder == "lives") {
			t.Errorf("held by %q for %v: %v", holder, until, err)
		}
	}
}

// A push renews what somebody has asked for, at once, and fetches the new version.
func TestPushed(t *testing.T) {
	u := newUpstream()
	u.add("example.com/r", "v1.0.0")
	u.add("example.com/r/sub/v2", "v2.0.0")
	s := memory.New(0, nil)
	c, _ := start(t, s, u, "c", Ahead{})
	for _, p := range []string{"example.com/r", "example.com/r/sub/v2"} {
		if _, err := c.List(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	u.add("example.com/r", "v1.1.0")
	u.add("example.com/r/sub/v2", "v2.1.0")
	if l, _ := c.List(t.Context(), "example.com/r"); len(l.Versions) != 1 {
		t.Fatalf("the list is not remembered: %v", l.Versions)
	}
	for _, tag := range []string{"v1.1.0", "sub/v2.1.0", "nonsense", "v1.1", "sub/v9.0.0"} {
		if err := c.Pushed(t.Context(), "https://example.com/r", tag, ""); err != nil {
			t.Errorf("%s: %v", tag, err)
		}
	}
	for path, want := range map[string]string{"example.com/r": "v1.1.0", "example.com/r/sub/v2": "v2.1.0"} {
		l, err := c.List(t.Context(), path)
		if err != nil || !slices.Contains(l.Versions, want) {
			t.Errorf("%s: %v, %v", path, l, err)
		}
		eventually(t, "the files of "+path, func() bool { return u.count(path+"@"+want+".zip") == 1 })
	}
	for what, n := range u.asked {
		if strings.Contains(what, "v9") || strings.HasPrefix(what, "example.com/r.git") || strings.HasPrefix(what, "example.com/r/sub ") {
			t.Errorf("%s was asked for, which nobody wanted, %d times", what, n)
		}
	}
}

// Lists that were asked for are looked at again: soon where they change, seldom where
// they do not, never more often than freshness, and not for ever.
func TestRefresher(t *testing.T) {
	r := &refresher{lists: map[string]*watched{}}
	now := time.Now()
	least, most := time.Minute, 48*time.Minute
	r.lists["a"] = &watched{asked: now, next: now, interval: least}
	var gaps []time.Duration
	for range 8 {
		now = r.lists["a"].next
		if got := r.due(now, 100*time.Hour); !slices.Equal(got, []string{"a"}) {
			t.Fatalf("due: %v", got)
		}
		r.looked("a", now, []string{"v1.0.0"}, least, most)
		gaps = append(gaps, r.lists["a"].next.Sub(now))
	}
	if want := []time.Duration{2, 4, 8, 16, 32, 48, 48, 48}; !slices.EqualFunc(gaps, want, func(a, b time.Duration) bool { return a == b*time.Minute }) {
		t.Errorf("a list that does not change: %v", gaps)
	}
	r.looked("a", now, []string{"v1.0.0", "v1.1.0"}, least, most)
	if gap := r.lists["a"].next.Sub(now); gap != least {
		t.Errorf("a list that has changed: %v", gap)
	}
	if got := r.due(now.Add(101*time.Hour), 100*time.Hour); len(got) != 0 || len(r.lists) != 0 {
		t.Errorf("a list that nobody asks for: %v, %v", got, r.lists)
	}
}

// A list that was asked for is kept fresh without another request.
func TestRefreshAhead(t *testing.T) {
	u := newUpstream()
	u.add("example.com/m", "v1.0.0")
	s := memory.New(0, nil)
	c, _ := start(t, s, u, "c", Ahead{Refresh: time.Hour, MaxStale: time.Hour})
	c.o.Freshness = 50 * time.Millisecond
	if _, err := c.List(t.Context(), "example.com/m"); err != nil {
		t.Fatal(err)
	}
	u.add("example.com/m", "v1.1.0")
	eventually(t, "the new version", func() bool {
		k, err := s.Known(t.Context(), storage.Key{Path: "example.com/m", File: storage.FileList})
		return err == nil && len(k.Versions) == 2
	})
}

// What fails too often is parked, says so, and leaves upstream alone.
func TestParked(t *testing.T) {
	u := newUpstream()
	u.add("example.com/m", "v1.0.0")
	u.fail = func(string) error { return goproxy.Errorf(500, "out of order") }
	s := memory.New(0, nil)
	c, _ := start(t, s, u, "c", Ahead{})
	k := storage.Key{Path: "example.com/m", Query: "v1.0.0", File: storage.FileMod}
	parked := func() bool {
		jobs, err := s.Jobs(t.Context(), 10)
		return err == nil && len(jobs) == 1 && jobs[0].Parked && jobs[0].Key == k
	}
	for end := time.Now().Add(20 * time.Second); !parked() && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		c.Mod(t.Context(), module.Version{Path: k.Path, Version: k.Query})
	}
	if !parked() {
		t.Fatal("the job is not parked")
	}
	asked := u.count("example.com/m@v1.0.0.mod")
	for range 20 {
		if _, err := c.Mod(t.Context(), module.Version{Path: k.Path, Version: k.Query}); goproxy.Status(err) != 502 || !strings.Contains(err.Error(), "out of order") || !strings.Contains(err.Error(), "not tried again before") {
			t.Fatalf("%d %v", goproxy.Status(err), err)
		}
	}
	if n := u.count("example.com/m@v1.0.0.mod"); n != asked || asked != 2 {
		t.Errorf("upstream was asked %d times, then %d; want 2", asked, n)
	}
}

// Each host has its bounds: requests at once, a share of them for work ahead of
// demand, a rate, pauses that it asks for, and a circuit that opens and closes.
func TestHosts(t *testing.T) {
	var mu sync.Mutex
	var now, most, asked int
	answer := func(w http.ResponseWriter) {}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		now++
		asked++
		most = max(most, now)
		f := answer
		mu.Unlock()
		time.Sleep(5 * time.Millisecond)
		f(w)
		mu.Lock()
		now--
		mu.Unlock()
	}))
	defer srv.Close()
	set := func(f func(http.ResponseWriter)) { mu.Lock(); answer = f; asked, most = 0, 0; mu.Unlock() }
	load := func(client *http.Client, ctx context.Context, n int) (failed int) {
		var wg sync.WaitGroup
		var bad atomic.Int64
		for range n {
			wg.Go(func() {
				req, _ := http.NewRequestWithContext(ctx, "GET", srv.URL, nil)
				resp, err := client.Do(req)
				if err != nil {
					if !isNotSent(err) || goproxy.Status(err) != 503 {
						t.Errorf("error %v", err)
					}
					bad.Add(1)
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			})
		}
		wg.Wait()
		return int(bad.Load())
	}
	client := func(o HostOptions) *http.Client {
		return &http.Client{Transport: NewHosts(o).Wrap(http.DefaultTransport)}
	}
	ahead := fleet.WithBackground(t.Context())

	if failed := load(client(HostOptions{Connections: 6}), t.Context(), 100); failed != 0 || most != 6 {
		t.Errorf("%d at once, %d failed; want 6 and none", most, failed)
	}
	set(func(http.ResponseWriter) {})
	if failed := load(client(HostOptions{Connections: 6}), ahead, 50); failed != 0 || most != 3 {
		t.Errorf("ahead of demand: %d at once, %d failed; want 3 and none", most, failed)
	}
	began := time.Now()
	if failed := load(client(HostOptions{Connections: 100, Rate: 200}), t.Context(), 150); failed != 0 || time.Since(began) < 740*time.Millisecond {
		t.Errorf("150 requests at 200 a second: %v, %d failed", time.Since(began), failed)
	}
	for name, headers := range map[string]http.Header{
		"429 with Retry-After": {"Status": {"429"}, "Retry-After": {"2"}},
		"a spent rate limit":   {"Status": {"403"}, "X-Ratelimit-Remaining": {"0"}, "X-Ratelimit-Reset": {fmt.Sprint(time.Now().Add(3 * time.Second).Unix())}},
	} {
		set(func(w http.ResponseWriter) {
			for k, v := range headers {
				w.Header()[k] = v
			}
			code := 0
			fmt.Sscan(headers.Get("Status"), &code)
			w.WriteHeader(code)
		})
		c := client(HostOptions{Connections: 1})
		if failed := load(c, t.Context(), 1); failed != 0 {
			t.Errorf("%s: the answer itself was refused", name)
		}
		if failed := load(c, t.Context(), 20); failed != 20 || asked != 1 {
			t.Errorf("%s: %d of 20 were held back, and the host was asked %d times", name, failed, asked)
		}
	}
	set(func(w http.ResponseWriter) { w.WriteHeader(500) })
	if load(client(HostOptions{Connections: 1}), t.Context(), 30); asked != 30 {
		t.Errorf("a host that may fail was asked %d times, want 30", asked)
	}
	set(func(w http.ResponseWriter) { w.WriteHeader(500) })
	c := client(HostOptions{Connections: 1, Failures: 10})
	if load(c, t.Context(), 30); asked != 10 {
		t.Errorf("a host that fails was asked %d times, want 10", asked)
	}
	set(func(http.ResponseWriter) {})
	time.Sleep(1300 * time.Millisecond)
	if failed := load(c, t.Context(), 1); failed != 0 {
		t.Error("the circuit stays open")
	}
	if failed := load(c, t.Context(), 20); failed != 0 {
		t.Errorf("%d of 20 failed although the host is back", failed)
	}
}

// A host that never answers holds up nobody who wants another.
func TestHostsApart(t *testing.T) {
	dead := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer dead.Close()
	alive := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer alive.Close()
	client := &http.Client{Transport: NewHosts(HostOptions{Connections: 4}).Wrap(http.DefaultTransport)}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			req, _ := http.NewRequestWithContext(ctx, "GET", dead.URL, nil)
			client.Do(req)
		})
	}
	for range 20 {
		one, stop := context.WithTimeout(t.Context(), 5*time.Second)
		req, _ := http.NewRequestWithContext(one, "GET", alive.URL, nil)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		stop()
	}
	cancel()
	wg.Wait()
}

// indexOf is a feed of entries that are in the order of time.
func indexOf(entries []storage.IndexEntry) Feed {
	return Feed{Name: "feed", Index: func(_ context.Context, since time.Time, limit int) ([]storage.IndexEntry, error) {
		i, _ := slices.BinarySearchFunc(entries, since, func(e storage.IndexEntry, s time.Time) int { return e.Timestamp.Compare(s) })
		return entries[i:min(len(entries), i+limit)], nil
	}}
}

// watchedLedger counts what is claimed, and fails where it is told to.
type watchedLedger struct {
	*memory.Store
	claims  atomic.Int64
	enqueue func(k storage.Key) error
}

func (l *watchedLedger) Claim(ctx context.Context, worker string, lease time.Duration) (*storage.Job, error) {
	j, err := l.Store.Claim(ctx, worker, lease)
	if j != nil {
		l.claims.Add(1)
	}
	return j, err
}

func (l *watchedLedger) Enqueue(ctx context.Context, j storage.Job) (bool, error) {
	if l.enqueue != nil {
		if err := l.enqueue(j.Key); err != nil {
			return false, err
		}
	}
	return l.Store.Enqueue(ctx, j)
}

// What the queue does not take is not passed over: the page is begun again, until it has
// it. What the queue would never take is.
func TestFollowEnqueueFails(t *testing.T) {
	u := newUpstream()
	var entries []storage.IndexEntry
	fails := 0
	s := &watchedLedger{Store: memory.New(0, nil), enqueue: func(k storage.Key) error {
		switch {
		case k.Path == "example.com/b":
			if fails++; fails <= 2 {
				return goproxy.Errorf(502, "an ingress restarts")
			}
		case k.Path == "example.com/c":
			return goproxy.Errorf(400, "bad request")
		}
		return nil
	}}
	o := options(u)
	o.Ahead = Ahead{Poll: time.Second, Parallel: 1, Since: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)}
	for i, p := range []string{"example.com/a", "example.com/b", "example.com/c", "example.com/d"} {
		u.add(p, "v1.0.0")
		entries = append(entries, storage.IndexEntry{Path: p, Version: "v1.0.0", Timestamp: time.Date(1999, 12, 1, 0, 0, i, 0, time.UTC)})
	}
	o.Ahead.Feeds = []Feed{indexOf(entries)}
	inBubble(t, s, o, func(t *testing.T, c *Crawler) {
		time.Sleep(5 * time.Minute)
		if have := complete(t, s.Store); have["example.com/a@v1.0.0"] != 1 || have["example.com/b@v1.0.0"] != 1 || have["example.com/d@v1.0.0"] != 1 || fails != 3 {
			t.Errorf("kept: %v; b was refused %d times", have, fails-1)
		}
		if n := u.count("example.com/a@v1.0.0.zip"); n != 1 {
			t.Errorf("a was fetched %d times", n)
		}
	})
}

// The outage of a host that a feed is full of costs little, fills no queue, holds up no
// request for another, and is made good when it is over.
func TestFollowOutage(t *testing.T) {
	var back atomic.Bool
	hosts := NewHosts(HostOptions{Connections: 32, Failures: 10})
	client := &http.Client{Transport: hosts.Wrap(answering(func(req *http.Request) (func([]byte) (int, error), error) {
		if req.URL.Host == "dead.example" && !back.Load() {
			return nil, errors.New("connection refused")
		}
		var text io.Reader = strings.NewReader("v1.0.0\n")
		if m, ok := strings.CutSuffix(req.URL.Path, "/@v/v1.0.0.zip"); ok {
			text = bytes.NewReader(zipOf(module.Version{Path: strings.TrimPrefix(m, "/"), Version: "v1.0.0"}))
		} else if strings.HasSuffix(req.URL.Path, ".info") {
			text = bytes.NewReader(infoOf("v1.0.0"))
		}
		return text.Read, nil
	}))}
	at := func(path string) *goproxy.Client {
		host, _, _ := strings.Cut(path, "/")
		return &goproxy.Client{Base: &url.URL{Scheme: "https", Host: host}, HTTP: client}
	}
	o := options(hostSource(at))
	var entries []storage.IndexEntry
	for i := range 1500 {
		entries = append(entries, storage.IndexEntry{Path: fmt.Sprintf("dead.example/m%04d", i), Version: "v1.0.0", Timestamp: time.Date(1999, 12, 31, 0, 0, 0, i, time.UTC)})
	}
	o.Ahead = Ahead{Poll: time.Minute, Parallel: 8, Since: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), Feeds: []Feed{indexOf(entries)}}
	s := &watchedLedger{Store: memory.New(1000, nil)} // full in two minutes, were there no end to it
	inBubble(t, s, o, func(t *testing.T, c *Crawler) {
		time.Sleep(10 * time.Minute)
		q, err := s.Queue(t.Context())
		if err != nil || q.Jobs > 200 {
			t.Errorf("after 10 minutes: %+v, %v", q, err)
		}
		before := s.claims.Load()
		time.Sleep(time.Minute)
		if n := s.claims.Load() - before; n > 100 {
			t.Errorf("%d jobs were claimed in a minute, with %d in the queue", n, q.Jobs)
		}
		promptly(t, "a list of another host", func() error { _, err := c.List(t.Context(), "fast.example/m"); return err })
		back.Store(true)
		time.Sleep(time.Hour)
		if have := complete(t, s.Store); len(have) != 1500 {
			q, _ := s.Queue(t.Context())
			t.Errorf("an hour after the outage %d of 1500 versions are kept; %+v", len(have), q)
		}
	})
}

// hostSource asks the host that the path names.
type hostSource func(path string) *goproxy.Client

func (h hostSource) List(ctx context.Context, path string) (*goproxy.VersionList, error) {
	return h(path).List(ctx, path)
}

func (h hostSource) Resolve(ctx context.Context, path, query string) (*goproxy.Info, error) {
	return h(path).Resolve(ctx, path, query)
}

func (h hostSource) Mod(ctx context.Context, m module.Version) (*goproxy.Blob, error) {
	return h(m.Path).Mod(ctx, m)
}

func (h hostSource) Zip(ctx context.Context, m module.Version) (*goproxy.Blob, error) {
	return h(m.Path).Zip(ctx, m)
}

// lateLedger does what it is asked, and then fails: its answer was lost.
type lateLedger struct {
	*memory.Store
	lost int // of so many answers
}

func (l *lateLedger) CompareAndSwap(ctx context.Context, key string, old, new []byte) error {
	err := l.Store.CompareAndSwap(ctx, key, old, new)
	if err == nil && l.lost > 0 {
		l.lost--
		return goproxy.Errorf(504, "storage does not answer")
	}
	return err
}

// A write of a cursor that was made though its answer was lost is its holder's own.
func TestCursorAnswerLost(t *testing.T) {
	s := &lateLedger{Store: memory.New(0, nil)}
	cu := &cursor[int]{ledger: s, key: "k", holder: "a"}
	err := cu.hold(t.Context(), func(ctx context.Context) error {
		for i := 1; i <= 3; i++ {
			s.lost = i - 1
			for range i - 1 {
				if err := cu.move(ctx, i); goproxy.Status(err) != 504 {
					t.Errorf("an answer is lost: %v", err)
				}
			}
			if err := cu.move(ctx, i); err != nil {
				t.Errorf("after %d lost answers: %v", i-1, err)
			}
		}
		// Another's is not.
		raw, err := s.Load(ctx, "k")
		if err != nil || !bytes.Contains(raw, []byte(`"At":3`)) {
			t.Errorf("%s, %v", raw, err)
		}
		if err := s.CompareAndSwap(ctx, "k", raw, bytes.Replace(raw, []byte(`"a"`), []byte(`"b"`), 1)); err != nil {
			t.Fatal(err)
		}
		if err := cu.move(ctx, 4); !errors.Is(err, errHeld) {
			t.Errorf("over another's: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// The lists of a host that hangs do not keep those of others from being refreshed.
func TestRefreshHangingHost(t *testing.T) {
	var hangs atomic.Bool
	var mu sync.Mutex
	asked := map[string]int{}
	o := options(source{list: func(ctx context.Context, path string) ([]string, error) {
		host, _, _ := strings.Cut(path, "/")
		mu.Lock()
		asked[host]++
		mu.Unlock()
		if hangs.Load() && host == "slow.example" {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return []string{"v1.0.0"}, nil
	}})
	o.Ahead = Ahead{Refresh: 24 * time.Hour, MaxStale: 10 * time.Minute, Parallel: 8}
	inBubble(t, memory.New(0, nil), o, func(t *testing.T, c *Crawler) {
		for i := range 50 {
			for _, host := range []string{"slow.example", "fast.example"} {
				if _, err := c.List(t.Context(), fmt.Sprintf("%s/m%d", host, i)); err != nil {
					t.Fatal(err)
				}
			}
		}
		hangs.Store(true)
		time.Sleep(time.Hour)
		synctest.Wait()
		mu.Lock()
		fast := asked["fast.example"]
		mu.Unlock()
		// First after 1 minute, then 2 and 4, then every 8.
		if fast < 50*7 || fast > 50*12 {
			t.Errorf("50 lists were asked for %d times in an hour", fast)
		}
		hangs.Store(false)
		time.Sleep(time.Hour)
		for i := range 50 {
			known, err := c.ledger.Known(t.Context(), storage.Key{Path: fmt.Sprintf("slow.example/m%d", i), File: storage.FileList})
			if err != nil || time.Since(known.Checked) > 15*time.Minute {
				t.Errorf("an hour after the host is back: %+v, %v", known, err)
			}
		}
	})
}
