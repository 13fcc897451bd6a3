//go:build unix

package e2e

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/athensctl/athensctl/internal/testgit"
)

// Modules that only a git host has: the go command gets them through athensctl as it
// does straight from the host, hash for hash; every commit is fetched once, whoever
// asks; and they stay when the host is gone.
func TestGitHost(t *testing.T) {
	root := t.TempDir()
	host := testgit.New(t, root)
	testgit.Script(t, root, `
repo lib; gomod go.mod git.test.example/lib.git; src a.go; gomod sub/go.mod git.test.example/lib.git/sub; src sub/b.go; commit
tag v1.0.0 sub/v0.1.0; src c.go; commit; tag v1.1.0; src d.go; commit
`)
	f := startFleet(t, "direct", 2, 2, "--vcs-instead-of=https://git.test.example/="+host.URL+"/", "--private=git.test.example/*")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module example.com/main\n\ngo 1.21\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "gitconfig")
	if err := os.WriteFile(config, []byte("[url \""+host.URL+"/\"]\n\tinsteadOf = https://git.test.example/\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GIT_CONFIG_GLOBAL", config)
	t.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	queries := []string{
		"git.test.example/lib.git@v1.0.0", "git.test.example/lib.git@latest", "git.test.example/lib.git@main", "git.test.example/lib.git/sub@v0.1.0",
	}
	sums := func(proxy string) map[string]string {
		t.Helper()
		got := map[string]string{}
		d := json.NewDecoder(strings.NewReader(goCommand(t, dir, proxy, append([]string{"mod", "download", "-json"}, queries...)...)))
		for d.More() {
			var m struct{ Path, Version, Sum, GoModSum string }
			if err := d.Decode(&m); err != nil {
				t.Fatal(err)
			}
			got[m.Path+"@"+m.Version] = m.Sum + " " + m.GoModSum
		}
		return got
	}
	want := sums("direct")
	asked := host.Asked("GET", "/lib/info/refs")
	for i, p := range f.proxies {
		if got := sums(p.url); !maps.Equal(got, want) || len(got) != len(queries) {
			t.Errorf("proxy %d: %v, want %v", i, got, want)
		}
	}
	t.Logf("%d questions to the host", host.Asked("GET", "/lib/info/refs")-asked)
	if out := goCommand(t, dir, f.proxies[1].url, "list", "-m", "-versions", "git.test.example/lib.git"); strings.TrimSpace(out) != "git.test.example/lib.git v1.0.0 v1.1.0" {
		t.Errorf("versions: %s", out)
	}
	// The host is gone.
	if err := os.Rename(filepath.Join(root, "lib"), filepath.Join(root, "away")); err != nil {
		t.Fatal(err)
	}
	for _, p := range f.proxies {
		p.terminate()
		p.start()
	}
	queries = []string{queries[0], queries[3]}
	for q, sum := range sums(f.proxies[0].url) {
		if want[q] != sum {
			t.Errorf("with the host gone: %s: %s, want %s", q, sum, want[q])
		}
	}
	// 200 requests for 20 versions that nobody has: each fetched once.
	testgit.Script(t, root, `
cd "$root/away"; i=0; while [ $i -lt 20 ]; do i=$((i+1)); src f$i.go; commit; tag v1.2.$i; done; mv "$root/away" "$root/lib"
`)
	before := host.Asked("POST", "/lib/git-upload-pack")
	got := crowd(200, func(i int) string {
		return f.proxies[i%2].url + "/git.test.example/lib.git/@v/v1.2." + string(rune('1'+i%9)) + ".zip"
	})
	if got["200"] != 200 {
		t.Errorf("herd: %v", got)
	}
	n := host.Asked("POST", "/lib/git-upload-pack") - before
	t.Logf("%d requests to the host for 9 versions", n)
	if n > 9*2 {
		t.Errorf("%d requests to the host for 9 versions", n)
	}
	for _, p := range f.all() {
		if peak := p.peakMiB(); peak > 128 {
			t.Errorf("%v: peak resident memory %d MiB", p.args, peak)
		}
	}
}

// No role starts a program for what comes from a git host: git and go may not even
// be there.
func TestGitHostWithoutGit(t *testing.T) {
	root := t.TempDir()
	host := testgit.New(t, root)
	testgit.Script(t, root, "repo lib; gomod go.mod git.test.example/lib.git; src a.go; commit; tag v1.0.0\n")
	testgit.Script(t, root, "repo far; gomod go.mod ssh.test.example/far.git; src a.go; commit; tag v1.0.0\n")
	far := testgit.NewSSH(t, root)
	strace := need(t, "strace")
	trace := filepath.Join(t.TempDir(), "trace")
	p := prepare(t, "--upstream=direct", "--vcs-instead-of=https://git.test.example/="+host.URL+"/", "--vcs-instead-of=https://ssh.test.example/=ssh://git@"+far.Addr+"/",
		"--vcs-ssh-key", far.Key, "--vcs-known-hosts", far.Known, "--private=*", "--data-dir", t.TempDir())
	p.wrap = []string{strace, "-f", "-e", "trace=execve", "-o", trace}
	p.start()
	if got := crowd(6, func(i int) string {
		return p.url + []string{"/git.test.example/lib.git/@v/", "/ssh.test.example/far.git/@v/"}[i/3] + []string{"v1.0.0.zip", "list", "main.info"}[i%3]
	}); got["200"] != 6 {
		t.Errorf("answers: %v", got)
	}
	if len(far.Commands()) == 0 {
		t.Error("nothing came over SSH")
	}
	p.kill()
	b, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(b), "execve("); n != 1 {
		t.Errorf("%d programs started, want its own alone:\n%s", n, b)
	}
}

// Modules of a git host that is reached over SSH: as the go command gets them with the
// real ssh, hash for hash; each run is counted with the host's requests; the key is in
// no log and no metric; and a host whose key has changed is refused, saying so.
func TestGitHostSSH(t *testing.T) {
	testgit.Needs(t, "ssh")
	root := t.TempDir()
	testgit.Script(t, root, `
repo lib; gomod go.mod git.test.example/lib.git; src a.go; gomod sub/go.mod git.test.example/lib.git/sub; src sub/b.go; commit
tag v1.0.0 sub/v0.1.0; src c.go; commit; tag v1.1.0; src d.go; commit
`)
	host := testgit.NewSSH(t, root)
	args := []string{"--vcs-instead-of=https://git.test.example/=ssh://git@" + host.Addr + "/", "--private=git.test.example/*", "--vcs-ssh-key", host.Key}
	f := startFleet(t, "direct", 2, 2, append(args, "--vcs-known-hosts", host.Known)...)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module example.com/main\n\ngo 1.21\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "gitconfig")
	if err := os.WriteFile(config, []byte("[url \"ssh://git@"+host.Addr+"/\"]\n\tinsteadOf = https://git.test.example/\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GIT_CONFIG_GLOBAL", config)
	t.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	t.Setenv("GIT_SSH_COMMAND", host.GitSSH())
	queries := []string{
		"git.test.example/lib.git@v1.0.0", "git.test.example/lib.git@latest", "git.test.example/lib.git@main", "git.test.example/lib.git/sub@v0.1.0",
	}
	sums := func(proxy string) string {
		return goCommand(t, dir, proxy, append([]string{"mod", "download", "-json"}, queries...)...)
	}
	digest := func(out string) map[string]string {
		got := map[string]string{}
		d := json.NewDecoder(strings.NewReader(out))
		for d.More() {
			var m struct{ Path, Version, Sum, GoModSum string }
			if err := d.Decode(&m); err != nil {
				t.Fatal(err)
			}
			got[m.Path+"@"+m.Version] = m.Sum + " " + m.GoModSum
		}
		return got
	}
	got := digest(sums(f.proxies[0].url))
	runs := len(host.Commands())
	want := digest(sums("direct"))
	git := len(host.Commands()) - runs // of git itself
	if !maps.Equal(got, want) || len(got) != len(queries) {
		t.Errorf("%v, want %v", got, want)
	}
	if again := digest(sums(f.proxies[1].url)); !maps.Equal(got, again) {
		t.Errorf("the other proxy: %v, want %v", again, got)
	}
	counted := 0
	secret, err := os.ReadFile(host.Key)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(secret)), "\n")
	for _, p := range f.all() {
		_, metrics, _ := get(t, p.url+"/metrics")
		for line := range strings.Lines(metrics) {
			if rest, ok := strings.CutPrefix(line, `athensctl_host_requests_total{cause="",host="`+host.Addr+`",outcome="ok"} `); ok {
				n, err := strconv.Atoi(strings.TrimSpace(rest))
				if err != nil {
					t.Error(err)
				}
				counted += n
			}
		}
		for _, line := range lines[1 : len(lines)-1] {
			if strings.Contains(metrics, line) || strings.Contains(p.log.String(), line) {
				t.Errorf("%v shows the key", p.args)
			}
		}
	}
	if had := len(host.Commands()) - git; counted != had || runs == 0 || git == 0 {
		t.Errorf("%d requests to the host are counted, and it had %d", counted, had)
	}

	// A host with another key.
	other := filepath.Join(dir, "known_hosts")
	line := knownhosts.Line([]string{host.Addr}, testgit.NewKey(t).PublicKey())
	if err := os.WriteFile(other, []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := len(host.Commands())
	p := start(t, append(args, "--upstream=direct", "--data-dir", t.TempDir(), "--vcs-known-hosts", other)...)
	status, body, _ := get(t, p.url+"/git.test.example/lib.git/@v/list")
	if status != 502 || !strings.Contains(body, "its key has changed") || !strings.Contains(body, "vcs-known-hosts") {
		t.Errorf("%d %s", status, body)
	}
	if n := len(host.Commands()); n != before {
		t.Errorf("a host with another key was given %d commands", n-before)
	}
	doctor := append([]string{"doctor", "--upstream=direct", "--sumdb=off", "--data-dir", t.TempDir()}, args...)
	if out, err := athensctl(t, append(doctor, "--vcs-known-hosts", host.Known)...); err != nil || !strings.Contains(out, "ok    git over SSH at git@"+host.Addr) {
		t.Errorf("doctor: %v\n%s", err, out)
	}
	if out, err := athensctl(t, append(doctor, "--vcs-known-hosts", other)...); err == nil || !strings.Contains(out, "FAIL  git over SSH at git@"+host.Addr) || !strings.Contains(out, "its key has changed") {
		t.Errorf("doctor, with another key: %v\n%s", err, out)
	}
}
