//go:build unix

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/internal/testupstream"
)

// mainJob is what people do with a proxy: the go command in a folder of theirs, with the
// checksum database of the upstream, which it can only ask through the proxy.
type mainJob struct {
	u     *testupstream.Upstream
	proxy string // its URL
	dir   string // of the main module
	root  testupstream.Root
}

// newMainJob has a main module that needs so many modules, each in the second of three
// versions, and a program that can be installed.
func newMainJob(t *testing.T, u *testupstream.Upstream, modules int) *mainJob {
	t.Helper()
	j := &mainJob{u: u, dir: t.TempDir()}
	var err error
	if j.root, err = u.AddGraph(testupstream.Graph{Modules: modules}); err != nil {
		t.Fatal(err)
	}
	if err := j.root.Write(j.dir); err != nil {
		t.Fatal(err)
	}
	needs := module.Version{Path: "graph.test/m0001", Version: "v1.1.0"}
	for _, v := range []string{"v1.0.0", "v1.1.0"} {
		err := u.Add(testupstream.Module{Path: "example.com/tools", Version: v, Files: map[string]string{
			"go.mod":         testupstream.GoMod("example.com/tools", "1.21", needs),
			"cmd/hi/main.go": "package main\n\nimport \"" + needs.Path + "\"\n\nfunc main() { println(\"hi " + v + " with\", m0001.Version) }\n",
		}})
		if err != nil {
			t.Fatal(err)
		}
	}
	// The test's database grows by what it is asked for. The real one has its records
	// before anybody asks: so has this one now.
	all := []string{"example.com/tools@v1.0.0", "example.com/tools@v1.1.0"}
	for _, m := range j.root.Requires {
		for k := range 3 {
			all = append(all, fmt.Sprintf("%s@v1.%d.0", m.Path, k))
		}
	}
	for _, m := range all {
		if status, body, _ := get(t, u.SumDBURL()+"/lookup/"+m); status != 200 {
			t.Fatalf("lookup %s: %d %s", m, status, body)
		}
	}
	u.Reset()
	return j
}

// goCommand runs the go command with an empty module cache.
func (j *mainJob) goCommand(t *testing.T, dir string, args ...string) string {
	t.Helper()
	return checkedGo(t, j.u, dir, j.proxy, []string{"GOFLAGS=-modcacherw -buildvcs=false -mod=mod"}, args...)
}

// download has no go.sum, so that the database is asked about every module.
func (j *mainJob) download(t *testing.T) {
	t.Helper()
	os.Remove(filepath.Join(j.dir, "go.sum"))
	j.goCommand(t, j.dir, "mod", "download", "all")
	sum, err := os.ReadFile(filepath.Join(j.dir, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range j.root.Requires {
		if !strings.Contains(string(sum), m.Path+" "+m.Version+" h1:") {
			t.Errorf("go mod download: go.sum has no hash of %s", m)
		}
	}
}

func (j *mainJob) updates(t *testing.T) {
	t.Helper()
	if out := j.goCommand(t, j.dir, "list", "-m", "-u", "all"); strings.Count(out, "[v1.2.0]") != len(j.root.Requires) {
		t.Errorf("go list -m -u all: %s", out)
	}
}

// rest is go list -m -versions, go get and go install.
func (j *mainJob) rest(t *testing.T) {
	t.Helper()
	if out := j.goCommand(t, j.dir, "list", "-m", "-versions", "graph.test/m0003"); out != "graph.test/m0003 v1.0.0 v1.1.0 v1.2.0\n" {
		t.Errorf("go list -m -versions: %q", out)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module example.com/new\n\ngo 1.21\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := j.goCommand(t, dir, "get", "graph.test/m0007@latest"); !strings.Contains(out, "added graph.test/m0007 v1.2.0") {
		t.Errorf("go get: %s", out)
	}
	if sum, err := os.ReadFile(filepath.Join(dir, "go.sum")); err != nil || !strings.Contains(string(sum), "graph.test/m0007 v1.2.0 h1:") {
		t.Errorf("go get: go.sum is %q, %v", sum, err)
	}
	checkedGo(t, j.u, dir, j.proxy, []string{"GOBIN=" + dir}, "install", "example.com/tools/cmd/hi@v1.0.0")
	if out, err := exec.Command(filepath.Join(dir, "hi")).CombinedOutput(); err != nil || string(out) != "hi v1.0.0 with v1.1.0\n" {
		t.Errorf("what go install made says %q, %v", out, err)
	}
}

// restart ends the processes with SIGTERM, the last first, and starts them again.
func restart(t *testing.T, all []*process) {
	t.Helper()
	for i := len(all) - 1; i >= 0; i-- {
		if status := all[i].terminate(); status != 0 {
			t.Errorf("%v: exit status %d after SIGTERM", all[i].args, status)
		}
	}
	for _, p := range all {
		p.start()
	}
}

// The main job: the real go command with the checksum database on, through one process and
// through three; again with upstream and its database gone; again after a restart of all.
// What is fetched is verified by the crawler, and fetched once.
func TestMainJob(t *testing.T) {
	for _, layout := range []string{"one process", "three processes"} {
		t.Run(layout, func(t *testing.T) {
			t.Parallel()
			u := testupstream.Start(t)
			j := newMainJob(t, u, 80)
			u.SetQuery("graph.test/m0005", "main", "v1.1.0")
			args := []string{"--upstream", u.URL(), "--sumdb", u.VerifierKey(), "--freshness=1h"}
			var all []*process
			if layout == "one process" {
				all = []*process{start(t, append(args, "--data-dir", t.TempDir())...)}
			} else {
				all = startFleet(t, u.URL(), 1, 1, args[2:]...).all()
			}
			j.proxy = all[len(all)-1].url
			// Many go.mod files, and no zip.
			j.updates(t)
			if n := u.Requests(testupstream.Zip, ""); n != 0 {
				t.Errorf("go list -m -u all made %d zip requests of upstream", n)
			}
			j.download(t)
			j.rest(t)
			if out := j.goCommand(t, j.dir, "list", "-m", "graph.test/m0005@main"); !strings.Contains(out, "v1.1.0") {
				t.Errorf("a branch: %s", out)
			}
			for kind, count := range u.Counts().Kinds {
				asked := count.Versions
				if kind == testupstream.List || kind == testupstream.Latest {
					asked = count.Paths
				}
				for what, n := range asked {
					if n != 1 {
						t.Errorf("%s of %s was asked of upstream %d times", kind, what, n)
					}
				}
			}
			for _, m := range j.root.Requires {
				if n := u.Requests(testupstream.SumDB, m.Path+"@"+m.Version); n != 1 {
					t.Errorf("the checksum database was asked for %s %d times", m, n)
				}
			}
			u.Stop()
			j.download(t)
			j.rest(t)
			restart(t, all)
			j.updates(t)
			j.download(t)
			j.rest(t)
		})
	}
}

// Upstream has lists and no @latest, as some mirrors: it is worked out from the list, for the
// go command too, and when upstream is gone.
func TestNoLatestUpstream(t *testing.T) {
	t.Parallel()
	u := testupstream.Start(t)
	j := newMainJob(t, u, 10)
	u.SetLatestOff(true)
	err := u.Add(testupstream.Module{Path: "example.com/pre", Version: "v1.0.0"}, testupstream.Module{Path: "example.com/pre", Version: "v1.1.0-rc.1"},
		testupstream.Module{Path: "example.com/rc", Version: "v0.1.0-rc.1"}, testupstream.Module{Path: "example.com/rc", Version: "v0.1.0-rc.2"})
	if err != nil {
		t.Fatal(err)
	}
	all := startFleet(t, u.URL(), 1, 1, "--sumdb", u.VerifierKey(), "--freshness=1h").all()
	j.proxy = all[2].url
	for range 2 {
		for path, want := range map[string]string{"graph.test/m0002": "v1.2.0", "example.com/pre": "v1.0.0", "example.com/rc": "v0.1.0-rc.2"} {
			if status, body, _ := get(t, j.proxy+"/"+path+"/@latest"); status != 200 || !strings.Contains(body, `"Version":"`+want+`"`) {
				t.Errorf("@latest of %s: %d %s, want %s", path, status, body, want)
			}
		}
		if status, body, _ := get(t, j.proxy+"/example.com/none/@latest"); status != 404 {
			t.Errorf("@latest of an unknown module: %d %s", status, body)
		}
		j.rest(t)
		u.Stop()
		restart(t, all)
	}
}
