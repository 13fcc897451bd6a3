package remote

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/testgit"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	name = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// hello is a host that writes "hello".
func hello(t *testing.T, options ...func(*testgit.SSH)) *testgit.SSH {
	return answering(t, func(_ string, _ io.Reader, out, _ io.Writer) uint32 {
		io.WriteString(out, "hello")
		return 0
	}, options...)
}

func answering(t *testing.T, answer func(string, io.Reader, io.Writer, io.Writer) uint32, options ...func(*testgit.SSH)) *testgit.SSH {
	return testgit.NewSSH(t, t.TempDir(), append(options, func(s *testgit.SSH) { s.Answer = answer })...)
}

// post runs git-upload-pack without any input, and returns what it writes.
func post(ctx context.Context, r *Remote, u string) (string, error) {
	in, out := io.Pipe()
	defer out.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u, in)
	if err != nil {
		return "", err
	}
	req.Header.Set("Git-Protocol", "version=2")
	resp, err := r.HTTP().Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// sshTo are options that reach a host, and its URL.
func sshTo(host *testgit.SSH) (Options, string) {
	base := "ssh://git@" + host.Addr + "/"
	return Options{InsteadOf: []string{"https://git.example.org/=" + base}, SSHKeys: []string{host.Key}, KnownHosts: host.Known}, base + "repo"
}

// wantError: an error of a status whose text has all of the parts.
func wantError(t *testing.T, what string, err error, status int, parts ...string) {
	t.Helper()
	if err == nil || goproxy.Status(err) != status {
		t.Errorf("%s: %v (status %d), want a %d", what, err, goproxy.Status(err), status)
		return
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("%s: %v, want %q in it", what, err, p)
		}
	}
}

func closed(t *testing.T, host *testgit.SSH) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); host.Open() > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections are still open", host.Open())
		}
	}
}

// A host that does not show a key that is known for it is sent nothing.
func TestKnownHosts(t *testing.T) {
	key, other, authority := testgit.NewKey(t), testgit.NewKey(t), testgit.NewKey(t)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ssh.NewSignerFromKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	certified := func(principal string, ends time.Time) ssh.Signer {
		cert := &ssh.Certificate{Key: key.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{principal}, ValidBefore: uint64(ends.Unix())}
		if err := cert.SignCert(rand.Reader, authority); err != nil {
			t.Fatal(err)
		}
		s, err := ssh.NewCertSigner(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	good, expired, elsewhere := certified("127.0.0.1", time.Now().Add(time.Hour)), certified("127.0.0.1", time.Now().Add(-time.Hour)), certified("other.example.org", time.Now().Add(time.Hour))
	text := func(k ssh.Signer) string { return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k.PublicKey()))) }
	print := func(k ssh.Signer) string { return ssh.FingerprintSHA256(k.PublicKey()) }
	for _, tc := range []struct {
		name  string
		shown []ssh.Signer
		known string // HOST is the host, HASHED the host hashed
		want  []string
	}{
		{"known", []ssh.Signer{key}, "HOST " + text(key), nil},
		{"known by its hash", []ssh.Signer{key}, "HASHED " + text(key), nil},
		{"known by a pattern", []ssh.Signer{key}, "[127.0.0.*]:PORT " + text(key), nil},
		{"one of two keys", []ssh.Signer{key}, "HOST " + text(other) + "\nHOST " + text(key), nil},
		{"of the kind that is known", []ssh.Signer{ecKey, key}, "HOST " + text(key), nil},
		{"of the other kind", []ssh.Signer{ecKey, key}, "HOST " + text(ecKey), nil},
		{"unknown", []ssh.Signer{key}, "other.example.org " + text(key), []string{print(key), "not among the known hosts (setting vcs-known-hosts: "}},
		{"of another port", []ssh.Signer{key}, "127.0.0.1 " + text(key), []string{print(key), "not among the known hosts"}},
		{"an empty file", []ssh.Signer{key}, "", []string{"not among the known hosts"}},
		{"no file", []ssh.Signer{key}, "NONE", []string{print(key), "vcs-known-hosts: there is no such file"}},
		{"changed", []ssh.Signer{key}, "# one\nHOST " + text(other), []string{"its key has changed", print(key), print(other) + " in line 2"}},
		{"changed, of another kind", []ssh.Signer{ecKey}, "HOST " + text(other), []string{"its key has changed", print(ecKey), print(other)}},
		{"revoked", []ssh.Signer{key}, "HOST " + text(key) + "\n@revoked * " + text(key), []string{"revokes in line 2"}},
		{"certified", []ssh.Signer{good}, "@cert-authority [127.0.0.*]:PORT " + text(authority), nil},
		{"certified, and known without", []ssh.Signer{good}, "HOST " + text(key), nil},
		{"known, and certified by another", []ssh.Signer{good}, "@cert-authority HOST " + text(other) + "\nHOST " + text(key), nil},
		{"expired, but known", []ssh.Signer{expired}, "@cert-authority HOST " + text(authority) + "\nHOST " + text(key), nil},
		{"expired", []ssh.Signer{expired}, "@cert-authority HOST " + text(authority), []string{"certificate that is not good", "expired"}},
		{"certified for another", []ssh.Signer{elsewhere}, "@cert-authority HOST " + text(authority), []string{"certificate that is not good"}},
		{"certified by another", []ssh.Signer{good}, "@cert-authority HOST " + text(other), []string{"certificate that is not good", "no authorities"}},
		{"revoked authority", []ssh.Signer{good}, "@cert-authority HOST " + text(authority) + "\n@revoked * " + text(authority), []string{"certificate that is not good", "revoked"}},
		{"certified, and unknown", []ssh.Signer{good}, "other.example.org " + text(key), []string{print(key), "not among the known hosts"}},
		{"certified, and changed", []ssh.Signer{good}, "HOST " + text(other), []string{"its key has changed", print(key), print(other)}},
		{"not certified", []ssh.Signer{key}, "@cert-authority HOST " + text(authority), []string{print(key), "not among the known hosts"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			host := hello(t, func(s *testgit.SSH) { s.HostKeys = tc.shown })
			_, port, _ := net.SplitHostPort(host.Addr)
			name := knownhosts.Normalize(host.Addr)
			o, u := sshTo(host)
			o.KnownHosts = ""
			if tc.known != "NONE" {
				o.KnownHosts = write(t, "known_hosts", strings.NewReplacer("HOST", name, "HASHED", knownhosts.HashHostname(name), "PORT", port).Replace(tc.known)+"\n")
			}
			got, err := post(t.Context(), newRemote(t, o), u)
			if tc.want == nil {
				if err != nil || got != "hello" {
					t.Errorf("%q, %v", got, err)
				}
				return
			}
			wantError(t, tc.name, err, http.StatusForbidden, tc.want...)
			if n := len(host.Commands()); n > 0 {
				t.Errorf("the host was given %d commands", n)
			}
			closed(t, host)
		})
	}
}

// Keys: which is offered, encrypted ones, and one that the host does not know.
func TestSSHKeys(t *testing.T) {
	host := hello(t)
	o, u := sshTo(host)
	dir := t.TempDir()
	name := func(n string) string { return filepath.Join(dir, n) }
	wrong := testgit.NewKeyFile(t, name("wrong"), "")
	testgit.NewKeyFile(t, name("locked"), "s3cret-phrase")
	secret, err := os.ReadFile(name("wrong"))
	if err != nil {
		t.Fatal(err)
	}

	o.SSHKeys = []string{name("wrong")}
	_, err = post(t.Context(), newRemote(t, o), u)
	wantError(t, "a wrong key", err, http.StatusForbidden, "knows none of the keys", "user git", "vcs-ssh-key", ssh.FingerprintSHA256(wrong.PublicKey()))
	for line := range strings.Lines(string(secret)) {
		if strings.Contains(err.Error(), strings.TrimSpace(line)) {
			t.Errorf("the error has the key: %v", err)
		}
	}
	o.SSHKeys = []string{name("wrong"), host.Key}
	if got, err := post(t.Context(), newRemote(t, o), u); got != "hello" {
		t.Errorf("the second of two keys: %q, %v", got, err)
	}
	o.SSHKeys = []string{name("wrong"), "127.0.0.1/repo=" + host.Key}
	if got, err := post(t.Context(), newRemote(t, o), u); got != "hello" {
		t.Errorf("a key for a path: %q, %v", got, err)
	}
	o.SSHKeys = []string{"other.example.org=" + host.Key}
	_, err = post(t.Context(), newRemote(t, o), u)
	wantError(t, "no key", err, http.StatusNotImplemented, "no SSH key is set for it (setting vcs-ssh-key)")
	wantError(t, "no key at all", func() error { _, err := post(t.Context(), newRemote(t, Options{}), u); return err }(), http.StatusNotImplemented, "vcs-ssh-key")

	for want, o := range map[string]Options{
		"locked is encrypted, and vcs-ssh-passphrase is not set": {SSHKeys: []string{name("locked")}},
		"vcs-ssh-key: " + name("locked"):                         {SSHKeys: []string{name("locked")}, SSHPassphrase: "s3cret-other"},
		"vcs-ssh-key: " + name("known_hosts"):                    {SSHKeys: []string{name("known_hosts")}},
		"vcs-ssh-key: open":                                      {SSHKeys: []string{"git.example.org=" + name("absent")}},
		"is not FILE, HOST=FILE or HOST/PATH=FILE":               {SSHKeys: []string{"https://a=b"}},
		"vcs-known-hosts: open":                                  {KnownHosts: name("absent")},
		"vcs-known-hosts: knownhosts":                            {KnownHosts: name("known_hosts")},
	} {
		os.WriteFile(name("known_hosts"), []byte("host ssh-ed25519 s3cret\n"), 0o600)
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := New(Options{SSHKeys: []string{name("locked")}, SSHPassphrase: "s3cret-phrase"}); err != nil {
		t.Errorf("an encrypted key: %v", err)
	}

	// The longest prefix alone, and all of that length.
	keys := []string{"any1", "any2", "git.example.org=host", "git.example.org/team=team1", "git.example.org/team=team2"}
	prints := map[string]string{}
	var entries []string
	for _, k := range keys {
		prefix, file, ok := strings.Cut(k, "=")
		if !ok {
			prefix, file = "", k
		}
		prints[ssh.FingerprintSHA256(testgit.NewKeyFile(t, name(file), "").PublicKey())] = file
		if prefix != "" {
			prefix += "="
		}
		entries = append(entries, prefix+name(file))
	}
	r := newRemote(t, Options{SSHKeys: entries})
	for u, want := range map[string]string{
		"ssh://git@git.example.org/team/x": "team1 team2", "ssh://git@git.example.org/~/team/x": "team1 team2", "ssh://git@git.example.org/teams/x": "host",
		"ssh://git@git.example.org:2222/team/x": "team1 team2", "ssh://git@other.example.org/team/x": "any1 any2", "ssh://git@git.example.or/~g/team": "any1 any2",
	} {
		parsed, _ := url.Parse(u)
		var got []string
		for _, s := range r.ssh.signers(parsed) {
			got = append(got, prints[ssh.FingerprintSHA256(s.PublicKey())])
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", u, got, want)
		}
	}
}

func TestParseRepo(t *testing.T) {
	for raw, want := range map[string]string{
		"git@github.com:a/b.git":                "ssh://git@github.com/~/a/b.git git-upload-pack 'a/b.git'",
		"me@host:/srv/x":                        "ssh://me@host/srv/x git-upload-pack '/srv/x'",
		"me@host:~/x":                           "ssh://me@host/~/x git-upload-pack 'x'",
		"me@host:~you/x":                        "ssh://me@host/~you/x git-upload-pack '~you/x'",
		"me@[::1]:x":                            "ssh://me@[::1]/~/x git-upload-pack 'x'",
		"git@GitHub.com:a":                      "ssh://git@github.com/~/a git-upload-pack 'a'",
		"ssh://git@Git.example.org:22/a":        "ssh://git@git.example.org/a git-upload-pack '/a'",
		"ssh://host:2222/a":                     "ssh://git@host:2222/a git-upload-pack '/a'",
		"git+ssh://me:s3cret@host/a":            "ssh://me@host/a git-upload-pack '/a'",
		"ssh://host/~/a%20b":                    "ssh://git@host/~/a%20b git-upload-pack 'a b'",
		"ssh://host/it's;rm!":                   `ssh://git@host/it's;rm! git-upload-pack '/it'\''s;rm'\!''`,
		"ssh://host/a%0ab":                      "ssh://git@host/a%0ab refused",
		"ssh://host/~/-oProxyCommand=x":         "ssh://git@host/~/-oProxyCommand=x refused",
		"git@host:--upload-pack=x":              "ssh://git@host/~/--upload-pack=x refused",
		"ssh://host/":                           "ssh://git@host/ refused",
		"ssh://host":                            "ssh://git@host refused",
		"git@host:":                             "ssh://git@host/~/ refused",
		"https://git.example.org/~/a":           "https://git.example.org/~/a",
		"https://me@git.example.org:8443/a@b:c": "https://me@git.example.org:8443/a@b:c",
		"ssh://git@git.example.org/a:b@c":       "ssh://git@git.example.org/a:b@c git-upload-pack '/a:b@c'",
		"git@host://x":                          "error",
		"host:path":                             "host:path",
	} {
		u, err := parseRepo(raw)
		got := "error"
		if err == nil {
			if got = u.String(); u.Scheme == "ssh" {
				command, err := uploadPack(u.Path)
				if err != nil {
					command = "refused"
				}
				got += " " + command
			}
		}
		if got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", raw, got, want)
		}
	}
}

func TestRewriteSSH(t *testing.T) {
	r := newRemote(t, Options{InsteadOf: []string{
		"https://github.com/=git@github.com:", "https://git.example.org/=ssh://git@git.example.org:2222/", "https://code.example.org/=https://mirror.example.org/",
	}})
	for from, want := range map[string]string{
		"https://github.com/a/b": "git@github.com:a/b", "https://git.example.org/x": "ssh://git@git.example.org:2222/x", "https://code.example.org/x": "https://mirror.example.org/x",
	} {
		if got := r.Rewrite(from); got != want {
			t.Errorf("%s: %s, want %s", from, got, want)
		}
	}
	// Pages are on the web.
	if got := r.rewrite("https://git.example.org/x?go-get=1", true); got != "https://git.example.org/x?go-get=1" {
		t.Errorf("a page: %s", got)
	}
	if got := r.rewrite("https://code.example.org/x?go-get=1", true); got != "https://mirror.example.org/x?go-get=1" {
		t.Errorf("a page: %s", got)
	}
	// What a webhook names.
	for from, want := range map[string]string{
		"https://github.com/a/b": "github.com/a/b", "https://git.example.org/x": "git.example.org/x", "https://mirror.example.org/x": "code.example.org/x", "https://other.example.org/x": "other.example.org/x",
	} {
		if got := r.Module(from); got != want {
			t.Errorf("%s: %s, want %s", from, got, want)
		}
	}
	moved := newRemote(t, Options{InsteadOf: []string{"https://code.example.org/team/=git@git.internal:mirror/"}})
	if got := moved.Module("https://git.internal/mirror/x"); got != "code.example.org/team/x" {
		t.Errorf("a webhook of a host that is reached over SSH: %s", got)
	}
	repo, err := r.Discover(t.Context(), "github.com/a/b/v2")
	if err != nil || repo.URL.String() != "ssh://git@github.com/~/a/b" || repo.PublicURL != "https://github.com/a/b" {
		t.Errorf("%+v, %v", repo, err)
	}
}

// Over SSH too what is not on the internet is not reached, unless the operator named
// the host, and for SSH.
func TestGuardSSH(t *testing.T) {
	host := hello(t)
	u := "ssh://git@" + host.Addr + "/repo"
	reached := func(o Options) error {
		o.SSHKeys, o.KnownHosts = []string{host.Key}, host.Known
		_, err := post(t.Context(), newRemote(t, o), u)
		return err
	}
	_, port, _ := net.SplitHostPort(host.Addr)
	for what, o := range map[string]Options{
		"nothing":                          {},
		"the host on another port":         {InsteadOf: []string{"https://a/=ssh://git@127.0.0.1/"}},
		"the host for https":               {InsteadOf: []string{"https://a/=https://" + host.Addr + "/"}},
		"another host":                     {AllowHosts: []string{"git.example.org"}},
		"an insecure module":               {Insecure: "*"},
		"the host on another port, scp":    {InsteadOf: []string{"https://a/=git@127.0.0.1:"}},
		"allowed, but on another port too": {AllowHosts: []string{"127.0.0.1:22"}},
	} {
		wantError(t, what, reached(o), http.StatusForbidden, "127.0.0.1 is not an address on the internet (setting vcs-allow-host)")
	}
	if n := len(host.Commands()); n > 0 {
		t.Errorf("%d commands got through", n)
	}
	for what, o := range map[string]Options{
		"vcs-instead-of":               {InsteadOf: []string{"https://a/=" + u}},
		"vcs-allow-host":               {AllowHosts: []string{"127.0.0.*"}},
		"vcs-allow-host with its port": {AllowHosts: []string{"127.0.0.1:" + port}},
	} {
		if err := reached(o); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	// What is trusted for SSH is not for http.
	named := newRemote(t, Options{InsteadOf: []string{"https://a/=" + u}})
	_, err := get(named, "http://"+host.Addr+"/")
	wantError(t, "http to it", err, http.StatusForbidden, "only https")
	_, err = get(named, "https://"+host.Addr+"/")
	wantError(t, "https to it", err, http.StatusForbidden, "vcs-allow-host")
	// Nor does a redirect lead to it.
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, u, http.StatusTemporaryRedirect) }))
	t.Cleanup(web.Close)
	redirected := newRemote(t, Options{InsteadOf: []string{"https://a/=" + web.URL + "/", "https://b/=" + u}, SSHKeys: []string{host.Key}, KnownHosts: host.Known})
	_, err = redirected.HTTP().Post(web.URL, "", strings.NewReader("x"))
	wantError(t, "a redirect to ssh", err, http.StatusForbidden, "a redirect from http to ssh is not followed")
	_, err = get(redirected, u)
	wantError(t, "a GET", err, http.StatusNotImplemented, "GET over ssh")
}

// A go-import tag may name a repository behind SSH; a module proxy behind it may not be.
func TestDiscoverSSH(t *testing.T) {
	pages := map[string]string{
		"/ssh": "git ssh://git@git.example.org/team/a", "/plus": "git git+ssh://git.example.org:2222/a", "/scp": "git git@git.example.org:a", "/mod": "mod ssh://git@git.example.org/a",
		"/option": "git ssh://git@git.example.org/~/-x", "/line": "git ssh://git@git.example.org/a%0ab", "/root": "git ssh://git@git.example.org/",
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `<meta name="go-import" content="mod.example.org%s %s">`, r.URL.Path, pages[r.URL.Path])
	}))
	t.Cleanup(srv.Close)
	r := newRemote(t, Options{Insecure: "*", Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, srv.Listener.Addr().String())
	}})
	for path, want := range map[string]string{
		"/ssh": "ssh://git@git.example.org/team/a ssh://git@git.example.org/team/a", "/plus": "ssh://git@git.example.org:2222/a git+ssh://git.example.org:2222/a",
		"/scp": "502", "/mod": "502", "/option": "502", "/line": "502", "/root": "502",
	} {
		repo, err := r.Discover(t.Context(), "mod.example.org"+path)
		got := fmt.Sprint(goproxy.Status(err))
		if err == nil {
			got = repo.URL.String() + " " + repo.PublicURL
		}
		if got != want { // scp-like is no URL: the go command refuses it too
			t.Errorf("%s: %s (%v), want %s", path, got, err, want)
		}
	}
}

// What a host says when it does not give a repository, and how its command ends.
func TestSSHAnswers(t *testing.T) {
	for _, tc := range []struct {
		out, stderr  string
		code         uint32
		status       int
		want, wantNo string
	}{
		{out: "all of it", status: 200},
		{stderr: "a warning: not found", out: "all", status: 200},
		{stderr: "ERROR: Repository not found.\n", code: 1, status: 404, want: "the host says: ERROR: Repository not found."},
		{stderr: "fatal: '/x' does not appear to be a git repository\n", code: 128, status: 404, want: "does not appear"},
		{stderr: "ERROR: The project you were looking for could not be found or you don't have permission to view it.\n", code: 1, status: 404},
		{stderr: "FATAL: R any x git DENIED by fallthru\n", code: 128, status: 404},
		{stderr: "Internal error\x1b[31m\n", code: 1, status: 502, want: "the host says: Internal error", wantNo: "\x1b"},
		{code: 3, status: 502, want: "ended with status 3"},
		{out: "some", stderr: "fatal: object not found\n", code: 128, status: 502, want: "object not found"},
		{stderr: strings.Repeat("much ", 100_000), code: 1, status: 502, want: "much much"},
	} {
		host := answering(t, func(_ string, _ io.Reader, out, stderr io.Writer) uint32 {
			io.WriteString(out, tc.out)
			io.WriteString(stderr, tc.stderr)
			return tc.code
		})
		o, u := sshTo(host)
		got, err := post(t.Context(), newRemote(t, o), u)
		if tc.status == 200 {
			if err != nil || got != tc.out {
				t.Errorf("%+v: %q, %v", tc, got, err)
			}
		} else {
			wantError(t, tc.stderr[:min(len(tc.stderr), 40)], err, tc.status, tc.want)
			if len(err.Error()) > 3000 || tc.wantNo != "" && strings.Contains(err.Error(), tc.wantNo) {
				t.Errorf("%d bytes of error: %.300q", len(err.Error()), err.Error())
			}
			if (tc.status == 404) != errors.Is(err, os.ErrNotExist) {
				t.Errorf("%v", err)
			}
		}
		closed(t, host)
	}
}

// What bounds a host's requests sees each run as one, until its answer is closed.
func TestSSHIsWrapped(t *testing.T) {
	host := hello(t)
	o, u := sshTo(host)
	var seen []string
	o.Wrap = func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			seen = append(seen, req.URL.Host)
			if len(seen) > 1 {
				return nil, goproxy.Busy(time.Second, "enough")
			}
			return next.RoundTrip(req)
		})
	}
	r := newRemote(t, o)
	if _, err := post(t.Context(), r, u); err != nil {
		t.Error(err)
	}
	_, err := post(t.Context(), r, u)
	wantError(t, "the second", err, http.StatusServiceUnavailable, "enough")
	if len(seen) != 2 || seen[0] != host.Addr || len(host.Commands()) != 1 || host.Commands()[0] != "git-upload-pack '/repo'" {
		t.Errorf("%v, commands %q", seen, host.Commands())
	}
	closed(t, host)
}

// A connection ends with its context, wherever it stands; and a host that takes
// connections and says nothing is given up.
func TestSSHEnds(t *testing.T) {
	host := answering(t, func(_ string, in io.Reader, out, _ io.Writer) uint32 {
		io.WriteString(out, "x")
		io.Copy(io.Discard, in)
		return 0
	})
	o, u := sshTo(host)
	r := newRemote(t, o)
	ctx, cancel := context.WithCancel(t.Context())
	in, out := io.Pipe()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u, in)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := r.HTTP().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("after the end of the context: %q", b)
	}
	closed(t, host)
	resp.Body.Close()
	if _, err := out.Write([]byte("x")); err == nil {
		t.Error("what nobody reads was taken")
	}

	// What bounds the login does not bound the answer.
	so, su := sshTo(hello(t))
	conn := &deadlines{}
	so.Dial = func(ctx context.Context, network, address string) (c net.Conn, err error) {
		conn.Conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return conn, err
	}
	if got, err := post(t.Context(), newRemote(t, so), su); got != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	if n := len(conn.set); n < 2 || conn.set[0].IsZero() || !conn.set[n-1].IsZero() {
		t.Errorf("deadlines %v, want one, and then none", conn.set)
	}

	silent, addr := newSilent(t)
	o.InsteadOf = []string{"https://a/=ssh://git@" + addr + "/"}
	r = newRemote(t, o)
	r.ssh.timeout = 100 * time.Millisecond
	_, err = post(t.Context(), r, "ssh://git@"+addr+"/x")
	wantError(t, "a silent host", err, http.StatusBadGateway, "no login within 100ms")
	r.ssh.timeout = time.Hour
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := post(ctx, r, "ssh://git@"+addr+"/x"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a silent host, and a context that ends: %v", err)
	}
	for end := time.Now().Add(10 * time.Second); silent.Load() > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections to the silent host are open", silent.Load())
		}
	}
}

// deadlines is a connection that keeps the deadlines it was given.
type deadlines struct {
	net.Conn
	set []time.Time
}

func (d *deadlines) SetDeadline(t time.Time) error {
	d.set = append(d.set, t)
	return d.Conn.SetDeadline(t)
}

// newSilent takes connections and says nothing. It counts those that are open.
func newSilent(t *testing.T) (*atomic.Int32, string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	open := new(atomic.Int32)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			open.Add(1)
			go func() {
				defer open.Add(-1)
				io.Copy(io.Discard, conn)
				conn.Close()
			}()
		}
	}()
	return open, l.Addr().String()
}

// Few log in at one host at once, and a host that is slow at it holds up no other.
func TestSSHLogins(t *testing.T) {
	open, addr := newSilent(t)
	host := hello(t)
	o, u := sshTo(host)
	o.InsteadOf = append(o.InsteadOf, "https://a/=ssh://git@"+addr+"/")
	r := newRemote(t, o)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 3 * maxHandshakes {
		wg.Go(func() { post(ctx, r, "ssh://git@"+addr+"/x") })
	}
	for end := time.Now().Add(10 * time.Second); open.Load() < maxHandshakes; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections", open.Load())
		}
	}
	if got, err := post(t.Context(), r, u); got != "hello" {
		t.Errorf("another host: %q, %v", got, err)
	}
	if n := open.Load(); n != maxHandshakes {
		t.Errorf("%d log in at once, want %d", n, maxHandshakes)
	}
	cancel()
	wg.Wait()
	if len(r.ssh.gates) != 0 {
		t.Errorf("gates are left: %v", r.ssh.gates)
	}
}

// A host that says what is no SSH.
func TestNotSSH(t *testing.T) {
	for _, said := range []string{"HTTP/1.1 400 Bad Request\r\n\r\n", "SSH-1.5-old\r\n", strings.Repeat("x", 100_000), strings.Repeat("line\n", 100_000)} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			io.WriteString(conn, said)
			bufio.NewReader(conn).ReadString('\n')
		}()
		host := hello(t)
		o, _ := sshTo(host)
		o.InsteadOf = []string{"https://a/=ssh://git@" + l.Addr().String() + "/"}
		r := newRemote(t, o)
		r.ssh.timeout = 5 * time.Second
		_, err = post(t.Context(), r, "ssh://git@"+l.Addr().String()+"/x")
		wantError(t, said[:5], err, http.StatusBadGateway, "ssh: ")
		l.Close()
	}
}

// Whatever the URL of a repository is, what a host is told is one word of a shell, and
// no option.
func FuzzParseRepo(f *testing.F) {
	f.Add("git@host:it's")
	f.Add("ssh://a:b@[::1]:22/~/x!%27%0a")
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := parseRepo(raw)
		if err != nil || u.Scheme != "ssh" {
			return
		}
		if _, has := u.User.Password(); has || u.User.Username() == "" && strings.Contains(raw, "://") {
			t.Errorf("%q: user %v", raw, u.User)
		}
		command, err := uploadPack(u.Path)
		if err != nil {
			return
		}
		word, ok := strings.CutPrefix(command, "git-upload-pack '")
		word, ok2 := strings.CutSuffix(word, "'")
		word = strings.NewReplacer(`'\''`, "", `'\!'`, "").Replace(word)
		if !ok || !ok2 || strings.ContainsAny(word, "'!\n\x00") || strings.HasPrefix(word, "-") {
			t.Errorf("%q: %q", raw, command)
		}
	})
}
