//go:build unix

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/athensctl/athensctl/internal/testupstream"
)

// execTrace is what strace saw of a process and of what it has started.
type execTrace struct {
	p    *process
	file string
}

// traceExec makes a process run under strace, which looks at what it starts and at the
// calls that more names.
func traceExec(t *testing.T, p *process, more ...string) *execTrace {
	t.Helper()
	trace := &execTrace{p, filepath.Join(t.TempDir(), "trace")}
	calls := strings.Join(append([]string{"execve", "execveat"}, more...), ",")
	p.wrap = []string{need(t, "strace"), "-f", "--seccomp-bpf", "-e", "trace=" + calls, "-o", trace.file}
	return trace
}

// check ends the process. Its own start is to be the only one. It returns the trace.
func (e *execTrace) check() string {
	t := e.p.t
	t.Helper()
	e.p.kill()
	out, err := os.ReadFile(e.file)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(out), " execve(") + strings.Count(string(out), " execveat("); n != 1 {
		t.Errorf("%v: %d execve calls, want 1:\n%.3000s", e.p.args, n, out)
	}
	return string(out)
}

// No role starts a process: its own start is the only execve, whatever is asked of it.
func TestNoProcessIsStarted(t *testing.T) {
	u := testupstream.Start(t, testupstream.Module{Path: "example.com/m", Version: "v1.0.0"}, testupstream.Module{Path: "example.com/m", Version: "v1.1.0"})
	u.SetQuery("example.com/m", "main", "v1.0.0")
	p := prepare(t, "--upstream", u.URL(), "--data-dir", t.TempDir(), "--sumdb", u.VerifierKey(), "--public-feeds")
	trace := traceExec(t, p)
	p.start()
	for path, want := range map[string]int{
		"/example.com/m/@v/list": 200, "/example.com/m/@latest": 200, "/example.com/m/@v/main.info": 200, "/example.com/m/@v/v1.0.0.info": 200,
		"/example.com/m/@v/v1.0.0.mod": 200, "/example.com/m/@v/v1.0.0.zip": 200, "/example.com/m/@v/v1.1.0.zip": 200,
		"/sumdb/" + u.SumDBName() + "/supported": 200, "/sumdb/" + u.SumDBName() + "/latest": 200, "/sumdb/" + u.SumDBName() + "/lookup/example.com/m@v1.1.0": 200,
		"/example.com/none/@v/list": 404, "/example.com/none/@latest": 404, "/example.com/m/@v/v1.9.9.zip": 404, "/example.com/m/@v/--help.info": 400,
		"/": 200, "/metrics": 200, "/readyz": 200, "/catalog": 200, "/index": 200,
	} {
		if status, body, _ := get(t, p.url+path); status != want {
			t.Errorf("%s: %d %s, want %d", path, status, body, want)
		}
	}
	trace.check()
}

// The proxy talks to the other two roles and to nobody else: every connect of
// it goes to their addresses.
func TestProxyTalksToTheOtherRolesOnly(t *testing.T) {
	up := testupstream.New(t)
	up.Add("example.com/m", "v1.0.0", 100)
	f := startFleet(t, up.URL, 1, 0)
	p := prepare(t, "--role=proxy", "--internal-token", token, "--storage-url", f.storage.url, "--crawler-url", f.crawlers[0].url, "--data-dir", t.TempDir())
	trace := traceExec(t, p, "connect")
	p.start()
	for _, path := range []string{"/@v/list", "/@latest", "/@v/v1.0.0.zip"} {
		if status, body, _ := get(t, p.url+"/example.com/m"+path); status != 200 {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	out := trace.check() // it starts no process either
	port := func(url string) string { return "htons(" + url[strings.LastIndex(url, ":")+1:] + ")" }
	connects := 0
	for line := range strings.Lines(out) {
		if !strings.Contains(line, "connect(") {
			continue
		}
		connects++
		if !strings.Contains(line, port(f.storage.url)) && !strings.Contains(line, port(f.crawlers[0].url)) {
			t.Errorf("the proxy connects elsewhere: %s", line)
		}
	}
	if connects == 0 {
		t.Error("no connect was seen: the trace is not what this test believes")
	}
}
