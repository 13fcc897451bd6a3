//go:build unix

package e2e

import (
	"fmt"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/testupstream"
)

// checkedGo runs the go command with an empty module cache and the upstream's checksum
// database, which it can only ask through the proxy.
func checkedGo(t *testing.T, u *testupstream.Upstream, dir, proxy string, env []string, args ...string) string {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	cmd.Env = append(append(u.GoEnv(proxy, t.TempDir()), "GOSUMDB="+u.VerifierKey()), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// What the checksum database does not confirm is neither kept nor served.
func TestChecksumRefused(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		bad    func(*testupstream.Upstream)
		file   string
		status int
		want   []string // in the body
	}{
		{"wrong zip", func(u *testupstream.Upstream) { u.SetSum("example.com/m", "v1.0.0", testupstream.SumWrongZip) },
			"zip", 502, []string{"example.com/m@v1.0.0", "checksum mismatch", "upstream has h1:", "the checksum database says h1:"}},
		{"wrong go.mod", func(u *testupstream.Upstream) { u.SetSum("example.com/m", "v1.0.0", testupstream.SumWrongMod) },
			"mod", 502, []string{"example.com/m@v1.0.0/go.mod", "checksum mismatch", "upstream has h1:", "the checksum database says h1:"}},
		{"unknown", func(u *testupstream.Upstream) { u.SetSum("example.com/m", "v1.0.0", testupstream.SumUnknown) },
			"zip", 403, []string{"knows no such version", "setting private"}},
		{"away", func(u *testupstream.Upstream) { u.SetSumDBAway(true) }, "zip", 503, []string{"checksum database"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			u := testupstream.Start(t, testupstream.Module{Path: "example.com/m", Version: "v1.0.0"})
			tc.bad(u)
			p := start(t, "--upstream", u.URL(), "--data-dir", t.TempDir(), "--sumdb", u.VerifierKey())
			url := p.url + "/example.com/m/@v/v1.0.0." + tc.file
			status, body, h := get(t, url)
			if status != tc.status {
				t.Errorf("status %d, want %d: %s", status, tc.status, body)
			}
			for _, want := range tc.want {
				if !strings.Contains(body, want) {
					t.Errorf("the answer does not say %q: %s", want, body)
				}
			}
			if status == 503 && h.Get("Retry-After") == "" {
				t.Error("503 without Retry-After")
			}
			if status, body, _ := get(t, p.url+"/cached-only/example.com/m/@v/v1.0.0."+tc.file); status == 200 {
				t.Errorf("it was kept: %.100s", body)
			}
			_, metrics, _ := get(t, p.url+"/metrics")
			if counted := !strings.Contains(metrics, "athensctl_checksum_mismatches_total 0\n"); counted != (tc.status == 502) {
				t.Errorf("counted as a mismatch: %v", counted)
			}
			if tc.name != "away" {
				return
			}
			u.SetSumDBAway(false)
			for end := time.Now().Add(time.Minute); status != 200 && time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
				status, body, _ = get(t, url)
			}
			if status != 200 {
				t.Errorf("the database is back: %d %s", status, body)
			}
		})
	}
}

// 50 clients ask for one lookup at once: one process, and each proxy of several, asks for it
// once, and so does the one crawler of the database. What comes is the database's answer, and says how long it
// may be kept: a tile, also one that is not full yet, never changes; a lookup may come with a newer tree.
func TestSumDBHerd(t *testing.T) {
	t.Parallel()
	for _, proxies := range []int{0, 2} {
		t.Run(fmt.Sprintf("%d proxies", proxies), func(t *testing.T) {
			const m = "example.com/m@v1.0.0"
			u := testupstream.Start(t, testupstream.Module{Path: "example.com/m", Version: "v1.0.0"})
			status, want, _ := get(t, u.SumDBURL()+"/lookup/"+m) // the record is there from now on
			if status != 200 {
				t.Fatalf("the database: %d %s", status, want)
			}
			var urls []string
			var crawler *process
			args := []string{"--sumdb", u.VerifierKey()}
			if proxies == 0 {
				urls = []string{start(t, append(args, "--upstream", u.URL(), "--data-dir", t.TempDir())...).url}
			} else {
				f := startFleet(t, u.URL(), 1, proxies, args...)
				for _, p := range f.proxies {
					urls = append(urls, p.url)
				}
				crawler = f.crawlers[0]
			}
			u.Reset()
			answer := make(chan struct{})
			u.Fault(testupstream.Match{Kind: testupstream.SumDB, Path: "example.com/m"}, testupstream.Fault{Until: answer})
			var wg sync.WaitGroup
			for i := range 50 {
				wg.Go(func() {
					status, body, h := get(t, urls[i%len(urls)]+"/sumdb/"+u.SumDBName()+"/lookup/"+m)
					if status != 200 || body != want || h.Get("Cache-Control") != goproxy.CacheBriefly {
						t.Errorf("lookup: %d %q, %q", status, body, h.Get("Cache-Control"))
					}
				})
			}
			if !u.Wait(testupstream.SumDB, m, 1, 30*time.Second) {
				t.Error("the database was not asked")
			}
			time.Sleep(500 * time.Millisecond) // the others ask by now, too
			close(answer)
			wg.Wait()
			if n := u.Requests(testupstream.SumDB, m); n != 1 {
				t.Errorf("the database was asked %d times, want once", n)
			}
			if crawler != nil {
				_, metrics, _ := get(t, crawler.url+"/metrics")
				if want := fmt.Sprintf("athensctl_request_seconds_count{method=\"GET\",role=\"crawler\",status=\"200\"} %d\n", proxies); !strings.Contains(metrics, want) {
					t.Errorf("%d proxies asked the crawler more than once each: %q", proxies, regexp.MustCompile("(?m)^athensctl_request_seconds_count.*$").FindAllString(metrics, -1))
				}
			}
			for path, cache := range map[string]string{
				"latest": goproxy.CacheBriefly, "supported": goproxy.CacheBriefly, "lookup/" + m: goproxy.CacheBriefly,
				"tile/8/0/000.p/1": goproxy.CacheImmutable, "tile/8/data/000.p/1": goproxy.CacheImmutable,
			} {
				for _, url := range urls {
					status, body, h := get(t, url+"/sumdb/"+u.SumDBName()+"/"+path)
					if status != 200 || h.Get("Cache-Control") != cache {
						t.Errorf("%s: %d, Cache-Control %q, want %q: %.200s", path, status, h.Get("Cache-Control"), cache, body)
					}
				}
			}
		})
	}
}

// A private module is not looked up, by nobody.
func TestChecksumPrivate(t *testing.T) {
	t.Parallel()
	u := testupstream.Start(t, testupstream.Module{Path: "corp.example.com/m", Version: "v1.0.0"})
	u.SetSum("corp.example.com/m", "v1.0.0", testupstream.SumUnknown)
	p := start(t, "--upstream", u.URL(), "--data-dir", t.TempDir(), "--sumdb", u.VerifierKey(), "--private", "corp.example.com")
	if status, body, _ := get(t, p.url+"/corp.example.com/m/@v/v1.0.0.zip"); status != 200 {
		t.Errorf("zip: %d %s", status, body)
	}
	if status, body, _ := get(t, p.url+"/sumdb/"+u.SumDBName()+"/lookup/corp.example.com/m@v1.0.0"); status != 403 || !strings.Contains(body, "private") {
		t.Errorf("lookup: %d %s", status, body)
	}
	if n := u.Requests(testupstream.SumDB, ""); n != 0 {
		t.Errorf("the checksum database was asked %d times", n)
	}
}

// GOTOOLCHAIN switches through the proxy. A toolchain is a module, and the go
// command always wants it in the checksum database.
func TestToolchain(t *testing.T) {
	t.Parallel()
	version := "v0.0.1-go1.99.9." + runtime.GOOS + "-" + runtime.GOARCH
	u := testupstream.Start(t, testupstream.Module{Path: "golang.org/toolchain", Version: version, Files: map[string]string{
		"bin/go":           "#!/bin/sh\necho a toolchain from the proxy: $*\n",
		"bin/gofmt":        "not one\n",
		"pkg/tool/compile": "not one\n",
		"lib/empty":        "the go command looks for this folder\n",
	}})
	p := start(t, "--upstream", u.URL(), "--data-dir", t.TempDir(), "--sumdb", u.VerifierKey())
	for range 2 {
		if out := checkedGo(t, u, t.TempDir(), p.url, []string{"GOTOOLCHAIN=go1.99.9"}, "version"); !strings.Contains(out, "a toolchain from the proxy: version") {
			t.Errorf("go version: %s", out)
		}
		u.Stop()
	}
}
