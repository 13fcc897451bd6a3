package git

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/testgit"
)

// Real servers that speak version 2, 1 or 0 of the protocol alone, over HTTP and over SSH:
// refs, a commit that a tag names, and what the old ones say of one that none does.
func TestVersions(t *testing.T) {
	root := t.TempDir()
	testgit.Script(t, root, "repo repo; src a.go; commit; src b.go; commit; atag v1.0.0; keep HEAD HEAD; keep OLD HEAD^\n")
	hash := func(name string) string {
		b, err := os.ReadFile(filepath.Join(root, "var", name))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	for _, way := range []string{"http", "ssh"} {
		for version, protocol := range []string{"0", "version=1", ""} {
			var c *Client
			var u *url.URL
			if way == "http" {
				srv := testgit.New(t, root)
				srv.Protocol = protocol
				c = &Client{HTTP: http.DefaultClient, TempDir: t.TempDir()}
				u, _ = url.Parse(srv.URL + "/repo")
			} else {
				host := testgit.NewSSH(t, root, func(s *testgit.SSH) { s.Version0, s.Version1 = version == 0, version == 1 })
				c, u = overSSH(t, host, Limits{})
			}
			s, err := c.open(t.Context(), u)
			if err != nil {
				t.Fatalf("%s %q: %v", way, protocol, err)
			}
			spoken := s.version
			if s.close(); spoken != version {
				t.Errorf("%s %q: version %d is spoken", way, protocol, spoken)
			}
			refs, err := c.Refs(t.Context(), u, "HEAD", "refs/heads/", "refs/tags/")
			if err != nil || len(refs) != 3 || refs[2].Commit() != hash("HEAD") || refs[2].Peeled == "" {
				t.Errorf("%s %q: %+v, %v", way, protocol, refs, err)
			}
			o, err := c.Fetch(t.Context(), u, Want{Hashes: []string{hash("HEAD")}, Depth: 1})
			if err != nil {
				t.Fatalf("%s %q: %v", way, protocol, err)
			}
			commit, err := o.Commit(hash("HEAD"))
			if err != nil {
				t.Fatal(err)
			}
			if e, err := o.Find(commit.Tree, "b.go"); err != nil || !e.IsFile() {
				t.Errorf("%s %q: %+v, %v", way, protocol, e, err)
			}
			if _, err := o.Commit(hash("OLD")); err == nil {
				t.Errorf("%s %q: more than one commit came", way, protocol)
			}
			o.Close()
			o, err = c.Fetch(t.Context(), u, Want{Hashes: []string{hash("OLD")}, Depth: 1})
			if (err == nil) != (version == 2) || err != nil && !strings.Contains(err.Error(), ErrNotSent.Error()) {
				t.Errorf("%s %q: a commit that no ref names: %v", way, protocol, err)
			}
			if err == nil {
				o.Close()
			}
		}
	}
}

// A branch that is not there, to which HEAD points, is no ref, told of or not.
func TestUnborn(t *testing.T) {
	srv := httptest.NewServer(host{text(v2), text(pkt("unborn HEAD symref-target:refs/heads/main\n") + pkt(someHash+" refs/tags/v1.0.0\n") + "0000")})
	defer srv.Close()
	u, err := url.Parse(srv.URL + "/repo")
	if err != nil {
		t.Fatal(err)
	}
	refs, err := (&Client{HTTP: srv.Client(), TempDir: t.TempDir()}).Refs(t.Context(), u)
	if err != nil || len(refs) != 1 || refs[0].Name != "refs/tags/v1.0.0" {
		t.Errorf("%+v, %v", refs, err)
	}
}

// A repository that is served as files is there, though it can't be had; another page is none.
func TestDumb(t *testing.T) {
	for body, want := range map[string]int{someHash + "\trefs/heads/main\n": http.StatusNotImplemented, someHash: http.StatusNotFound, "<!DOCTYPE html><html><head><title>Log in</title>": http.StatusNotFound} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			io.WriteString(w, body)
		}))
		defer srv.Close()
		u, err := url.Parse(srv.URL + "/repo")
		if err != nil {
			t.Fatal(err)
		}
		_, err = (&Client{HTTP: srv.Client(), TempDir: t.TempDir()}).Refs(t.Context(), u)
		if got := goproxy.Status(err); got != want || !strings.Contains(err.Error(), "/repo") {
			t.Errorf("%q: %d, %v; want %d", body, got, err, want)
		}
	}
}
