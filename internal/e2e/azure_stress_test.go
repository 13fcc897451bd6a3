//go:build unix

package e2e

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/athensctl/athensctl/internal/cosmosfake"
	"github.com/athensctl/athensctl/internal/testupstream"
	"github.com/athensctl/athensctl/storage/storagetest"
)

// trouble is what Azure does.
type trouble int32

const (
	well      trouble = iota
	throttled         // every second request is 429 (of Blob Storage 503, as it says it), one write in five is done and answered 500
	away              // every third request has no answer for a minute, the others are cut
)

// fault makes it, for one of the two services.
func (m *mode) fault(write bool, busy int) *cosmosfake.Fault {
	n := m.calls.Add(1)
	switch trouble(m.now.Load()) {
	case throttled:
		if n%2 == 0 {
			m.hit.Add(1)
			return &cosmosfake.Fault{Status: busy, RetryAfter: 20 * time.Millisecond}
		} else if write && m.writes.Add(1)%5 == 0 {
			m.hit.Add(1)
			return &cosmosfake.Fault{Status: 500, After: true}
		}
	case away:
		m.hit.Add(1)
		if n%3 == 0 {
			return &cosmosfake.Fault{Delay: time.Minute, Drop: true}
		}
		return &cosmosfake.Fault{Delay: 50 * time.Millisecond, Drop: true}
	}
	return nil
}

// mode is the present trouble of a service, and how often it was met.
type mode struct {
	now                atomic.Int32
	calls, writes, hit atomic.Int64
}

// retryAfterOf is when an answer says to come again; 0: it does not.
func retryAfterOf(h http.Header) time.Duration {
	seconds, _ := strconv.Atoi(h.Get("Retry-After"))
	return time.Duration(seconds) * time.Second
}

// What Cosmos DB asks to wait for (429) is waited for by whoever asks; where it asks for more
// than an operation has, or goes on for longer, clients of storage and of a proxy get 503
// with the Retry-After that it told. So do they where it gives no answer at all.
func TestAzureThrottled(t *testing.T) {
	t.Parallel() // it is waiting
	up := testupstream.New(t)
	fake, _, store := azureArgs(t, false)
	s := start(t, append([]string{"--role=storage", "--internal-token", token, "--data-dir", t.TempDir()}, store...)...)
	common := []string{"--internal-token", token, "--storage-url", s.url}
	c := start(t, append(common, "--role=crawler", "--upstream", up.URL, "--data-dir", t.TempDir())...)
	p := start(t, append(common, "--role=proxy", "--crawler-url", c.url, "--fetch-timeout=90s", "--data-dir", t.TempDir())...)
	tests := []struct {
		name        string
		fault       cosmosfake.Fault // of reads of the module's items
		times       int64            // 0: for ever
		after       time.Duration    // Retry-After, and 2 s more at most; 0: they are answered
		least, most time.Duration    // that an answer of storage takes; of a proxy, which waits for a storage that is away, 40 s more at most
	}{
		{"once", cosmosfake.Fault{Status: 429, RetryAfter: 700 * time.Millisecond}, 1, 0, 700 * time.Millisecond, 30 * time.Second},
		{"too-long", cosmosfake.Fault{Status: 429, RetryAfter: 50 * time.Second}, 0, 50 * time.Second, 0, 14 * time.Second},
		{"for-ever", cosmosfake.Fault{Status: 429, RetryAfter: 2 * time.Second}, 0, 2 * time.Second, 15 * time.Second, 35 * time.Second},
		{"no-answer", cosmosfake.Fault{Delay: 50 * time.Millisecond, Drop: true}, 0, time.Second, 15 * time.Second, 35 * time.Second},
	}
	reads := make([]atomic.Int64, len(tests)) // of the module's items, since the last request
	versions := make([]storagetest.Version, len(tests))
	for i, tt := range tests {
		versions[i] = storagetest.New("example.com/"+tt.name, "v1.0.0", "")
		if err := save(s.url, versions[i]); err != nil {
			t.Fatal(err)
		}
	}
	fake.SetFault(func(c cosmosfake.Call) *cosmosfake.Fault {
		for i, tt := range tests {
			if c.PK == "m/"+versions[i].Path && c.Op == "read item" {
				if n := reads[i].Add(1); n <= tt.times || tt.times == 0 {
					return &tt.fault
				}
			}
		}
		return nil
	})
	var wg sync.WaitGroup
	for i, tt := range tests {
		v := versions[i]
		ask := func(url, ext string, want []byte, most time.Duration) {
			reads[i].Store(0)
			began := time.Now()
			status, body, h := get(t, url+"/"+v.Path+"/@v/v1.0.0."+ext)
			took := time.Since(began)
			switch after := retryAfterOf(h); {
			case tt.after == 0 && (status != 200 || body != string(want) || reads[i].Load() <= tt.times):
				t.Errorf("%s of %s: %d, %d bytes, after %d reads, want 200 with %d after more than %d", url, v.Path, status, len(body), reads[i].Load(), len(want), tt.times)
			case tt.after > 0 && (status != 503 || after < tt.after || after > tt.after+2*time.Second):
				t.Errorf("%s of %s: %d with Retry-After %q, want 503 with %v: %s", url, v.Path, status, h.Get("Retry-After"), tt.after, body)
			}
			if took < tt.least || took > most {
				t.Errorf("%s of %s: the answer took %v, want %v to %v", url, v.Path, took, tt.least, most)
			}
		}
		line := new(sync.Mutex)
		for ext, want := range map[string][]byte{"info": v.Info, "mod": v.Mod, "zip": v.Zip} {
			for url, most := range map[string]time.Duration{s.url: tt.most, p.url: tt.most + 40*time.Second} {
				wg.Go(func() {
					if tt.times > 0 { // each has its faults: one after the other
						line.Lock()
						defer line.Unlock()
					}
					ask(url, ext, want, most)
				})
			}
		}
		if tt.name == "too-long" {
			wg.Go(func() {
				if err := save(s.url, v); err == nil || !strings.Contains(err.Error(), "503") {
					t.Errorf("a save of %s: %v", v, err)
				}
			})
		}
	}
	wg.Wait()
}

// 30 s in which every second request is answered 429 and one write in five fails after it
// was done; then 10 s of no answer at all, of requests that hang and connections that are cut. Any
// answer that has a file or a list has the true one, from whichever proxy (a 503 on a machine that is
// itself too slow is no wrong answer); what a proxy has in its cache it answers all the
// time; no version that was saved is lost, and the queue drains.
func TestAzureUnderStress(t *testing.T) {
	for name, blob := range map[string]bool{"cosmos": false, "cosmos and blob": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it is waiting, most of the time
			stressAzure(t, blob)
		})
	}
}

func stressAzure(t *testing.T, blob bool) {
	const modules, warm = 300, 10
	up := testupstream.New(t)
	type file struct{ module, path string }
	var files []file
	truth := map[string][sha256.Size]byte{} // by path
	fetched := map[string]bool{}
	for i := range modules {
		m := fmt.Sprintf("example.com/m%d", i)
		up.Add(m, "v1.0.0", 2<<10)
		fetched[m] = true
		for _, f := range []string{"list", "v1.0.0.info", "v1.0.0.mod", "v1.0.0.zip"} {
			path := "/" + m + "/@v/" + f
			files = append(files, file{m, path})
			_, body, _ := get(t, up.URL+path)
			truth[path] = sha256.Sum256([]byte(body))
		}
	}
	s := startAzure(t, []string{up.URL}, blob)
	var cosmos, blobs mode
	s.cosmos.SetFault(func(c cosmosfake.Call) *cosmosfake.Fault {
		return cosmos.fault(!strings.HasPrefix(c.Op, "read") && c.Op != "query", 429)
	})
	if blob {
		s.blob.SetFault(func(r *http.Request) *cosmosfake.Fault { return blobs.fault(r.Method == http.MethodPut, 503) })
	}
	client := &http.Client{Timeout: 90 * time.Second}
	// ask returns the status, after it has looked whether a file that came is the true one, and
	// whether a 503 says when to come again.
	ask := func(url, path string) int {
		req, err := http.NewRequest(http.MethodGet, url+path, nil)
		if err != nil {
			t.Error(err)
			return 0
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := client.Do(req)
		if err != nil {
			t.Errorf("%s%s: %v", url, path, err)
			return 0
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		switch {
		case resp.StatusCode == 200 && err != nil:
			return 599 // cut, which its client sees
		case resp.StatusCode == 200 && sha256.Sum256(body) != truth[path]:
			t.Errorf("%s%s: 200 with %d bytes that are not upstream's", url, path, len(body))
		case resp.StatusCode < 500 && resp.StatusCode != 200:
			t.Errorf("%s%s: %s %.200s, which upstream has", url, path, resp.Status, body)
		case resp.StatusCode == 503 && retryAfterOf(resp.Header) < time.Second:
			t.Errorf("%s%s: 503 with Retry-After %q: %.200s", url, path, resp.Header.Get("Retry-After"), body)
		}
		return resp.StatusCode
	}
	isWarm := func(i int) bool { return i < 4*warm }
	for i := range 4 * warm {
		for _, p := range s.proxies {
			if status := ask(p.url, files[i].path); status != 200 {
				t.Fatalf("%s: %d", files[i].path, status)
			}
		}
	}
	var mu sync.Mutex
	tried, saved := map[string]storagetest.Version{}, map[string]storagetest.Version{}
	var k atomic.Int64
	set := func(what, ofBlobs trouble) {
		cosmos.now.Store(int32(what))
		blobs.now.Store(int32(ofBlobs))
	}
	phase := func(name string, what, ofBlobs trouble, d time.Duration) {
		cosmos.hit.Store(0)
		blobs.hit.Store(0)
		set(what, ofBlobs)
		end := time.Now().Add(d)
		defer time.AfterFunc(d, func() { set(well, well) }).Stop()
		var wg sync.WaitGroup
		var ok, failed, kept atomic.Int64
		for w := range 24 {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(w), uint64(what)))
				for time.Now().Before(end) {
					i := 4*warm + rnd.IntN(len(files)-4*warm)
					if w%6 == 0 { // what is in the cache does not wait behind the rest
						i = rnd.IntN(4 * warm)
						time.Sleep(20 * time.Millisecond)
					}
					p := s.proxies[rnd.IntN(len(s.proxies))]
					status := ask(p.url, files[i].path)
					switch {
					case status == 200:
						ok.Add(1)
						if isWarm(i) {
							kept.Add(1)
						}
					case isWarm(i):
						t.Errorf("%s: %s, which the proxy has in its cache: %d", name, files[i].path, status)
					default:
						failed.Add(1)
						// A zip that is on its way when its source is lost is cut.
						cut := status == 599 && throttled != max(what, ofBlobs) && strings.HasSuffix(files[i].path, ".zip")
						if status != 503 && status != 504 && !cut {
							t.Errorf("%s: %s: %d", name, files[i].path, status)
						}
					}
				}
			})
		}
		for i := range s.storages {
			wg.Go(func() {
				for time.Now().Before(end) {
					v := storagetest.New(fmt.Sprintf("example.com/saved%d", k.Load()%17), fmt.Sprintf("v1.%d.0", k.Add(1)), "")
					mu.Lock()
					tried[v.String()] = v
					mu.Unlock()
					if err := save(s.storages[i].url, v); err == nil {
						mu.Lock()
						saved[v.String()] = v
						mu.Unlock()
					}
				}
			})
		}
		wg.Wait()
		t.Logf("%s: %d answers, %d of them out of caches for sure, %d failures; %d of %d saves succeeded so far; Cosmos DB failed %d times, Blob Storage %d times",
			name, ok.Load(), kept.Load(), failed.Load(), len(saved), len(tried), cosmos.hit.Load(), blobs.hit.Load())
		if what == throttled && ok.Load()-kept.Load() < 4*failed.Load() {
			t.Errorf("%s: %d answers and %d failures", name, ok.Load(), failed.Load())
		}
		if kept.Load() == 0 || what != well && cosmos.hit.Load() == 0 || what == throttled && len(saved) == 0 || blob && what != away && blobs.hit.Load() == 0 {
			t.Errorf("%s: the trouble did not meet the work", name)
		}
	}
	phase("429 and 500", throttled, throttled, 30*time.Second)
	phase("no answer", away, away, 10*time.Second)
	if blob {
		phase("no answer of Blob Storage", well, away, 10*time.Second)
	}
	set(well, well)

	// All of it comes now, from each proxy, and both storage replicas have it.
	deadline := time.Now().Add(2 * time.Minute)
	var wg sync.WaitGroup
	var next atomic.Int64
	for range 8 {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(files)*len(s.proxies) {
					return
				}
				f, p := files[i/len(s.proxies)], s.proxies[i%len(s.proxies)]
				for {
					status := ask(p.url, f.path)
					if status == 200 {
						break
					}
					if time.Now().After(deadline) {
						t.Errorf("%s%s after the stress: %d", p.url, f.path, status)
						return
					}
					time.Sleep(200 * time.Millisecond)
				}
			}
		})
	}
	wg.Wait()
	for {
		_, body, _ := get(t, s.storages[0].url+"/metrics")
		if strings.Contains(body, "athensctl_queue_jobs 0\n") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the queue did not drain: %s", body)
		}
		time.Sleep(500 * time.Millisecond)
	}
	for _, f := range files {
		for _, p := range s.storages {
			if status := ask(p.url, f.path); status != 200 {
				t.Errorf("%s%s: %d", p.url, f.path, status)
			}
		}
	}
	checkSaved(t, s.storages[1].url, tried, saved, fetched)
}
