package vcs

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/testgit"
	"github.com/athensctl/athensctl/vcs/remote"
)

// listened is a host of repositories of which the requests are kept, and a source for it.
type listened struct {
	*Source
	mu    sync.Mutex
	asked []string // the lines of each request with a body
}

// commands returns the lines of the requests for a command, and forgets all requests.
func (l *listened) commands(name string) (list [][]string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, body := range l.asked {
		if lines := strings.Split(body, "\n"); strings.HasSuffix(lines[0], "command="+name) {
			list = append(list, lines)
		}
	}
	l.asked = nil
	return list
}

func listen(t *testing.T, script string, o Options) *listened {
	t.Helper()
	root := t.TempDir()
	host, err := url.Parse(testgit.New(t, root).URL)
	if err != nil {
		t.Fatal(err)
	}
	testgit.Script(t, root, script)
	l := &listened{}
	forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(host) }}
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			body, err := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(body))
			if r.Header.Get("Content-Encoding") == "gzip" && err == nil {
				var z *gzip.Reader
				if z, err = gzip.NewReader(bytes.NewReader(body)); err == nil {
					body, err = io.ReadAll(z)
				}
			}
			if err != nil {
				t.Error(err)
			}
			l.mu.Lock()
			l.asked = append(l.asked, string(body))
			l.mu.Unlock()
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(ts.Close)
	r, err := remote.New(remote.Options{InsteadOf: []string{"https://git.test.example/=" + ts.URL + "/"}})
	if err != nil {
		t.Fatal(err)
	}
	o.TempDir = t.TempDir()
	l.Source = New(r, o)
	t.Cleanup(func() { l.Close() })
	return l
}

// threeCommits is a repository with a history, whose tags are on all of it.
const threeCommits = "repo lib; gomod go.mod git.test.example/lib.git; src a.go; commit; tag v1.0.0; src b.go; commit; tag v1.1.0; src c.go; commit; tag v1.2.0\n"

// A list asks for the refs that versions come from, and no others; a zip for one commit
// without its history, once.
func TestWhatIsAsked(t *testing.T) {
	l := listen(t, threeCommits, Options{})
	list, err := l.List(t.Context(), "git.test.example/lib.git")
	if err != nil || len(list.Versions) != 3 {
		t.Fatalf("%+v, %v", list, err)
	}
	refs := l.commands("ls-refs")
	if len(refs) != 1 {
		t.Fatalf("a list asks for refs %d times: %q", len(refs), refs)
	}
	var prefixes []string
	for _, line := range refs[0] {
		if _, prefix, ok := strings.Cut(line, "ref-prefix "); ok {
			prefixes = append(prefixes, prefix)
		}
	}
	if slices.Sort(prefixes); !slices.Equal(prefixes, []string{"HEAD", "refs/heads/", "refs/tags/"}) {
		t.Errorf("a list asks for refs that begin with %q", prefixes)
	}

	z, err := l.Zip(t.Context(), module.Version{Path: "git.test.example/lib.git", Version: "v1.1.0"})
	if err != nil {
		t.Fatal(err)
	}
	z.Close()
	fetches := l.commands("fetch")
	if len(fetches) != 1 {
		t.Fatalf("a zip takes %d fetches: %q", len(fetches), fetches)
	}
	request := strings.Join(fetches[0], "\n")
	for what, n := range map[string]int{`want [0-9a-f]{40}`: 1, `deepen 1\b`: 1, `deepen`: 1, `filter`: 0} {
		if got := len(regexp.MustCompile(what).FindAllString(request, -1)); got != n {
			t.Errorf("a zip's fetch has %q %d times, want %d:\n%s", what, got, n, request)
		}
	}
}

// An answer that is given up for a bound that all hosts share is a 503 that says when to
// come again, and is told of once.
func TestRefusedForABound(t *testing.T) {
	for bound, o := range map[string]Options{"memory": {MemoryBytes: 1}, "disk": {DiskBytes: 1}} {
		t.Run(bound, func(t *testing.T) {
			var mu sync.Mutex
			told := map[string]int{}
			o.Refused = func(bound string) {
				mu.Lock()
				defer mu.Unlock()
				told[bound]++
			}
			l := listen(t, threeCommits, o)
			z, err := l.Zip(t.Context(), module.Version{Path: "git.test.example/lib.git", Version: "v1.1.0"})
			if err == nil {
				z.Close()
			}
			if goproxy.Status(err) != http.StatusServiceUnavailable || !strings.Contains(err.Error(), bound) {
				t.Errorf("%d %v", goproxy.Status(err), err)
			}
			mu.Lock()
			defer mu.Unlock()
			if told[bound] != 1 || len(told) != 1 {
				t.Errorf("told of %v", told)
			}
		})
	}
}
