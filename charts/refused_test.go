package charts

import (
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/athensctl/athensctl/config"
)

// A name that YAML takes for something else than text is a name all the same.
func TestOddNames(t *testing.T) {
	text, err := render(t, "--set-string", "nameOverride=on,fullnameOverride=modules")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects(t, text) {
		if name := at(o, "metadata", "labels", "app.kubernetes.io/name"); name != "on" {
			t.Errorf("%v: a label is %v, a %T", o["kind"], name, name)
		}
	}
	if out, err := conform(t, text); err != nil {
		t.Errorf("kubeconform: %s", out)
	}
}

// What can't work is refused, with a sentence that says why.
func TestRefused(t *testing.T) {
	identity := "storage.serviceAccount.annotations.azure\\.workload\\.identity/client-id=x"
	cosmos := "store.type=cosmos,store.cosmos.endpoint=https://a.documents.azure.com," + identity
	for set, want := range map[string]string{
		"storage.replicas=2":                                          "storage.replicas is 2, but store.type disk is one process's own",
		"store.type=memory,storage.replicas=3":                        "storage.replicas is 3, but store.type memory",
		"store.type=tape":                                             "store/type",
		"store.type=cosmos":                                           "store.cosmos.endpoint is needed",
		"store.type=cosmos,store.cosmos.endpoint=https://x":           "azure.workload.identity/client-id",
		"store.type=cosmos,store.cosmos.endpoint=nowhere":             "does not match pattern",
		"store.cosmos.endpoint=https://x":                             "store.cosmos.endpoint is set, but store.type is disk",
		"store.blob.endpoint=https://x":                               "store.blob.endpoint is set, but store.type is disk",
		"store.cosmos.backgroundUnits=9":                              "store.cosmos.backgroundUnits is set, but store.type is disk",
		cosmos + ",store.cosmos.backgroundUnits=2,storage.replicas=3": "backgroundUnits is 2, for 3 storage replicas together",
		cosmos + ",store.cosmos.backgroundUnits=-1":                   "store/cosmos/backgroundUnits",
		"settings.cosmos-background-units=9":                          "cosmos-background-units is set by the chart",
		"store.existingSecret=x":                                      "store.existingSecret is set, but store.type disk has no credentials",
		"store.blob.container=Modules":                                "store/blob/container",
		cosmos + ",store.disk.existingClaim=x":                        "store.disk.existingClaim is set, but store.type is cosmos",
		"store.disk.size=big":                                         "store/disk/size",
		"internalToken.existingSecret=x":                              "internalToken has both value and existingSecret",
		"internalToken.value=short":                                   "fewer than 16 characters",
		"ingress.enabled=true":                                        "ingress.hosts is needed",
		"ingress.hosts={a.example.com}":                               "ingress is not enabled",
		"ingress.enabled=true,ingress.hosts={a.example.com},httpRoute.enabled=true,httpRoute.parentRefs[0].name=g": "ingress and httpRoute are both enabled",
		"httpRoute.enabled=true": "httpRoute.parentRefs is needed",
		"ingress.enabled=true,ingress.hosts={a.example.com},proxy.replicas=0":    "proxy.replicas is 0",
		"httpRoute.enabled=true,httpRoute.parentRefs[0].name=g,proxy.replicas=0": "httpRoute is enabled, but proxy.replicas is 0",
		"proxy.cacheSize=8": "proxy.cacheSize is 8: 64Mi is the least",
		"proxy.autoscaling.enabled=true,proxy.autoscaling.minReplicas=9,proxy.autoscaling.maxReplicas=3": "minReplicas 9 is above maxReplicas 3",
		"proxy.autoscaling.enabled=true,proxy.resources.requests=null":                                   "proxy.resources.requests.cpu is needed",
		"crawler.keda.authenticationRef.name=a":                                                          "authenticationRef is set, but crawler.keda is not enabled",
		"crawler.keda.authenticationRef.kind=Secret":                                                     "crawler/keda/authenticationRef/kind",
		"crawler.keda.enabled=true":                                                                      "crawler.keda.prometheus is needed",
		"crawler.keda.enabled=true,crawler.keda.prometheus=http://p,crawler.keda.minReplicas=7":          "minReplicas 7 is above maxReplicas 5",
		"networkMode=offline,crawler.keda.enabled=true,crawler.keda.prometheus=http://p":                 "there is no crawler",
		"networkMode=offline,upstream=https://x":                                                         "nobody would ask upstream",
		"networkMode=offline,vcs.existingSecret=x":                                                       "nobody would ask the git hosts",
		"networkMode=sometimes":                                                                          "networkMode",
		"proxy.pdb.minAvailable=2":                                                                       "no node could ever be drained",
		"crawler.replicas=3,crawler.pdb.minAvailable=3":                                                  "crawler.pdb.minAvailable is 3, with 3 replicas",
		"proxy.resources.limits.memory=64Mi":                                                             "96Mi is the least",
		"proxy.resources.limits.memory=a lot":                                                            "is not a quantity of memory",
		"crawler.spoolSize=100Mi":                                                                        "1Gi is the least",
		"storage.spoolSize=100Mi":                                                                        "storage.spoolSize is 100Mi",
		"settings.role=all":                                                                              "role is set by the chart",
		"settings.cosmos-key=x":                                                                          "cosmos-key is set by the chart",
		"settings.upstream=off":                                                                          "upstream is a value of its own",
		"proxy.replica=3":                                                                                "additional properties 'replica' not allowed",
		"service.port=70000":                                                                             "service/port",
		"image.digest=sha256:12":                                                                         "image/digest",
		"drainSeconds=-1":                                                                                "drainSeconds",
		"settings.otlp-endpoint=http://c":                                                                "otlp-endpoint is set by the chart",
		"tracing.endpoint=http://c:4318":                                                                 "tracing.egress is needed",
		"tracing.endpoint=collector:4318":                                                                "tracing/endpoint",
		"tracing.endpoint=http://me:pw@c":                                                                "tracing/endpoint",
		"tracing.headersSecret=x":                                                                        "tracing.endpoint, which is not set",
		"tracing.sample=2":                                                                               "tracing/sample",
		"tracing.egress[0].ports[0].port=4318":                                                           "tracing/egress",
		"networkMode=offline,vcs.sshSecret=x":                                                            "nobody would ask the git hosts of vcs.sshSecret",
		"settings.vcs-ssh-key=x":                                                                         "vcs-ssh-key is set by the chart",
		"metrics.serviceMonitor.apiVersion=v1":                                                           "apiVersion",
		"crawler.keda.enabled=true,crawler.keda.prometheus=http://p,crawler.keda.minReplicas=0": "none would be started",
		"crawler.replicas=0":                                       "networkMode=offline says so",
		"storage.replicas=0":                                       "nothing could be answered",
		"settings.cache-max-bytes=1GiB":                            "cache-max-bytes is set by the chart",
		"settings.inflight-max-bytes=1GiB":                         "inflight-max-bytes is set by the chart",
		"networkMode=offline,webhook.existingSecret=x":             "the pushes of webhook.existingSecret",
		"httpRoute.hostnames={a.example.com}":                      "httpRoute.hostnames is set, but httpRoute is not enabled",
		"httpRoute.parentRefs[0].name=g":                           "httpRoute.parentRefs is set, but httpRoute is not enabled",
		"ingress.tlsSecret=x":                                      "ingress.tlsSecret is set, but ingress is not enabled",
		"ingress.className=x":                                      "ingress.className is set, but ingress is not enabled",
		"ingress.annotations.a=x":                                  "ingress.annotations is set, but ingress is not enabled",
		"internalToken.value=0123456789 abcdef":                    "internalToken.value has a space",
		"internalToken.value=0123456789\u00e9abcdef":               "what is not ASCII",
		"networkPolicy.crawlerTo[0].ports[0].port=8443":            "networkPolicy/crawlerTo",
		"networkPolicy.storageTo[0].to[0].ipBlock.cidr=10.0.0.0/8": "storage asks nobody",
		"networkPolicy.dnsTo=null":                                 "no pod could resolve a name",
		"networkPolicy.dnsTo[0].ports[0].port=53":                  "networkPolicy/dnsTo",
		cosmos + ",networkPolicy.enabled=false,networkPolicy.storageTo[0].to[0].ipBlock.cidr=10.0.0.0/8": "nothing is forbidden",
		"networkPolicy.enabled=false,networkPolicy.crawlerTo[0].to[0].ipBlock.cidr=10.0.0.0/8":           "nothing is forbidden",
		"networkMode=offline,networkPolicy.crawlerTo[0].to[0].ipBlock.cidr=10.0.0.0/8":                   "there is no crawler for networkPolicy.crawlerTo",
	} {
		if out, err := render(t, "--set", set); err == nil {
			t.Errorf("--set %s: rendered %d bytes, want %q", set, len(out), want)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("--set %s: %v\nwant %q", set, err, want)
		}
	}
}

// An upgrade with --reuse-values has the defaults of the chart before, and lacks those that
// are new: what to do is said.
func TestReusedValues(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(chart)); err != nil {
		t.Fatal(err)
	}
	values, err := exec.Command("tar", "-xzOf", "../test/cluster/testdata/athensctl-0.1.0.tgz", "athensctl/values.yaml").Output()
	if err != nil || len(values) == 0 {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/values.yaml", values, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(tool(t, "helm", "HELM"), "template", "site", dir).CombinedOutput(); err == nil || !strings.Contains(string(out), "--reset-then-reuse-values") {
		t.Errorf("%v: %s", err, out)
	}
}

// What helm install says to type next works: behind a CDN, and where no checksum database is.
func TestNotes(t *testing.T) {
	for values, want := range map[string][]string{
		"requireHeader.existingSecret=lock": {"GOPROXY=https://NAME", "CDN", "lock", "403"},
		"networkMode=offline":               {"GOPROXY=http://127.0.0.1:3000", "GOSUMDB=off"},
		"networkMode=strict":                {"GOPROXY=http://127.0.0.1:3000"},
	} {
		cmd := exec.Command(tool(t, "helm", "HELM"), "install", "site", chart, "--dry-run=client", "--set", values)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+os.DevNull)
		out, err := cmd.Output()
		_, notes, ok := strings.Cut(string(out), "\nNOTES:\n")
		if err != nil || !ok {
			t.Fatal(err, string(out))
		}
		for _, text := range []string{"GOPROXY=http://127.0.0.1:3000", "GOPROXY=https://NAME", "GOSUMDB=off", "CDN", "lock", "403"} {
			if wanted := slices.Contains(want, text); strings.Contains(notes, text) != wanted {
				t.Errorf("%s: %q in these notes, wanted %v:\n%s", values, text, wanted, notes)
			}
		}
	}
}

// No secret gets into the ConfigMap: what the program knows as one is refused in settings.
func TestSecretsRefused(t *testing.T) {
	found := 0
	for field := range reflect.TypeFor[config.Config]().Fields() {
		key := field.Tag.Get("key")
		if field.Tag.Get("secret") != "true" {
			continue
		}
		found++
		if _, err := render(t, "--set", "settings."+key+"=0123456789abcdef"); err == nil || !strings.Contains(err.Error(), key+" is set by the chart") {
			t.Errorf("settings.%s: %v", key, err)
		}
	}
	if found < 9 {
		t.Errorf("%d secret settings: this test does not see them", found)
	}
}

// Without a crawler and with none wanted, what only a crawler reads may be as it is.
func TestOfflineWithoutCrawler(t *testing.T) {
	if _, err := render(t, "--set", "networkMode=offline,crawler.replicas=0"); err != nil {
		t.Error(err)
	}
}
