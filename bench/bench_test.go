package main

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/athensctl/athensctl/internal/testgit"
)

// skipShort skips what takes seconds with -short, but not where everything must run.
func skipShort(t *testing.T) {
	t.Helper()
	if testing.Short() && os.Getenv("ATHENSCTL_TEST_REQUIRE") == "" {
		t.Skip("takes seconds")
	}
}

// TestRun is a whole run, small, on the stand-in.
func TestRun(t *testing.T) {
	skipShort(t)
	t.Setenv("GORACE", "atexit_sleep_ms=0") // else each load process takes a second to end under -race
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// A peer that runs already, and is none of the bench's business to end.
	addr, err := freeAddr()
	if err != nil {
		t.Fatal(err)
	}
	upstreamAddr, err := freeAddr()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	running, err := startChild(dir, "running", childAttr(), self, "serve", "--role=all", "--listen", addr, "--data-dir", dir, "--upstream", "http://"+upstreamAddr, "--sumdb", "off")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(running.stop)

	opt, err := parseOptions([]string{
		"--athensctl", self, "--only=warm,cold,herd", "--passes=1", "--requests=60", "--connections=4", "--cold-pairs=1", "--cold-delay=0", "--cold-gomod=",
		"--upstream-listen", upstreamAddr, "--peer", "other=http://" + addr,
	}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	opt.graph = 10
	opt.herd = herdSize{
		clients: 30, zipBytes: 100 << 10, zipDelay: 100 * time.Millisecond,
		listModules: 10, lists: 30,
		slowLists: 12, slowDelay: 1500 * time.Millisecond, rounds: 1, window: 200 * time.Millisecond,
	}
	rep, err := run(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}

	servers := 5 // bare, servecontent, athensctl, athensctl-3, other
	if findNginx() != "" {
		servers++
	}
	if got, want := len(rep.Warm), servers*len(warmGoals()); got != want {
		t.Errorf("%d warm cells, want %d", got, want)
	}
	for _, c := range rep.Warm {
		if c.Failures > 0 || c.RequestsPerSecond == 0 || len(c.Passes) != 1 {
			t.Errorf("warm cell %+v", c)
		}
		if (c.PeakMiB > 0) != (c.Peer != "other") {
			t.Errorf("%s: peak %v MiB", c.Peer, c.PeakMiB)
		}
	}
	if got := len(rep.Cold); got != 4 {
		t.Errorf("%d cold results, want 4", got)
	}
	for _, c := range rep.Cold {
		if c.Zips != 10 || c.Mods != 12 || c.UpstreamZips != 10 || len(c.Ratios) != 1 {
			t.Errorf("cold %+v", c)
		}
	}
	if len(rep.Herds) != 3 || len(rep.Herds[0].Zip.PeakMiB) != 6 {
		t.Errorf("herds %+v", rep.Herds)
	}
	for _, h := range rep.Herds {
		if h.Zip.Statuses[200] != 30 || h.Zip.UpstreamZips != 1 {
			t.Errorf("%s: zip herd %+v", h.Peer, h.Zip)
		}
		if h.Lists.Statuses[200] != 30 || h.Lists.UpstreamLists != 10 || h.Lists.Processes != 0 || h.Lists.Reaped {
			t.Errorf("%s: list herd %+v", h.Peer, h.Lists)
		}
		if h.Slow.ListStatuses[200] != 12 || !h.Slow.Waited || h.Slow.Ratio == 0 || h.Slow.InfoFailures != 0 {
			t.Errorf("%s: slow herd %+v", h.Peer, h.Slow)
		}
		if h.Graph.Modules != 10 || h.Graph.UpstreamZips != 0 {
			t.Errorf("%s: graph herd %+v", h.Peer, h.Graph)
		}
	}
	for _, b := range rep.Budgets {
		// The CPU time of so few requests may be less than a tick.
		// Cold downloads have no budget without real modules and without a delay.
		if b.Measured == notMeasured && !strings.Contains(b.Name, "CPU") && !strings.Contains(b.Name, "cold") {
			t.Errorf("%s: not measured", b.Name)
		}
	}

	out := t.TempDir()
	if err := rep.write(out); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(out, "bench.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, new(report)); err != nil {
		t.Error(err)
	}
	for name, st := range takeSnapshot() {
		if st.ppid == os.Getpid() && name != running.pid() {
			t.Errorf("process %d still runs", name)
		}
	}
	select {
	case <-running.done:
		t.Error("the run has ended a peer that it did not start")
	default:
	}
}

// TestGitSection is the git section, small: the stand-in answers without a host, and the
// go command is the real one.
func TestGitSection(t *testing.T) {
	skipShort(t)
	testgit.Needs(t, "git", "go")
	t.Setenv("GORACE", "atexit_sleep_ms=0")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	opt, err := parseOptions([]string{"--only=git", "--athensctl", self}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	opt.git = gitSize{large: testgit.Large{Module: fullGit.large.Module, Tags: 3, Kept: 1 << 20, Changed: 1 << 20}, requests: []int{3, 6}}
	rep, err := run(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	var direct, mine int
	for _, r := range rep.Git {
		if r.Failures > 0 || r.Seconds == 0 || r.PeakMiB == 0 {
			t.Errorf("%+v", r)
		}
		switch r.Peer {
		case nameDirect, nameOneGo:
			// Each go command runs git several times, and each tag is fetched.
			if direct++; r.Processes < 4 || r.Fetches < 3 {
				t.Errorf("%+v", r)
			}
		case nameThree:
			if mine++; r.Processes != 0 || r.CrawlerMiB == 0 || r.Fetches != 0 {
				t.Errorf("%+v", r)
			}
		}
	}
	if direct != 3 || mine != 2 {
		t.Errorf("%d results of the go command, %d of athensctl", direct, mine)
	}
	if len(rep.Budgets) != 3 || rep.Budgets[0].OK || !rep.Budgets[1].OK || !rep.Budgets[2].OK { // the stand-in fetches nothing
		t.Errorf("%+v", rep.Budgets)
	}
	if md := rep.Markdown(); !strings.Contains(md, "3 tags, 2 MB of files in each") || !strings.Contains(md, nameOneGo) {
		t.Error(md)
	}
}

// A server that does not start is an error with its last words, not a wait.
func TestStartFails(t *testing.T) {
	s := starter{bin: "/bin/false", upstream: "http://127.0.0.1:1", dir: t.TempDir()}
	for _, name := range []string{nameAll, nameThree} {
		began := time.Now()
		if _, err := s.start(t.Context(), name); err == nil || !strings.Contains(err.Error(), "ended") {
			t.Errorf("%s: error %v", name, err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s: took %v", name, took)
		}
	}
}

func TestLoadCountsFailures(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/busy":
			w.WriteHeader(http.StatusServiceUnavailable)
		case "/cut":
			w.Header().Set("Content-Length", "10")
			_, _ = w.Write([]byte("12345"))
		case "/chunked":
			_, _ = w.Write([]byte("12345"))
			w.(http.Flusher).Flush()
			_, _ = w.Write([]byte("67890"))
		case "/last":
			w.Header().Set("Connection", "close")
			_, _ = w.Write([]byte("1234567890"))
		case "/large":
			_, _ = w.Write(make([]byte, 1<<20))
		}
	})}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })

	for _, tc := range []struct {
		path     string
		length   int64
		status   int
		failures int
	}{
		{"/chunked", 10, 200, 0},
		{"/chunked", 9, 200, 20},
		{"/last", 10, 200, 0},
		{"/large", 1 << 20, 200, 0},
		{"/busy", -1, 503, 20},
		{"/cut", 10, 0, 20},
	} {
		res, err := load(loadSpec{
			Targets:     []loadTarget{{"http://" + l.Addr().String() + tc.path, tc.length}},
			Connections: 3, Requests: 20, Timeout: 5 * time.Second,
		})
		if err != nil {
			t.Fatal(err)
		}
		if res.Requests != 20 || res.Failures != tc.failures || res.Statuses[tc.status] != 20 || (res.FirstFailure == "") != (tc.failures == 0) {
			t.Errorf("%s, %d bytes: %+v", tc.path, tc.length, res)
		}
	}
}
