package vcs

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	"golang.org/x/tools/txtar"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/testgit"
	"github.com/athensctl/athensctl/vcs/remote"
)

// newPages serves pages with go-import meta tags, by host and path, to whoever takes it
// for a proxy or for the host itself. It returns its address.
func newPages(t *testing.T, pages map[string]string) string {
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content, ok := pages[r.Host+r.URL.Path]
		if r.Method == http.MethodConnect || !ok {
			http.Error(w, "not here", http.StatusNotFound)
			return
		}
		fmt.Fprintf(w, "<!DOCTYPE html><html><head><meta name=\"go-import\" content=%q></head><body>x</body></html>", content)
	}))
	t.Cleanup(ts.Close)
	return ts.Listener.Addr().String()
}

// goCommand is the go command with GOPROXY=direct and nothing of this machine's
// settings.
type goCommand struct {
	t    *testing.T
	dir  string
	host string // where pages are
	ssh  string // GIT_SSH_COMMAND
	// cache is the name of its module cache.
	cache string
	// answered is what it has made of queries before, over another way to the same
	// repository.
	answered map[string]download
}

func (g *goCommand) run(args ...string) ([]byte, error) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = filepath.Join(g.dir, "work")
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + g.dir, "TMPDIR=" + os.TempDir(), "GIT_CONFIG_NOSYSTEM=1",
		"GIT_CONFIG_GLOBAL=" + filepath.Join(g.dir, "gitconfig"), "GIT_TERMINAL_PROMPT=0",
		"GOENV=off", "GOWORK=off", "GOTOOLCHAIN=local", "GOTELEMETRY=off", "GOFLAGS=-modcacherw -mod=mod",
		"GOPROXY=direct", "GOSUMDB=off", "GOINSECURE=*", "GOVCS=*:all", "GOPATH=" + filepath.Join(g.dir, "gopath"+g.cache),
		"GOCACHE=" + filepath.Join(g.dir, "cache"), "GO111MODULE=on", "GIT_SSH_COMMAND=" + g.ssh,
		"HTTP_PROXY=http://" + g.host, "HTTPS_PROXY=http://" + g.host, "NO_PROXY=127.0.0.1",
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return stdout.Bytes(), err
}

// answer is what either makes of a query.
type answer struct {
	Version string
	Time    string
	Origin  map[string]string
	Mod     string
	H1      string
	Err     string `json:"-"`
}

// TestOracle compares what Source makes of repositories with what the go command
// does, over HTTP and over SSH. Each file of testdata is a case: the rule it is about, a
// script that makes repositories, go-import pages, what is asked, with the reason behind it
// where that fails, and what is refused, with the reason, though the go command serves it.
func TestOracle(t *testing.T) {
	if testing.Short() {
		t.Skip("it runs the go command and git some hundred times")
	}
	testgit.Needs(t, "git", "go", "sh", "ssh")
	cases, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(cases) < 40 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	for _, file := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			oracleCase(t, file)
		})
	}
}

func oracleCase(t *testing.T, file string) {
	ar, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(strings.TrimSpace(string(ar.Comment))) < 20 {
		t.Error("the case does not say which rule it is about")
	}
	section := map[string]string{}
	for _, f := range ar.Files {
		section[f.Name] = string(f.Data)
	}
	root := testDir(t)
	testgit.Script(t, root, section["repo.sh"])
	pages := map[string]string{}
	for line := range strings.Lines(section["pages"]) {
		where, content, _ := strings.Cut(strings.TrimSpace(line), " ")
		pages[where] = content
	}
	var lists, asked []string
	why := reasons{map[string]string{}, map[string]string{}}
	expand := func(line string) string {
		return os.Expand(strings.TrimSpace(line), func(name string) string { return readHash(t, root, name) })
	}
	for line := range strings.Lines(section["ask"]) {
		line = expand(line)
		if modulePath, ok := strings.CutPrefix(line, "list "); ok {
			lists = append(lists, modulePath)
		} else if line != "" {
			query, reason, _ := strings.Cut(line, " ")
			why.fails[query] = reason
			asked = append(asked, query)
		}
	}
	for line := range strings.Lines(section["refused"]) {
		query, reason, _ := strings.Cut(expand(line), " ")
		if reason == "" {
			t.Fatalf("%s is refused without a reason", query)
		}
		why.refused[query] = reason
		asked = append(asked, query)
	}
	if len(lists)+len(asked) == 0 {
		t.Fatal("nothing is asked")
	}
	page, answered, whole := newPages(t, pages), map[string]download{}, t
	compare := func(t *testing.T, base, gitSSH string, sources ...*Source) (served int) {
		dir := testDir(whole) // what is in answered is there
		config := fmt.Sprintf("[url %q]\n\tinsteadOf = https://git.test.example/\n\tinsteadOf = ssh://git@git.test.example/\n", base)
		for name, content := range map[string]string{"gitconfig": config, "work/go.mod": "module x.example/work\n"} {
			name = filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		cmd := &goCommand{t: t, dir: dir, host: page, ssh: gitSSH, answered: answered}
		for _, modulePath := range lists {
			compareList(t, cmd, sources, modulePath)
		}
		// What the go command makes of a query depends on what it has fetched before, and
		// on what its module cache has of the version: each has a cache of its own.
		var versions []string
		for i, q := range asked {
			if _, v, _ := strings.Cut(q, "@"); module.CanonicalVersion(v) == v {
				versions = append(versions, q)
				continue
			}
			// A run for each takes its time: what is answered over HTTP is good over SSH.
			cmd.cache = fmt.Sprint("query", i)
			served += compareQueries(t, cmd, sources, []string{q}, why, true)
		}
		cmd.cache = "versions"
		return served + compareQueries(t, cmd, sources, versions, why, false)
	}
	t.Run("http", func(t *testing.T) {
		base := testgit.New(t, root).URL + "/"
		sources := []*Source{newSource(t, page, base, nil)}
		for _, protocol := range []string{"0", "version=1"} {
			old := testgit.New(t, root)
			old.Protocol = protocol
			sources = append(sources, newSource(t, page, old.URL+"/", nil))
		}
		compare(t, base, "false", sources...)
	})
	t.Run("ssh", func(t *testing.T) {
		host, old := testgit.NewSSH(t, root), testgit.NewSSH(t, root, func(s *testgit.SSH) { s.Version0 = true })
		one := testgit.NewSSH(t, root, func(s *testgit.SSH) { s.Version1 = true })
		base := "ssh://git@" + host.Addr + "/"
		served := compare(t, base, host.GitSSH(), newSource(t, page, base, host), newSource(t, page, "ssh://git@"+old.Addr+"/", old), newSource(t, page, "ssh://git@"+one.Addr+"/", one))
		if served > 0 && (len(host.Commands()) == 0 || len(old.Commands()) == 0 || len(one.Commands()) == 0) {
			t.Error("nothing was asked over SSH")
		}
	})
}

// testDir is a folder in which git may still write when the test ends: TempDir would
// complain.
func testDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "oracle")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// newSource is a Source for which base stands for the host of the repositories; all
// other hosts are the one that has the pages.
func newSource(t *testing.T, page, base string, host *testgit.SSH) *Source {
	o := remote.Options{
		InsteadOf: []string{"https://git.test.example/=" + base, "ssh://git@git.test.example/=" + base}, Insecure: "*",
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if !strings.HasPrefix(address, "127.0.0.1:") {
				address = page
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	}
	if host != nil {
		o.SSHKeys, o.KnownHosts = []string{host.Key}, host.Known
	}
	r, err := remote.New(o)
	if err != nil {
		t.Fatal(err)
	}
	s := New(r, Options{TempDir: t.TempDir()})
	t.Cleanup(func() { s.Close() })
	return s
}

// reasons are parts of vcs' errors, by query; those of one that may be either, as it is said
// over HTTP and over SSH, have " | " between them.
type reasons struct {
	fails   map[string]string // with the go command too; "": it does not
	refused map[string]string // though the go command serves it
}

func compareQueries(t *testing.T, cmd *goCommand, sources []*Source, asked []string, why reasons, reuse bool) (served int) {
	t.Helper()
	if len(asked) == 0 {
		return 0
	}
	var downloads []download
	if dl, ok := cmd.answered[asked[0]]; ok && reuse {
		downloads = append(downloads, dl)
	} else {
		out, _ := cmd.run(append([]string{"mod", "download", "-json"}, asked...)...)
		for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
			var dl download
			if err := d.Decode(&dl); err != nil {
				t.Fatal(err)
			}
			downloads = append(downloads, dl)
		}
		if len(downloads) != len(asked) {
			t.Fatalf("go mod download answered %d of %d: %s", len(downloads), len(asked), out)
		}
	}
	for i, query := range asked {
		dl := downloads[i]
		want := answer{Version: dl.Version, H1: dl.Sum, Err: dl.Error}
		if dl.Error == "" {
			want.Mod = readFile(t, dl.GoMod)
			readInfo(t, []byte(readFile(t, dl.Info)), &want)
			if _, q, _ := strings.Cut(query, "@"); q != dl.Version {
				want.Origin = dl.Origin // of the query; the file is for the version alone
			}
			served++
		}
		if reuse {
			cmd.answered[query] = dl
		}
		for i, s := range sources {
			compareAnswer(t, i, s, query, why, dl, want)
		}
	}
	return served
}

// download is what go mod download -json prints of a module.
type download struct {
	Path, Version, Error, Info, GoMod, Sum, Zip string
	Origin                                      map[string]string
}

func compareAnswer(t *testing.T, source int, s *Source, query string, why reasons, dl download, want answer) {
	t.Helper()
	got := ask(t, s, query)
	if refused := why.refused[query]; refused != "" {
		if want.Err != "" || !strings.Contains(got.Err, refused) {
			t.Errorf("%s, source %d:\nvcs: %s %s, want %q\ngo:  %s %s", query, source, got.Version, got.Err, refused, want.Version, want.Err)
		}
		return
	}
	if (got.Err == "") != (want.Err == "") {
		t.Errorf("%s, source %d:\nvcs: %s %s\ngo:  %s %s", query, source, got.Version, got.Err, want.Version, want.Err)
		return
	}
	fails := why.fails[query]
	if got.Err != "" {
		said := func(reason string) bool { return strings.Contains(got.Err, reason) }
		if fails == "" || !slices.ContainsFunc(strings.Split(fails, " | "), said) {
			t.Errorf("%s, source %d fails, and the case has %q behind it as the reason:\nvcs: %s\ngo:  %s", query, source, fails, got.Err, want.Err)
		}
		return
	}
	if fails != "" {
		t.Errorf("%s, source %d: %s, and the case says that it fails: %s", query, source, got.Version, fails)
	}
	got.Err, want.Err = "", ""
	if reflect.DeepEqual(got, want) {
		return
	}
	g, _ := json.MarshalIndent(got, "", "  ")
	w, _ := json.MarshalIndent(want, "", "  ")
	t.Errorf("%s, source %d:\nvcs: %s\ngo:  %s", query, source, g, w)
	if got.H1 != want.H1 {
		b, err := s.Zip(t.Context(), module.Version{Path: dl.Path, Version: dl.Version})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("vcs: %q", contents(t, b.ReadCloser.(*temporary).Name()))
		t.Logf("go:  %q", contents(t, dl.Zip))
		b.Close()
	}
}

// contents is the files of a zip, shortened.
func contents(t *testing.T, name string) (list []string) {
	t.Helper()
	z, err := zip.OpenReader(name)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, fmt.Sprintf("%s %d %.30q", f.Name, len(b), b))
	}
	slices.Sort(list)
	return list
}

func compareList(t *testing.T, cmd *goCommand, sources []*Source, modulePath string) {
	t.Helper()
	out, goErr := cmd.run("list", "-m", "-versions", "-retracted", "-json", modulePath+"@none")
	if goErr != nil { // @none is not always taken
		out, goErr = cmd.run("list", "-m", "-versions", "-retracted", "-json", modulePath)
	}
	var l struct{ Versions []string }
	if goErr == nil {
		if err := json.Unmarshal(out, &l); err != nil {
			t.Fatal(err)
		}
	}
	for i, s := range sources {
		got, err := s.List(t.Context(), modulePath)
		switch {
		case err != nil || goErr != nil: // no case has a list that fails
			t.Errorf("list %s, source %d: vcs: %v; go: %v", modulePath, i, err, goErr)
		case !(len(got.Versions) == 0 && len(l.Versions) == 0) && !reflect.DeepEqual(got.Versions, l.Versions):
			t.Errorf("list %s, source %d:\nvcs: %v\ngo:  %v", modulePath, i, got.Versions, l.Versions)
		}
	}
}

// ask has Source answer for path@query.
func ask(t *testing.T, s *Source, pathQuery string) (a answer) {
	t.Helper()
	ctx := t.Context()
	modulePath, query, _ := strings.Cut(pathQuery, "@")
	info, err := s.Resolve(ctx, modulePath, query)
	if err != nil {
		return answer{Err: err.Error()}
	}
	if _, err := goproxy.ParseInfo(modulePath, query, info.JSON()); err != nil {
		t.Errorf("%s: %v", pathQuery, err)
	}
	a.Version = info.Version
	readInfo(t, info.JSON(), &a)
	v := module.Version{Path: modulePath, Version: info.Version}
	b, err := s.Mod(ctx, v)
	if err != nil {
		return answer{Version: a.Version, Err: "mod: " + err.Error()}
	}
	content, err := b.ReadAll(goproxy.MaxModBytes)
	if err != nil {
		t.Fatal(err)
	}
	a.Mod = string(content)
	z, err := s.Zip(ctx, v)
	if err != nil {
		return answer{Version: a.Version, Err: "zip: " + err.Error()}
	}
	defer z.Close()
	name := filepath.Join(t.TempDir(), "m.zip")
	f, err := os.Create(name)
	if err == nil {
		_, err = io.Copy(f, z)
		f.Close()
	}
	if err == nil {
		a.H1, err = dirhash.HashZip(name, dirhash.Hash1)
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func readInfo(t *testing.T, raw []byte, a *answer) {
	t.Helper()
	var i struct {
		Version, Time string
		Origin        map[string]string
	}
	if err := json.Unmarshal(raw, &i); err != nil {
		t.Fatal(err)
	}
	a.Version, a.Time, a.Origin = i.Version, i.Time, i.Origin
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// readHash is what repo.sh kept under a name: a hash, or some digits of one.
func readHash(t *testing.T, root, name string) string {
	t.Helper()
	return strings.TrimSpace(readFile(t, filepath.Join(root, "var", name)))
}
