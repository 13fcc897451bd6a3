package crawler

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/disk"
	"github.com/athensctl/athensctl/storage/memory"
)

// A list that is asked for again is asked for with the ETag that its origin gave, and
// with no other's; one that has not changed is fresh again.
func TestListConditional(t *testing.T) {
	var mu sync.Mutex
	versions, etag := "v1.0.0\n", `"one"`
	var asked []string // If-None-Match of each request, or the path
	serve := func(own bool) *url.URL {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			match := r.Header.Get("If-None-Match")
			if !own {
				if match != "" {
					t.Errorf("another origin got the ETag %s", match)
				}
				http.Error(w, "not found", http.StatusNotFound)
				return
			}
			asked = append(asked, match)
			if etag != "" {
				w.Header().Set("ETag", etag)
			}
			if match != "" && match == etag {
				w.WriteHeader(http.StatusNotModified)
				return
			}
			fmt.Fprint(w, versions)
		}))
		t.Cleanup(srv.Close)
		u, _ := url.Parse(srv.URL)
		return u
	}
	origins := []Origin{
		{Name: "first", Source: &goproxy.Client{Base: serve(false), HTTP: http.DefaultClient}},
		{Name: "second", Source: &goproxy.Client{Base: serve(true), HTTP: http.DefaultClient}},
	}
	s := memory.New(0, nil)
	c := New(s, s, Options{Name: "c", Origins: origins, TempDir: t.TempDir(), Freshness: time.Minute})
	k := storage.Key{Path: "example.com/m", File: storage.FileList}
	look := func(what string, wantAsked, wantVersions []string) {
		t.Helper()
		before := time.Now()
		asked = nil
		if err := c.fetchList(t.Context(), k); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		known, err := s.Known(t.Context(), k)
		if err != nil || !slices.Equal(known.Versions, wantVersions) || known.Checked.Before(before.Add(-time.Second)) {
			t.Errorf("%s: %+v, %v; want %v, checked now", what, known, err, wantVersions)
		}
		if !slices.Equal(asked, wantAsked) {
			t.Errorf("%s: asked with %q, want %q", what, asked, wantAsked)
		}
	}
	look("first", []string{""}, []string{"v1.0.0"})
	look("again", []string{`"one"`}, []string{"v1.0.0"})
	look("and again", []string{`"one"`}, []string{"v1.0.0"})
	versions, etag = "v1.0.0\nv1.1.0\n", `"two"`
	look("changed", []string{`"one"`}, []string{"v1.0.0", "v1.1.0"})
	etag = ""
	look("no ETag any more", []string{`"two"`}, []string{"v1.0.0", "v1.1.0"})
	look("without one", []string{""}, []string{"v1.0.0", "v1.1.0"})
	versions, etag = "v0.0.0-20240102030405-abcdefabcdef\n", `"pseudo"`
	look("pseudo-versions alone", []string{""}, []string{"v0.0.0-20240102030405-abcdefabcdef"})
	look("they stay", []string{`"pseudo"`}, []string{"v0.0.0-20240102030405-abcdefabcdef"})

	// What is refused has no list to confirm.
	if err := s.SetKnown(t.Context(), k, &storage.Known{Checked: time.Now(), RefusedStatus: 404, Refused: "gone", Validator: origins[1].Source.(*goproxy.Client).Base.String() + ` "pseudo"`}); err != nil {
		t.Fatal(err)
	}
	look("after a refusal", []string{""}, []string{"v0.0.0-20240102030405-abcdefabcdef"})
	etag = `"` + strings.Repeat("x", 1000) + `"`
	look("an endless ETag", []string{`"pseudo"`}, []string{"v0.0.0-20240102030405-abcdefabcdef"})
	look("is not kept", []string{""}, []string{"v0.0.0-20240102030405-abcdefabcdef"})
}

// Upstream says 304 though it was not asked whether a list has changed: a failure of
// upstream's, whatever is known, and no list.
func TestListNotModifiedUnasked(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNotModified) }))
	defer srv.Close()
	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	for name, known := range map[string]*storage.Known{
		"nothing": nil,
		"refused": {Checked: time.Now().Add(-time.Hour), RefusedStatus: 404, Refused: "gone", Validator: srv.URL + ` "1"`},
		"a list":  {Checked: time.Now().Add(-time.Hour), Versions: []string{"v1.0.0"}},
		"other's": {Checked: time.Now().Add(-time.Hour), Versions: []string{"v1.0.0"}, Validator: `https://other.example "1"`},
	} {
		s := memory.New(0, nil)
		k := storage.Key{Path: "example.com/m", File: storage.FileList}
		if known != nil {
			if err := s.SetKnown(t.Context(), k, known); err != nil {
				t.Fatal(err)
			}
		}
		c := New(s, s, options(&goproxy.Client{Base: u, HTTP: srv.Client()}))
		if err := c.fetchList(t.Context(), k); goproxy.Status(err) != 502 {
			t.Errorf("%s is known: %d %v", name, goproxy.Status(err), err)
		}
		if now, _ := s.Known(t.Context(), k); known == nil && now != nil || known != nil && !now.Checked.Equal(known.Checked) {
			t.Errorf("%s was known, now %+v", name, now)
		}
	}
}

// A failure that may hide an answer says more than an absence, whoever comes first; a
// kind that is not supported only says more than an absence before it; "off" is the end.
func TestAskOrder(t *testing.T) {
	absent, gone := goproxy.NotFound("x"), &goproxy.Error{Status: 410, Message: "x"}
	pending := &goproxy.Error{Status: 404, Message: "x", NoStore: true}
	away, forbidden := goproxy.Busy(7*time.Second, "away"), goproxy.Errorf(403, "no")
	unsupported := goproxy.Errorf(501, "hg")
	for _, tc := range []struct {
		sep     string // "|" or "," behind each
		answers []error
		status  int
		refused bool
		asked   int
	}{
		{",", []error{absent, gone}, 404, true, 2},
		{",", []error{absent, nil}, 200, false, 2},
		{",", []error{away, nil}, 502, false, 1},
		{"|", []error{away, nil}, 200, false, 2},
		{"|", []error{away, absent}, 502, false, 2},
		{"|", []error{forbidden, absent}, 502, true, 2},
		{"|", []error{forbidden, away}, 502, false, 2},
		{"|", []error{away, forbidden}, 502, false, 2},
		{"|", []error{forbidden, pending}, 502, false, 2},
		{"|", []error{absent, errors.New("cut"), gone}, 502, false, 3},
		{",", []error{absent, unsupported}, 404, true, 2},
		{",", []error{unsupported, absent}, 501, true, 1},
		{"|", []error{unsupported, absent}, 501, true, 2},
		{"|", []error{away, unsupported}, 502, false, 2},
		{"|", []error{unsupported, away}, 502, false, 2},
		{",", []error{pending, absent}, 404, false, 2},
		{",", []error{absent, pending}, 404, false, 2},
		{"|", []error{pending, away}, 502, false, 2},
		{",", []error{&fs.PathError{Op: "open", Path: "spool/x", Err: fs.ErrNotExist}, nil}, 500, false, 1},
		{"|", []error{fmt.Errorf("x: %w", &fs.PathError{Op: "open", Path: "spool/x", Err: fs.ErrNotExist}), nil}, 500, false, 1},
	} {
		asked := 0
		o := options(nil)
		o.Origins = nil
		for i, err := range tc.answers {
			o.Origins = append(o.Origins, Origin{Name: fmt.Sprint("o", i), AnyError: tc.sep == "|", Source: source{list: func(context.Context, string) ([]string, error) {
				asked++
				return nil, err
			}}})
		}
		c := New(nil, nil, o)
		list := func() error {
			_, err := ask(c, "example.com/m: version list", func(s goproxy.Source) (*goproxy.VersionList, error) { return s.List(t.Context(), "example.com/m") })
			return err
		}
		err := list()
		if goproxy.Status(err) != tc.status || isRefused(err) != tc.refused || asked != tc.asked {
			t.Errorf("%s %v: %d, refused %v, %d asked: %v", tc.sep, tc.answers, goproxy.Status(err), isRefused(err), asked, err)
		}
		if isPending(err) != (tc.status == 404 && !tc.refused) {
			t.Errorf("%s %v: pending %v", tc.sep, tc.answers, isPending(err))
		}
		if want := time.Duration(0); slices.Contains(tc.answers, error(away)) && tc.status == 502 {
			if want = 7 * time.Second; retryAfter(err) != want {
				t.Errorf("%s %v: Retry-After %v", tc.sep, tc.answers, retryAfter(err))
			}
		}
		if tc.asked > 1 {
			o.Origins[0].Name, asked = "off", 0
			if err := list(); asked != 1 {
				t.Errorf("%s %v: behind off, %d were asked: %v", tc.sep, tc.answers, asked, err)
			}
		}
	}
	if err := func() error {
		_, err := ask(New(nil, nil, Options{Workers: 1}), "x", func(goproxy.Source) (int, error) { return 0, nil })
		return err
	}(); !isRefused(err) {
		t.Errorf("no origin: %v", err)
	}
}

// What a folder or storage says is not upstream's answer: it is 5xx, nothing is
// remembered, and the job stays in the queue.
func TestOwnFailure(t *testing.T) {
	m := module.Version{Path: "example.com/m", Version: "v1.0.0"}
	u := source{
		resolve: func(context.Context, string, string) error { return nil },
		mod:     func(context.Context, module.Version) error { return nil },
		zip:     func(context.Context, module.Version) error { return nil },
	}
	check := func(name string, s storage.Ledger, err error, f storage.File) {
		t.Helper()
		known, kerr := s.Known(t.Context(), storage.Key{Path: m.Path, Query: m.Version, File: f})
		jobs, jerr := s.Jobs(t.Context(), 10)
		if goproxy.Status(err) != 500 || known != nil || !errors.Is(kerr, fs.ErrNotExist) || jerr != nil || len(jobs) != 1 {
			t.Errorf("%s: %d %v; known %+v, %v; jobs %+v, %v", name, goproxy.Status(err), err, known, kerr, jobs, jerr)
		}
	}
	// The disk store's folder for temporary files.
	dir := t.TempDir()
	d, err := disk.Open(dir, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := os.RemoveAll(filepath.Join(dir, "tmp")); err != nil {
		t.Fatal(err)
	}
	c := New(d, d, options(u))
	stop := runCrawler(c)
	_, err = c.Resolve(t.Context(), m.Path, m.Version)
	check("no folder", d, err, storage.FileInfo)
	stop()

	// An ingress before storage.
	for _, status := range []int{401, 403, 404, 410, 501} {
		s := &refusingStore{memory.New(0, nil), &goproxy.Error{Status: status, Message: "an ingress says no"}}
		c := New(s, s, options(u))
		stop := runCrawler(c)
		_, err := c.Mod(t.Context(), m)
		check(fmt.Sprint(status), s, err, storage.FileMod)
		stop()
	}

	// The crawler's own folder is made again.
	s := memory.New(0, nil)
	o := options(u)
	o.TempDir = filepath.Join(t.TempDir(), "spool")
	c = New(s, s, o)
	defer runCrawler(c)()
	b, err := c.Zip(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, b)
	b.Close()
}

type refusingStore struct {
	*memory.Store
	err error
}

func (s *refusingStore) Put(context.Context, module.Version, storage.Files) error { return s.err }

// Upstream has not got it yet, and says so (404, no-store): that is told, not remembered,
// and asked again by the next who comes; what a feed names is tried again.
func TestPending(t *testing.T) {
	var asked atomic.Int64
	var found atomic.Bool
	o := options(source{
		mod: func(context.Context, module.Version) error {
			if asked.Add(1); found.Load() {
				return nil
			}
			return &goproxy.Error{Status: 404, Message: "not found: fetch timed out", NoStore: true}
		},
		resolve: func(context.Context, string, string) error { return nil },
	})
	s := memory.New(0, nil)
	inBubble(t, s, o, func(t *testing.T, c *Crawler) {
		m := module.Version{Path: "example.com/m", Version: "v1.0.0"}
		for i := range 2 {
			if _, err := c.Mod(t.Context(), m); !isPending(err) || !strings.Contains(err.Error(), "fetch timed out") || asked.Load() != int64(i+1) {
				t.Errorf("asked %d times: %v", asked.Load(), err)
			}
		}
		k := storage.Key{Path: m.Path, Query: m.Version, File: storage.FileMod}
		if known, err := s.Known(t.Context(), k); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("known: %+v, %v", known, err)
		}
		if jobs, err := s.Jobs(t.Context(), 10); err != nil || len(jobs) != 0 {
			t.Errorf("jobs: %+v, %v", jobs, err)
		}
		// It is the same for who waits for another crawler's job.
		if err := storage.CauseOf(&goproxy.Error{Status: 404, Message: "not found: x", NoStore: true}).Err(); !isPending(err) {
			t.Errorf("another's: %v", err)
		}
		// Ahead of demand.
		if _, err := s.Enqueue(t.Context(), storage.Job{Key: k, Priority: storage.Ahead}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Minute)
		if jobs, err := s.Jobs(t.Context(), 1); err != nil || len(jobs) != 1 || jobs[0].LastStatus != 502 || asked.Load() < 4 {
			t.Errorf("asked %d times; jobs %+v, %v", asked.Load(), jobs, err)
		}
		found.Store(true)
		time.Sleep(10 * time.Minute)
		if _, err := s.Mod(t.Context(), m); err != nil {
			t.Errorf("after it was found: %v", err)
		}
	})
}

// What stays refused costs one fetch in a while, not one for each who asks: a version of
// which no module zip can be made, what an upstream forbids. A list that is known stays.
func TestForbidden(t *testing.T) {
	asked := map[string]int{}
	forbidden := map[string]bool{"zip": true}
	answer := func(what string) error {
		if asked[what]++; forbidden[what] {
			return goproxy.Errorf(http.StatusForbidden, "no module zip can be made of it")
		}
		return nil
	}
	o := options(source{
		list:    func(context.Context, string) ([]string, error) { return []string{"v1.0.0"}, answer("list") },
		resolve: func(_ context.Context, _, query string) error { return answer(query) },
		zip:     func(context.Context, module.Version) error { return answer("zip") },
	})
	s := memory.New(0, nil)
	inBubble(t, s, o, func(t *testing.T, c *Crawler) {
		m := module.Version{Path: "example.com/m", Version: "v1.0.0"}
		for range 5 {
			if _, err := c.Zip(t.Context(), m); goproxy.Status(err) != 502 || !strings.Contains(err.Error(), "no module zip can be made") {
				t.Fatalf("%d %v", goproxy.Status(err), err)
			}
		}
		jobs, err := s.Jobs(t.Context(), 10)
		if asked["zip"] != 1 || err != nil || len(jobs) != 0 {
			t.Errorf("upstream was asked %d times; jobs %+v, %v", asked["zip"], jobs, err)
		}
		forbidden["zip"] = false
		time.Sleep(2 * time.Minute)
		if b, err := c.Zip(t.Context(), m); err != nil {
			t.Errorf("when it may be had again: %v", err)
		} else {
			b.Close()
		}

		if _, err := c.List(t.Context(), m.Path); err != nil {
			t.Fatal(err)
		}
		forbidden["list"], forbidden[goproxy.Latest] = true, true
		time.Sleep(2 * time.Minute)
		for range 3 {
			if _, err := c.List(t.Context(), m.Path); goproxy.Status(err) != 502 {
				t.Errorf("a list that is forbidden now: %v", err)
			}
			if _, err := c.Resolve(t.Context(), m.Path, goproxy.Latest); goproxy.Status(err) != 502 {
				t.Errorf("latest: %v", err)
			}
			if _, err := c.List(t.Context(), "example.com/other"); goproxy.Status(err) != 502 {
				t.Errorf("another list: %v", err)
			}
		}
		if known, err := s.Known(t.Context(), storage.Key{Path: m.Path, File: storage.FileList}); err != nil || len(known.Versions) != 1 {
			t.Errorf("the list that was known: %+v, %v", known, err)
		}
		if asked["list"] != 1+3+1 || asked[goproxy.Latest] != 1 {
			t.Errorf("upstream was asked %v", asked)
		}
	})
}

// crlf is an upstream whose zips have a go.mod with other line ends than the .mod file's:
// one of git's attributes does that.
type crlf struct{ *upstream }

func (u crlf) Zip(ctx context.Context, m module.Version) (*goproxy.Blob, error) {
	if _, err := u.upstream.Zip(ctx, m); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.Create(m.String() + "/go.mod")
	if err == nil {
		_, err = w.Write(bytes.ReplaceAll(modOf(m.Path), []byte("\n"), []byte("\r\n")))
	}
	if err := errors.Join(err, z.Close()); err != nil {
		return nil, err
	}
	return goproxy.NewBlob(b.Bytes(), time.Time{}), nil
}

// The .mod file of such a zip is upstream's, whichever is asked for first.
func TestLineEndsOfGoMod(t *testing.T) {
	for _, first := range []string{"zip", "mod"} {
		u := crlf{newUpstream()}
		u.add("example.com/m", "v1.0.0")
		inBubble(t, memory.New(0, nil), options(u), func(t *testing.T, c *Crawler) {
			m := module.Version{Path: "example.com/m", Version: "v1.0.0"}
			for _, file := range []string{first, "zip", "mod"} {
				get := c.Zip
				if file == "mod" {
					get = c.Mod
				}
				b, err := get(t.Context(), m)
				if err != nil {
					t.Errorf("%s first: %s: %v", first, file, err)
					continue
				}
				got, err := b.ReadAll(1 << 20)
				if err != nil || file == "mod" && !bytes.Equal(got, modOf(m.Path)) {
					t.Errorf("%s first: the %s is %q, %v", first, file, got, err)
				}
			}
		})
	}
}
