//go:build unix

package e2e

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
	strace := need(t, "strace")
	trace := filepath.Join(t.TempDir(), "trace")
	p := prepare(t, "--upstream=direct", "--vcs-instead-of=https://git.test.example/="+host.URL+"/", "--private=*", "--data-dir", t.TempDir())
	p.wrap = []string{strace, "-f", "-e", "trace=execve", "-o", trace}
	p.start()
	if got := crowd(3, func(i int) string {
		return p.url + "/git.test.example/lib.git/@v/" + []string{"v1.0.0.zip", "list", "main.info"}[i]
	}); got["200"] != 3 {
		t.Errorf("answers: %v", got)
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
