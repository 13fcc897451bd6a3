// Package testgit serves the git repositories of a folder with git's own servers, git
// http-backend and git upload-pack over SSH. It needs the git program.
package testgit

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// Server is a host of repositories. A repository of the folder root is at URL/name.
type Server struct {
	URL string
	// Protocol is what git is told of the client's version of the protocol: "" for what the
	// client says, "version=1" for that, "0" for nothing, so that it speaks version 0. It is
	// set before the first request.
	Protocol string

	mu    sync.Mutex
	asked map[string]int
	wants map[string]int
}

// New starts a server, which ends with the test. Without git the test is skipped, or
// fails where ATHENSCTL_TEST_REQUIRE is set.
func New(t testing.TB, root string) *Server {
	t.Helper()
	Needs(t, "git")
	s, stop, err := Serve(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return s
}

// Serve starts a server, which ends with stop.
func Serve(root string) (s *Server, stop func(), err error) {
	out, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		return nil, nil, err
	}
	s = &Server{asked: map[string]int{}, wants: map[string]int{}}
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.count(r)
		protocol := r.Header.Get("Git-Protocol")
		switch s.Protocol {
		case "":
		case "0":
			protocol = ""
		default:
			protocol = s.Protocol
		}
		// CGI makes HTTP_GIT_PROTOCOL of it, which git does not read.
		(&cgi.Handler{
			Path: filepath.Join(strings.TrimSpace(string(out)), "git-http-backend"),
			Env: []string{
				"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_NOSYSTEM=1", "HOME=" + root,
				"GIT_PROTOCOL=" + protocol,
			},
			InheritEnv: []string{"PATH"},
			Stderr:     io.Discard,
		}).ServeHTTP(w, r)
	}))
	s.URL = ts.URL
	return s, ts.Close, nil
}

var wantLine = regexp.MustCompile(`want ([0-9a-f]{40})`)

func (s *Server) count(r *http.Request) {
	var body []byte
	if r.Method == http.MethodPost { // a request is small
		body, _ = io.ReadAll(r.Body)
		r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
		if r.Header.Get("Content-Encoding") == "gzip" {
			if z, err := gzip.NewReader(bytes.NewReader(body)); err == nil {
				body, _ = io.ReadAll(z)
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[r.Method+" "+r.URL.Path]++
	for _, m := range wantLine.FindAllSubmatch(body, -1) {
		s.wants[string(m[1])]++
	}
}

// Asked is how many requests of a method have come for a path.
func (s *Server) Asked(method, path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[method+" "+path]
}

// Wanted is how often each of some objects has been asked for, with all that belongs to
// it: commits, or tag objects.
func (s *Server) Wanted(hashes []string) []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := make([]int, len(hashes))
	for i, h := range hashes {
		n[i] = s.wants[h]
	}
	return n
}

// Needs skips a test where one of the programs is not installed; where
// ATHENSCTL_TEST_REQUIRE is set, it fails.
func Needs(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("ATHENSCTL_TEST_REQUIRE") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

// Script runs a shell script in the folder root, with the functions of Prelude.
func Script(t testing.TB, root, script string) {
	t.Helper()
	Needs(t, "git", "sh")
	cmd := exec.CommandContext(t.Context(), "sh", "-eu", "-c", prelude+script)
	cmd.Dir = root
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + root, "GIT_CONFIG_NOSYSTEM=1"}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("script: %v\n%s", err, out)
	}
}

// prelude gives scripts: repo NAME (makes it when it is not there, and into it),
// commit (everything, an hour after the one before), tag, atag (annotated), keep VAR
// REV, short VAR REV [DIGITS] and pseudo VAR REV BASE (into the file var/VAR: a hash,
// a part of it, a pseudo-version), gomod FILE PATH, src FILE.
const prelude = `
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=c GIT_COMMITTER_EMAIL=c@example.org
export GIT_CONFIG_COUNT=3 GIT_CONFIG_KEY_0=init.defaultBranch GIT_CONFIG_VALUE_0=main
export GIT_CONFIG_KEY_1=core.autocrlf GIT_CONFIG_VALUE_1=false GIT_CONFIG_KEY_2=advice.detachedHead GIT_CONFIG_VALUE_2=false
root=$PWD; now=1700000000; mkdir -p var
repo() { mkdir -p "$root/$1"; cd "$root/$1"; git init -q; git config uploadpack.allowFilter true; }
commit() { now=$((now+3600)); git add -A -f; GIT_AUTHOR_DATE="$now +0100" GIT_COMMITTER_DATE="$now +0100" git commit -q --allow-empty -m "${1:-c}"; }
tag() { for t in "$@"; do git tag "$t"; done; }
atag() { for t in "$@"; do GIT_COMMITTER_DATE="$now +0100" git tag -a -m "$t" "$t"; done; }
keep() { git rev-parse "$2" > "$root/var/$1"; }
short() { git rev-parse "$2" | cut -c1-"${3:-12}" > "$root/var/$1"; }
pseudo() { echo "$3$(TZ=UTC git show -s --format=%cd --date=format-local:%Y%m%d%H%M%S "$2^{commit}")-$(git rev-parse "$2^{commit}" | cut -c1-12)" > "$root/var/$1"; }
gomod() { mkdir -p "$(dirname "$1")"; printf 'module %s\n\ngo 1.20\n' "$2" > "$1"; }
src() { mkdir -p "$(dirname "$1")"; printf 'package x\n\n// %s\n' "$1" > "$1"; }
`
