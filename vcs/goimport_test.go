package vcs

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/testgit"
	"github.com/athensctl/athensctl/vcs/remote"
)

// A go-import tag that names a module proxy: everything comes from there.
func TestGoImportMod(t *testing.T) {
	var mu sync.Mutex
	asked := map[string]int{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked[r.URL.Path]++
		mu.Unlock()
		files := map[string]string{
			"/proxy/pages.example.org/!mod/sub/@v/list": "v1.0.0\nv1.1.0\n", "/proxy/pages.example.org/!mod/sub/@v/v1.1.0.info": `{"Version":"v1.1.0","Time":"2026-01-02T03:04:05Z"}`,
			"/proxy/pages.example.org/!mod/sub/@latest": `{"Version":"v1.1.0","Time":"2026-01-02T03:04:05Z"}`, "/proxy/pages.example.org/!mod/sub/@v/v1.1.0.mod": "module pages.example.org/Mod/sub\n",
			"/proxy/pages.example.org/!mod/sub/@v/v1.1.0.zip": "not looked at here",
		}
		switch text, ok := files[r.URL.Path]; {
		case strings.HasPrefix(r.URL.Path, "/Mod"):
			fmt.Fprintf(w, `<meta name="go-import" content="pages.example.org/Mod git https://nowhere.example.org/x"><meta name="go-import" content="pages.example.org/Mod mod https://proxy.example.org/proxy">`)
		case ok:
			io.WriteString(w, text)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	r, err := remote.New(remote.Options{InsteadOf: []string{"https://pages.example.org/=" + srv.URL + "/", "https://proxy.example.org/=" + srv.URL + "/"}})
	if err != nil {
		t.Fatal(err)
	}
	s := New(r, Options{TempDir: t.TempDir()})
	defer s.Close()
	m := module.Version{Path: "pages.example.org/Mod/sub", Version: "v1.1.0"}
	list, err := s.List(t.Context(), m.Path)
	if err != nil || fmt.Sprint(list.Versions) != "[v1.0.0 v1.1.0]" {
		t.Errorf("%v, %v", list, err)
	}
	for _, query := range []string{goproxy.Latest, "v1.1.0"} {
		if info, err := s.Resolve(t.Context(), m.Path, query); err != nil || info.Version != "v1.1.0" {
			t.Errorf("%s: %v, %v", query, info, err)
		}
	}
	read := func(b *goproxy.Blob, err error) string {
		if err != nil {
			return err.Error()
		}
		defer b.Close()
		all, err := io.ReadAll(b)
		return fmt.Sprint(string(all), err)
	}
	if got := read(s.Mod(t.Context(), m)); got != "module pages.example.org/Mod/sub\n<nil>" {
		t.Errorf("mod: %s", got)
	}
	if got := read(s.Zip(t.Context(), m)); got != "not looked at here<nil>" {
		t.Errorf("zip: %s", got)
	}
	if _, err := s.Resolve(t.Context(), m.Path, "v9.9.9"); goproxy.Status(err) != http.StatusNotFound {
		t.Errorf("a version that it has not: %v", err)
	}
	if asked["/Mod/sub"] != 1 || asked["/Mod"] != 1 {
		t.Errorf("the pages were asked for %d and %d times", asked["/Mod/sub"], asked["/Mod"])
	}
}

// However many modules a repository has, its refs are asked for once for all of them.
func TestOneListOfRefs(t *testing.T) {
	root := t.TempDir()
	host := testgit.New(t, root)
	const modules = 20
	testgit.Script(t, root, fmt.Sprintf(`
repo mono; i=0; while [ $i -lt %d ]; do i=$((i+1)); gomod m$i/go.mod git.test.example/mono.git/m$i; src m$i/x.go; commit; tag m$i/v1.0.$i; done
`, modules))
	back, err := url.Parse(host.URL)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	lists := 0
	front := httputil.NewSingleHostReverseProxy(back)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		if bytes.Contains(body, []byte("command=ls-refs")) {
			mu.Lock()
			lists++
			mu.Unlock()
		}
		front.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	r, err := remote.New(remote.Options{InsteadOf: []string{"https://git.test.example/=" + srv.URL + "/"}})
	if err != nil {
		t.Fatal(err)
	}
	s := New(r, Options{TempDir: t.TempDir()})
	defer s.Close()
	each := func(f func(path, version string)) {
		var wg sync.WaitGroup
		for i := range modules {
			wg.Go(func() { f(fmt.Sprintf("git.test.example/mono.git/m%d", i+1), fmt.Sprintf("v1.0.%d", i+1)) })
		}
		wg.Wait()
	}
	// Versions are looked up in refs of the last minute.
	for range 2 {
		each(func(path, version string) {
			if info, err := s.Resolve(t.Context(), path, version); err != nil || info.Version != version {
				t.Errorf("%s: %v, %v", path, info, err)
			}
		})
	}
	if lists != 1 {
		t.Errorf("%d lists of refs for the versions of %d modules", lists, modules)
	}
	// Lists are as of now, which those who ask at the same time share.
	s.refs[srv.URL+"/mono"].listed = s.refs[srv.URL+"/mono"].listed.Add(-refsFor / 2)
	lists = 0
	each(func(path, version string) {
		if list, err := s.List(t.Context(), path); err != nil || fmt.Sprint(list.Versions) != "["+version+"]" {
			t.Errorf("%s: %v, %v", path, list, err)
		}
	})
	if lists != 1 {
		t.Errorf("%d lists of refs for the lists of %d modules", lists, modules)
	}
}
