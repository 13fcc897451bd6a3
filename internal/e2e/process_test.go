//go:build unix

package e2e

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/athensctl/athensctl/internal/testazure"
)

var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "athensctl-e2e-")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "athensctl")
	build := exec.Command("go", "build", "-o", binary, "github.com/athensctl/athensctl")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as make build does: it needs no library
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		panic(err)
	}
	// Those of the tests that are parallel wait, most of the time.
	flag.Parse()
	if n := runtime.GOMAXPROCS(0); flag.Lookup("test.parallel").Value.String() == strconv.Itoa(n) {
		flag.Set("test.parallel", strconv.Itoa(2*n))
	}
	testazure.Main(m, func() { os.RemoveAll(dir) })
}

// process is one athensctl.
type process struct {
	t    *testing.T
	url  string
	args []string
	env  []string
	cmd  *exec.Cmd
	log  *lockedBuffer
	wrap []string // a command to run it under
	// binary is where it is for wrap; "": where it was built.
	binary string
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start runs athensctl serve and waits until it is ready.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	p := prepare(t, args...)
	p.start()
	return p
}

func prepare(t *testing.T, args ...string) *process {
	t.Helper()
	addr := freeAddress(t)
	p := &process{t: t, url: "http://" + addr, args: append([]string{"serve", "--listen", addr, "--sumdb=off", "--log-level=warn"}, args...)}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%v:\n%.3000s", args, p.log)
		}
	})
	return p
}

func (p *process) start() {
	p.t.Helper()
	argv := append(append(append([]string{}, p.wrap...), cmp.Or(p.binary, binary)), p.args...)
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.log = &lockedBuffer{}
	p.cmd.Stderr = p.log
	p.cmd.Env = append(os.Environ(), p.env...)
	// A group of its own, so that what it runs under ends with it.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if resp, err := http.Get(p.url + "/readyz"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == 200 {
				return
			}
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%v is not ready:\n%s", argv, p.log)
		}
	}
}

func (p *process) kill() {
	if p.cmd != nil && p.cmd.ProcessState == nil {
		syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		p.cmd.Wait()
	}
}

// terminate sends SIGTERM and returns the exit status.
func (p *process) terminate() int {
	p.cmd.Process.Signal(syscall.SIGTERM)
	p.cmd.Wait()
	return p.cmd.ProcessState.ExitCode()
}

// peakMiB is the peak resident memory, in MiB.
func (p *process) peakMiB() int {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0 // not on Linux
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	kb, _ := strconv.Atoi(strings.Fields(rest)[0])
	return kb >> 10
}

func get(t *testing.T, url string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token) // a proxy does not mind
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body), resp.Header
}

const token = "0123456789abcdef-token"

// fleet is several processes that are one site.
type fleet struct {
	storage  *process
	crawlers []*process
	proxies  []*process
}

func startFleet(t *testing.T, upstream string, crawlers, proxies int, args ...string) *fleet {
	t.Helper()
	return startFleetUnder(t, func(*process) {}, upstream, crawlers, proxies, args...)
}

// startFleetUnder is startFleet, and changes each process before it starts.
func startFleetUnder(t *testing.T, change func(*process), upstream string, crawlers, proxies int, args ...string) *fleet {
	t.Helper()
	start := func(t *testing.T, args ...string) *process {
		t.Helper()
		p := prepare(t, args...)
		change(p)
		p.start()
		return p
	}
	f := &fleet{}
	common := append([]string{"--internal-token", token}, args...)
	f.storage = start(t, append(common, "--role=storage", "--data-dir", t.TempDir())...)
	common = append(common, "--storage-url", f.storage.url)
	var urls []string
	for range crawlers {
		c := start(t, append(common, "--role=crawler", "--upstream", upstream, "--data-dir", t.TempDir())...)
		f.crawlers = append(f.crawlers, c)
		urls = append(urls, c.url)
	}
	for range proxies {
		f.proxies = append(f.proxies, start(t, append(common, "--role=proxy", "--crawler-url", strings.Join(urls, ","), "--data-dir", t.TempDir())...))
	}
	return f
}

func (f *fleet) all() []*process {
	return append(append([]*process{f.storage}, f.crawlers...), f.proxies...)
}

// crowd makes n requests at once and returns how often each status came.
func crowd(n int, url func(int) string) map[string]int {
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 0, MaxIdleConnsPerHost: n}, Timeout: 60 * time.Second}
	var mu sync.Mutex
	got := map[string]int{}
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			answer := ""
			if resp, err := client.Get(url(i)); err != nil {
				answer = err.Error()
			} else {
				size, err := io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				answer = strconv.Itoa(resp.StatusCode)
				if err != nil || size != resp.ContentLength {
					answer = fmt.Sprintf("%d, cut after %d bytes: %v", resp.StatusCode, size, err)
				}
			}
			mu.Lock()
			got[answer]++
			mu.Unlock()
		})
	}
	wg.Wait()
	client.CloseIdleConnections()
	return got
}
