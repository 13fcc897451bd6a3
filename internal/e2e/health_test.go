//go:build unix

package e2e

import (
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/athensctl/athensctl/internal/cosmosfake"
)

// health asks one of the paths that machines ask, of a process that answers within its
// bound, and returns the status.
func health(t *testing.T, url string) int {
	t.Helper()
	// /readyz gives what it depends on 5 s.
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		t.Errorf("%s: %v", url, err)
		return 0
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode == 503 && (!strings.HasPrefix(string(body), "not ready: ") || retryAfterOf(resp.Header) < time.Second) {
		t.Errorf("%s: 503 %q, with Retry-After %q", url, body, resp.Header.Get("Retry-After"))
	}
	return resp.StatusCode
}

// becomes asks /readyz until it answers so; /healthz answers 200 all the time, and does not
// wait for what a /readyz that was asked before it waits for.
func (p *process) becomes(what string, status int) {
	p.t.Helper()
	for end := time.Now().Add(40 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		answer := make(chan int, 1)
		began := time.Now()
		go func() { answer <- health(p.t, p.url+"/readyz") }()
		live := health(p.t, p.url+"/healthz")
		waited := len(answer) > 0 && time.Since(began) > 4*time.Second
		if live != 200 || waited {
			p.t.Errorf("%s: /healthz of %s answers %d after %v, after /readyz: %v", what, p.args[len(p.args)-1], live, time.Since(began), waited)
		}
		ready := <-answer
		if ready == status {
			return
		}
		if time.Now().After(end) {
			p.t.Errorf("%s: /readyz of %v answers %d, want %d", what, p.args, ready, status)
			return
		}
	}
}

// A proxy and a crawler are ready while storage can be reached, one that is stopped or gone
// is none, and a storage while its database is. None of them is taken for dead.
func TestReady(t *testing.T) {
	t.Parallel() // it is waiting
	fake, _, store := azureArgs(t, false)
	var away atomic.Bool
	fake.SetFault(func(cosmosfake.Call) *cosmosfake.Fault {
		if away.Load() {
			return &cosmosfake.Fault{Drop: true, Delay: 20 * time.Millisecond}
		}
		return nil
	})
	storage := start(t, append([]string{"--role=storage", "--internal-token", token, "--data-dir", t.TempDir()}, store...)...)
	common := []string{"--internal-token", token, "--storage-url", storage.url}
	crawler := start(t, append(common, "--role=crawler", "--upstream=off", "--data-dir", t.TempDir())...)
	proxy := start(t, append(common, "--role=proxy", "--crawler-url", crawler.url, "--data-dir", t.TempDir())...)
	both := []*process{proxy, crawler}
	all := func(what string, status int, of ...*process) {
		t.Helper()
		for _, p := range of {
			p.becomes(what, status)
		}
	}
	all("in the beginning", 200, proxy, crawler, storage)

	storage.cmd.Process.Signal(syscall.SIGSTOP)
	all("storage is stopped", 503, both...)
	storage.cmd.Process.Signal(syscall.SIGCONT)
	all("storage goes on", 200, proxy, crawler, storage)

	storage.kill()
	all("storage is gone", 503, both...)
	storage.start()
	all("storage is back", 200, proxy, crawler, storage)

	away.Store(true)
	all("the database is away", 503, storage, proxy, crawler)
	away.Store(false)
	all("the database is back", 200, storage, proxy, crawler)
}

// A header that does not come is cut after read-header-timeout, however slowly it goes on; a
// connection on which nothing is asked is closed after idle-timeout.
func TestConnectionTimeouts(t *testing.T) {
	t.Parallel() // it is waiting
	const header, idle = time.Second, 8 * time.Second
	p := start(t, "--upstream=off", "--data-dir", t.TempDir(), "--read-header-timeout", header.String(), "--idle-timeout", idle.String())
	const request = "GET /healthz HTTP/1.1\r\nHost: x\r\n"
	for _, tt := range []struct {
		name        string
		slow        string // sent a byte every 100 ms after request
		answers     int    // that come before
		least, most time.Duration
	}{
		{"no byte", "-", 0, header, idle},
		{"half a header", "", 0, header, idle},
		{"a slow header", "X-Slow: " + strings.Repeat("x", 1000), 0, header, idle},
		{"idle", "\r\n", 1, idle, 2 * time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			began := time.Now()
			conn.SetDeadline(began.Add(time.Minute))
			send, slow := request, tt.slow
			switch slow {
			case "-":
				send, slow = "", ""
			case "\r\n":
				send, slow = request+slow, ""
			}
			if _, err := io.WriteString(conn, send); err != nil {
				t.Fatal(err)
			}
			go func() {
				for i := range slow {
					time.Sleep(100 * time.Millisecond)
					if _, err := io.WriteString(conn, slow[i:i+1]); err != nil {
						return // it was cut
					}
				}
			}()
			got, err := io.ReadAll(conn) // until it is closed
			took := time.Since(began)
			if e, ok := err.(net.Error); ok && e.Timeout() {
				t.Fatalf("it is open after %v", took)
			}
			if n := strings.Count(string(got), "HTTP/1.1 200 OK"); n != tt.answers {
				t.Errorf("%d answers, want %d: %q", n, tt.answers, got)
			}
			if took < tt.least-100*time.Millisecond || took > tt.most {
				t.Errorf("it was closed after %v, want %v to %v", took, tt.least, tt.most)
			}
		})
	}
}
