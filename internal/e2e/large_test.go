//go:build linux

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/athensctl/athensctl/internal/testgit"
)

// A repository of more than 60 MB with 40 tags, an empty store, and many requests at once
// for all of them: each tag is fetched once, none fails, and what the crawler needs of
// memory is bounded, and does not grow with how many wait.
func TestLargeRepository(t *testing.T) {
	root := t.TempDir()
	host := testgit.New(t, root)
	large := testgit.Large{Module: "git.test.example/big.git", Tags: 40, Kept: 6 << 20, Changed: 3 << 20}
	size, commits, err := large.Write(filepath.Join(root, "big"))
	if err != nil {
		t.Fatal(err)
	}
	if size < 60<<20 {
		t.Fatalf("the repository has %d bytes", size)
	}
	peaks := map[int]int{}
	for _, requests := range []int{40, 400} {
		f := startFleet(t, "direct", 1, 1, "--vcs-instead-of=https://git.test.example/="+host.URL+"/", "--private=*", "--fetch-timeout=5m")
		before := host.Wanted(commits)
		began := time.Now()
		zips := many(t, requests, func(i int) string {
			return fmt.Sprintf("%s/%s/@v/%s.zip", f.proxies[0].url, large.Module, large.Tag(i%large.Tags))
		})
		took := time.Since(began)
		if zips[200] != requests {
			t.Errorf("%d requests: %v", requests, zips)
		}
		for i, n := range host.Wanted(commits) {
			if n -= before[i]; n != 1 {
				t.Errorf("%d requests: %s was fetched %d times", requests, large.Tag(i), n)
			}
		}
		small := many(t, 2*large.Tags, func(i int) string {
			return fmt.Sprintf("%s/%s/@v/%s%s", f.proxies[0].url, large.Module, large.Tag(i/2), []string{".info", ".mod"}[i%2])
		})
		if small[200] != 2*large.Tags {
			t.Errorf("%d requests: .info and .mod: %v", requests, small)
		}
		asked := 0
		for i, n := range host.Wanted(commits) {
			asked += n - before[i]
		}
		if asked != large.Tags {
			t.Errorf("%d requests: with .info and .mod %d fetches, want %d", requests, asked, large.Tags)
		}
		peaks[requests] = f.crawlers[0].peakMiB()
		t.Logf("%d requests at once for %d tags of a repository of %d MB: %v, crawler's peak %d MiB, proxy's %d, storage's %d",
			requests, large.Tags, size>>20, took.Round(time.Second/10), peaks[requests], f.proxies[0].peakMiB(), f.storage.peakMiB())
		if peaks[requests] > 256 {
			t.Errorf("%d requests: the crawler's peak is %d MiB, above 256", requests, peaks[requests])
		}
		for _, p := range f.all() {
			p.kill()
		}
	}
	// Ten times as many wait; each costs some KB, of connection and stack. When the
	// collector runs makes some 60 MiB of difference; a zip for each who waits would be 500.
	if peaks[400] > peaks[40]+96 {
		t.Errorf("400 requests waiting: peak %d MiB; 40: %d MiB", peaks[400], peaks[40])
	}
}

// many makes n requests at once, and counts the answers by status; 0 is one that was not
// whole.
func many(t *testing.T, n int, url func(int) string) map[int]int {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{}, Timeout: 5 * time.Minute}
	defer client.CloseIdleConnections()
	var mu sync.Mutex
	var wg sync.WaitGroup
	got := map[int]int{}
	for i := range n {
		wg.Go(func() {
			status := 0
			resp, err := client.Get(url(i))
			if err == nil {
				size, e := io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if err = e; err == nil && size == resp.ContentLength {
					status = resp.StatusCode
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if got[status]++; status != 200 && got[status] == 1 {
				t.Logf("%s: %d, %v", url(i), status, err)
			}
		})
	}
	wg.Wait()
	return got
}
