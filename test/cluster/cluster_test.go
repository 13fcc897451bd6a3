//go:build cluster

// Package cluster installs the chart on a real Kubernetes and uses it: run.sh starts
// the cluster and runs these tests in it.
package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
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

	"github.com/athensctl/athensctl/internal/cosmosfake"
	"github.com/athensctl/athensctl/internal/testazure"
)

const (
	node      = "10.244.0.1" // this host, as pods see it
	namespace = "modules"
	ingress   = "http://127.0.0.1:18000" // nginx, as an ingress controller
	cdn       = "http://127.0.0.1:18001" // varnish, as a CDN
)

var scratch, chart = os.Getenv("CLUSTER_DIR"), "../../charts/athensctl"

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}

func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return command(t, "kubectl", append([]string{"--namespace", namespace}, args...)...)
}

func helm(t *testing.T, args ...string) string {
	t.Helper()
	return command(t, os.Getenv("HELM"), append(args, "--namespace", namespace)...)
}

// daemon starts a program that ends with the tests.
func daemon(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, args...)
	log, err := os.Create(filepath.Join(scratch, "log", filepath.Base(name)+".test.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
		if said, _ := os.ReadFile(log.Name()); t.Failed() && len(said) > 0 {
			t.Logf("%s said:\n%s", name, said[max(0, len(said)-4000):])
		}
	})
	return cmd
}

func eventually(t *testing.T, what string, within time.Duration, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > within {
			out, _ := exec.Command("kubectl", "--namespace", namespace, "get", "pods", "-o", "wide").CombinedOutput()
			t.Fatalf("%s: not within %s\n%s", what, within, out)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return time.Since(start)
}

func status(url string) int {
	client := &http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// startUpstream serves this machine's module cache and six large modules to the crawler,
// with a checksum database of its own, and returns the values that say so.
func startUpstream(t *testing.T) (sets []string, url, sumdb string) {
	t.Helper()
	binary := filepath.Join(scratch, "testupstream")
	command(t, "go", "build", "-o", binary, "../../internal/testupstream/cmd/testupstream")
	cmd := exec.Command(binary, "--listen", node+":18080", "--modcache", strings.TrimSpace(command(t, "go", "env", "GOMODCACHE")),
		"--modules", "6", "--versions", "1", "--zip-bytes", "20000000")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for _, into := range []*string{&url, &sumdb} {
		var line []byte
		for b := make([]byte, 1); ; line = append(line, b[0]) {
			if _, err := out.Read(b); err != nil {
				t.Fatal(err)
			}
			if b[0] == '\n' {
				break
			}
		}
		*into = string(line)
	}
	go io.Copy(io.Discard, out)
	return []string{
		"image.repository=localhost/athensctl", "image.tag=dev", "image.pullPolicy=Never", "upstream=" + url, "sumdb=" + sumdb,
		"test.module=golang.org/x/mod@" + version(t, "golang.org/x/mod"),
	}, url, sumdb
}

// version is the one that this repository uses of a module.
func version(t *testing.T, path string) string {
	return strings.TrimSpace(command(t, "go", "list", "-m", "-f", "{{.Version}}", path))
}

func args(sets []string, more ...string) (list []string) {
	for _, s := range append(append([]string{}, sets...), more...) {
		list = append(list, "--set-string", strings.ReplaceAll(s, ",", "\\,"))
	}
	return list
}

// startIngress runs nginx as an ingress controller does: its backends are the ready
// endpoints of the Service, looked at all the time. And varnish before it, as a CDN.
func startIngress(t *testing.T, service string) {
	t.Helper()
	dir := filepath.Join(scratch, "ingress")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "nginx.conf")
	write := func(backends []string) {
		var servers strings.Builder
		for _, b := range backends {
			fmt.Fprintf(&servers, "server %s:3000 max_fails=0;\n", b)
		}
		if len(backends) == 0 {
			servers.WriteString("server 127.0.0.1:1 max_fails=0;\n")
		}
		text := fmt.Sprintf(`daemon off; worker_processes 1; pid %[1]s/nginx.pid; error_log %[1]s/error.log; events {}
http { access_log %[1]s/access.log; proxy_temp_path %[1]s/tmp; client_body_temp_path %[1]s/body; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
upstream proxy { %[2]s }
server { listen 127.0.0.1:18000; location / { proxy_pass http://proxy; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_connect_timeout 2s; proxy_next_upstream error timeout; } } }
`, dir, servers.String())
		if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ready := func() string {
		out, err := exec.Command("kubectl", "--namespace", namespace, "get", "endpointslices", "-l", "kubernetes.io/service-name="+service, "-o", `jsonpath={range .items[*].endpoints[?(@.conditions.ready==true)]}{.addresses[0]} {end}`).Output()
		if err != nil {
			return "?"
		}
		return strings.TrimSpace(string(out))
	}
	last := ready()
	write(strings.Fields(last))
	nginx := daemon(t, "nginx", "-c", conf)
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { stop(); wg.Wait() })
	wg.Go(func() {
		for ctx.Err() == nil {
			if now := ready(); now != "?" && now != last {
				last = now
				write(strings.Fields(now))
				nginx.Process.Signal(syscall.SIGHUP)
			}
			time.Sleep(200 * time.Millisecond)
		}
	})
	vcl := filepath.Join(dir, "cdn.vcl")
	// What the headers say is what is cached; ranges are asked in the same way of the
	// origin's whole file, as Front Door does in 8 MB pieces.
	os.WriteFile(vcl, []byte(`vcl 4.1;
backend default { .host = "127.0.0.1"; .port = "18000"; .first_byte_timeout = 60s; }
sub vcl_deliver { if (obj.hits > 0) { set resp.http.X-Cache = "hit"; } else { set resp.http.X-Cache = "miss"; } }
sub vcl_backend_response { set beresp.grace = 0s; set beresp.keep = 0s; }
`), 0o644)
	daemon(t, "varnishd", "-F", "-a", "127.0.0.1:18001", "-f", vcl, "-n", filepath.Join(dir, "varnish"), "-s", "malloc,256m")
	eventually(t, "ingress and CDN", 30*time.Second, func() bool { return status(cdn+"/healthz") == 200 })
}

// origin counts the requests that nginx has seen for a path.
func origin(t *testing.T, path string) int {
	b, err := os.ReadFile(filepath.Join(scratch, "ingress", "access.log"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), "GET "+path+" ")
}

func goCommand(t *testing.T, proxy, sumdb string, args ...string) {
	t.Helper()
	dir := t.TempDir()
	for _, f := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile("../../" + f)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, f), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOPROXY="+proxy, "GOSUMDB="+sumdb, "GOMODCACHE="+t.TempDir(), "GOFLAGS=-modcacherw -mod=mod", "GONOSUMDB=", "GONOPROXY=", "GOPRIVATE=", "GOTOOLCHAIN=local")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// downloaded modules, of those that the repository needs.
var downloads = []string{"golang.org/x/mod", "golang.org/x/sync", "github.com/spf13/cobra", "github.com/spf13/viper", "github.com/labstack/echo/v4", "github.com/prometheus/client_golang", "go.etcd.io/bbolt"}

func install(t *testing.T, sets []string) {
	t.Helper()
	start := time.Now()
	helm(t, append([]string{"install", "site", chart, "--wait", "--timeout", "3m"}, args(sets)...)...)
	t.Logf("helm install --wait: %.1f s", time.Since(start).Seconds())
	out := helm(t, "test", "site", "--timeout", "2m")
	if !strings.Contains(out, "Succeeded") {
		t.Errorf("helm test: %s", out)
	}
}

func TestCluster(t *testing.T) {
	command(t, "kubectl", "create", "namespace", namespace)
	command(t, "kubectl", "label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted", "pod-security.kubernetes.io/warn=restricted")
	sets, upstream, sumdb := startUpstream(t)

	// The cluster has no provisioner: a volume that the claim finds.
	pv := filepath.Join(scratch, "pv")
	if err := os.MkdirAll(pv, 0o777); err != nil {
		t.Fatal(err)
	}
	os.Chmod(pv, 0o777) // fsGroup does nothing for a hostPath
	volume := exec.Command("kubectl", "apply", "-f", "-")
	volume.Stdin = strings.NewReader(fmt.Sprintf(`{"apiVersion":"v1","kind":"PersistentVolume","metadata":{"name":"disk"},"spec":{"capacity":{"storage":"100Gi"},"accessModes":["ReadWriteOnce"],"hostPath":{"path":%q}}}`, pv))
	if out, err := volume.CombinedOutput(); err != nil {
		t.Fatalf("%s", out)
	}

	// A server-side dry run of each values file.
	files, _ := filepath.Glob(chart + "/ci/*-values.yaml")
	for _, f := range files {
		rendered := command(t, os.Getenv("HELM"), "template", "dry", chart, "-f", f, "--namespace", namespace,
			"--set", "metrics.serviceMonitor.enabled=false,metrics.rules.enabled=false,crawler.keda.enabled=false,httpRoute.enabled=false")
		dry := exec.Command("kubectl", "apply", "--namespace", namespace, "--dry-run=server", "-f", "-")
		dry.Stdin = strings.NewReader(rendered)
		if out, err := dry.CombinedOutput(); err != nil || strings.Contains(string(out), "Warning") {
			t.Errorf("server-side dry run of %s: %v\n%s", f, err, out)
		}
	}

	install(t, sets)
	token := kubectl(t, "get", "secret", "site-athensctl-token", "-o", "jsonpath={.data.token}")
	startIngress(t, "site-athensctl")
	for _, through := range []string{ingress, cdn} {
		for _, path := range downloads {
			goCommand(t, through, sumdb, "mod", "download", path+"@"+version(t, path))
		}
	}
	t.Run("CDN", func(t *testing.T) { behindCDN(t, upstream) })
	listed, list := time.Now(), "/golang.org/x/mod/@v/list"
	status(cdn + list)
	before := origin(t, list)
	t.Run("Trouble", func(t *testing.T) { trouble(t, sets) })
	time.Sleep(time.Until(listed.Add(61 * time.Second)))
	if status(cdn + list); origin(t, list) == before {
		t.Error("a list that the CDN has had for more than a minute was not asked for again")
	}

	if again := kubectl(t, "get", "secret", "site-athensctl-token", "-o", "jsonpath={.data.token}"); again != token {
		t.Error("the token has changed with an upgrade")
	}
	helm(t, "uninstall", "site", "--wait", "--timeout", "2m")
	eventually(t, "uninstall leaves nothing but the volume", time.Minute, func() bool {
		left := strings.Fields(kubectl(t, "get", "all,configmap,secret,serviceaccount,pvc,networkpolicy,poddisruptionbudget,ingress", "-l", "app.kubernetes.io/instance=site", "-o", "name"))
		return len(left) == 1 && strings.HasPrefix(left[0], "persistentvolumeclaim/")
	})
	t.Run("Upgrade", func(t *testing.T) { fromPrevious(t, sets) })
	t.Run("Azure", func(t *testing.T) { azure(t, sets, sumdb) })
}

// fromPrevious: the chart before this one is upgraded to it while it is used. The file
// is what `helm package` made of that release; the release after this one replaces it.
func fromPrevious(t *testing.T, sets []string) {
	files, err := filepath.Glob("testdata/athensctl-*.tgz")
	if err != nil || len(files) != 1 {
		t.Fatalf("want one chart in testdata: %v, %v", files, err)
	}
	helm(t, append([]string{"install", "site", files[0], "--wait", "--timeout", "3m"}, args(sets)...)...)
	token := kubectl(t, "get", "secret", "site-athensctl-token", "-o", "jsonpath={.data.token}")
	eventually(t, "ingress", 30*time.Second, func() bool { return status(ingress+"/healthz") == 200 })
	var paths []string
	for _, ext := range []string{".info", ".mod", ".zip"} {
		paths = append(paths, "/golang.org/x/mod/@v/"+version(t, "golang.org/x/mod")+ext)
	}
	for range 12 { // each proxy has them
		for _, p := range paths {
			eventually(t, p, 30*time.Second, func() bool { return status(ingress+p) == 200 })
		}
	}
	l := startLoad(ingress, paths)
	start := time.Now()
	helm(t, append([]string{"upgrade", "site", chart, "--wait", "--timeout", "3m"}, args(sets)...)...)
	l.end(t, "upgrade from "+strings.TrimSuffix(filepath.Base(files[0]), ".tgz"), time.Since(start))
	if chart := helm(t, "list", "--filter", "^site$"); strings.Contains(chart, strings.TrimSuffix(filepath.Base(files[0]), ".tgz")) {
		t.Errorf("the release is still of the previous chart: %s", chart)
	}
	if again := kubectl(t, "get", "secret", "site-athensctl-token", "-o", "jsonpath={.data.token}"); again != token {
		t.Error("the token has changed with an upgrade")
	}
	if out := helm(t, "test", "site", "--timeout", "2m"); !strings.Contains(out, "Succeeded") {
		t.Errorf("helm test: %s", out)
	}
	helm(t, "uninstall", "site", "--wait", "--timeout", "2m")
}

// behindCDN: immutable files reach the origin once, and come when the proxies are
// gone; a list is asked for again after a minute at most; ranges work.
func behindCDN(t *testing.T, upstream string) {
	mod := "/golang.org/x/mod/@v/" + version(t, "golang.org/x/mod")
	before := map[string]int{}
	for _, ext := range []string{".info", ".mod", ".zip"} {
		if s := status(cdn + mod + ext); s != 200 {
			t.Fatalf("%s: %d", ext, s)
		}
		before[ext] = origin(t, mod+ext)
		if s := status(cdn + mod + ext); s != 200 {
			t.Fatalf("%s again: %d", ext, s)
		}
		if n := origin(t, mod+ext); n != before[ext] {
			t.Errorf("the second request of %s reached the origin", ext)
		}
	}
	resp, err := http.Get(cdn + "/golang.org/x/mod/@v/list")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if cc := resp.Header.Get("Cache-Control"); cc != "public, max-age=60" {
		t.Errorf("list: Cache-Control %q", cc)
	}
	// A range in the middle, of the largest zip at hand.
	req, _ := http.NewRequest("GET", ingress+mod+".zip", nil)
	req.Header.Set("Range", "bytes=1000-1999")
	resp, err = http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	part, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 206 || len(part) != 1000 || !strings.HasPrefix(resp.Header.Get("Content-Range"), "bytes 1000-1999/") {
		t.Errorf("range: %s, %d bytes, %s", resp.Status, len(part), resp.Header.Get("Content-Range"))
	}
	ranges(t, upstream)
	kubectl(t, "scale", "deployment/site-athensctl-proxy", "--replicas=0")
	eventually(t, "no proxy", time.Minute, func() bool { return status(ingress+"/healthz") != 200 })
	for _, ext := range []string{".info", ".mod", ".zip"} {
		if s := status(cdn + mod + ext); s != 200 {
			t.Errorf("%s without a proxy: %d", ext, s)
		}
	}
	kubectl(t, "scale", "deployment/site-athensctl-proxy", "--replicas=2")
	kubectl(t, "rollout", "status", "deployment/site-athensctl-proxy", "--timeout=60s")
	eventually(t, "proxies", time.Minute, func() bool { return status(ingress+"/healthz") == 200 })
}

// ranges: a large zip in pieces of 8 MB, as Front Door asks for it, is the zip.
func ranges(t *testing.T, upstream string) {
	path := "/graph.test/m0000/@v/v1.0.0.zip" // made by testupstream
	get := func(url, bytes string) ([]byte, *http.Response) {
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
	want, _ := get(upstream+path, "")
	const piece = 8 << 20
	if len(want) <= 2*piece {
		t.Fatalf("%s has %d bytes: too few to be cut in three", path, len(want))
	}
	var got []byte
	for from := 0; from < len(want); from += piece {
		to := min(from+piece, len(want)) - 1
		part, resp := get(ingress+path, fmt.Sprintf("%d-%d", from, from+piece-1))
		if said, is := resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-%d/%d", from, to, len(want)); resp.StatusCode != 206 || said != is {
			t.Errorf("%s from %d: %s, Content-Range %q, want %q", path, from, resp.Status, said, is)
		}
		got = append(got, part...)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s in pieces has %d bytes, and not those of the whole, %d", path, len(got), len(want))
	}
	t.Logf("%s: %d bytes in pieces of 8 MB", path, len(want))
}

// load asks for cached files 50 times a second, until it is stopped.
type load struct {
	asked, failed atomic.Int64
	errs          sync.Map
	stop          chan struct{}
	wg            sync.WaitGroup
}

func startLoad(base string, paths []string) *load {
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
				resp, err := client.Get(base + paths[i%len(paths)])
				if err == nil {
					said := []byte{}
					said, err = io.ReadAll(resp.Body)
					resp.Body.Close()
					if err == nil && resp.StatusCode != 200 {
						err = fmt.Errorf("%s from %s: %.300s", resp.Status, resp.Header.Get("Server"), said)
					}
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
	t.Logf("| %s | %d | %d | %.1f s |", what, l.asked.Load(), l.failed.Load(), recovered.Seconds())
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
	t.Log("| what | requests | failed | all pods ready again, from the beginning |")
	during := func(what, base string, do func()) {
		t.Helper()
		l := startLoad(base, paths)
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

// azure: the same chart with Cosmos DB and Blob Storage, that is their stand-ins, and
// two storage replicas.
func azure(t *testing.T, sets []string, sumdb string) {
	ln, err := net.Listen("tcp", node+":18081")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: &cosmosfake.Server{Key: testazure.CosmosKey, Serverless: true}}
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
	endpoint := "http://" + node + ":18081"
	bin, err := filepath.Abs("../azure/node_modules/.bin/azurite-blob")
	if err != nil {
		t.Fatal(err)
	}
	daemon(t, bin, "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent", "--blobHost", node, "--blobPort", "18082")
	connection := testazure.BlobConnection("http://" + node + ":18082")
	eventually(t, "azurite", time.Minute, func() bool { return status("http://"+node+":18082/") != 0 })
	binary := filepath.Join(scratch, "athensctl")
	command(t, "go", "build", "-o", binary, "../..")
	t.Log(command(t, binary, "storage", "init", "--store=cosmos", "--cosmos-endpoint="+endpoint, "--cosmos-key="+testazure.CosmosKey, "--blob-connection-string="+connection))
	kubectl(t, "create", "secret", "generic", "azure", "--from-literal=cosmos-key="+testazure.CosmosKey, "--from-literal=blob-connection-string="+connection)
	install(t, append(sets, "store.type=cosmos", "store.cosmos.endpoint="+endpoint, "store.existingSecret=azure"))
	eventually(t, "ingress", 30*time.Second, func() bool { return status(ingress+"/healthz") == 200 })
	for _, path := range downloads {
		goCommand(t, ingress, sumdb, "mod", "download", path+"@"+version(t, path))
	}
	helm(t, "uninstall", "site", "--wait", "--timeout", "2m")
}
