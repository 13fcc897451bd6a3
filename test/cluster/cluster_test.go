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
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	node      = "10.244.0.1" // this host, as pods see it
	namespace = "modules"
	ingress   = "http://127.0.0.1:18000" // nginx, as an ingress controller
	cdn       = "http://127.0.0.1:18001" // varnish, as a CDN
	dns       = "53 53 > " + node + "/32"
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
		// What a network that enforces NetworkPolicies has to let through here.
		`networkPolicy.dnsTo=[{"to":[{"ipBlock":{"cidr":"` + node + `/32"}}],"ports":[{"port":53,"protocol":"UDP"},{"port":53,"protocol":"TCP"}]}]`,
		to("crawler", 18080),
	}, url, sumdb
}

// version is the one that this repository uses of a module.
func version(t *testing.T, path string) string {
	return strings.TrimSpace(command(t, "go", "list", "-m", "-f", "{{.Version}}", path))
}

// args are Helm's flags for values: those that are lists in JSON, and text.
func args(sets []string, more ...string) (list []string) {
	for _, s := range append(append([]string{}, sets...), more...) {
		if strings.Contains(s, "=[") {
			list = append(list, "--set-json", s)
		} else {
			list = append(list, "--set-string", strings.ReplaceAll(s, ",", "\\,"))
		}
	}
	return list
}

// to is the value that lets a role reach a port of this host.
func to(role string, port int) string {
	return fmt.Sprintf(`networkPolicy.%sTo=[{"to":[{"ipBlock":{"cidr":"%s/32"}}],"ports":[{"port":%d}]}]`, role, node, port)
}

// egress fails unless the policy of a role, as the API server has it, lets its pods reach
// these and nothing else. Nothing here enforces it: what is used is said by what runs.
func egress(t *testing.T, role string, want ...string) {
	t.Helper()
	var policy struct {
		Spec struct {
			Egress []struct {
				Ports []struct{ Port any }
				To    []struct {
					IPBlock     struct{ CIDR string }
					PodSelector struct{ MatchLabels map[string]string }
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(kubectl(t, "get", "networkpolicy", "site-athensctl-"+role, "-o", "json")), &policy); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, rule := range policy.Spec.Egress {
		var line []string
		for _, p := range rule.Ports {
			line = append(line, fmt.Sprint(p.Port))
		}
		line = append(line, ">")
		for _, peer := range rule.To {
			line = append(line, peer.IPBlock.CIDR+peer.PodSelector.MatchLabels["app.kubernetes.io/component"])
		}
		got = append(got, strings.Join(line, " "))
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s may reach %q, want %q", role, got, want)
	}
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
http { log_format seen '$request_method $request_uri $status $http_x_varnish'; access_log %[1]s/access.log seen; proxy_temp_path %[1]s/tmp; client_body_temp_path %[1]s/body; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
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
	// What the headers say is what is cached. For a range the whole file is fetched, and
	// its pieces come from the cache.
	os.WriteFile(vcl, []byte(`vcl 4.1;
backend default { .host = "127.0.0.1"; .port = "18000"; .first_byte_timeout = 60s; }
sub vcl_deliver { if (obj.hits > 0) { set resp.http.X-Cache = "hit"; } else { set resp.http.X-Cache = "miss"; } }
sub vcl_backend_response { set beresp.grace = 0s; set beresp.keep = 0s; }
`), 0o644)
	daemon(t, "varnishd", "-F", "-a", "127.0.0.1:18001", "-f", vcl, "-n", filepath.Join(dir, "varnish"), "-s", "malloc,256m")
	eventually(t, "ingress and CDN", 30*time.Second, func() bool { return status(cdn+"/healthz") == 200 })
}

// goDownload downloads a module as a machine does that has none, in a module without a
// go.sum: each hash is looked up in the checksum database, through the proxy.
func goDownload(t *testing.T, proxy, sumdb, path string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module test\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	key, _, _ := strings.Cut(sumdb, " ") // with its URL, the proxy would not be asked
	cmd := exec.Command("go", "mod", "download", path+"@"+version(t, path))
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOPROXY="+proxy, "GOSUMDB="+key, "GOPATH="+t.TempDir(), "GOMODCACHE="+t.TempDir(), "GOFLAGS=-modcacherw -mod=mod", "GONOSUMDB=", "GONOPROXY=", "GOPRIVATE=", "GOTOOLCHAIN=local")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go mod download %s: %v\n%s", path, err, out)
	}
}

// downloaded modules, of those that the repository needs.
var downloads = []string{"golang.org/x/mod", "golang.org/x/sync", "github.com/spf13/cobra", "github.com/spf13/viper", "github.com/labstack/echo/v4", "github.com/prometheus/client_golang", "go.etcd.io/bbolt"}

func install(t *testing.T, sets []string, flags ...string) {
	t.Helper()
	start := time.Now()
	helm(t, append([]string{"install", "site", chart, "--wait", "--timeout", "3m"}, append(args(sets), flags...)...)...)
	t.Logf("helm install --wait: %.1f s", time.Since(start).Seconds())
	helmTest(t)
}

// helmTest runs the chart's test; where it fails, the log says what all pods said.
func helmTest(t *testing.T) {
	t.Helper()
	out, err := exec.Command(os.Getenv("HELM"), "test", "site", "--timeout", "2m", "--namespace", namespace).CombinedOutput()
	if err == nil && strings.Contains(string(out), "Succeeded") {
		return
	}
	for _, pod := range strings.Fields(kubectl(t, "get", "pods", "-o", "name")) {
		said, _ := exec.Command("kubectl", "--namespace", namespace, "logs", pod, "--tail=15").CombinedOutput()
		t.Logf("%s said:\n%s", pod, said)
	}
	t.Fatalf("helm test: %v: %s", err, out)
}

// inNamespace is what is in the namespace, of whatever kind, in order: but for events, and
// what Kubernetes puts into each namespace.
func inNamespace(t *testing.T) (names []string) {
	t.Helper()
	kinds := slices.DeleteFunc(strings.Fields(kubectl(t, "api-resources", "--verbs=list", "--namespaced", "-o", "name")), func(kind string) bool {
		return kind == "events" || kind == "events.events.k8s.io"
	})
	if len(kinds) < 25 || !slices.Contains(kinds, "scaledobjects.keda.sh") {
		t.Fatalf("kinds of the cluster: %v", kinds)
	}
	names = strings.Fields(kubectl(t, "get", strings.Join(kinds, ","), "-o", "name"))
	names = slices.DeleteFunc(names, func(name string) bool {
		return name == "serviceaccount/default" || name == "configmap/kube-root-ca.crt"
	})
	slices.Sort(names)
	return names
}

// left fails unless these are soon all that is in the namespace.
func left(t *testing.T, what string, want []string) {
	t.Helper()
	slices.Sort(want)
	var got []string
	defer func() {
		if !slices.Equal(got, want) {
			t.Logf("in the namespace are %q, want %q", got, want)
		}
	}()
	eventually(t, what, time.Minute, func() bool {
		got = inNamespace(t)
		return slices.Equal(got, want)
	})
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

	// A server-side dry run of each values file, with the kinds of KEDA, the Prometheus
	// operator and Gateway API.
	crds := filepath.Join(os.Getenv("KUBE_SCHEMAS"), "crds")
	command(t, "kubectl", "apply", "--server-side", "-f", crds)
	command(t, "kubectl", "wait", "--for=condition=Established", "--timeout=30s", "-f", crds)
	files, _ := filepath.Glob(chart + "/ci/*-values.yaml")
	if len(files) < 5 {
		t.Fatalf("only %d values files", len(files))
	}
	for _, f := range files {
		rendered := command(t, os.Getenv("HELM"), "template", "dry", chart, "-f", f, "--namespace", namespace)
		dry := exec.Command("kubectl", "apply", "--namespace", namespace, "--dry-run=server", "-f", "-")
		dry.Stdin = strings.NewReader(rendered)
		if out, err := dry.CombinedOutput(); err != nil || strings.Contains(string(out), "Warning") {
			t.Errorf("server-side dry run of %s: %v\n%s", f, err, out)
		}
	}

	before := inNamespace(t)
	install(t, sets)
	egress(t, "proxy", dns, "http > storage", "http > crawler")
	egress(t, "storage", dns)
	egress(t, "crawler", dns, "http > storage", "443 80 22 > 0.0.0.0/0 ::/0", "18080 > "+node+"/32")
	token := kubectl(t, "get", "secret", "site-athensctl-token", "-o", "jsonpath={.data.token}")
	startIngress(t, "site-athensctl")
	for _, through := range []string{ingress, cdn} {
		for _, path := range downloads {
			goDownload(t, through, sumdb, path)
		}
	}
	t.Run("CDN", func(t *testing.T) { behindCDN(t, upstream, sumdb) })
	t.Run("Trouble", func(t *testing.T) { trouble(t, sets) })

	if again := kubectl(t, "get", "secret", "site-athensctl-token", "-o", "jsonpath={.data.token}"); again != token {
		t.Error("the token has changed with an upgrade")
	}
	helm(t, "uninstall", "site", "--wait", "--timeout", "2m")
	left(t, "uninstall leaves nothing but the volume", append(before, "persistentvolumeclaim/site-athensctl-storage"))
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
	older := slices.DeleteFunc(slices.Clone(sets), func(s string) bool { return strings.HasPrefix(s, "networkPolicy.") }) // it does not know them
	before := inNamespace(t)
	helm(t, append([]string{"install", "site", files[0], "--wait", "--timeout", "3m"}, args(older)...)...)
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
	l := startLoad(ingress, paths, false)
	start := time.Now()
	helm(t, append([]string{"upgrade", "site", chart, "--wait", "--timeout", "3m"}, args(sets)...)...)
	l.end(t, "upgrade from "+strings.TrimSuffix(filepath.Base(files[0]), ".tgz"), time.Since(start))
	if chart := helm(t, "list", "--filter", "^site$"); strings.Contains(chart, strings.TrimSuffix(filepath.Base(files[0]), ".tgz")) {
		t.Errorf("the release is still of the previous chart: %s", chart)
	}
	if again := kubectl(t, "get", "secret", "site-athensctl-token", "-o", "jsonpath={.data.token}"); again != token {
		t.Error("the token has changed with an upgrade")
	}
	helmTest(t)
	helm(t, "uninstall", "site", "--wait", "--timeout", "2m")
	left(t, "uninstall after an upgrade leaves nothing but the volume", before)
}
