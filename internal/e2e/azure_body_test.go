//go:build unix

package e2e

import (
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/athensctl/athensctl/internal/testupstream"
)

// A relay is a way to one storage process, which it kills when a connection has sent more than
// cutAfter bytes, in the middle of a zip, as long as cuts are to be made. Nothing else of these tests
// sends that much.
type relay struct {
	url  string
	to   *process
	cuts *atomic.Int64
	mu   sync.Mutex     // of the process
	back sync.WaitGroup // the process, after each cut
}

const cutAfter = 1 << 20

func newRelay(t *testing.T, to *process, cuts *atomic.Int64) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{url: "http://" + l.Addr().String(), to: to, cuts: cuts}
	t.Cleanup(func() {
		l.Close()
		r.back.Wait()
	})
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			go r.pass(from)
		}
	}()
	return r
}

// pass ends both connections when either has ended.
func (r *relay) pass(from net.Conn) {
	defer from.Close()
	to, err := net.Dial("tcp", strings.TrimPrefix(r.to.url, "http://"))
	if err != nil {
		return
	}
	defer to.Close()
	go func() {
		io.Copy(from, to)
		from.Close()
	}()
	if n, _ := io.CopyN(to, from, cutAfter); n < cutAfter {
		return
	}
	if r.cuts.Add(-1) < 0 {
		io.Copy(to, from)
		return
	}
	r.back.Add(1)
	defer r.back.Done()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.to.kill()
	from.Close()
	r.to.start()
}

// Storage replicas are killed in the middle of a zip that a crawler sends them: the crawler, which has
// it, sends all of it again, to another or to the same that is back, and who waits has it. Upstream is
// asked once.
func TestAzureKilledInBody(t *testing.T) {
	t.Parallel()
	for _, n := range []int64{1, 2, 4} { // the third and later attempts read what two before have read
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			up := testupstream.New(t)
			up.Add("example.com/big", "v1.0.0", 9<<20)
			_, _, store := azureArgs(t, false)
			common := []string{"--internal-token", token}
			var cuts atomic.Int64
			cuts.Store(n)
			var storages []*process
			var relays []*relay
			var urls []string
			for range 2 {
				p := start(t, append(append(slices.Clone(common), "--role=storage", "--data-dir", t.TempDir()), store...)...)
				r := newRelay(t, p, &cuts)
				storages, relays, urls = append(storages, p), append(relays, r), append(urls, r.url)
			}
			common = append(common, "--storage-url", strings.Join(urls, ","))
			c := start(t, append(slices.Clone(common), "--role=crawler", "--upstream", up.URL, "--data-dir", t.TempDir())...)
			proxy := start(t, append(slices.Clone(common), "--role=proxy", "--crawler-url", c.url, "--data-dir", t.TempDir())...)
			const zip = "/example.com/big/@v/v1.0.0.zip"
			status, body, _ := get(t, proxy.url+zip)
			if asked := up.Requests(".zip"); asked != 1 {
				t.Errorf("upstream was asked for the zip %d times", asked)
			}
			_, want, _ := get(t, up.URL+zip)
			if status != 200 || body != want {
				t.Errorf("the proxy: %d, %d bytes of %d: %.200s", status, len(body), len(want), body)
			}
			if left := cuts.Load(); left >= 0 {
				t.Errorf("%d of %d Puts were not cut, and none was sent to its end", left, n)
			}
			for i, p := range storages {
				relays[i].back.Wait()
				if status, body, _ := get(t, p.url+zip); status != 200 || body != want {
					t.Errorf("storage %d: %d, %d bytes of %d", i, status, len(body), len(want))
				}
			}
			_, metrics, _ := get(t, c.url+"/metrics")
			if !strings.Contains(metrics, `athensctl_fetches_total{file="zip",outcome="ok"} 1`+"\n") {
				t.Errorf("fetches that ended: %s", regexp.MustCompile("(?m)^athensctl_fetches_total.*$").FindAllString(metrics, -1))
			}
		})
	}
}
