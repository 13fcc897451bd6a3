// Package charts has the tests of the Helm chart: what it renders, what it refuses,
// and that its README is true. They need helm and kubeconform (`make tools`).
package charts

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write golden files and README.md again")

const chart = "athensctl"

// tool finds a program that `make` has installed.
func tool(t *testing.T, name, variable string) string {
	t.Helper()
	for _, candidate := range []string{os.Getenv(variable), name} {
		if p, err := exec.LookPath(candidate); candidate != "" && err == nil {
			return p
		}
	}
	if os.Getenv("ATHENSCTL_TEST_REQUIRE") != "" {
		t.Fatalf("%s is missing: make sets %s", name, variable)
	}
	t.Skipf("%s is missing: make test installs it", name)
	return ""
}

// render returns what helm template prints, and its error as text.
func render(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(tool(t, "helm", "HELM"), append([]string{"template", "site", chart, "--namespace", "modules", "--set", "internalToken.value=0123456789abcdef"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%w: %s", err, stderr.String())
	}
	return stdout.String(), nil
}

// sites are the values files, and the defaults.
func sites(t *testing.T) map[string][]string {
	files, err := filepath.Glob(chart + "/ci/*-values.yaml")
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	all := map[string][]string{"default": nil}
	for _, f := range files {
		all[strings.TrimSuffix(filepath.Base(f), "-values.yaml")] = []string{"-f", f}
	}
	return all
}

type object = map[string]any

func objects(t *testing.T, text string) (list []object) {
	t.Helper()
	d := yaml.NewDecoder(strings.NewReader(text))
	for {
		var o object
		if err := d.Decode(&o); err != nil {
			if err.Error() == "EOF" {
				return list
			}
			t.Fatal(err)
		}
		if o != nil {
			list = append(list, o)
		}
	}
}

// at follows keys and indexes: at(o, "spec", "containers", 0).
func at(v any, path ...any) any {
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := v.(object)
			v = m[p]
		case int:
			l, _ := v.([]any)
			if p >= len(l) {
				return nil
			}
			v = l[p]
		}
	}
	return v
}

func TestRender(t *testing.T) {
	for name, args := range sites(t) {
		t.Run(name, func(t *testing.T) {
			if out, err := exec.Command(tool(t, "helm", "HELM"), append([]string{"lint", "--strict", chart}, args...)...).CombinedOutput(); err != nil {
				t.Errorf("helm lint: %s", out)
			}
			text, err := render(t, args...)
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".yaml")
			if *update {
				if err := os.WriteFile(golden, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if string(want) != text {
				t.Errorf("%s is not what is rendered: look at the difference, and run go test ./charts -update", golden)
			}
			if out, err := conform(t, text); err != nil {
				t.Errorf("kubeconform: %s", out)
			}
		})
	}
}

// conform asks kubeconform about objects, with the schemas of Kubernetes' kinds and of those
// of KEDA, the Prometheus operator and Gateway API; a kind without a schema fails.
func conform(t *testing.T, text string) (string, error) {
	t.Helper()
	program, schemas := tool(t, "kubeconform", "KUBECONFORM"), os.Getenv("KUBE_SCHEMAS")
	if _, err := os.Stat(filepath.Join(schemas, "crds")); schemas == "" || err != nil {
		if os.Getenv("ATHENSCTL_TEST_REQUIRE") != "" {
			t.Fatalf("no schemas: make sets KUBE_SCHEMAS, and makes that folder (%v)", err)
		}
		t.Skipf("no schemas in %q (KUBE_SCHEMAS): make test makes them", schemas)
	}
	cmd := exec.Command(program, "-strict", "-schema-location", schemas+"/{{.ResourceKind}}{{.KindSuffix}}.json", "-")
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// What kubeconform is asked, it sees: in kinds of others too.
func TestConform(t *testing.T) {
	text, err := render(t, "-f", chart+"/ci/operators-values.yaml", "--set", "ingress.enabled=false,ingress.hosts=null,ingress.tlsSecret=,ingress.className=,httpRoute.enabled=true,httpRoute.parentRefs[0].name=g")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := conform(t, text); err != nil {
		t.Fatal(out)
	}
	for from, to := range map[string]string{
		"minReplicaCount:": "minReplicas:", "minReplicaCount: 2": "minReplicaCount: two", "interval: 30s": "interval: often", "endpoints:": "endpoint:",
		"    - name: site-athensctl\n      rules:": "    - title: x\n      rules:", "backendRefs:": "backends:", "backendRefs: [{name: site-athensctl,": "backendRefs: [{name: 7,",
		"kind: ScaledObject": "kind: ScaledObjekt", "revisionHistoryLimit:": "revisionHistory:",
	} {
		if !strings.Contains(text, from) {
			t.Errorf("nothing has %q", from)
		} else if _, err := conform(t, strings.Replace(text, from, to, 1)); err == nil {
			t.Errorf("%q for %q: kubeconform has nothing to say", to, from)
		}
	}
}

// Every pod passes the Pod Security Standard "restricted", ends after it has drained,
// and has no token of the API server.
// Source: https://kubernetes.io/docs/concepts/security/pod-security-standards/.
func TestPods(t *testing.T) {
	for name, args := range sites(t) {
		text, err := render(t, args...)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects(t, text) {
			pod := at(o, "spec", "template", "spec")
			if o["kind"] == "Pod" {
				pod = o["spec"]
			} else if pod == nil {
				continue
			}
			what := fmt.Sprintf("%s: %v %v", name, o["kind"], at(o, "metadata", "name"))
			for path, want := range map[string]any{"runAsNonRoot": true, "runAsUser": 65532} {
				if got := at(pod, "securityContext", path); got != want {
					t.Errorf("%s: %s is %v", what, path, got)
				}
			}
			if at(pod, "securityContext", "seccompProfile", "type") != "RuntimeDefault" || at(pod, "automountServiceAccountToken") != false {
				t.Errorf("%s: seccompProfile, or a token of the API server", what)
			}
			for _, key := range []string{"hostNetwork", "hostPID", "hostIPC"} {
				if at(pod, key) != nil {
					t.Errorf("%s: %s", what, key)
				}
			}
			containers, _ := at(pod, "containers").([]any)
			if len(containers) != 1 {
				t.Errorf("%s: %d containers", what, len(containers))
			}
			for _, c := range containers {
				sc := at(c, "securityContext")
				if at(sc, "allowPrivilegeEscalation") != false || at(sc, "readOnlyRootFilesystem") != true || fmt.Sprint(at(sc, "capabilities", "drop")) != "[ALL]" {
					t.Errorf("%s: %v", what, sc)
				}
				if at(c, "resources", "limits", "memory") == nil {
					t.Errorf("%s: no limit of memory", what)
				}
			}
			volumes, _ := at(pod, "volumes").([]any)
			for _, v := range volumes {
				if at(v, "hostPath") != nil {
					t.Errorf("%s: hostPath", what)
				}
				if at(v, "emptyDir") != nil && at(v, "emptyDir", "sizeLimit") == nil {
					t.Errorf("%s: volume %v has no bound", what, at(v, "name"))
				}
			}
		}
	}
}

// Credentials for git hosts are in the crawler alone, as files that others can't read.
func TestGitHosts(t *testing.T) {
	text, err := render(t, "--set", "vcs.existingSecret=git-secret,vcs.sshSecret=ssh-secret")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, o := range objects(t, text) {
		pod := at(o, "spec", "template", "spec")
		if o["kind"] != "Deployment" {
			continue
		}
		seen++
		role := fmt.Sprint(at(o, "spec", "template", "metadata", "labels", "app.kubernetes.io/component"))
		var has []string
		env, _ := at(pod, "containers", 0, "env").([]any)
		for _, e := range env {
			if name := fmt.Sprint(at(e, "name")); strings.Contains(name, "VCS") || name == "NETRC" {
				has = append(has, name)
			}
			if secret := fmt.Sprint(at(e, "valueFrom", "secretKeyRef", "name")); secret == "git-secret" || secret == "ssh-secret" {
				has = append(has, secret)
			}
		}
		volumes, _ := at(pod, "volumes").([]any)
		for _, v := range volumes {
			if secret := at(v, "secret"); secret != nil {
				has = append(has, fmt.Sprintf("%v %o", at(secret, "secretName"), at(secret, "defaultMode")))
			}
		}
		slices.Sort(has)
		want := ""
		if role == "crawler" {
			want = "ATHENSCTL_VCS_KNOWN_HOSTS ATHENSCTL_VCS_SSH_KEY ATHENSCTL_VCS_SSH_PASSPHRASE ATHENSCTL_VCS_TOKENS NETRC git-secret git-secret 440 ssh-secret ssh-secret 440"
		}
		if got := strings.Join(has, " "); got != want {
			t.Errorf("%s has %s, want %s", role, got, want)
		}
	}
	if seen != 3 {
		t.Errorf("%d deployments", seen)
	}
}

// GOMEMLIMIT is nine tenths of the limit, in whatever unit that is.
func TestMemoryLimit(t *testing.T) {
	for limit, want := range map[string]string{"512Mi": "460MiB", "1Gi": "921MiB", "1.5Gi": "1382MiB", "1G": "857MiB", "536870912": "460MiB"} {
		text, err := render(t, "--set-string", "proxy.resources.limits.memory="+limit, "--show-only", "templates/deployments.yaml")
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(text, "GOMEMLIMIT, value: "+want) {
			t.Errorf("limit %s: want GOMEMLIMIT %s; %v", limit, want, regexp.MustCompile("GOMEMLIMIT, value: .*").FindAllString(text, -1))
		}
	}
}

// A container has the processors of its CPU limit, and nine tenths of its memory limit. What
// limits.cpu is in a container's environment the kubelet works out: rounded up to the
// divisor, and what the node has for pods where there is no limit.
// Source: https://kubernetes.io/docs/concepts/workloads/pods/downward-api/, and
// convertResourceCPUToString in k8s.io/kubernetes/pkg/api/v1/resource. test/cluster looks at
// what processes have.
func TestProcessors(t *testing.T) {
	values := filepath.Join(t.TempDir(), "values.yaml")
	limits := "{resources: {requests: {cpu: 100m}, limits: {cpu: 1500m, memory: 1Gi}}}"
	if err := os.WriteFile(values, []byte("proxy: "+limits+"\nstorage: "+limits+"\ncrawler: "+limits+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for limit, args := range map[any][]string{"1500m": {"-f", values}, nil: nil} {
		text, err := render(t, args...)
		if err != nil {
			t.Fatal(err)
		}
		seen := 0
		for _, o := range objects(t, text) {
			if o["kind"] != "Deployment" {
				continue
			}
			seen++
			container := at(o, "spec", "template", "spec", "containers", 0)
			has := map[any]any{}
			env, _ := at(container, "env").([]any)
			for _, e := range env {
				has[at(e, "name")] = at(e, "value")
				if field := at(e, "valueFrom", "resourceFieldRef"); field != nil {
					has[at(e, "name")] = field
				}
			}
			if got := at(container, "resources", "limits", "cpu"); got != limit {
				t.Errorf("%v: limits.cpu is %v, want %v", at(o, "metadata", "name"), got, limit)
			}
			if want := (object{"resource": "limits.cpu", "divisor": "1"}); !reflect.DeepEqual(has["GOMAXPROCS"], want) {
				t.Errorf("%v: GOMAXPROCS is %v, want %v", at(o, "metadata", "name"), has["GOMAXPROCS"], want)
			}
			want := "460MiB" // of the default, 512Mi
			if limit != nil {
				want = "921MiB"
			}
			if has["GOMEMLIMIT"] != want {
				t.Errorf("%v: GOMEMLIMIT is %v, want %s", at(o, "metadata", "name"), has["GOMEMLIMIT"], want)
			}
		}
		if seen != 3 {
			t.Errorf("%d deployments", seen)
		}
	}
}

// KEDA logs in to a Prometheus where it is told how.
func TestKEDA(t *testing.T) {
	for sets, want := range map[string]any{
		"":                                       nil,
		",crawler.keda.authenticationRef.name=a": object{"name": "a", "kind": "TriggerAuthentication"},
		",crawler.keda.authenticationRef.name=a,crawler.keda.authenticationRef.kind=ClusterTriggerAuthentication": object{"name": "a", "kind": "ClusterTriggerAuthentication"},
	} {
		text, err := render(t, "--set", "crawler.keda.enabled=true,crawler.keda.prometheus=https://prometheus.example.com"+sets, "--show-only", "templates/scaling.yaml")
		if err != nil {
			t.Fatal(err)
		}
		if out, err := conform(t, text); err != nil {
			t.Errorf("kubeconform: %s", out)
		}
		seen := false
		for _, o := range objects(t, text) {
			if o["kind"] == "ScaledObject" {
				seen = true
				if got := at(o, "spec", "triggers", 0, "authenticationRef"); !reflect.DeepEqual(got, want) {
					t.Errorf("%s: authenticationRef is %v, want %v", sets, got, want)
				}
				if got := at(o, "spec", "triggers", 0, "metadata", "serverAddress"); got != "https://prometheus.example.com" {
					t.Errorf("%s: asks %v", sets, got)
				}
			}
		}
		if !seen {
			t.Errorf("%s: no ScaledObject", sets)
		}
	}
}

// What is fetched ahead of demand has a bound, of which each storage replica gets its part.
func TestBackgroundUnits(t *testing.T) {
	for set, want := range map[string]string{
		"storage.replicas=3": "cosmos-background-units: 666", "storage.replicas=2": "cosmos-background-units: 1000",
		"store.cosmos.backgroundUnits=20000": "cosmos-background-units: 6666", "store.cosmos.backgroundUnits=0": "",
	} {
		text, err := render(t, "-f", chart+"/ci/aks-values.yaml", "--set", set, "--show-only", "templates/config.yaml")
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects(t, text) {
			for role, config := range map[string]any{"storage": at(o, "data", "storage.yaml"), "proxy": at(o, "data", "proxy.yaml"), "crawler": at(o, "data", "crawler.yaml")} {
				got := regexp.MustCompile("cosmos-background-units: .*").FindString(fmt.Sprint(config))
				if o["kind"] == "ConfigMap" && (role == "storage" && got != want || role != "storage" && got != "") {
					t.Errorf("--set %s: %s has %q, want %q for storage alone", set, role, got, want)
				}
			}
		}
	}
}

// A whole number of bytes in a values file is a quantity as well as 8Gi is. Helm reads it as a
// float.
func TestBytes(t *testing.T) {
	values := filepath.Join(t.TempDir(), "values.yaml")
	err := os.WriteFile(values, []byte(`
proxy: {cacheSize: 8589934592, resources: {limits: {memory: 536870912}}}
crawler: {spoolSize: 8589934592}
storage: {spoolSize: 4294967296}
store: {disk: {size: 53687091200}}
`), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	text, err := render(t, "-f", values)
	if err != nil {
		t.Fatal(err)
	}
	for want, times := range map[string]int{
		"cache-max-bytes: 7372MiB": 1, "inflight-max-bytes: 4096MiB": 1, "GOMEMLIMIT, value: 460MiB": 3, "requests: {storage: 53687091200}": 1,
		"sizeLimit: 8589934592}": 2, "sizeLimit: 4294967296}": 1,
	} {
		if n := strings.Count(text, want); n != times {
			t.Errorf("%q is there %d times, not %d", want, n, times)
		}
	}
}

// The configuration files that the chart makes are taken by athensctl itself.
func TestConfiguration(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "athensctl")
	if out, err := exec.Command("go", "build", "-o", binary, "..").CombinedOutput(); err != nil {
		t.Fatalf("%s", out)
	}
	for name, args := range sites(t) {
		text, err := render(t, args...)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects(t, text) {
			if o["kind"] != "ConfigMap" || at(o, "data", "proxy.yaml") == nil {
				continue
			}
			for file, content := range o["data"].(object) {
				path := filepath.Join(t.TempDir(), file)
				if err := os.WriteFile(path, []byte(content.(string)), 0o644); err != nil {
					t.Fatal(err)
				}
				cmd := exec.Command(binary, "config", "--config", path)
				cmd.Env = append(os.Environ(), "ATHENSCTL_INTERNAL_TOKEN=0123456789abcdef")
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("%s: %s: %s", name, file, out)
				}
			}
		}
	}
}
