//go:build unix

package e2e

import (
	"fmt"
	"maps"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/athensctl/athensctl/internal/testupstream"
)

// Storage is killed while what clients wait for is fetched, and starts again: its queue has
// the jobs, each is done once, and who waited, at whichever crawler, has the answer.
func TestStorageKilledWithJobs(t *testing.T) {
	t.Parallel() // it waits
	for _, tc := range []struct {
		name string
		down time.Duration // from the kill to the start
	}{{"back before the fetch ends", 0}, {"back after it", 4 * time.Second}} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			up := testupstream.New(t)
			up.Delay = 3 * time.Second
			up.Add("example.com/m", "v1.0.0", 1<<20)
			f := startFleet(t, up.URL, 2, 2)
			paths := []string{"/example.com/m/@v/v1.0.0.zip", "/example.com/m/@v/list"}
			done := make(chan map[string]int)
			go func() {
				done <- crowd(24, func(i int) string { return f.proxies[i/2%2].url + paths[i%2] })
			}()
			for end := time.Now().Add(10 * time.Second); up.Requests(".zip") == 0 || up.Requests("/list") == 0; time.Sleep(20 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("nobody asked upstream")
				}
			}
			time.Sleep(500 * time.Millisecond) // the other crawler waits by now, too
			f.storage.kill()
			time.Sleep(tc.down)
			f.storage.start()
			if got := <-done; !maps.Equal(got, map[string]int{"200": 24}) {
				t.Errorf("who waited got %v", got)
			}
			if path, n := up.MostAsked(""); n != 1 {
				t.Errorf("%s was asked of upstream %d times", path, n)
			}
			ended := map[string]int{}
			for _, c := range f.crawlers {
				_, metrics, _ := get(t, c.url+"/metrics")
				for _, m := range regexp.MustCompile(`(?m)^athensctl_fetches_total{file="(list|zip)",outcome="([a-z]+)"} ([0-9]+)$`).FindAllStringSubmatch(metrics, -1) {
					n := 0
					fmt.Sscan(m[3], &n)
					ended[m[1]+" "+m[2]] += n
				}
			}
			if !maps.Equal(ended, map[string]int{"list ok": 1, "zip ok": 1}) {
				t.Errorf("fetches that ended: %v", ended)
			}
			out, err := athensctl(t, "queue", "list", "--storage-url", f.storage.url, "--internal-token", token)
			if err != nil || strings.Count(out, "\n") != 1 {
				t.Errorf("the queue is not empty: %v\n%s", err, out)
			}
		})
	}
}
