//go:build unix

package e2e

import (
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/athensctl/athensctl/internal/cosmosfake"
	"github.com/athensctl/athensctl/internal/testazure"
	"github.com/athensctl/athensctl/internal/testupstream"
	"github.com/athensctl/athensctl/storage/blob"
)

// azureSite is a site whose storage is in (stand-ins for) Azure: two storage
// replicas, two crawlers, three proxies.
type azureSite struct {
	cosmos                      *cosmosfake.Server
	blob                        *testazure.Blob // nil: zips are in Cosmos DB
	storages, crawlers, proxies []*process
}

// containerOf is the container of a test in Blob Storage.
func containerOf(t *testing.T) string {
	return fmt.Sprintf("c%x", sha256.Sum256([]byte(t.Name())))[:30]
}

// azureArgs makes a database, and a container for zips when blob is set, with the
// product's own command, and returns the settings that name them.
func azureArgs(t *testing.T, withBlob bool) (fake *cosmosfake.Server, blob *testazure.Blob, args []string) {
	fake = &cosmosfake.Server{Key: testazure.CosmosKey, Serverless: true}
	srv := httptest.NewServer(fake)
	t.Cleanup(srv.Close)
	args = []string{"--store=cosmos", "--cosmos-endpoint", srv.URL, "--cosmos-key", testazure.CosmosKey}
	if withBlob {
		blob = testazure.StartBlob(t)
		args = append(args, "--blob-connection-string", blob.Connection, "--blob-container", containerOf(t))
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
	return fake, blob, args
}

// startAzure starts a site. A crawler's upstream is the one of its number, or the last.
func startAzure(t *testing.T, upstream []string, blob bool, args ...string) *azureSite {
	t.Helper()
	s := &azureSite{}
	var store []string
	s.cosmos, s.blob, store = azureArgs(t, blob)
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
	for i := range 2 {
		s.crawlers = append(s.crawlers, start(t, append(common, "--role=crawler", "--upstream", upstream[min(i, len(upstream)-1)], "--data-dir", t.TempDir())...))
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
			s := startAzure(t, []string{up.URL}, blob, "--freshness=1h")
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

// A 450 MB zip in and out through three roles and Blob Storage, out of upstream and out of what is
// kept then: each time upstream's bytes.
func TestAzureBigZip(t *testing.T) {
	t.Parallel()
	up := testupstream.New(t)
	up.Add("example.com/big", "v1.0.0", 450<<20)
	s := startAzure(t, []string{up.URL}, true, "--fetch-timeout=5m")
	sum := func(url string) (sum [sha256.Size]byte) {
		resp, err := http.Get(url + "/example.com/big/@v/v1.0.0.zip")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		hash := sha256.New()
		n, err := io.Copy(hash, resp.Body)
		if err != nil || resp.StatusCode != 200 || n < 450<<20 {
			t.Fatalf("%s: %s: %d bytes, %v", url, resp.Status, n, err)
		}
		return [sha256.Size]byte(hash.Sum(nil))
	}
	want := sum(up.URL)
	for i, p := range s.proxies[:2] {
		if got := sum(p.url); got != want {
			t.Errorf("proxy %d: SHA-256 %x, upstream's is %x", i, got, want)
		}
	}
	if n := up.Requests(".zip"); n != 2 { // one is this test's
		t.Errorf("upstream was asked for the zip %d times", n-1)
	}
	for _, p := range s.all() {
		t.Logf("%v: peak %d MiB", p.args[5:8], p.peakMiB())
		if peak := p.peakMiB(); peak > 128 {
			t.Errorf("%v: peak resident memory %d MiB, above 128", p.args, peak)
		}
	}
}

// Bytes of a zip that Blob Storage loses: who asks next has them fetched again, and they are kept.
func TestAzureLostBytes(t *testing.T) {
	t.Parallel()
	up := testupstream.New(t)
	up.Add("example.com/m", "v1.0.0", 20<<10)
	s := startAzure(t, []string{up.URL}, true)
	const zip = "/example.com/m/@v/v1.0.0.zip"
	_, want, _ := get(t, up.URL+zip)
	if status, body, _ := get(t, s.proxies[0].url+zip); status != 200 || body != want {
		t.Fatalf("%d %.200s", status, body)
	}
	before := up.Requests(".zip")
	blobs, err := blob.Open(t.Context(), blob.Account{Connection: s.blob.Connection, Container: containerOf(t)})
	if err != nil {
		t.Fatal(err)
	}
	if err := blobs.Delete(t.Context(), fmt.Sprintf("example.com/m/@v/v1.0.0.%x.zip", sha256.Sum256([]byte(want))), int64(len(want))); err != nil {
		t.Fatal(err)
	}
	if status, body, _ := get(t, s.storages[0].url+zip); status != 404 || !strings.Contains(body, "lost") {
		t.Errorf("storage, with the blob gone: %d %s", status, body)
	}
	for i, p := range s.proxies[1:] { // these have it in no cache
		if status, body, _ := get(t, p.url+zip); status != 200 || body != want {
			t.Errorf("proxy %d: %d %.200s", i+1, status, body)
		}
	}
	for _, p := range s.storages {
		if status, body, _ := get(t, p.url+zip); status != 200 || body != want {
			t.Errorf("storage: %d %.200s", status, body)
		}
	}
	if n := up.Requests(".zip"); n != before+1 {
		t.Errorf("upstream was asked for the zip %d times", n-before)
	}
}
