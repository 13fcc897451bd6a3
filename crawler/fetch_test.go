package crawler

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
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
