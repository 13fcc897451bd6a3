// Package charts has the tests of the Helm chart: what it renders, what it refuses,
// and that its README is true. They need helm and kubeconform (`make tools`).
package charts

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
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
	conform := tool(t, "kubeconform", "KUBECONFORM")
	schemas := os.Getenv("KUBE_SCHEMAS")
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
			if schemas == "" {
				return
			}
			// Kinds of others (KEDA, the Prometheus operator, Gateway API) have no schema here.
			cmd := exec.Command(conform, "-strict", "-schema-location", schemas+"/{{.ResourceKind}}{{.KindSuffix}}.json", "-skip", "ServiceMonitor,PrometheusRule,ScaledObject,HTTPRoute", "-")
			cmd.Stdin = strings.NewReader(text)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("kubeconform: %s", out)
			}
		})
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

// The NetworkPolicies are the design's table of who may talk to whom.
func TestNetworkPolicies(t *testing.T) {
	for name, args := range sites(t) {
		text, err := render(t, args...)
		if err != nil {
			t.Fatal(err)
		}
		cosmos, offline := name == "aks", name == "airgapped"
		want := map[string]string{
			"proxy": "dns crawler storage", "crawler": "dns internet storage", "storage": "dns",
		}
		from := map[string]string{"storage": "crawler proxy", "crawler": "proxy", "proxy": "anybody"}
		if cosmos {
			want["storage"] = "dns https"
			for role := range want { // where its traces go
				want[role] += " collector"
			}
		}
		if cosmos || name == "operators" { // they name who reads metrics
			from["storage"], from["crawler"] = "crawler proxy namespace", "proxy namespace"
		}
		if offline {
			want["proxy"], from["storage"] = "dns storage", "proxy"
			delete(want, "crawler")
		}
		seen := map[string]bool{}
		for _, o := range objects(t, text) {
			if o["kind"] != "NetworkPolicy" {
				continue
			}
			role := fmt.Sprint(at(o, "spec", "podSelector", "matchLabels", "app.kubernetes.io/component"))
			seen[role] = true
			peers := func(rule any, key string) (names []string) {
				list, _ := at(rule, key).([]any)
				for _, p := range list {
					switch {
					case at(p, "podSelector") != nil:
						name := at(p, "podSelector", "matchLabels", "app.kubernetes.io/component")
						if name == nil && at(p, "namespaceSelector", "matchLabels", "kubernetes.io/metadata.name") == "monitoring" && fmt.Sprint(at(rule, "ports", 0, "port")) == "4318" {
							name = "collector"
						}
						names = append(names, fmt.Sprint(name))
					case at(p, "namespaceSelector") != nil:
						names = append(names, "namespace")
					case at(p, "ipBlock") != nil && !slices.Contains(names, "internet"):
						names = append(names, "internet")
					}
				}
				return names
			}
			var egress, ingress []string
			rules, _ := at(o, "spec", "egress").([]any)
			for _, r := range rules {
				to := peers(r, "to")
				if to == nil {
					switch fmt.Sprint(at(r, "ports", 0, "port")) {
					case "53":
						to = []string{"dns"}
					case "443":
						to = []string{"https"}
					default:
						to = []string{"anybody"}
					}
				}
				egress = append(egress, to...)
			}
			rules, _ = at(o, "spec", "ingress").([]any)
			for _, r := range rules {
				f := peers(r, "from")
				if f == nil {
					f = []string{"anybody"}
				}
				ingress = append(ingress, f...)
			}
			slices.Sort(egress)
			if got := strings.Join(egress, " "); got != sorted(want[role]) {
				t.Errorf("%s: %s may reach %s, want %s", name, role, got, want[role])
			}
			slices.Sort(ingress)
			if got := strings.Join(ingress, " "); got != sorted(from[role]) {
				t.Errorf("%s: %s may be reached by %s, want %s", name, role, got, from[role])
			}
			if fmt.Sprint(at(o, "spec", "policyTypes")) != "[Ingress Egress]" {
				t.Errorf("%s: %s: %v", name, role, at(o, "spec", "policyTypes"))
			}
		}
		if got, need := slices.Sorted(maps.Keys(seen)), slices.Sorted(maps.Keys(want)); !slices.Equal(got, need) {
			t.Errorf("%s: policies of %v, want %v", name, got, need)
		}
	}
}

func sorted(s string) string {
	f := strings.Fields(s)
	slices.Sort(f)
	return strings.Join(f, " ")
}

// What can't work is refused, with a sentence that says why.
func TestRefused(t *testing.T) {
	identity := "storage.serviceAccount.annotations.azure\\.workload\\.identity/client-id=x"
	cosmos := "store.type=cosmos,store.cosmos.endpoint=https://a.documents.azure.com," + identity
	for set, want := range map[string]string{
		"storage.replicas=2":                                "storage.replicas is 2, but store.type disk is one process's own",
		"store.type=memory,storage.replicas=3":              "storage.replicas is 3, but store.type memory",
		"store.type=tape":                                   "store/type",
		"store.type=cosmos":                                 "store.cosmos.endpoint is needed",
		"store.type=cosmos,store.cosmos.endpoint=https://x": "azure.workload.identity/client-id",
		"store.type=cosmos,store.cosmos.endpoint=nowhere":   "does not match pattern",
		"store.cosmos.endpoint=https://x":                   "store.cosmos.endpoint is set, but store.type is disk",
		"store.blob.endpoint=https://x":                     "store.blob.endpoint is set, but store.type is disk",
		"store.existingSecret=x":                            "store.existingSecret is set, but store.type disk has no credentials",
		"store.blob.container=Modules":                      "store/blob/container",
		cosmos + ",store.disk.existingClaim=x":              "store.disk.existingClaim is set, but store.type is cosmos",
		"store.disk.size=big":                               "store/disk/size",
		"internalToken.existingSecret=x":                    "internalToken has both value and existingSecret",
		"internalToken.value=short":                         "fewer than 16 characters",
		"ingress.enabled=true":                              "ingress.hosts is needed",
		"ingress.hosts={a.example.com}":                     "ingress is not enabled",
		"ingress.enabled=true,ingress.hosts={a.example.com},httpRoute.enabled=true,httpRoute.parentRefs[0].name=g": "ingress and httpRoute are both enabled",
		"httpRoute.enabled=true": "httpRoute.parentRefs is needed",
		"ingress.enabled=true,ingress.hosts={a.example.com},proxy.replicas=0":                            "proxy.replicas is 0",
		"proxy.autoscaling.enabled=true,proxy.autoscaling.minReplicas=9,proxy.autoscaling.maxReplicas=3": "minReplicas 9 is above maxReplicas 3",
		"proxy.autoscaling.enabled=true,proxy.resources.requests=null":                                   "proxy.resources.requests.cpu is needed",
		"crawler.keda.enabled=true": "crawler.keda.prometheus is needed",
		"crawler.keda.enabled=true,crawler.keda.prometheus=http://p,crawler.keda.minReplicas=7": "minReplicas 7 is above maxReplicas 5",
		"networkMode=offline,crawler.keda.enabled=true,crawler.keda.prometheus=http://p":        "there is no crawler",
		"networkMode=offline,upstream=https://x":                                                "nobody would ask upstream",
		"networkMode=offline,vcs.existingSecret=x":                                              "nobody would ask the git hosts",
		"networkMode=sometimes":                         "networkMode",
		"proxy.pdb.minAvailable=2":                      "no node could ever be drained",
		"crawler.replicas=3,crawler.pdb.minAvailable=3": "crawler.pdb.minAvailable is 3, with 3 replicas",
		"proxy.resources.limits.memory=64Mi":            "96Mi is the least",
		"proxy.resources.limits.memory=a lot":           "is not a quantity of memory",
		"crawler.spoolSize=100Mi":                       "1Gi is the least",
		"storage.spoolSize=100Mi":                       "storage.spoolSize is 100Mi",
		"settings.role=all":                             "role is set by the chart",
		"settings.cosmos-key=x":                         "cosmos-key is set by the chart",
		"settings.upstream=off":                         "upstream is a value of its own",
		"proxy.replica=3":                               "additional properties 'replica' not allowed",
		"service.port=70000":                            "service/port",
		"image.digest=sha256:12":                        "image/digest",
		"drainSeconds=-1":                               "drainSeconds",
		"settings.otlp-endpoint=http://c":               "otlp-endpoint is set by the chart",
		"tracing.endpoint=http://c:4318":                "tracing.egress is needed",
		"tracing.endpoint=collector:4318":               "tracing/endpoint",
		"tracing.endpoint=http://me:pw@c":               "tracing/endpoint",
		"tracing.headersSecret=x":                       "tracing.endpoint, which is not set",
		"tracing.sample=2":                              "tracing/sample",
		"tracing.egress[0].ports[0].port=4318":          "tracing/egress",
		"networkMode=offline,vcs.sshSecret=x":           "nobody would ask the git hosts of vcs.sshSecret",
		"settings.vcs-ssh-key=x":                        "vcs-ssh-key is set by the chart",
		"metrics.serviceMonitor.apiVersion=v1":          "apiVersion",
	} {
		if out, err := render(t, "--set", set); err == nil {
			t.Errorf("--set %s: rendered %d bytes, want %q", set, len(out), want)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("--set %s: %v\nwant %q", set, err, want)
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

// asked is one use of a metric in a query: its name, and the labels that the query names.
type asked struct {
	name   string
	labels []string
}

// metricsAsked reads the queries in a text: name{label="…"}, by (label) and on (label)
// belong to the metrics of their line.
func metricsAsked(text string) (list []asked) {
	name := regexp.MustCompile(`athensctl_[a-z_]+`)
	label := regexp.MustCompile(`([a-z_]+) *(?:=~|!~|!=|=)`)
	grouped := regexp.MustCompile(`\b(?:by|on|without) *\(([^)]*)\)`)
	for line := range strings.Lines(strings.ReplaceAll(text, `\"`, `"`)) {
		var common []string
		for _, m := range grouped.FindAllStringSubmatch(line, -1) {
			for l := range strings.SplitSeq(m[1], ",") {
				common = append(common, strings.TrimSpace(l))
			}
		}
		for _, at := range name.FindAllStringIndex(line, -1) {
			a := asked{line[at[0]:at[1]], slices.Clone(common)}
			if rest := line[at[1]:]; strings.HasPrefix(rest, "{") {
				matchers, _, _ := strings.Cut(regexp.MustCompile(`{{.*?}}`).ReplaceAllString(rest[1:], ""), "}")
				for _, m := range label.FindAllStringSubmatch(matchers, -1) {
					a.labels = append(a.labels, m[1])
				}
			}
			list = append(list, a)
		}
	}
	return list
}

// What alerts, the dashboard, KEDA and the pages ask of metrics, there is: docs/metrics.md
// has them, and internal/cli compares that page with the program. Each alert's runbook is a section of
// docs/slo.md, and each section of an alert's has one.
func TestQueries(t *testing.T) {
	page, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	have := map[string][]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(athensctl_[a-z_]+)` \\|([^|]*)\\|(.*)").FindAllStringSubmatch(string(page), -1) {
		labels := append(regexp.MustCompile(`[a-z_]+`).FindAllString(m[2], -1), "namespace", "pod") // those that a scrape adds
		if strings.HasPrefix(strings.TrimSpace(m[3]), "histogram:") {
			have[m[1]+"_bucket"], have[m[1]+"_sum"], have[m[1]+"_count"] = append(labels, "le"), labels, labels
		}
		have[m[1]] = labels
	}
	texts, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	uses := map[string]int{}
	for _, file := range append(texts, chart+"/files/rules.yaml", chart+"/files/dashboard.json", chart+"/templates/scaling.yaml", chart+"/templates/_validate.tpl") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range metricsAsked(string(text)) {
			labels, ok := have[a.name]
			if !ok {
				t.Errorf("%s: there is no metric %s", file, a.name)
				continue
			}
			uses[filepath.Base(file)]++
			for _, l := range a.labels {
				if !slices.Contains(labels, l) {
					t.Errorf("%s: %s has no label %s, but %v", file, a.name, l, labels)
				}
			}
		}
	}
	for _, file := range []string{"rules.yaml", "dashboard.json", "scaling.yaml", "slo.md"} {
		if uses[file] == 0 {
			t.Errorf("%s asks of no metric: this test does not see how", file)
		}
	}
	// What the test sees, and what it would say.
	for text, want := range map[string]string{
		`sum by (tier) (rate(athensctl_x_total{ {{- $ns }},tier="stale",file=~"a|b"}[5m]))`: "[{athensctl_x_total [tier tier file]}]",
		`"expr": "max(athensctl_y{namespace=\"$namespace\"})"`:                              "[{athensctl_y [namespace]}]",
	} {
		if got := fmt.Sprint(metricsAsked(text)); got != want {
			t.Errorf("%s: read as %s, want %s", text, got, want)
		}
	}

	slo, err := os.ReadFile("../docs/slo.md")
	if err != nil {
		t.Fatal(err)
	}
	rules, err := os.ReadFile(chart + "/files/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	alerts := regexp.MustCompile(`(?m)^- alert: `).FindAllString(string(rules), -1)
	books := regexp.MustCompile(`runbook_url: {{ \$runbook }}#(\S+)`).FindAllStringSubmatch(string(rules), -1)
	if len(alerts) == 0 || len(alerts) != len(books) {
		t.Errorf("%d alerts have %d runbooks", len(alerts), len(books))
	}
	for _, b := range books {
		if !strings.Contains(string(slo), "\n## "+b[1]+"\n") {
			t.Errorf("docs/slo.md has no section %s", b[1])
		}
	}
}

// values walks values.yaml: each leaf, its default and the comment that describes it.
func values(t *testing.T) (rows [][3]string) {
	data, err := os.ReadFile(chart + "/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	describe := func(nodes ...*yaml.Node) string {
		for _, n := range nodes {
			for _, c := range []string{n.LineComment, n.HeadComment} {
				if i := strings.LastIndex(c, "# -- "); i >= 0 {
					return strings.TrimSpace(c[i+len("# -- "):])
				}
			}
		}
		return ""
	}
	var walk func(prefix string, n *yaml.Node)
	walk = func(prefix string, n *yaml.Node) {
		for i := 0; i < len(n.Content); i += 2 {
			k, v := n.Content[i], n.Content[i+1]
			path := prefix + k.Value
			text := describe(k, v)
			if text == "" && v.Kind == yaml.MappingNode && len(v.Content) > 0 {
				walk(path+".", v)
				continue
			}
			if text == "" {
				t.Errorf("values.yaml: %s has no line that says what it is", path)
			}
			if v.Kind != yaml.ScalarNode {
				v.Style = yaml.FlowStyle
			}
			v.LineComment, v.HeadComment, v.FootComment = "", "", ""
			for _, c := range v.Content {
				c.LineComment, c.HeadComment, c.FootComment = "", "", ""
			}
			def, err := yaml.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			rows = append(rows, [3]string{path, strings.Join(strings.Fields(string(def)), " "), text})
		}
	}
	walk("", doc.Content[0])
	return rows
}

func TestReadme(t *testing.T) {
	var b strings.Builder
	b.WriteString("| value | default | what |\n|---|---|---|\n")
	for _, r := range values(t) {
		fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", r[0], r[1], strings.ReplaceAll(r[2], "|", `\|`))
	}
	const file = chart + "/README.md"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const begin = "<!-- values: made by go test ./charts -update -->\n"
	before, have, ok := strings.Cut(string(text), begin)
	if !ok {
		t.Fatalf("%s has no place for the values", file)
	}
	if *update {
		if err := os.WriteFile(file, []byte(before+begin+b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if have != b.String() {
		t.Errorf("%s is not true: run go test ./charts -update", file)
	}
}

// The schema knows every value, and no other.
func TestSchema(t *testing.T) {
	data, err := os.ReadFile(chart + "/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	schemaData, err := os.ReadFile(chart + "/values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var v, s object
	if err := yaml.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(schemaData, &s); err != nil {
		t.Fatal(err)
	}
	var walk func(path string, v, s object)
	walk = func(path string, v, s object) {
		props, _ := s["properties"].(object)
		if s["additionalProperties"] != false {
			t.Errorf("%s: the schema takes what it does not know", path)
		}
		for k := range props {
			if _, ok := v[k]; !ok && !(path == "" && k == "global") && !strings.HasSuffix(path, ".resources") {
				t.Errorf("%s.%s is in the schema, and not in values.yaml", path, k)
			}
		}
		for k, x := range v {
			p, ok := props[k].(object)
			if !ok {
				t.Errorf("%s.%s is not in the schema", path, k)
				continue
			}
			if m, ok := x.(object); ok && p["properties"] != nil {
				walk(path+"."+k, m, p)
			}
		}
	}
	walk("", v, s)
}
