package vcs

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/testgit"
	"github.com/athensctl/athensctl/vcs/remote"
)

// Servers of other makes than git's own: each refuses what they do.
func TestOtherMakes(t *testing.T) {
	root := t.TempDir()
	testgit.Script(t, root, "repo lib; gomod go.mod git.test.example/lib.git; src a.go; commit; src b.go; commit; atag v1.0.0; src c.go; commit; short MIDDLE HEAD; src d.go; commit\n")
	out, err := exec.Command("git", "-C", filepath.Join(root, "lib"), "show-ref", "--dereference").Output()
	if err != nil {
		t.Fatal(err)
	}
	named := string(out)
	want := regexp.MustCompile(`want ([0-9a-f]{40})`)
	line := func(s string) string { return fmt.Sprintf("%04x%s", len(s)+4, s) }
	for _, tc := range []struct {
		name, protocol string
		first          string              // in place of what git says first
		kind           string              // of that, in place of its Content-Type
		refuses        func(string) string // by what a request for the pack says: why, "" if it does not
		status         int
	}{
		{name: "in version 2 it gives only what its refs name (Gerrit over SSH)", refuses: func(body string) string {
			for _, w := range want.FindAllStringSubmatch(body, -1) {
				if !strings.Contains(named, w[1]) || strings.Contains(named, w[1]+" refs/tags/v1.0.0^{}") {
					return "want " + w[1] + " not valid"
				}
			}
			return ""
		}},
		{name: "it can do nothing that is not asked of all, and says so", first: line("version 2\n") + line("ls-refs\n") + line("fetch\n") + "0000", refuses: func(body string) string {
			for _, what := range []string{"deepen", "filter", "agent"} {
				if strings.Contains(body, what) {
					return "it cannot " + what
				}
			}
			return ""
		}},
		{name: "it wants multi_ack (Azure DevOps)", protocol: "0", status: http.StatusBadRequest, refuses: func(body string) string {
			if !strings.Contains(body, " multi_ack") {
				return "TF401041: The Git protocol sent is not as expected (Clients must support multi-ack.)."
			}
			return ""
		}},
		{name: "it wants thin-pack (dulwich)", protocol: "0", status: http.StatusInternalServerError, refuses: func(body string) string {
			if !strings.Contains(body, " thin-pack") {
				return "Client does not support required capability b'thin-pack'."
			}
			return ""
		}},
		{name: "its first answer's type has a charset", kind: "Application/x-git-upload-pack-advertisement; charset=utf-8"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := testgit.New(t, root)
			srv.Protocol = tc.protocol
			host, err := url.Parse(srv.URL)
			if err != nil {
				t.Fatal(err)
			}
			forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(host) }, ModifyResponse: func(resp *http.Response) error {
				if resp.Request.Method == http.MethodGet && tc.kind != "" {
					resp.Header.Set("Content-Type", tc.kind)
				}
				return nil
			}}
			ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodGet && tc.first != "" {
					w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
					io.WriteString(w, tc.first)
					return
				}
				if r.Method == http.MethodPost && tc.refuses != nil {
					body, err := io.ReadAll(r.Body)
					if err != nil {
						t.Error(err)
					}
					r.Body = io.NopCloser(bytes.NewReader(body))
					if why := tc.refuses(string(body)); why != "" {
						w.Header().Set("Content-Type", "application/x-git-upload-pack-result")
						if tc.status != 0 {
							w.WriteHeader(tc.status)
						}
						io.WriteString(w, line("ERR "+why))
						return
					}
				}
				forward.ServeHTTP(w, r)
			}))
			t.Cleanup(ts.Close)
			r, err := remote.New(remote.Options{InsteadOf: []string{"https://git.test.example/=" + ts.URL + "/"}})
			if err != nil {
				t.Fatal(err)
			}
			s := New(r, Options{TempDir: t.TempDir()})
			t.Cleanup(func() { s.Close() })
			const path = "git.test.example/lib.git"
			for query, want := range map[string]string{"v1.0.0": "v1.0.0", "main": "v1.0.1-0.", readHash(t, root, "MIDDLE"): "v1.0.1-0."} {
				info, err := s.Resolve(t.Context(), path, query)
				if err != nil || !strings.HasPrefix(info.Version, want) {
					t.Errorf("%s: %+v, %v", query, info, err)
					continue
				}
				z, err := s.Zip(t.Context(), module.Version{Path: path, Version: info.Version})
				if err != nil {
					t.Errorf("the zip of %s: %v", query, err)
					continue
				}
				z.Close()
			}
			if _, err := s.Resolve(t.Context(), path, "0123456789ab"); goproxy.Status(err) != http.StatusNotFound {
				t.Errorf("a commit that is not there: %v", err)
			}
		})
	}
}

// A commit of the year 10000, which no .info file can have, is an error.
func TestTimeOfNoInfo(t *testing.T) {
	l := listen(t, `repo lib; gomod go.mod git.test.example/lib.git; git add -A
GIT_COMMITTER_DATE="@253402300799 +0000" git commit -q -m x; tag v1.0.0; GIT_COMMITTER_DATE="@253402300800 +0000" git commit -q --allow-empty -m x; tag v1.1.0
GIT_COMMITTER_DATE="@9223372036854775807 +0000" git commit -q --allow-empty -m x; tag v1.2.0
`, Options{})
	for version, want := range map[string]string{"v1.0.0": "", "v1.1.0": "has no time that can be used", "v1.2.0": "has no time that can be used"} {
		info, err := l.Resolve(t.Context(), "git.test.example/lib.git", version)
		if err == nil {
			info.JSON() // it panics where there is none
		}
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", version, err, want)
		}
	}
}
