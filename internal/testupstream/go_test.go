package testupstream_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/module"

	. "github.com/athensctl/athensctl/internal/testupstream"
)

// goRun runs the go command in dir against the upstream, with the module cache
// in gopath.
func goRun(t *testing.T, u *Upstream, gopath, dir string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	cmd.Env = u.GoEnv("", gopath)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func mustGo(t *testing.T, u *Upstream, gopath, dir string, args ...string) string {
	t.Helper()
	out, err := goRun(t, u, gopath, dir, args...)
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func TestGoCommandGraph(t *testing.T) {
	u := Start(t)
	const modules = 12
	root, err := u.AddGraph(Graph{Modules: modules, Versions: 4, ZipBytes: 5000})
	if err != nil {
		t.Fatal(err)
	}
	gopath, dir := t.TempDir(), t.TempDir()
	if err := root.Write(dir); err != nil {
		t.Fatal(err)
	}
	mustGo(t, u, gopath, dir, "mod", "tidy")
	mustGo(t, u, gopath, dir, "mod", "download")
	mustGo(t, u, gopath, dir, "build", "./...")
	if got := u.Requests(Zip, ""); got != modules {
		t.Errorf("%d zip requests, want %d", got, modules)
	}
	if u.Requests(SumDB, "graph.test/m0000") == 0 {
		t.Error("the checksum database was not asked")
	}
	u.Reset()
	out := mustGo(t, u, gopath, dir, "list", "-m", "-u", "all")
	if !strings.Contains(out, "graph.test/m0011 v1.2.0 [v1.3.0]") {
		t.Errorf("list -m -u all:\n%s", out)
	}
	if got := u.Requests(List, ""); got < modules {
		t.Errorf("%d list requests, want at least %d", got, modules)
	}
	if got := u.Requests(Zip, ""); got != 0 {
		t.Errorf("list -m -u all: %d zip requests", got)
	}
}

func TestGoCommandCorpus(t *testing.T) {
	// A module cache that the go command made is the corpus of the next.
	first := Start(t,
		Module{Path: "example.com/Upper/Case", Version: "v1.0.0"},
		Module{Path: "example.com/plain", Version: "v1.0.0", Files: map[string]string{"a.go": "package a\n"}},
		Module{Path: "example.com/old", Version: "v3.0.0+incompatible"},
		Module{Path: "example.com/two/v2", Version: "v2.0.0-20240102030405-abcdefabcdef"})
	gopath := t.TempDir()
	all := []string{"example.com/Upper/Case@v1.0.0", "example.com/plain@v1.0.0",
		"example.com/old@v3.0.0+incompatible", "example.com/two/v2@v2.0.0-20240102030405-abcdefabcdef"}
	mustGo(t, first, gopath, t.TempDir(), append([]string{"mod", "download"}, all...)...)

	cache := filepath.Join(gopath, "pkg", "mod")
	second := Start(t)
	if err := second.ServeModCache(cache); err != nil {
		t.Fatal(err)
	}
	mustGo(t, second, t.TempDir(), t.TempDir(), append([]string{"mod", "download"}, all...)...)
	out := mustGo(t, second, t.TempDir(), t.TempDir(), "list", "-m", "-versions", "example.com/Upper/Case@latest")
	if strings.TrimSpace(out) != "example.com/Upper/Case v1.0.0" {
		t.Errorf("list -m -versions: %q", out)
	}
	got, err := ModCacheVersions(cache)
	if err != nil || len(got) != len(all) || got[0] != (module.Version{Path: "example.com/Upper/Case", Version: "v1.0.0"}) {
		t.Errorf("ModCacheVersions = %v, %v", got, err)
	}
	// A module without any tag: an empty list, and a latest version.
	if status, body := get(t, second.URL()+"/example.com/two/v2/@v/list"); status != 200 || body != "" {
		t.Errorf("list without tags: %d %q", status, body)
	}
	out = mustGo(t, second, t.TempDir(), t.TempDir(), "list", "-m", "example.com/two/v2@latest")
	if !strings.Contains(out, "abcdefabcdef") {
		t.Errorf("latest: %s", out)
	}
}

func TestGoCommandRefuses(t *testing.T) {
	good := Module{Path: "example.com/m", Version: "v1.0.0"}
	otherMod := good
	otherMod.Mod = "module example.com/other\n"
	evil := good
	evil.Zip = evilZip(t)
	for _, tc := range []struct {
		name   string
		module Module
		bad    func(*Upstream)
		want   string
	}{
		{"wrong zip hash", good, func(u *Upstream) { u.SetSum("example.com/m", "v1.0.0", SumWrongZip) }, "SECURITY ERROR"},
		{"wrong go.mod hash", good, func(u *Upstream) { u.SetSum("example.com/m", "v1.0.0", SumWrongMod) }, "SECURITY ERROR"},
		{"unknown to the database", good, func(u *Upstream) { u.SetSum("example.com/m", "v1.0.0", SumUnknown) }, "404 Not Found"},
		{"database away", good, func(u *Upstream) { u.SetSumDBAway(true) }, "503 Service Unavailable"},
		{"lying info", good, func(u *Upstream) { u.Fault(Match{Kind: Info}, Fault{Version: "v1.0.1"}) }, "v1.0.1"},
		{"evil zip", evil, func(*Upstream) {}, "unexpected file ../../evil"},
		{"cut zip", good, func(u *Upstream) { u.Fault(Match{Kind: Zip}, Fault{Body: BodyCut, BodyBytes: 50}) }, "EOF"},
		{"short zip", good, func(u *Upstream) { u.Fault(Match{Kind: Zip}, Fault{Body: BodyEnd, BodyBytes: 50}) }, "not a valid zip"},
		{"forbidden", good, func(u *Upstream) { u.Fault(Match{}, Fault{Status: 403, Text: "policy says no"}) }, "policy says no"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			u := Start(t, tc.module)
			tc.bad(u)
			out, err := goRun(t, u, t.TempDir(), t.TempDir(), "mod", "download", "example.com/m@v1.0.0")
			if err == nil || !strings.Contains(out, tc.want) {
				t.Errorf("%v, want %q:\n%s", err, tc.want, out)
			}
		})
	}
	t.Run("control", func(t *testing.T) {
		u := Start(t, good)
		mustGo(t, u, t.TempDir(), t.TempDir(), "mod", "download", "example.com/m@v1.0.0")
		// A go.mod that is not the zip's: the go command does not compare them.
		u = Start(t, otherMod)
		mustGo(t, u, t.TempDir(), t.TempDir(), "mod", "download", "example.com/m@v1.0.0")
	})
}

func TestGoCommandDirectSumDB(t *testing.T) {
	u := Start(t, Module{Path: "example.com/m", Version: "v1.0.0"})
	u.Fault(Match{Kind: SumDB, Path: "supported"}, Fault{Status: 404})
	u.SetQuery("example.com/m", "main", "v1.0.0")
	out := mustGo(t, u, t.TempDir(), t.TempDir(), "mod", "download", "-json", "example.com/m@main")
	if !strings.Contains(out, `"Version": "v1.0.0"`) || u.Requests(SumDB, "example.com/m@v1.0.0") != 1 {
		t.Errorf("%d lookups\n%s", u.Requests(SumDB, "example.com/m@v1.0.0"), out)
	}
}

func TestCommand(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "testupstream")
	if out, err := exec.Command("go", "build", "-o", bin, "./cmd/testupstream").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	root := t.TempDir()
	cmd := exec.Command(bin, "--modules", "3", "--zip-bytes", "2000", "--latency", "list=1ms", "--root", root)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	url, sums := readLine(t, stdout), readLine(t, stdout)
	gocmd := exec.Command("go", "mod", "download")
	gocmd.Dir = root
	dir := t.TempDir()
	gocmd.Env = append(Start(t).GoEnv(url, dir), "GOSUMDB="+sums)
	if out, err := gocmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, body := get(t, url+"/_counts"); !strings.Contains(body, `"graph.test/m0002@v1.1.0":1`) {
		t.Errorf("counts: %s", body)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
