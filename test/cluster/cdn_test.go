//go:build cluster

package cluster

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// asked is how often the CDN has asked the origin for each path, and got it.
func asked(t *testing.T) map[string]int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(scratch, "ingress", "access.log"))
	if err != nil {
		t.Fatal(err)
	}
	paths := map[string]int{}
	for line := range strings.Lines(string(b)) {
		// As startIngress has it; who came past the CDN has no number of its own.
		var method, path, status, cdn string
		if n, _ := fmt.Sscan(line, &method, &path, &status, &cdn); n == 4 && method == "GET" && status == "200" && cdn != "-" {
			paths[path]++
		}
	}
	return paths
}

// immutable files: of a version, and tiles of the checksum database.
var immutable = regexp.MustCompile(`/@v/v[^/]+\.(info|mod|zip)$|^/sumdb/[^/]+/tile/`)

// get returns the body of an answer of 200 or 206.
func get(t *testing.T, url, bytes string) ([]byte, *http.Response) {
	t.Helper()
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if bytes != "" {
		req.Header.Set("Range", "bytes="+bytes)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode >= 300 {
		t.Fatalf("%s, bytes %s: %s, %v: %.200s", url, bytes, resp.Status, err, body)
	}
	return body, resp
}

// onceEach: of all that the go command has asked of the CDN, each immutable file has
// reached the origin once, and its next request does not. The files are returned.
func onceEach(t *testing.T) (paths []string) {
	t.Helper()
	before := asked(t)
	for path, times := range before {
		if !immutable.MatchString(path) {
			continue
		}
		paths = append(paths, path)
		if times != 1 {
			t.Errorf("the CDN has asked for %s %d times", path, times)
		}
		if _, resp := get(t, cdn+path, ""); resp.Header.Get("X-Cache") != "hit" || resp.Header.Get("Cache-Control") != "public, max-age=31536000, immutable" {
			t.Errorf("%s again: X-Cache %q, Cache-Control %q", path, resp.Header.Get("X-Cache"), resp.Header.Get("Cache-Control"))
		}
	}
	for path, times := range asked(t) {
		if immutable.MatchString(path) && times != before[path] {
			t.Errorf("another request of %s reached the origin", path)
		}
	}
	kinds := map[string]int{}
	for _, p := range paths {
		kinds[immutable.FindStringSubmatch(p)[1]]++
	}
	t.Logf("immutable files that the CDN has asked for once: %d info, %d mod, %d zip, %d tiles", kinds["info"], kinds["mod"], kinds["zip"], kinds[""])
	if kinds["info"] < len(downloads) || kinds["mod"] < len(downloads) || kinds["zip"] < len(downloads) || kinds[""] == 0 {
		t.Errorf("that is too few for %d modules and their checksums", len(downloads))
	}
	return paths
}

// behindCDN: immutable files reach the origin once, and come when the proxies are
// gone; ranges work.
func behindCDN(t *testing.T, upstream, sumdb string) {
	for _, path := range downloads { // by another machine, whose module cache is empty
		goDownload(t, cdn, sumdb, path)
	}
	paths := onceEach(t)
	for _, through := range []string{ingress, cdn} {
		ranges(t, upstream, through)
	}
	if n := asked(t)[large]; n != 1 {
		t.Errorf("the CDN has asked for %s %d times, to answer its pieces", large, n)
	}
	kubectl(t, "scale", "deployment/site-athensctl-proxy", "--replicas=0")
	eventually(t, "no proxy", time.Minute, func() bool { return status(ingress+"/healthz") != 200 })
	for _, path := range append(paths, large) {
		if s := status(cdn + path); s != 200 {
			t.Errorf("%s without a proxy: %d", path, s)
		}
	}
	kubectl(t, "scale", "deployment/site-athensctl-proxy", "--replicas=2")
	kubectl(t, "rollout", "status", "deployment/site-athensctl-proxy", "--timeout=60s")
	eventually(t, "proxies", time.Minute, func() bool { return status(ingress+"/healthz") == 200 })
}

// large is a zip of 20 MB that testupstream makes.
const large = "/graph.test/m0000/@v/v1.0.0.zip"

// ranges: a large zip in pieces of 8 MB, as Front Door asks for it, is the zip.
func ranges(t *testing.T, upstream, through string) {
	want, _ := get(t, upstream+large, "")
	const piece = 8 << 20
	if len(want) <= 2*piece {
		t.Fatalf("%s has %d bytes: too few to be cut in three", large, len(want))
	}
	var got []byte
	for from := 0; from < len(want); from += piece {
		to := min(from+piece, len(want)) - 1
		part, resp := get(t, through+large, fmt.Sprintf("%d-%d", from, from+piece-1))
		if said, is := resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-%d/%d", from, to, len(want)); resp.StatusCode != 206 || said != is {
			t.Errorf("%s%s from %d: %s, Content-Range %q, want %q", through, large, from, resp.Status, said, is)
		}
		got = append(got, part...)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s%s in pieces has %d bytes, and not those of the whole, %d", through, large, len(got), len(want))
	}
	t.Logf("%s%s: %d bytes in pieces of 8 MB", through, large, len(want))
}

// pollList asks the CDN for a list once a second, for 65 seconds from now. What is returned
// waits for that, and looks at the answers: no list was older than a minute, most came
// from the CDN, and the origin was asked again.
func pollList(t *testing.T) func() {
	const path = "/golang.org/x/mod/@v/list"
	type answer struct {
		status int
		age    int
		header string
	}
	before := asked(t)[path]
	answers := make(chan answer, 65)
	go func() {
		defer close(answers)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		client := &http.Client{Timeout: 20 * time.Second}
		for range cap(answers) {
			resp, err := client.Get(cdn + path)
			if err != nil {
				answers <- answer{header: err.Error()}
			} else {
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				age, err := strconv.Atoi(resp.Header.Get("Age"))
				if err != nil {
					age = -1
				}
				answers <- answer{resp.StatusCode, age, fmt.Sprint(resp.Header)}
			}
			<-tick.C
		}
	}()
	return func() {
		t.Helper()
		hits, oldest := 0, 0
		for a := range answers {
			if a.status != 200 || a.age < 0 || a.age > 60 || !strings.Contains(a.header, "public, max-age=60") {
				t.Errorf("the list through the CDN: %d, Age %d, %s", a.status, a.age, a.header)
			}
			if strings.Contains(a.header, "X-Cache:[hit]") {
				hits++
			}
			oldest = max(oldest, a.age)
		}
		n := asked(t)[path] - before
		t.Logf("the list through the CDN, once a second for %d s: Age %d at most, %d from the cache, the origin was asked %d times", cap(answers), oldest, hits, n)
		if n < 1 || n > 3 || hits < cap(answers)-n-1 || oldest < 30 {
			t.Errorf("a list of max-age=60 is not kept for a minute: see above")
		}
	}
}
