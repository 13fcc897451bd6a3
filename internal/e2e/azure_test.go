//go:build unix

package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/athensctl/athensctl/internal/cosmosfake"
	"github.com/athensctl/athensctl/internal/testazure"
	"github.com/athensctl/athensctl/internal/testupstream"
	"github.com/athensctl/athensctl/storage/storagetest"
)

// azureSite is a site whose storage is in (stand-ins for) Azure: two storage
// replicas, two crawlers, three proxies.
type azureSite struct {
	cosmos                      *cosmosfake.Server
	storages, crawlers, proxies []*process
}

// azureArgs makes a database, and a container for zips when blob is set, with the
// product's own command, and returns the settings that name them.
func azureArgs(t *testing.T, blob bool) (*cosmosfake.Server, []string) {
	fake := &cosmosfake.Server{Key: testazure.CosmosKey, Serverless: true}
	srv := httptest.NewServer(fake)
	t.Cleanup(srv.Close)
	args := []string{"--store=cosmos", "--cosmos-endpoint", srv.URL, "--cosmos-key", testazure.CosmosKey}
	if blob {
		args = append(args, "--blob-connection-string", testazure.Azurite(t), "--blob-container", fmt.Sprintf("c%x", sha256.Sum256([]byte(t.Name())))[:30])
	}
	for _, want := range []string{"made", "was there"} {
		out, err := exec.Command(binary, append([]string{"storage", "init"}, args...)...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Fatalf("storage init: %v\n%s", err, out)
		}
	}
	if out, err := exec.Command(binary, append([]string{"doctor", "--role=storage", "--listen=127.0.0.1:1"}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("doctor: %v\n%s", err, out)
	}
	return fake, args
}

func startAzure(t *testing.T, upstream string, blob bool, args ...string) *azureSite {
	t.Helper()
	fake, store := azureArgs(t, blob)
	s := &azureSite{cosmos: fake}
	common := append([]string{"--internal-token", token}, args...)
	urls := func(list []*process) string {
		var urls []string
		for _, p := range list {
			urls = append(urls, p.url)
		}
		return strings.Join(urls, ",")
	}
	for range 2 {
		s.storages = append(s.storages, start(t, append(append(common, "--role=storage", "--data-dir", t.TempDir()), store...)...))
	}
	common = append(common, "--storage-url", urls(s.storages))
	for range 2 {
		s.crawlers = append(s.crawlers, start(t, append(common, "--role=crawler", "--upstream", upstream, "--data-dir", t.TempDir())...))
	}
	for range 3 {
		s.proxies = append(s.proxies, start(t, append(common, "--role=proxy", "--crawler-url", urls(s.crawlers), "--data-dir", t.TempDir())...))
	}
	return s
}

func (s *azureSite) all() []*process {
	return append(append(append([]*process{}, s.storages...), s.crawlers...), s.proxies...)
}

// The main job and the herd with Azure behind: each file is fetched once.
func TestAzure(t *testing.T) {
	t.Parallel()
	for name, blob := range map[string]bool{"cosmos": false, "cosmos and blob": true} {
		t.Run(name, func(t *testing.T) {
			up := testupstream.New(t)
			// Lists stay fresh however slow the machine is: one that aged would rightly be asked again.
			s := startAzure(t, up.URL, blob, "--freshness=1h")
			dir := graph(t, up, 80)
			goCommand(t, dir, s.proxies[0].url, "list", "-m", "-u", "all")
			goCommand(t, dir, s.proxies[1].url, "mod", "download")
			goCommand(t, dir, s.proxies[2].url, "get", "example.com/Dep7@latest")
			up.SetFault(up.Gone)
			goCommand(t, dir, s.proxies[2].url, "mod", "download")
			up.SetFault(nil)
			up.Delay = time.Second
			up.Add("example.com/big", "v1.0.0", 9<<20)
			got := crowd(1000, func(i int) string { return s.proxies[i%3].url + "/example.com/big/@v/v1.0.0.zip" })
			if !maps.Equal(got, map[string]int{"200": 1000}) {
				t.Errorf("answers: %v", got)
			}
			if path, n := up.MostAsked(""); n != 1 {
				t.Errorf("%s was asked of upstream %d times", path, n)
			}
			for _, p := range s.all() {
				if peak := p.peakMiB(); peak > 96 {
					t.Errorf("%v: peak resident memory %d MiB, above 96", p.args, peak)
				}
			}
		})
	}
}

func catalogOf(t *testing.T, url string) map[string]bool {
	t.Helper()
	whole := map[string]bool{}
	for next := ""; ; {
		_, body, _ := get(t, url+"/catalog?pagesize=1000&token="+next)
		var page struct {
			Modules []struct{ Module, Version string }
			Next    string
		}
		if err := json.Unmarshal([]byte(body), &page); err != nil {
			t.Fatalf("catalog: %v: %s", err, body)
		}
		for _, m := range page.Modules {
			whole[m.Module+"@"+m.Version] = true
		}
		if next = page.Next; next == "" {
			return whole
		}
	}
}

// checkSaved: every version is whole or absent, every one whose save succeeded is
// whole, in the catalog, and in the index once.
// fetched are modules that crawlers have saved.
func checkSaved(t *testing.T, url string, tried, saved map[string]storagetest.Version, fetched map[string]bool) {
	t.Helper()
	whole := catalogOf(t, url)
	// What was made complete and not listed, since its process was killed between the
	// two, another finishes within a minute.
	wanted := slices.Collect(maps.Keys(saved))
	for m := range fetched {
		wanted = append(wanted, m+"@v1.0.0")
	}
	unlisted := func() []string {
		return slices.DeleteFunc(slices.Clone(wanted), func(name string) bool { return whole[name] })
	}
	for end := time.Now().Add(90 * time.Second); len(unlisted()) > 0 && time.Now().Before(end); whole = catalogOf(t, url) {
		time.Sleep(time.Second)
	}
	for _, name := range unlisted() {
		t.Errorf("%s was saved or fetched, and is not in the catalog", name)
	}
	for name, v := range tried {
		for ext, want := range map[string][]byte{"info": v.Info, "mod": v.Mod, "zip": v.Zip} {
			status, body, _ := get(t, fmt.Sprintf("%s/%s/@v/%s.%s", url, v.Path, v.Version.Version, ext))
			if !(status == 200 && body == string(want)) && !(status == 404 && !whole[name]) {
				t.Errorf("%s.%s: status %d, %d bytes of %d; in the catalog: %v", name, ext, status, len(body), len(want), whole[name])
			}
		}
		if err := save(url, v); err != nil {
			t.Errorf("save %s again: %v", name, err)
		}
	}
	_, body, _ := get(t, url+"/index?limit=10000")
	if lines := strings.Count(body, "\n"); lines != len(tried)+len(fetched) {
		t.Errorf("the index has %d lines, want %d", lines, len(tried)+len(fetched))
	}
}

// kill -9 of any process of a site at random moments, while versions are saved at both
// storage replicas and others are asked of the proxies, which makes the crawlers save
// them.
func TestAzureKill(t *testing.T) {
	t.Parallel()
	const kills = 200
	up := testupstream.New(t)
	up.Delay = 10 * time.Millisecond
	s := startAzure(t, up.URL, false, "--job-lease=2s")
	var mu sync.Mutex
	saved, tried := map[string]storagetest.Version{}, map[string]storagetest.Version{}
	asked, answered := map[string]bool{}, 0
	var n atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	again := func(f func()) {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					f()
				}
			}
		})
	}
	for i := range 3 {
		again(func() {
			k := n.Add(1)
			v := storagetest.New(fmt.Sprintf("example.com/m%d", k%17), fmt.Sprintf("v1.%d.0", k), strings.Repeat("x", rand.IntN(200)))
			mu.Lock()
			tried[v.String()] = v
			mu.Unlock()
			if err := save(s.storages[i%2].url, v); err == nil {
				mu.Lock()
				saved[v.String()] = v
				mu.Unlock()
			} else {
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	client := &http.Client{Timeout: 30 * time.Second}
	for i := range 3 {
		again(func() {
			m := fmt.Sprintf("example.com/up%d", n.Add(1))
			up.Add(m, "v1.0.0", 2<<10)
			mu.Lock()
			asked[m] = true
			mu.Unlock()
			resp, err := client.Get(s.proxies[i].url + "/" + m + "/@v/v1.0.0.zip")
			if err != nil {
				time.Sleep(5 * time.Millisecond)
				return
			}
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if err == nil && resp.StatusCode == 200 {
				mu.Lock()
				answered++
				mu.Unlock()
			} else if err == nil && resp.StatusCode < 500 {
				t.Errorf("%s: %s, which upstream has", m, resp.Status)
			}
		})
	}
	crawlers := 0
	for range kills {
		i := rand.IntN(len(s.all()))
		p := s.all()[i]
		time.Sleep(time.Duration(rand.IntN(25_000)) * time.Microsecond)
		p.kill()
		p.start()
		if i >= 2 && i < 4 {
			crawlers++
		}
	}
	close(stop)
	wg.Wait()
	t.Logf("%d kills, %d of crawlers; %d saves tried, %d succeeded; %d modules asked for, %d answered", kills, crawlers, len(tried), len(saved), len(asked), answered)
	if len(saved) == 0 || len(saved) == len(tried) || answered == 0 {
		t.Error("the kills did not meet the work")
	}
	// Everything that was asked for comes, at the latest when it is asked for again.
	twice := 0
	for m := range asked {
		for _, ext := range []string{".info", ".mod", ".zip"} {
			for end := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
				status, body, _ := get(t, s.proxies[0].url+"/"+m+"/@v/v1.0.0"+ext)
				if status == 200 {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("%s%s: %d %s", m, ext, status, body)
				}
			}
		}
		if up.Requests("/"+m+"/@v/v1.0.0.zip") > 1 {
			twice++
		}
	}
	// A crawler that dies has at most three zips in hand, which others fetch again.
	if t.Logf("%d zips were fetched more than once", twice); twice > 3*crawlers {
		t.Errorf("%d zips were fetched more than once, with %d crawlers killed", twice, crawlers)
	}
	checkSaved(t, s.storages[0].url, tried, saved, asked)
}

// 30 s in which every second request is answered 429 and one write in five fails
// after it was done; then 10 s of no answer at all: no wrong answer (a 503 on a
// machine that is itself too slow is none), no version lost, and the queue drains.
func TestAzureUnderStress(t *testing.T) {
	up := testupstream.New(t)
	for i := range 400 {
		up.Add(fmt.Sprintf("example.com/m%d", i), "v1.0.0", 2<<10)
	}
	s := startAzure(t, up.URL, false)
	var calls atomic.Int64
	var mode atomic.Int32
	fault := func(c cosmosfake.Call) *cosmosfake.Fault {
		n := calls.Add(1)
		switch {
		case mode.Load() == 1 && n%2 == 0:
			return &cosmosfake.Fault{Status: 429, RetryAfter: 20 * time.Millisecond}
		case mode.Load() == 1 && !strings.HasPrefix(c.Op, "read") && c.Op != "query" && n%5 == 0:
			return &cosmosfake.Fault{Status: 500, After: true}
		case mode.Load() == 2:
			return &cosmosfake.Fault{Drop: true, Delay: 50 * time.Millisecond}
		}
		return nil
	}
	s.cosmos.SetFault(fault)
	ask := func(i int) (int, string) {
		path := fmt.Sprintf("example.com/m%d", i)
		switch i % 3 {
		case 0:
			path += "/@v/v1.0.0.zip"
		case 1:
			path += "/@v/v1.0.0.mod"
		default:
			path += "/@v/list"
		}
		status, body, _ := get(t, s.proxies[i%3].url+"/"+path)
		return status, body
	}
	phase := func(m int32, d time.Duration, from int, mayFail bool) {
		mode.Store(m)
		var wg sync.WaitGroup
		var next atomic.Int64
		next.Store(int64(from))
		end := time.Now().Add(d)
		var ok, failed atomic.Int64
		for range 8 {
			wg.Go(func() {
				for time.Now().Before(end) {
					i := int(next.Add(1)) % 400
					switch status, body := ask(i); {
					case status == 200:
						ok.Add(1)
					case status == 503 || status == 504 || mayFail && status >= 500:
						failed.Add(1)
					default:
						t.Errorf("mode %d, module %d: %d %.200s", m, i, status, body)
					}
				}
			})
		}
		wg.Wait()
		t.Logf("mode %d: %d answers, %d failures", m, ok.Load(), failed.Load())
		if !mayFail && ok.Load() < 4*failed.Load() {
			t.Errorf("mode %d: %d answers and %d failures", m, ok.Load(), failed.Load())
		}
	}
	phase(1, 30*time.Second, 0, false)
	phase(2, 10*time.Second, 200, true)
	mode.Store(0)
	deadline := time.Now().Add(2 * time.Minute)
	for i := range 400 {
		for {
			status, body := ask(i)
			if status == 200 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("module %d after the stress: %d %s", i, status, body)
			}
			time.Sleep(200 * time.Millisecond)
		}
	}
	for {
		req, _ := http.NewRequest("GET", s.storages[0].url+"/metrics", nil)
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if strings.Contains(string(body), "athensctl_queue_jobs 0\n") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the queue did not drain: %s", bytes.TrimSpace(body))
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// A 450 MB zip in and out through three roles and Blob Storage.
func TestAzureBigZip(t *testing.T) {
	t.Parallel()
	up := testupstream.New(t)
	up.Add("example.com/big", "v1.0.0", 450<<20)
	s := startAzure(t, up.URL, true, "--fetch-timeout=5m")
	resp, err := http.Get(s.proxies[0].url + "/example.com/big/@v/v1.0.0.zip")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil || resp.StatusCode != 200 || n < 450<<20 {
		t.Fatalf("%s: %d bytes, %v", resp.Status, n, err)
	}
	for _, p := range s.all() {
		t.Logf("%v: peak %d MiB", p.args[5:8], p.peakMiB())
		if peak := p.peakMiB(); peak > 128 {
			t.Errorf("%v: peak resident memory %d MiB, above 128", p.args, peak)
		}
	}
}
