//go:build cluster

package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// load asks for cached files 50 times a second, until it is stopped.
type load struct {
	asked, failed, cut atomic.Int64
	errs               sync.Map
	stop               chan struct{}
	wg                 sync.WaitGroup
}

// startLoad begins. With killed, an answer may be cut between its first byte and its last:
// no ingress can take that back. Such a file is asked for once more, and has to come then.
func startLoad(base string, paths []string, killed bool) *load {
	l := &load{stop: make(chan struct{})}
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 100}}
	l.wg.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-l.stop:
				return
			case <-tick.C:
			}
			l.wg.Go(func() {
				l.asked.Add(1)
				get := func() (cut bool, err error) {
					resp, err := client.Get(base + paths[i%len(paths)])
					if err != nil {
						return false, err
					}
					said, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if err == nil && resp.StatusCode != 200 {
						err = fmt.Errorf("%s from %s: %.300s", resp.Status, resp.Header.Get("Server"), said)
					}
					return resp.StatusCode == 200 && errors.Is(err, io.ErrUnexpectedEOF), err
				}
				cut, err := get()
				if cut && killed {
					l.cut.Add(1)
					_, err = get()
				}
				if err != nil {
					l.failed.Add(1)
					l.errs.Store(fmt.Sprintf("%s: %v", paths[i%len(paths)], err), true)
				}
			})
		}
	})
	return l
}

func (l *load) end(t *testing.T, what string, recovered time.Duration) {
	t.Helper()
	close(l.stop)
	l.wg.Wait()
	t.Logf("| %s | %d | %d | %d | %.1f s |", what, l.asked.Load(), l.failed.Load(), l.cut.Load(), recovered.Seconds())
	// A proxy is in the middle of some answers at most: they take milliseconds.
	if n := l.cut.Load(); n > 5 {
		t.Errorf("%s: %d answers were cut", what, n)
	}
	if l.failed.Load() > 0 {
		l.errs.Range(func(k, _ any) bool { t.Errorf("%s: %v", what, k); return true })
	}
}

// trouble: whatever happens to pods, what the proxies have is answered.
func trouble(t *testing.T, sets []string) {
	var paths []string
	for _, m := range downloads {
		for _, ext := range []string{".info", ".mod", ".zip"} {
			paths = append(paths, "/"+escape(m)+"/@v/"+version(t, m)+ext)
		}
	}
	// Each proxy has all in its cache first.
	warm := func() {
		for range 12 {
			for _, p := range paths {
				eventually(t, p, 30*time.Second, func() bool { return status(ingress+p) == 200 })
			}
		}
	}
	warm()
	settled := func() bool {
		out, err := exec.Command("kubectl", "--namespace", namespace, "get", "deployments", "-o", "json").Output()
		var list struct {
			Items []struct {
				Spec   struct{ Replicas int }
				Status struct{ ReadyReplicas, UpdatedReplicas, Replicas int }
			}
		}
		if err != nil || json.Unmarshal(out, &list) != nil {
			return false
		}
		for _, d := range list.Items {
			if d.Status.ReadyReplicas != d.Spec.Replicas || d.Status.UpdatedReplicas != d.Spec.Replicas || d.Status.Replicas != d.Spec.Replicas {
				return false
			}
		}
		return true
	}
	polled := pollList(t)
	t.Log("| what | requests | failed | cut, and whole when asked again | all pods ready again, from the beginning |")
	during := func(what, base string, do func()) {
		t.Helper()
		l := startLoad(base, paths, strings.HasPrefix(what, "kill -9 in a proxy"))
		time.Sleep(time.Second)
		start := time.Now()
		do()
		eventually(t, what, 2*time.Minute, settled)
		took := time.Since(start)
		time.Sleep(time.Second)
		l.end(t, what, took)
	}
	pods := func(role string) (names []string) {
		var list struct {
			Items []struct {
				Metadata struct {
					Name              string
					DeletionTimestamp string
				}
			}
		}
		if err := json.Unmarshal([]byte(kubectl(t, "get", "pods", "-l", "app.kubernetes.io/component="+role, "-o", "json")), &list); err != nil {
			t.Fatal(err)
		}
		for _, p := range list.Items {
			if p.Metadata.DeletionTimestamp == "" {
				names = append(names, "pod/"+p.Metadata.Name)
			}
		}
		return names
	}
	during("rolling upgrade", ingress, func() {
		helm(t, append([]string{"upgrade", "site", chart, "--wait", "--timeout", "3m"}, args(sets, "settings.log-level=warn")...)...)
	})
	during("rollback", ingress, func() { helm(t, "rollback", "site", "1", "--wait", "--timeout", "3m") })
	warm()
	for _, role := range []string{"proxy", "storage", "crawler"} {
		for _, p := range pods(role) {
			during("deletion of one "+role, ingress, func() { kubectl(t, "delete", p, "--wait=false"); time.Sleep(500 * time.Millisecond) })
		}
		warm()
	}
	for _, role := range []string{"storage", "crawler"} {
		during("all of "+role+" deleted", ingress, func() {
			kubectl(t, "delete", "pods", "-l", "app.kubernetes.io/component="+role, "--wait=false")
			time.Sleep(500 * time.Millisecond)
		})
	}
	for _, p := range paths {
		status(cdn + p)
	}
	polled()
	during("all proxies deleted, through the CDN", cdn, func() {
		kubectl(t, "delete", "pods", "-l", "app.kubernetes.io/component=proxy", "--wait=false")
		time.Sleep(500 * time.Millisecond)
	})
	warm()
	// A crawler that gets hardly more memory than it takes to start, while modules are
	// asked for that nobody has: it lives on what the kernel takes back, or is killed.
	during("a crawler at its memory limit", ingress, func() {
		limits := func(memory string) {
			kubectl(t, "set", "resources", "deployment/site-athensctl-crawler", "--limits=memory="+memory, "--requests=memory="+memory)
		}
		had := kubectl(t, "get", "deployment/site-athensctl-crawler", "-o", "jsonpath={.spec.template.spec.containers[0].resources.limits.memory}")
		limits("16Mi")
		kubectl(t, "rollout", "status", "deployment/site-athensctl-crawler", "--timeout=60s")
		eventually(t, "the end of the crawlers that had more", time.Minute, func() bool {
			all := kubectl(t, "get", "pods", "-l", "app.kubernetes.io/component=crawler", "-o", "name")
			return len(strings.Fields(all)) == len(pods("crawler"))
		})
		var wg sync.WaitGroup
		for i := 1; i < 6; i++ {
			wg.Go(func() {
				t.Logf("zip %d of 20 MB: %d", i, status(fmt.Sprintf("%s/graph.test/m%04d/@v/v1.0.0.zip", ingress, i)))
			})
		}
		wg.Wait()
		restarts := kubectl(t, "get", "pods", "-l", "app.kubernetes.io/component=crawler", "-o", "jsonpath={.items[*].status.containerStatuses[*].restartCount}")
		hits := 0
		for _, p := range pods("crawler") {
			hits += limitHits(t, kubectl(t, "get", p, "-o", "jsonpath={.metadata.uid}"))
		}
		t.Logf("at the limit of 16 MiB %d times, restarts: %s", hits, restarts)
		if hits == 0 && strings.Trim(restarts, "0 ") == "" {
			t.Error("the crawler never came to its memory limit")
		}
		limits(had)
		kubectl(t, "rollout", "status", "deployment/site-athensctl-crawler", "--timeout=60s")
	})
	warm()
	for _, role := range []string{"storage", "crawler", "proxy"} {
		during("kill -9 in a "+role, ingress, func() {
			pod := pods(role)[0]
			restarts := func() string {
				return kubectl(t, "get", pod, "-o", "jsonpath={.status.containerStatuses[0].restartCount}")
			}
			before := restarts()
			if n := killIn(t, kubectl(t, "get", pod, "-o", "jsonpath={.metadata.uid}")); n == 0 {
				t.Errorf("no process of %s", pod)
			}
			eventually(t, "restart of "+pod, time.Minute, func() bool { return restarts() != before })
		})
	}
}

// processes are the athensctl processes of a pod, with their cgroups by controller; ""
// is that of cgroup v2.
func processes(t *testing.T, uid string) map[int]map[string]string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	found := map[int]map[string]string{}
	for _, f := range all {
		group, _ := os.ReadFile(f)
		cmdline, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "cmdline"))
		if !strings.Contains(string(group), uid) || !strings.HasPrefix(string(cmdline), "/athensctl\x00") {
			continue
		}
		var pid int
		fmt.Sscan(filepath.Base(filepath.Dir(f)), &pid)
		found[pid] = map[string]string{}
		for line := range strings.Lines(string(group)) {
			if parts := strings.SplitN(strings.TrimSpace(line), ":", 3); len(parts) == 3 {
				found[pid][parts[1]] = parts[2]
			}
		}
	}
	return found
}

// killIn kills athensctl in a pod.
func killIn(t *testing.T, uid string) (killed int) {
	t.Helper()
	for pid := range processes(t, uid) {
		if syscall.Kill(pid, syscall.SIGKILL) == nil {
			killed++
		}
	}
	return killed
}

// limitHits is how often the processes of a pod came to their memory limit: the container's
// or the pod's, which is the same and has the pause process in it.
func limitHits(t *testing.T, uid string) (n int) {
	t.Helper()
	for pid, groups := range processes(t, uid) {
		for _, group := range []string{groups["memory"], path.Dir(groups["memory"])} {
			dir := "/sys/fs/cgroup/memory" + group
			peak, err := os.ReadFile(dir + "/memory.max_usage_in_bytes")
			if err != nil {
				continue // cgroup v2
			}
			failed, _ := os.ReadFile(dir + "/memory.failcnt")
			count := 0
			fmt.Sscan(string(failed), &count)
			n += count
			t.Logf("%d in %s: peak %s bytes, at the limit %d times", pid, group, bytes.TrimSpace(peak), count)
		}
		for _, group := range []string{groups[""], path.Dir(groups[""])} {
			events, _ := os.ReadFile("/sys/fs/cgroup" + group + "/memory.events")
			for line := range strings.Lines(string(events)) {
				count := 0
				fmt.Sscanf(line, "max %d", &count)
				n += count
			}
		}
	}
	return n
}

func escape(path string) string {
	var b strings.Builder
	for _, r := range path {
		if 'A' <= r && r <= 'Z' {
			b.WriteByte('!')
			r += 'a' - 'A'
		}
		b.WriteRune(r)
	}
	return b.String()
}
