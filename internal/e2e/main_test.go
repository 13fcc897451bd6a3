//go:build unix

package e2e

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/internal/testupstream"
)

// goCommand runs the go command in dir with an empty module cache.
func goCommand(t *testing.T, dir, proxy string, args ...string) string {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOPROXY="+proxy, "GOSUMDB=off", "GOFLAGS=-modcacherw -mod=mod", "GOMODCACHE="+t.TempDir(), "GOWORK=off", "GOTOOLCHAIN=local", "GONOPROXY=", "GOPRIVATE=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// graph makes n modules in two versions each and a main module that needs the
// older ones.
func graph(t *testing.T, up *testupstream.Server, n int) (dir string) {
	mod := "module example.com/main\n\ngo 1.21\n"
	var code strings.Builder
	code.WriteString("package main\n")
	var before module.Version
	for i := range n {
		path := fmt.Sprintf("example.com/Dep%d", i)
		var needs []module.Version
		if before.Path != "" {
			needs = append(needs, before)
		}
		before = up.Add(path, "v1.0.0", 20<<10, needs...)
		up.Add(path, "v1.1.0", 20<<10, needs...)
		mod += "require " + path + " v1.0.0\n"
		fmt.Fprintf(&code, "import _ %q\n", path)
	}
	code.WriteString("func main() {}\n")
	dir = t.TempDir()
	for name, content := range map[string]string{"go.mod": mod, "main.go": code.String()} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// 1,200 clients, three proxies with the defaults, two crawlers: 400 wait at once on each proxy,
// nobody is refused, and there is one upstream request for the zip that nobody has.
func TestZipHerd(t *testing.T) {
	const clients, proxies = 1200, 3
	u := testupstream.Start(t, testupstream.Module{Path: "example.com/big", Version: "v1.0.0", ZipBytes: 9 << 20})
	allWait := make(chan struct{})
	u.Fault(testupstream.Match{Kind: testupstream.Zip}, testupstream.Fault{Latency: time.Second, Until: allWait})
	f := startFleet(t, u.URL(), 2, proxies)
	answers := make(chan map[string]int)
	go func() {
		answers <- crowd(clients, func(i int) string { return f.proxies[i%proxies].url + "/example.com/big/@v/v1.0.0.zip" })
	}()
	const waiting = "athensctl_proxy_waiting 400\n"
	for i, end := 0, time.Now().Add(40*time.Second); i < proxies; {
		_, metrics, _ := get(t, f.proxies[i].url+"/metrics")
		if strings.Contains(metrics, waiting) {
			i++
		} else if time.Now().After(end) {
			t.Errorf("400 do not wait on proxy %d: %s", i, regexp.MustCompile("(?m)^athensctl_proxy_(waiting|gave).*$").FindAllString(metrics, -1))
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	close(allWait)
	if got := <-answers; !maps.Equal(got, map[string]int{"200": clients}) {
		t.Errorf("answers: %v", got)
	}
	if n := u.Requests(testupstream.Zip, ""); n != 1 {
		t.Errorf("%d upstream zip requests, want 1", n)
	}
	for _, p := range f.all() {
		t.Logf("%s: peak %d MiB", p.args[5:8], p.peakMiB())
		if peak := p.peakMiB(); peak > 96 {
			t.Errorf("%v: peak resident memory %d MiB, above 96", p.args, peak)
		}
	}
}

// 500 lists of 100 modules nobody has asked for: 100 upstream requests, and no process that
// any role starts.
func TestListHerd(t *testing.T) {
	t.Run("alone", func(t *testing.T) { listHerd(t, func(*process) {}) })
	t.Run("traced", func(t *testing.T) {
		var traces []*execTrace
		listHerd(t, func(p *process) { traces = append(traces, traceExec(t, p)) })
		for _, trace := range traces {
			trace.check()
		}
	})
}

func listHerd(t *testing.T, change func(*process)) {
	up := testupstream.New(t)
	up.Delay = 100 * time.Millisecond
	for i := range 100 {
		up.Add(fmt.Sprintf("example.com/m%d", i), "v1.0.0", 10)
	}
	f := startFleetUnder(t, change, up.URL, 2, 3)
	got := crowd(500, func(i int) string {
		return fmt.Sprintf("%s/example.com/m%d/@v/list", f.proxies[i%3].url, i/5)
	})
	if !maps.Equal(got, map[string]int{"200": 500}) {
		t.Errorf("answers: %v", got)
	}
	if n := up.Requests("/list"); n != 100 {
		t.Errorf("%d upstream list requests, want 100", n)
	}
}

// A crawler that dies with a job: another ends it, once.
func TestCrawlerDies(t *testing.T) {
	t.Parallel() // it waits
	up := testupstream.New(t)
	up.Delay = 2 * time.Second
	up.Add("example.com/m", "v1.0.0", 1<<20)
	f := startFleet(t, up.URL, 2, 1, "--job-lease=3s")
	done := make(chan map[string]int)
	go func() {
		done <- crowd(10, func(int) string { return f.proxies[0].url + "/example.com/m/@v/v1.0.0.zip" })
	}()
	for deadline := time.Now().Add(10 * time.Second); up.Requests(".zip") == 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody asked upstream")
		}
	}
	f.crawlers[0].kill()
	f.crawlers[1].kill()
	f.crawlers[1].start()
	// There was no crawler for a moment: those who waited may be told to come again, not that
	// there is no such thing, and none is left without an answer. Who comes again has it.
	if got := <-done; got["200"]+got["502"]+got["503"] != 10 {
		t.Errorf("those who waited: %v", got)
	}
	if got := crowd(10, func(int) string { return f.proxies[0].url + "/example.com/m/@v/v1.0.0.zip" }); got["200"] != 10 {
		t.Errorf("answers: %v", got)
	}
	if n := up.Requests(".zip"); n != 2 {
		t.Errorf("%d upstream zip requests, want 2: one that was cut, one that was made again", n)
	}
}
