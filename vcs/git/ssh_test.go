package git

import (
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/testgit"
	"github.com/athensctl/athensctl/vcs/remote"
)

// overSSH is a client of a host, and a repository's URL there.
func overSSH(t *testing.T, host *testgit.SSH, limits Limits) (*Client, *url.URL) {
	t.Helper()
	u, err := url.Parse("ssh://git@" + host.Addr + "/repo")
	if err != nil {
		t.Fatal(err)
	}
	r, err := remote.New(remote.Options{InsteadOf: []string{"https://git.example.org/=" + u.String()}, SSHKeys: []string{host.Key}, KnownHosts: host.Known})
	if err != nil {
		t.Fatal(err)
	}
	return &Client{HTTP: r.HTTP(), TempDir: t.TempDir(), Limits: limits}, u
}

// closed waits until no connection is left, nor a file.
func closed(t *testing.T, host *testgit.SSH, c *Client) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); host.Open() > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections are still open", host.Open())
		}
	}
	if left, _ := os.ReadDir(c.TempDir); len(left) > 0 {
		t.Errorf("files are left: %v", left)
	}
}

// The real server, with version 2 and without: refs, and a commit with its tree; what
// is no repository is not there.
func TestSSH(t *testing.T) {
	root := t.TempDir()
	testgit.Script(t, root, "repo repo; src a.go; commit; src b.go; commit; atag v1.0.0; keep HEAD HEAD; keep OLD HEAD^; repo empty\n")
	hash := func(name string) string {
		b, err := os.ReadFile(filepath.Join(root, "var", name))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	for _, old := range []bool{false, true} {
		host := testgit.NewSSH(t, root, func(s *testgit.SSH) { s.Version0 = old })
		c, u := overSSH(t, host, Limits{})
		s, err := c.open(t.Context(), u)
		if err != nil {
			t.Fatal(err)
		}
		if s.close(); (s.version == 2) == old {
			t.Errorf("old %v: version %d is spoken", old, s.version)
		}
		refs, err := c.Refs(t.Context(), u, "HEAD", "refs/heads/", "refs/tags/")
		if err != nil || len(refs) != 3 {
			t.Fatalf("%v, %v", refs, err)
		}
		for _, r := range refs {
			if r.Commit() != hash("HEAD") || (r.Name == "HEAD") != (r.Target == "refs/heads/main") || (r.Name == "refs/tags/v1.0.0") != (r.Peeled != "") {
				t.Errorf("%+v", r)
			}
		}
		o, err := c.Fetch(t.Context(), u, Want{Hashes: []string{hash("HEAD")}, Depth: 1})
		if err != nil {
			t.Fatal(err)
		}
		commit, err := o.Commit(hash("HEAD"))
		if err != nil {
			t.Fatal(err)
		}
		if e, err := o.Find(commit.Tree, "b.go"); err != nil || !e.IsFile() {
			t.Errorf("%+v, %v", e, err)
		}
		o.Close()
		o, err = c.Fetch(t.Context(), u, Want{Hashes: []string{hash("OLD")}, Depth: 1})
		if old != (err != nil) {
			t.Errorf("old %v: a commit that no ref names: %v", old, err)
		}
		if err == nil {
			o.Close()
		}
		empty := u.ResolveReference(&url.URL{Path: "/empty"})
		if refs, err := c.Refs(t.Context(), empty); err != nil || len(refs) != 0 {
			t.Errorf("an empty repository: %v, %v", refs, err)
		}
		none := u.ResolveReference(&url.URL{Path: "/none"})
		if _, err := c.Refs(t.Context(), none); goproxy.Status(err) != http.StatusNotFound || !strings.Contains(err.Error(), "/none: ") || !strings.Contains(err.Error(), "does not appear to be a git repository") {
			t.Errorf("no repository: %v", err)
		}
		closed(t, host, c)
	}
}

// A hostile server costs no more over SSH than it does over HTTP.
func TestHostileSSH(t *testing.T) {
	limits := Limits{RefBytes: 1 << 20, PackBytes: 2 << 20, Objects: 1000, ObjectBytes: 4 << 20, TotalBytes: 6 << 20, Idle: 30 * time.Second}
	answer := func(first func(io.Writer), then func(io.Writer)) func(string, io.Reader, io.Writer, io.Writer) uint32 {
		return func(_ string, in io.Reader, out, _ io.Writer) uint32 {
			first(out)
			if then != nil {
				if _, err := io.ReadFull(in, make([]byte, 20)); err != nil {
					return 1
				}
				then(out)
			}
			io.Copy(io.Discard, in) // until the client leaves
			return 0
		}
	}
	hang := func(io.Writer) {}
	refs := func(c *Client, u *url.URL) error { _, err := c.Refs(t.Context(), u, "refs/"); return err }
	fetch := func(c *Client, u *url.URL) error {
		_, err := c.Fetch(t.Context(), u, Want{Hashes: []string{someHash}, Depth: 1})
		return err
	}
	// A request of some MB, which a server that does not read never takes.
	many := func(c *Client, u *url.URL) error {
		_, err := c.Fetch(t.Context(), u, Want{Hashes: strings.Split(strings.Repeat(someHash+" ", 200_000)+someHash, " ")})
		return err
	}
	var left chan struct{} // closed when the client has left
	for _, tc := range []struct {
		name   string
		answer func(string, io.Reader, io.Writer, io.Writer) uint32
		do     func(*Client, *url.URL) error
		want   string
	}{
		{"nothing comes", answer(hang, nil), refs, "no byte for 300ms"},
		{"no refs come", answer(text(v2), hang), refs, "no byte for 300ms"},
		{"no pack comes", answer(text(v2), hang), fetch, "no byte for 300ms"},
		{"a pack that pauses", answer(text(v2), text(pkt("packfile\n")+pkt("\x01PACK"))), fetch, "no byte for 300ms"},
		{"nobody reads", func(_ string, _ io.Reader, out, _ io.Writer) uint32 {
			io.WriteString(out, v2)
			<-left
			return 0
		}, many, "no byte for 300ms"},
		{"endless advertisement", answer(endless(v2[:len(v2)-4], pkt("cap\n")), nil), refs, "too large"},
		{"endless refs", answer(text(v2), endless("", pkt(someHash+" refs/heads/x\n"))), refs, "too large"},
		{"endless old refs", answer(endless(pkt(someHash+" refs/heads/x\x00caps\n"), pkt(someHash+" refs/heads/x\n")), nil), refs, "too large"},
		{"endless pack", answer(text(v2), endless(pkt("packfile\n"), pkt("\x01"+strings.Repeat("x", 1000)))), fetch, "too large"},
		{"endless complaints", func(_ string, _ io.Reader, out, stderr io.Writer) uint32 {
			endless("", "no such thing ")(stderr)
			return 1
		}, refs, "no byte for 300ms"},
		{"not pkt-lines", answer(text("Welcome to the host!\n"), nil), refs, "not the length of a packet"},
		{"ended", func(string, io.Reader, io.Writer, io.Writer) uint32 { return 0 }, refs, "the answer is cut"},
		{"ended badly in the pack", func(_ string, in io.Reader, out, stderr io.Writer) uint32 {
			io.WriteString(out, v2+pkt("packfile\n")+pkt("\x01PACK"))
			io.WriteString(stderr, "fatal: out of memory\x1b[31m")
			return 128
		}, fetch, "the host says: fatal: out of memory [31m"},
		{"band 3", answer(text(v2), text(pkt("packfile\n")+pkt("\x03not allowed\n"))), fetch, "the server says: not allowed"},
		{"ERR", answer(text(pkt("ERR go away\n")), nil), refs, "the server says: go away"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			left = make(chan struct{})
			host := testgit.NewSSH(t, t.TempDir(), func(s *testgit.SSH) { s.Answer = tc.answer })
			limits := limits
			if strings.Contains(tc.want, "no byte for 300ms") {
				limits.Idle = 300 * time.Millisecond
			}
			c, u := overSSH(t, host, limits)
			start := time.Now()
			err := tc.do(c, u)
			close(left)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.HasPrefix(err.Error(), Name(u)+": ") {
				t.Errorf("error %v, want %q", err, tc.want)
			} else if s := goproxy.Status(err); s != http.StatusBadGateway {
				t.Errorf("status %d: %v", s, err)
			}
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("it took %v", took)
			}
			closed(t, host, c)
		})
	}
}
