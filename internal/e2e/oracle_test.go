//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/testgit"
	"github.com/athensctl/athensctl/vcs"
	"github.com/athensctl/athensctl/vcs/remote"
)

// bareRoot is a root folder that holds the binary, CA certificates and /etc/passwd, and
// nothing else: no git, no go, no shell, no library, no /proc, /dev, /tmp or resolv.conf.
func bareRoot(t *testing.T) string {
	t.Helper()
	needRoot(t, "chroot")
	root := t.TempDir()
	for name, from := range map[string]string{"athensctl": binary, "etc/ssl/certs/ca-certificates.crt": "/etc/ssl/certs/ca-certificates.crt", "etc/passwd": ""} {
		content := []byte("root:x:0:0::/:\n")
		if from != "" {
			var err error
			if content, err = os.ReadFile(from); err != nil {
				t.Fatal(err)
			}
		}
		at := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// result is what somebody makes of path@query.
type result struct {
	Err                     bool
	Version, Time, Mod, Zip string
	Origin                  map[string]string
}

func resultOf(t *testing.T, s goproxy.Source, pathQuery string) (r result, err error) {
	t.Helper()
	defer func() {
		if err != nil {
			r = result{Err: true}
		}
	}()
	path, query, _ := strings.Cut(pathQuery, "@")
	info, err := s.Resolve(t.Context(), path, query)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(info.JSON(), &r); err != nil {
		t.Fatal(err)
	}
	v := module.Version{Path: path, Version: info.Version}
	b, err := s.Mod(t.Context(), v)
	if err != nil {
		return r, err
	}
	mod, err := b.ReadAll(goproxy.MaxModBytes)
	if err != nil {
		t.Fatal(err)
	}
	r.Mod = string(mod)
	z, err := s.Zip(t.Context(), v)
	if err != nil {
		return r, err
	}
	defer z.Close()
	f, err := os.Create(filepath.Join(t.TempDir(), "zip"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, z); err != nil {
		t.Fatal(err)
	}
	if r.Zip, err = dirhash.HashZip(f.Name(), dirhash.Hash1); err != nil {
		t.Fatal(err)
	}
	return r, nil
}

// The whole of vcs's oracle test again, over HTTP and over SSH, through processes whose root
// folder holds the binary, CA certificates and /etc/passwd alone, traced: all that they answer is what
// package vcs answers in this process, of which TestOracle shows that it is what the go
// command makes of the same repositories; and none of them starts a program.
func TestOracleInBareRoot(t *testing.T) {
	strace := need(t, "strace")
	need(t, "chroot")
	testgit.Needs(t, "git", "sh")
	root := bareRoot(t)
	for _, file := range testgit.CaseFiles(t, "../..") {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			c := testgit.OpenCase(t, file)
			t.Run("http", func(t *testing.T) {
				base := testgit.New(t, c.Root).URL + "/"
				compareBare(t, strace, root, c, "http", remote.Options{InsteadOf: []string{base}})
			})
			t.Run("ssh", func(t *testing.T) {
				host := testgit.NewSSH(t, c.Root)
				compareBare(t, strace, root, c, "ssh", remote.Options{InsteadOf: []string{"ssh://git@" + host.Addr + "/"}, SSHKeys: []string{host.Key}, KnownHosts: host.Known})
			})
		})
	}
}

// compareBare compares what the processes in the folder root make of a case with what
// package vcs makes of it here. o.InsteadOf is where the repositories are; over SSH the
// process has the files of o, the operator's, in its data folder.
func compareBare(t *testing.T, strace, root string, c *testgit.Case, transport string, o remote.Options) {
	base := o.InsteadOf[0]
	o.InsteadOf = []string{"https://git.test.example/=" + base, "ssh://git@git.test.example/=" + base}
	o.Insecure = "*"
	o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if !strings.HasPrefix(address, "127.0.0.1:") {
			address = c.Pages
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	r, err := remote.New(o)
	if err != nil {
		t.Fatal(err)
	}
	here := vcs.New(r, vcs.Options{TempDir: t.TempDir()})
	t.Cleanup(func() { here.Close() })

	traces := t.TempDir()
	data := "/data/" + c.Name + "-" + transport + "/"
	var started []*process
	serve := func(role string, args ...string) string {
		p := prepare(t, append([]string{"--role=" + role, "--internal-token", token, "--data-dir", data + role}, args...)...)
		p.binary = "/athensctl"
		p.wrap = []string{strace, "-f", "--seccomp-bpf", "-e", "trace=execve,execveat", "-o", filepath.Join(traces, role), "chroot", root}
		p.env = []string{"HTTP_PROXY=http://" + c.Pages, "HTTPS_PROXY=http://" + c.Pages, "NO_PROXY=127.0.0.1"}
		p.start()
		started = append(started, p)
		return p.url
	}
	fetches := []string{"--upstream=direct", "--vcs-instead-of", o.InsteadOf[0], "--vcs-instead-of", o.InsteadOf[1], "--vcs-insecure=*", "--host-failures=0"}
	if len(o.SSHKeys) > 0 {
		for name, from := range map[string]string{"key": o.SSHKeys[0], "known_hosts": o.KnownHosts} {
			content, err := os.ReadFile(from)
			if err == nil {
				err = os.MkdirAll(root+data, 0o755)
			}
			if err == nil {
				err = os.WriteFile(root+data+name, content, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		fetches = append(fetches, "--vcs-ssh-key", data+"key", "--vcs-known-hosts", data+"known_hosts")
	}
	var proxy string
	if transport == "ssh" { // the three roles in one process
		proxy = serve("all", fetches...)
	} else {
		storage := serve("storage")
		crawler := serve("crawler", append(fetches, "--storage-url", storage)...)
		proxy = serve("proxy", "--storage-url", storage, "--crawler-url", crawler)
	}
	at, err := url.Parse(proxy)
	if err != nil {
		t.Fatal(err)
	}
	there := &goproxy.Client{Base: at, HTTP: http.DefaultClient}

	for _, path := range c.Lists {
		want, wantErr := here.List(t.Context(), path)
		got, err := there.List(t.Context(), path)
		if (err == nil) != (wantErr == nil) || err == nil && fmt.Sprint(got.Versions) != fmt.Sprint(want.Versions) {
			t.Errorf("list %s: %v, %v; want %v, %v", path, got, err, want, wantErr)
		}
	}
	for _, q := range c.Queries {
		if _, query, _ := strings.Cut(q, "@"); strings.Contains(query, "/") {
			// The protocol has no way to ask for it: the go command itself refuses to.
			if _, err := module.EscapeVersion(query); err == nil {
				t.Errorf("%s: it could have been asked for", q)
			}
			continue
		}
		want, wantErr := resultOf(t, here, q)
		if got, err := resultOf(t, there, q); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v (%v)\nwant %+v (%v)", q, got, err, want, wantErr)
		}
	}
	for _, p := range started {
		p.kill()
	}
	// Of each: chroot, which strace starts, and the binary, which chroot starts.
	names, err := filepath.Glob(filepath.Join(traces, "*"))
	if err != nil || len(names) != len(started) {
		t.Fatalf("traces: %q, %v", names, err)
	}
	for _, name := range names {
		trace, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		execs := regexp.MustCompile(`(?m)^.*execve(at)?\(.*$`).FindAllString(string(trace), -1)
		if len(execs) == 0 || !strings.Contains(execs[len(execs)-1], `"/athensctl"`) {
			t.Errorf("%s: programs were started: %q", filepath.Base(name), execs)
		}
		for _, e := range execs[:max(0, len(execs)-1)] { // a chroot for each folder of $PATH that has none
			if !strings.Contains(e, `chroot"`) {
				t.Errorf("%s: a program was started: %s", filepath.Base(name), e)
			}
		}
	}
}
