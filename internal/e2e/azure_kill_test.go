//go:build unix

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/testupstream"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/storagetest"
)

// fetches is what crawlers ask of an upstream: each process has a way of its own to it, so that it is
// known who asked. A file is fetched again for three reasons alone. Who fetched it last was killed
// since, before its Put was done: nobody has what it had. Or it lives, and did not get to storage for
// the whole of its lease. Or it lives, and gave the job back, since it could not keep the file for a
// minute. Which of them it is, the job itself says, as storage has it: what a crawler wrote to its log
// may be cut off by the next kill.
type fetches struct {
	up      *testupstream.Server
	server  *httptest.Server
	storage func() []string

	mu    sync.Mutex
	lives []int // of the crawlers: how often they were killed
	of    map[string][]fetch
	again int // fetches of a file whose last fetcher had been killed
	other []refetch
}

type fetch struct {
	crawler, life int
	at            time.Time
}

// refetch is a fetch of a file that is kept, or whose last fetcher lives.
type refetch struct {
	path      string
	last, now fetch
	died      bool // who fetched it last
	kept      bool
	job       *storage.Job // as who fetches it now has it
	err       error        // storage did not say
}

// killLease is the lease of a job; most of it may have passed when upstream is asked.
const killLease = 5 * time.Second

// reason is why a file was fetched again; "": there was none.
func (r refetch) reason() string {
	switch {
	case r.err != nil || r.job == nil || r.died:
		return ""
	case r.job.LastErr == "" && r.job.Attempts > 1 && r.now.at.Sub(r.job.Created) >= time.Duration(r.job.Attempts-1)*killLease:
		return "its lease was over" // nobody gave it back, and there was time for each lease to end
	case !r.kept && r.job.Attempts > 1 && strings.Contains(r.job.LastErr, "storage cannot be reached"):
		return "it was given back: " + r.job.LastErr
	case strings.HasSuffix(r.path, ".info") && r.job.Attempts > 1 && strings.Contains(r.job.LastErr, "its zip's job is over"):
		return "the lease of its zip was over, with which it is fetched"
	}
	return ""
}

func (r refetch) String() string {
	return fmt.Sprintf("%s was fetched by crawler %d, %v after crawler %d (killed since: %v); kept already: %v; its job: %+v, %v",
		r.path, r.now.crawler, r.now.at.Sub(r.last.at), r.last.crawler, r.died, r.kept, r.job, r.err)
}

func newFetches(t *testing.T, up *testupstream.Server, crawlers int) *fetches {
	f := &fetches{up: up, lives: make([]int, crawlers), of: map[string][]fetch{}, storage: func() []string { return nil }}
	f.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var who fetch
		parts := strings.SplitN(r.URL.Path, "/", 4) // "", crawler, life, what is asked
		if _, err := fmt.Sscan(parts[1], &who.crawler); err != nil {
			t.Errorf("%s: %v", r.URL.Path, err)
			return
		}
		fmt.Sscan(parts[2], &who.life)
		who.at = time.Now()
		r = r.Clone(r.Context())
		r.URL.Path = "/" + parts[3]
		f.asked(who, r.URL.Path)
		up.ServeHTTP(w, r)
	}))
	t.Cleanup(f.server.Close)
	return f
}

// url is the upstream of a crawler's present process.
func (f *fetches) url(crawler int) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fmt.Sprintf("%s/%d/%d", f.server.URL, crawler, f.lives[crawler])
}

func (f *fetches) asked(who fetch, path string) {
	if !strings.HasSuffix(path, ".info") && !strings.HasSuffix(path, ".mod") && !strings.HasSuffix(path, ".zip") {
		return
	}
	f.mu.Lock()
	before := f.of[path]
	f.of[path] = append(before, who)
	var last fetch
	if len(before) > 0 {
		last = before[len(before)-1]
	}
	died := len(before) > 0 && f.lives[last.crawler] > last.life
	storages := f.storage()
	f.mu.Unlock()
	if len(before) == 0 {
		return
	}
	r := refetch{path: path, last: last, now: who, died: died}
	r.kept, r.job, r.err = stateOf(storages, path)
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.err == nil && !r.kept && died {
		f.again++
	} else {
		f.other = append(f.other, r)
	}
}

// stateOf asks the storage replicas, which may be away for a moment, whether a file is kept, and for
// its job; nil: there is none.
func stateOf(urls []string, path string) (kept bool, job *storage.Job, err error) {
	m, file, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/@v/v1.0.0.")
	err = errors.New("there is no storage")
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		for _, u := range urls {
			base, parseErr := url.Parse(u)
			if parseErr != nil {
				return false, nil, parseErr
			}
			base.User = url.UserPassword("x", token)
			c := &storage.Client{Client: goproxy.Client{Base: base, HTTP: &http.Client{Timeout: 5 * time.Second}}}
			var jobs []storage.Job
			if jobs, err = c.Jobs(context.Background(), 10_000); err != nil {
				continue
			}
			switch file {
			case "info":
				_, err = c.Resolve(context.Background(), m, "v1.0.0")
			case "mod":
				_, err = readAll(c.Mod(context.Background(), module.Version{Path: m, Version: "v1.0.0"}))
			default:
				_, err = readAll(c.Zip(context.Background(), module.Version{Path: m, Version: "v1.0.0"}))
			}
			if kept = err == nil; !kept && !goproxy.IsAbsent(err) {
				continue
			}
			if i := slices.IndexFunc(jobs, func(j storage.Job) bool {
				return j.Key == storage.Key{Path: m, Query: "v1.0.0", File: storage.File(file)}
			}); i >= 0 {
				job = &jobs[i]
			}
			return kept, job, nil
		}
	}
	return false, nil, err
}

func readAll(b *goproxy.Blob, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	return b.ReadAll(goproxy.MaxZipBytes)
}

// killed is called when a crawler is dead, and before there is another.
func (f *fetches) killed(crawler int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lives[crawler]++
}

func catalogOf(t *testing.T, url string) map[string]bool {
	t.Helper()
	whole := map[string]bool{}
	for next := ""; ; {
		_, body, _ := get(t, url+"/catalog?pagesize=1000&token="+next)
		var page struct {
			Modules []struct{ Module, Version string }
			Next    string
		}
		if err := json.Unmarshal([]byte(body), &page); err != nil {
			t.Fatalf("catalog: %v: %s", err, body)
		}
		for _, m := range page.Modules {
			whole[m.Module+"@"+m.Version] = true
		}
		if next = page.Next; next == "" {
			return whole
		}
	}
}

// checkSaved: every version is whole or absent, every one whose save succeeded is
// whole, in the catalog, and in the index once.
// fetched are modules that crawlers have saved.
func checkSaved(t *testing.T, url string, tried, saved map[string]storagetest.Version, fetched map[string]bool) {
	t.Helper()
	whole := catalogOf(t, url)
	// What was made complete and not listed, since its process was killed between the
	// two, another finishes within a minute.
	wanted := slices.Collect(maps.Keys(saved))
	for m := range fetched {
		wanted = append(wanted, m+"@v1.0.0")
	}
	unlisted := func() []string {
		return slices.DeleteFunc(slices.Clone(wanted), func(name string) bool { return whole[name] })
	}
	for end := time.Now().Add(90 * time.Second); len(unlisted()) > 0 && time.Now().Before(end); whole = catalogOf(t, url) {
		time.Sleep(time.Second)
	}
	for _, name := range unlisted() {
		t.Errorf("%s was saved or fetched, and is not in the catalog", name)
	}
	for name, v := range tried {
		seen := map[int]int{}
		for ext, want := range map[string][]byte{"info": v.Info, "mod": v.Mod, "zip": v.Zip} {
			status, body, _ := get(t, fmt.Sprintf("%s/%s/@v/%s.%s", url, v.Path, v.Version.Version, ext))
			seen[status]++
			if !(status == 200 && body == string(want)) && !(status == 404 && !whole[name]) {
				t.Errorf("%s.%s: status %d, %d bytes of %d; in the catalog: %v", name, ext, status, len(body), len(want), whole[name])
			}
		}
		if len(seen) != 1 { // its three files were saved at once
			t.Errorf("%s is there in part: %v", name, seen)
		}
		if err := save(url, v); err != nil {
			t.Errorf("save %s again: %v", name, err)
		}
	}
	_, body, _ := get(t, url+"/index?limit=10000")
	if lines := strings.Count(body, "\n"); lines != len(tried)+len(fetched) {
		t.Errorf("the index has %d lines, want %d", lines, len(tried)+len(fetched))
	}
}

// kill -9 of any process of a site at random moments, while versions are saved at both
// storage replicas and others are asked of the proxies, which makes the crawlers save
// them.
func TestAzureKill(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		blob  bool
		kills int
	}{{"cosmos", false, 200}, {"cosmos and blob", true, 100}} {
		t.Run(tt.name, func(t *testing.T) { killAzure(t, tt.blob, tt.kills) })
	}
}

func killAzure(t *testing.T, blob bool, kills int) {
	up := testupstream.New(t)
	up.Delay = 10 * time.Millisecond
	fetched := newFetches(t, up, 2)
	s := startAzure(t, []string{fetched.url(0), fetched.url(1)}, blob, "--job-lease="+killLease.String())
	fetched.mu.Lock()
	fetched.storage = func() []string { return []string{s.storages[0].url, s.storages[1].url} }
	fetched.mu.Unlock()
	var mu sync.Mutex
	saved, tried := map[string]storagetest.Version{}, map[string]storagetest.Version{}
	asked, answered := map[string]bool{}, map[string]string{}
	var n atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	again := func(f func()) {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					f()
				}
			}
		})
	}
	for i := range 3 {
		again(func() {
			k := n.Add(1)
			v := storagetest.New(fmt.Sprintf("example.com/m%d", k%17), fmt.Sprintf("v1.%d.0", k), strings.Repeat("x", rand.IntN(200)))
			mu.Lock()
			tried[v.String()] = v
			mu.Unlock()
			if err := save(s.storages[i%2].url, v); err == nil {
				mu.Lock()
				saved[v.String()] = v
				mu.Unlock()
			} else {
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	client := &http.Client{Timeout: 30 * time.Second}
	for i := range 3 {
		again(func() {
			m := fmt.Sprintf("example.com/up%d", n.Add(1))
			up.Add(m, "v1.0.0", 2<<10)
			mu.Lock()
			asked[m] = true
			mu.Unlock()
			resp, err := client.Get(s.proxies[i].url + "/" + m + "/@v/v1.0.0.zip")
			if err != nil {
				time.Sleep(5 * time.Millisecond)
				return
			}
			zip, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err == nil && resp.StatusCode == 200 {
				mu.Lock()
				answered[m] = string(zip)
				mu.Unlock()
			} else if err == nil && resp.StatusCode < 500 {
				t.Errorf("%s: %s, which upstream has", m, resp.Status)
			}
		})
	}
	crawlers := 0
	for range kills {
		i := rand.IntN(len(s.all()))
		p := s.all()[i]
		time.Sleep(time.Duration(rand.IntN(25_000)) * time.Microsecond)
		p.kill()
		if i >= 2 && i < 4 {
			crawlers++
			old := fetched.url(i - 2)
			fetched.killed(i - 2)
			p.args[slices.Index(p.args, old)] = fetched.url(i - 2)
		}
		p.start()
	}
	close(stop)
	wg.Wait()
	t.Logf("%d kills, %d of crawlers; %d saves tried, %d succeeded; %d modules asked for, %d answered", kills, crawlers, len(tried), len(saved), len(asked), len(answered))
	if len(saved) == 0 || len(saved) == len(tried) || len(answered) == 0 {
		t.Error("the kills did not meet the work")
	}
	// Everything that was asked for comes, at the latest when it is asked for again, at any
	// proxy, and is what upstream has.
	got := map[string]string{}
	for m := range asked {
		for i, ext := range []string{".info", ".mod", ".zip"} {
			path := "/" + m + "/@v/v1.0.0" + ext
			for end := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
				status, body, _ := get(t, s.proxies[i].url+path)
				if status == 200 {
					got[path] = body
					break
				}
				if time.Now().After(end) {
					t.Fatalf("%s: %d %s", path, status, body)
				}
			}
		}
	}
	fetched.mu.Lock()
	t.Logf("%d files were fetched; %d times one again, since who had it was killed; %d times while it lived", len(fetched.of), fetched.again, len(fetched.other))
	for _, r := range fetched.other {
		if reason := r.reason(); reason != "" {
			t.Logf("%s: %s", reason, r)
		} else {
			t.Errorf("for no reason: %s", r)
		}
	}
	for path := range got {
		if len(fetched.of[path]) == 0 && !strings.HasSuffix(path, ".mod") { // that is in the zip
			t.Errorf("%s was not asked of upstream", path)
		}
	}
	fetched.mu.Unlock()
	for m, zip := range answered {
		if want := got["/"+m+"/@v/v1.0.0.zip"]; zip != want {
			t.Errorf("%s: the zip that was answered during the kills has %d bytes that are not the %d of now", m, len(zip), len(want))
		}
	}
	for path, body := range got {
		if _, want, _ := get(t, up.URL+path); body != want {
			t.Errorf("%s: %d bytes that are not upstream's %d", path, len(body), len(want))
		}
	}
	checkSaved(t, s.storages[0].url, tried, saved, asked)
}
