//go:build unix

package e2e

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/testgit"
	"github.com/athensctl/athensctl/internal/testupstream"
)

const webhookSecret = "webhook-secret-0123456789"

// push posts what a GitHub would.
func push(t *testing.T, url, body, secret string) int {
	t.Helper()
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(body))
	req, _ := http.NewRequest("POST", url+"/webhook", strings.NewReader(body))
	req.Header.Set("X-GitHub-Event", "push")
	req.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(mac.Sum(nil)))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// A tag that a git host announces is seen within 2 s, through every proxy, though
// lists are good for a minute.
func TestWebhook(t *testing.T) {
	root := t.TempDir()
	host := testgit.New(t, root)
	testgit.Script(t, root, "repo lib; gomod go.mod git.test.example/lib.git; src a.go; commit; tag v1.0.0\n")
	f := startFleet(t, "direct", 2, 2, "--vcs-instead-of=https://git.test.example/="+host.URL+"/", "--private=*", "--webhook-secret="+webhookSecret)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module example.com/main\n\ngo 1.21\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	latest := func(p *process) string {
		return strings.TrimSpace(goCommand(t, dir, p.url, "list", "-m", "git.test.example/lib.git@latest"))
	}
	for _, p := range f.proxies {
		if got := latest(p); got != "git.test.example/lib.git v1.0.0" {
			t.Fatalf("before: %s", got)
		}
	}
	body := func(version string) string {
		testgit.Script(t, root, `cd "$root/lib"; echo '// `+version+`' >>b.go; commit; tag `+version+"\n")
		return fmt.Sprintf(`{"ref":"refs/tags/%s","repository":{"html_url":"%s/lib","clone_url":"%[2]s/lib.git"}}`, version, host.URL)
	}
	if status := push(t, f.proxies[0].url, body("v1.1.0"), "another-secret-0123456789"); status != 403 {
		t.Errorf("a push with another secret: %d", status)
	}
	if got := latest(f.proxies[0]); got != "git.test.example/lib.git v1.0.0" {
		t.Fatalf("after a push with another secret: %s", got)
	}
	// Each tag is seen, and one of them within 2 s: the machine may stand still for a while.
	var took time.Duration
	version := ""
	for i := 1; i <= 3 && (i == 1 || took > 2*time.Second); i++ {
		version = fmt.Sprintf("v1.%d.0", i+1)
		tagged := body(version)
		pushed := time.Now()
		if status := push(t, f.proxies[0].url, tagged, webhookSecret); status != 200 {
			t.Fatalf("push: %d", status)
		}
		t.Logf("the push of %s is answered after %v", version, time.Since(pushed))
		for i, p := range f.proxies {
			for seen := false; !seen; {
				got := latest(p)
				took = time.Since(pushed) // the go command has printed it
				if seen = got == "git.test.example/lib.git "+version; seen {
					t.Logf("proxy %d: seen after %v", i, took)
				} else if took > 30*time.Second {
					t.Fatalf("proxy %d: %s after %v", i, got, took)
				}
			}
		}
	}
	if took > 2*time.Second {
		t.Errorf("no tag was seen within 2 s of its push")
	}
	// And its files are there before anybody asks.
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		req, _ := http.NewRequest("GET", f.proxies[1].url+"/git.test.example/lib.git/@v/"+version+".zip", nil)
		req.Header.Set("Disable-Module-Fetch", "true")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode == 200 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the new version's zip is not kept: %s", resp.Status)
		}
	}
}

// A module under a name of its own is found by the repository that upstream says it is from.
func TestWebhookVanity(t *testing.T) {
	var versions atomic.Pointer[string]
	old := "v1.0.0\n"
	versions.Store(&old)
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch file := strings.TrimPrefix(r.URL.Path, "/go.test.example/lib/@"); {
		case file == "v/list":
			fmt.Fprint(w, *versions.Load())
		case file == "v/v1.0.0.info":
			fmt.Fprint(w, `{"Version":"v1.0.0","Time":"2026-01-02T03:04:05Z","Origin":{"VCS":"git","URL":"https://git.test.example/o/repository"}}`)
		default:
			http.NotFound(w, r)
		}
	}))
	defer upstream.Close()
	f := startFleet(t, upstream.URL, 2, 1, "--private=*", "--webhook-secret="+webhookSecret)
	list := func() string {
		_, body, _ := get(t, f.proxies[0].url+"/go.test.example/lib/@v/list")
		return body
	}
	if got := list(); got != old {
		t.Fatalf("before: %q", got)
	}
	if status, body, _ := get(t, f.proxies[0].url+"/go.test.example/lib/@v/v1.0.0.info"); status != 200 {
		t.Fatalf("info: %d %s", status, body)
	}
	const body = `{"ref":"refs/tags/v1.1.0","repository":{"html_url":"https://git.test.example/o/repository","clone_url":"https://git.test.example/o/repository.git"}}`
	want := old + "v1.1.0\n"
	versions.Store(&want)
	pushed := time.Now()
	if status := push(t, f.proxies[0].url, body, webhookSecret); status != 200 {
		t.Fatalf("push: %d", status)
	}
	for got := list(); got != want; got = list() { // long before it is no longer fresh
		if time.Since(pushed) > 20*time.Second {
			t.Fatalf("%q after %v", got, time.Since(pushed))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// A push whose fetch hangs or fails leaves readers what they had, at once and not marked
// stale, and the new list is there when the host is.
func TestWebhookHostAway(t *testing.T) {
	t.Parallel() // it waits
	const well, hangs, fails = 0, 1, 2
	const patience = 15 * time.Second // how long a fetch waits for the host
	var state atomic.Int32
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != "/example.com/m/@v/list":
			http.NotFound(w, r)
		case state.Load() == hangs:
			select {
			case <-r.Context().Done():
			case <-time.After(time.Minute):
			}
		case state.Load() == fails:
			http.Error(w, "out of order", http.StatusInternalServerError)
		default:
			fmt.Fprintln(w, "v1.0.0")
		}
	}))
	t.Cleanup(up.Close)
	for state0, name := range map[int32]string{hangs: "hangs", fails: "fails"} {
		t.Run(name, func(t *testing.T) {
			state.Store(well)
			p := start(t, "--upstream="+up.URL, "--data-dir="+t.TempDir(), "--webhook-secret="+webhookSecret, "--upstream-timeout="+patience.String())
			list := func() (string, http.Header) {
				t.Helper()
				began := time.Now()
				status, body, h := get(t, p.url+"/example.com/m/@v/list")
				if took := time.Since(began); status != 200 || took > patience/2 {
					t.Errorf("a reader gets %d %q after %v", status, body, took)
				}
				return body, h
			}
			if body, _ := list(); body != "v1.0.0\n" {
				t.Fatalf("before: %q", body)
			}
			state.Store(state0)
			pushed := make(chan int)
			go func() {
				pushed <- push(t, p.url, `{"ref":"refs/tags/v1.1.0","repository":{"html_url":"https://example.com/m","clone_url":"https://example.com/m.git"}}`, webhookSecret)
			}()
			for answered, began := false, time.Now(); !answered || time.Since(began) < 3*time.Second; time.Sleep(100 * time.Millisecond) {
				if body, h := list(); body != "v1.0.0\n" || h.Get(goproxy.HeaderStale) != "" {
					t.Fatalf("while the host %s: %q, %v", name, body, h)
				}
				select {
				case status := <-pushed:
					answered = true
					if status < 500 {
						t.Errorf("the push is answered with %d", status)
					}
				default:
				}
			}
			_, metrics, _ := get(t, p.url+"/metrics")
			sum := regexp.MustCompile(`athensctl_proxy_list_age_seconds_sum\{file="list"\} (\S+)`).FindStringSubmatch(metrics)
			if sum == nil {
				t.Fatal("the list ages are not in the metrics")
			}
			if seconds, err := strconv.ParseFloat(sum[1], 64); err != nil || seconds > 1e5 {
				t.Errorf("the lists served are %s seconds old in all", sum[1])
			}
		})
	}
}

// Without a webhook the tag is seen within freshness, by whoever asks; before, lists are
// answered without a question to the host.
func TestNewTagWithoutWebhook(t *testing.T) {
	t.Parallel() // it waits
	const freshness = 4 * time.Second
	root := t.TempDir()
	host := testgit.New(t, root)
	testgit.Script(t, root, "repo lib; gomod go.mod git.test.example/lib.git; src a.go; commit; tag v1.0.0\n")
	f := startFleet(t, "direct", 2, 2, "--vcs-instead-of=https://git.test.example/="+host.URL+"/", "--private=*", "--freshness="+freshness.String())
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module example.com/main\n\ngo 1.21\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	latest := func(p *process) string {
		return strings.TrimSpace(goCommand(t, dir, p.url, "list", "-m", "git.test.example/lib.git@latest"))
	}
	for _, p := range f.proxies {
		if got := latest(p); got != "git.test.example/lib.git v1.0.0" {
			t.Fatalf("before: %s", got)
		}
	}
	testgit.Script(t, root, `cd "$root/lib"; src b.go; commit; tag v1.1.0`+"\n")
	tagged := time.Now()
	for i, p := range f.proxies {
		for late := 0; ; {
			began := time.Since(tagged)
			if latest(p) == "git.test.example/lib.git v1.1.0" {
				t.Logf("proxy %d: a go command that began %v after the tag sees it", i, began.Round(time.Millisecond))
				break
			}
			// A question that finds the list old has it fetched behind it.
			if began > freshness {
				late++
			}
			if late > 4 {
				t.Fatalf("proxy %d: the go command number %d that began after the freshness of %v, %v after the tag, does not see it", i, late, freshness, began)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// A crawler that is killed between claim and done: the other finishes its job, once, and
// who waited meanwhile gets the module from there, as does the go command that comes then.
func TestCrawlerKilledWithJob(t *testing.T) {
	t.Parallel() // it waits
	up := testupstream.New(t)
	up.Delay = 2 * time.Second
	up.Add("example.com/m", "v1.0.0", 1<<20)
	f := startFleet(t, up.URL, 2, 1, "--job-lease=3s")
	waited := make(chan int)
	go func() {
		status, _, _ := get(t, f.proxies[0].url+"/example.com/m/@v/v1.0.0.zip")
		waited <- status
	}()
	queue := func() string {
		t.Helper()
		out, err := athensctl(t, "queue", "list", "--storage-url", f.storage.url, "--internal-token", token)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	holder := regexp.MustCompile(`v1\.0\.0#zip +is done by \S*-([0-9]+)-[^-]+/`)
	var victim, other *process
	for end := time.Now().Add(20 * time.Second); victim == nil; time.Sleep(20 * time.Millisecond) {
		if m := holder.FindStringSubmatch(queue()); m != nil {
			for i, c := range f.crawlers {
				if fmt.Sprint(c.cmd.Process.Pid) == m[1] {
					victim, other = c, f.crawlers[1-i]
				}
			}
		}
		if time.Now().After(end) {
			t.Fatalf("nobody holds the job:\n%s", queue())
		}
	}
	victim.kill()
	killed := time.Now()
	status := <-waited // the proxy asks the other crawler, which waits for the lease to end
	t.Logf("killed with the job in hand; who waited got %d after %v", status, time.Since(killed).Round(time.Millisecond))
	if status != 200 {
		t.Errorf("who waited got %d", status)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module example.com/main\n\ngo 1.21\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	goCommand(t, dir, f.proxies[0].url, "mod", "download", "example.com/m@v1.0.0")
	if n := up.Requests(".zip"); n != 2 {
		t.Errorf("%d upstream zip requests, want 2: the one that was cut, and one by the other crawler", n)
	}
	_, metrics, _ := get(t, other.url+"/metrics")
	if !strings.Contains(metrics, `athensctl_fetches_total{file="zip",outcome="ok"} 1`) || strings.Contains(metrics, `file="zip",outcome="kept"`) {
		t.Errorf("the other crawler has not finished the job once:\n%s", regexp.MustCompile("(?m)^athensctl_fetches_total.*$").FindAllString(metrics, -1))
	}
	if out := queue(); strings.Count(out, "\n") != 1 {
		t.Errorf("the queue is not empty:\n%s", out)
	}
}

func athensctl(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(binary, args...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, stderr.String())
	}
	return out.String(), err
}

// A site that follows another's index has what the other gets; warm brings in what a
// file names; and the queue can be looked at and changed while all run.
func TestAhead(t *testing.T) {
	t.Parallel() // it waits
	up := testupstream.New(t)
	for i := range 30 {
		up.Add(fmt.Sprintf("example.com/m%d", i), "v1.0.0", 1<<10)
	}
	first := start(t, "--upstream", up.URL, "--data-dir", t.TempDir(), "--public-feeds")
	list := filepath.Join(t.TempDir(), "modules.txt")
	var names strings.Builder
	for i := range 20 {
		fmt.Fprintf(&names, "example.com/m%d v1.0.0\n", i)
	}
	if err := os.WriteFile(list, []byte(names.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := athensctl(t, "warm", "--server", first.url, list); err != nil || !strings.Contains(out, "20 versions, 0 failed") {
		t.Fatalf("warm: %s, %v", out, err)
	}
	if out, err := athensctl(t, "warm", "--server", first.url, "example.com/m20@v1.0.0", "example.com/none@v1.0.0"); err == nil || !strings.Contains(out, "2 versions, 1 failed") && !strings.Contains(out, "1 versions, 1 failed") {
		t.Errorf("warm of what is not there: %s, %v", out, err)
	}

	// A proxy that is locked to its CDN is warmed with the CDN's header.
	locked := start(t, "--upstream", first.url, "--data-dir", t.TempDir(), "--require-header=X-Azure-FDID=front=door")
	if out, err := athensctl(t, "warm", "--server", locked.url, "example.com/m0@v1.0.0"); err == nil || !strings.Contains(err.Error(), "through the CDN") {
		t.Errorf("warm of a locked proxy: %s, %v", out, err)
	}
	if out, err := athensctl(t, "warm", "--server", locked.url, "--require-header=X-Azure-FDID=front=door", "example.com/m0@v1.0.0"); err != nil || !strings.Contains(out, "1 versions, 0 failed") {
		t.Errorf("warm of a locked proxy with its header: %s, %v", out, err)
	}

	second := startFleet(t, first.url, 2, 1, "--crawl-index="+first.url, "--crawl-index-since=beginning", "--crawl-poll=200ms", "--crawl-match=example.com/*")
	have := func() int { return len(catalogOf(t, second.storage.url)) }
	for end := time.Now().Add(30 * time.Second); have() < 21; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d of 21 versions after 30 s", have())
		}
	}
	get(t, first.url+"/example.com/m25/@v/v1.0.0.zip")
	for end := time.Now().Add(10 * time.Second); have() < 22; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a version that came later is not followed")
		}
	}

	at := []string{"--storage-url", second.storage.url, "--internal-token", token}
	queue := func(args ...string) (string, error) {
		return athensctl(t, append(append([]string{"queue"}, args...), at...)...)
	}
	if out, err := queue("list"); err != nil || strings.Count(out, "\n") != 1 {
		t.Errorf("an empty queue: %s, %v", out, err)
	}
	// Upstream has lost one file: the job fails, is parked, and can be tried again.
	first.terminate()
	broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "out of order", http.StatusInternalServerError)
	}))
	defer broken.Close()
	first.args = append(first.args, "--upstream", broken.URL, "--job-attempts=1")
	first.start()
	const job = "example.com/m29@v1.0.0#mod"
	for end := time.Now().Add(90 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		get(t, second.proxies[0].url+"/example.com/m29/@v/v1.0.0.mod")
		out, err := queue("list")
		if err != nil {
			t.Fatal(err)
		}
		if parked := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(job) + ` +parked for .*$`).FindString(out); parked != "" {
			if !strings.HasPrefix(out, "JOB ") || !strings.Contains(out, "LAST ERROR") || !strings.Contains(parked, ": out of order") {
				t.Errorf("the job's last error is not there:\n%s", out)
			}
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the job is not parked:\n%s", out)
		}
	}
	if status, body, _ := get(t, second.proxies[0].url+"/example.com/m29/@v/v1.0.0.mod"); status < 500 || !strings.Contains(body, ": out of order (failed ") || !strings.Contains(body, "not tried again before") {
		t.Errorf("a parked job's client gets %d %s", status, body)
	}
	first.terminate()
	first.args = append(first.args, "--upstream", up.URL, "--data-dir", t.TempDir())
	first.start()
	if out, err := queue("retry", job); err != nil || out != "queued "+job+"\n" {
		t.Errorf("retry: %s, %v", out, err)
	}
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		status, body, _ := get(t, second.proxies[0].url+"/example.com/m29/@v/v1.0.0.mod")
		if status == 200 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("after retry: %d %s", status, body)
		}
	}
	// One that fails again is dropped, and upstream is left alone until somebody asks.
	first.terminate()
	first.args = append(first.args, "--upstream", broken.URL, "--data-dir", t.TempDir())
	first.start()
	const dropped = "example.com/m28@v1.0.0#mod"
	for end := time.Now().Add(90 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		get(t, second.proxies[0].url+"/example.com/m28/@v/v1.0.0.mod")
		out, err := queue("list")
		if err != nil {
			t.Fatal(err)
		}
		if regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(dropped) + ` +parked for .*$`).MatchString(out) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the job is not parked:\n%s", out)
		}
	}
	if out, err := queue("drop", dropped); err != nil || out != "dropped "+dropped+"\n" {
		t.Errorf("drop: %q, %v", out, err)
	}
	if out, err := queue("list"); err != nil || strings.Contains(out, dropped) {
		t.Errorf("after drop: %s, %v", out, err)
	}
	if _, err := queue("drop", dropped); err == nil || !strings.Contains(err.Error(), "there is no such job") {
		t.Errorf("dropped again: %v", err)
	}
	if out, err := queue("drop", "example.com/none@v1.0.0#zip"); err == nil || !strings.Contains(err.Error(), "there is no such job") {
		t.Errorf("drop of no job: %s, %v", out, err)
	}
	if _, err := queue("drop", "nonsense"); err == nil || !strings.Contains(err.Error(), "not a job such as") {
		t.Errorf("drop of nonsense: %v", err)
	}
}
