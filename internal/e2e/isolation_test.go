//go:build unix

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/athensctl/athensctl/internal/testupstream"
)

// No role starts a process: its own start is the only execve.
func TestNoProcessIsStarted(t *testing.T) {
	strace := need(t, "strace")
	trace := filepath.Join(t.TempDir(), "trace")
	up := testupstream.New(t)
	up.Add("example.com/m", "v1.0.0", 100)
	p := prepare(t, "--upstream", up.URL, "--data-dir", t.TempDir())
	p.wrap = []string{strace, "-f", "-e", "trace=execve", "-o", trace}
	p.start()
	for _, path := range []string{"/@v/list", "/@latest", "/@v/main.info", "/@v/v1.0.0.info", "/@v/v1.0.0.mod", "/@v/v1.0.0.zip"} {
		if status, body, _ := get(t, p.url+"/example.com/m"+path); status != 200 {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	p.kill()
	out, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(out), "execve("); n != 1 {
		t.Errorf("%d execve calls, want 1:\n%s", n, out)
	}
}

// The proxy talks to the other two roles and to nobody else: every connect of
// it goes to their addresses.
func TestProxyTalksToTheOtherRolesOnly(t *testing.T) {
	strace := need(t, "strace")
	trace := filepath.Join(t.TempDir(), "trace")
	up := testupstream.New(t)
	up.Add("example.com/m", "v1.0.0", 100)
	f := startFleet(t, up.URL, 1, 0)
	p := prepare(t, "--role=proxy", "--internal-token", token, "--storage-url", f.storage.url, "--crawler-url", f.crawlers[0].url, "--data-dir", t.TempDir())
	p.wrap = []string{strace, "-f", "-e", "trace=connect,execve", "-o", trace}
	p.start()
	for _, path := range []string{"/@v/list", "/@latest", "/@v/v1.0.0.zip"} {
		if status, body, _ := get(t, p.url+"/example.com/m"+path); status != 200 {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	p.kill()
	out, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	port := func(url string) string { return "htons(" + url[strings.LastIndex(url, ":")+1:] + ")" }
	connects := 0
	for line := range strings.Lines(string(out)) {
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
