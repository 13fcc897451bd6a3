// Package deploy has the tests of the scripts in deploy/: what they run, in which order,
// and what they refuse. Azure, Terraform and the cluster are stood in for by programs
// that write down how they were called; the chart is rendered by the real helm.
package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// outputs are those of deploy/terraform/modules/site.
const outputs = `{
 "registry": {"value": "athensctlstaging.azurecr.io"},
 "require_header": {"value": "X-Azure-FDID=11111111-2222-3333-4444-555555555555"},
 "cluster": {"value": {"name": "athensctl-staging", "resource_group": "athensctl-staging-group", "namespace": "modules"}},
 "helm_values": {"value": "fullnameOverride: athensctl\nimage: {repository: athensctlstaging.azurecr.io/athensctl}\nstore: {type: cosmos, cosmos: {endpoint: 'https://x.documents.azure.com'}, blob: {endpoint: 'https://x.blob.core.windows.net'}}\nstorage: {serviceAccount: {annotations: {azure.workload.identity/client-id: 00000000-0000-0000-0000-000000000001}}}\n"}
}`

// stand-ins: each call is a line of $LOG.
var programs = map[string]string{
	"az":        ``,
	"cosign":    `[ -z "${UNSIGNED:-}" ]`,
	"docker":    `if [ "$1 $2" = "buildx build" ]; then while [ "$1" != --metadata-file ]; do shift; done; echo "{\"containerimage.digest\": \"` + digest + `\"}" >"$2"; fi`,
	"kubelogin": ``,
	"kubectl":   `case "$*" in *--dry-run=client*) echo "kind: made by: $*";; *" apply "*|"apply "*) sed 's/^/kubectl stdin: /' >>"$LOG";; esac`,
	"helm": `if [ "$1" = upgrade ]; then
	args=() ; shift
	while [ $# -gt 0 ]; do case $1 in --install|--rollback-on-failure|--wait) ;; --timeout) shift ;; *) args+=("$1") ;; esac; shift; done
	"$REAL_HELM" template "${args[@]}" >"$RENDERED"
elif [ "$1" = test ]; then
	[ -z "${BROKEN:-}" ]
fi`,
	"terraform": `case "$*" in
	*" output -json") cat "$OUTPUTS" ;;
	plan*) echo "what will change"; echo plan >tfplan ;;
	"show -no-color tfplan") echo "the plan, in words" ;;
	"show -json tfplan") cat "$PLAN" ;;
esac`,
}

type run struct {
	dir, log, rendered, root string
	env                      []string
}

func newRun(t *testing.T, env ...string) *run {
	t.Helper()
	helm := os.Getenv("HELM")
	if helm == "" {
		helm, _ = exec.LookPath("helm")
	}
	for _, need := range []string{"jq", "bash"} {
		if _, err := exec.LookPath(need); err != nil {
			helm = ""
		}
	}
	if helm == "" {
		if os.Getenv("ATHENSCTL_TEST_REQUIRE") != "" {
			t.Fatal("helm or jq is missing: make tools installs them")
		}
		t.Skip("helm or jq is missing: make tools installs them")
	}
	dir := t.TempDir()
	r := &run{dir: dir, log: filepath.Join(dir, "log"), rendered: filepath.Join(dir, "rendered"), root: filepath.Join(dir, "root")}
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(r.root, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, body := range programs {
		text := "#!/usr/bin/env bash\nset -euo pipefail\necho \"" + name + " $*\" >>\"$LOG\"\n" + body + "\n"
		if err := os.WriteFile(filepath.Join(dir, "bin", name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r.write(t, "outputs", outputs)
	r.write(t, "plan", `{}`)
	r.env = append(append(os.Environ(), "PATH="+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"), "LOG="+r.log, "OUTPUTS="+filepath.Join(dir, "outputs"),
		"PLAN="+filepath.Join(dir, "plan"), "RENDERED="+r.rendered, "REAL_HELM="+helm, "GITHUB_OUTPUT=", "GITHUB_STEP_SUMMARY=", "GITHUB_REPOSITORY="), env...)
	return r
}

func (r *run) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (r *run) script(name string, args ...string) (string, error) {
	cmd := exec.Command("../../deploy/"+name, args...)
	cmd.Env = r.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (r *run) calls(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(r.log)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}

// inOrder fails unless each pattern matches behind the one before it.
func inOrder(t *testing.T, text string, patterns ...string) {
	t.Helper()
	rest := text
	for _, p := range patterns {
		at := regexp.MustCompile("(?m)" + p).FindStringIndex(rest)
		if at == nil {
			t.Fatalf("no %s, or not in order, in\n%s", p, text)
		}
		rest = rest[at[1]:]
	}
}

func TestRelease(t *testing.T) {
	r := newRun(t, "HELM_VALUES=crawler: {keda: {enabled: false}}")
	image := "ghcr.io/athensctl/athensctl@" + digest
	if out, err := r.script("site.sh", "release", r.root, image); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	inOrder(t, r.calls(t),
		`^terraform -chdir=.*/root output -json$`,
		`^cosign verify `+image+` .*--certificate-identity-regexp \^https://github\\\.com/athensctl/athensctl/\\\.github/workflows/image\\\.yml@refs/\(heads/main\|tags/v\[0-9\]\.\*\)\$$`,
		`^az acr login --only-show-errors --name athensctlstaging$`,
		`^docker buildx imagetools create --tag athensctlstaging\.azurecr\.io/athensctl:0123456789ab `+image+`$`,
		`^az aks get-credentials .*--resource-group athensctl-staging-group --name athensctl-staging`,
		`^kubelogin convert-kubeconfig --login azurecli$`,
		`^kubectl stdin: .*--namespace modules create secret generic athensctl-front-door --from-literal=header=X-Azure-FDID=11111111-2222-3333-4444-555555555555`,
		`^helm upgrade athensctl .*/charts/athensctl --install --namespace modules --rollback-on-failure --wait `,
		`^helm test athensctl --namespace modules`)
	rendered, err := os.ReadFile(r.rendered)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"image: athensctlstaging.azurecr.io/athensctl@" + digest, "name: athensctl-storage", "00000000-0000-0000-0000-000000000001", "https://x.documents.azure.com"} {
		if !strings.Contains(string(rendered), want) {
			t.Errorf("what is deployed has no %s", want)
		}
	}
	if strings.Contains(string(rendered), "ScaledObject") {
		t.Error("HELM_VALUES have not been heeded")
	}
}

// An image that this repository's pipeline has not signed gets nowhere.
func TestUnsigned(t *testing.T) {
	r := newRun(t, "UNSIGNED=yes")
	if out, err := r.script("site.sh", "release", r.root, "ghcr.io/athensctl/athensctl@"+digest); err == nil {
		t.Error(out)
	}
	if calls := r.calls(t); regexp.MustCompile(`(?m)^(docker|kubectl|helm|az) `).MatchString(calls) {
		t.Errorf("it went on:\n%s", calls)
	}
}

// What does not serve a module is taken back.
func TestBroken(t *testing.T) {
	r := newRun(t, "BROKEN=yes")
	out, err := r.script("site.sh", "release", r.root, "ghcr.io/athensctl/athensctl@"+digest)
	if err == nil || !strings.Contains(out, "helm test failed") {
		t.Errorf("%v, %q", err, out)
	}
	inOrder(t, r.calls(t), `^helm upgrade athensctl `, `^helm test athensctl `, `^helm rollback athensctl --namespace modules --wait`)
}

func TestPreview(t *testing.T) {
	r := newRun(t)
	if out, err := r.script("site.sh", "preview", r.root, "pr-17", "athensctlstaging.azurecr.io/athensctl@"+digest); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	inOrder(t, r.calls(t),
		`^kubectl stdin: .*create namespace pr-17`,
		`^kubectl label namespace pr-17 --overwrite pod-security\.kubernetes\.io/enforce=restricted$`,
		`^helm upgrade pr-17 .* --namespace pr-17 `,
		`^helm test pr-17 --namespace pr-17`)
	rendered, err := os.ReadFile(r.rendered)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(rendered), "image: athensctlstaging.azurecr.io/athensctl@"+digest) {
		t.Error("what is deployed has another image")
	}
	if strings.Contains(string(rendered), "azure.workload.identity") || strings.Contains(string(rendered), "helm.sh/resource-policy: keep") {
		t.Error("a preview has an identity in Azure, or leaves its volume behind")
	}
}

func TestRemove(t *testing.T) {
	r := newRun(t)
	if out, err := r.script("site.sh", "remove", r.root, "pr-17"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	inOrder(t, r.calls(t), `^helm uninstall pr-17 --namespace pr-17 --ignore-not-found`, `^kubectl delete namespace pr-17 --ignore-not-found`)
}

func TestSiteRefuses(t *testing.T) {
	for want, args := range map[string][]string{
		"modules is no pr-N":                  {"remove", "modules"},
		"pr-1 --all is no pr-N":               {"remove", "pr-1 --all"},
		"pr- is no pr-N":                      {"preview", "pr-", "x@" + digest},
		"x:latest is no NAME@sha256:DIGEST":   {"preview", "pr-1", "x:latest"},
		"x@sha256:12 is no NAME@sha256":       {"release", "x@sha256:12"},
		"delete is neither release nor":       {"delete", "pr-1"},
		"--x y@" + digest + " is no NAME@sha": {"release", "--x y@" + digest},
	} {
		r := newRun(t)
		args = append(args[:1:1], append([]string{r.root}, args[1:]...)...)
		out, err := r.script("site.sh", args...)
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("%q: %v, %q, want %q", args, err, out, want)
		}
		if calls := r.calls(t); regexp.MustCompile(`(?m)^(docker|kubectl|helm|az|cosign) `).MatchString(calls) {
			t.Errorf("%q: it went on:\n%s", args, calls)
		}
	}
}

func TestBuild(t *testing.T) {
	r := newRun(t)
	out, err := r.script("build.sh", "ghcr.io/athensctl/athensctl:1.2.3", "linux/amd64,linux/arm64")
	if err != nil || !strings.HasSuffix(out, digest+"\n") {
		t.Fatalf("%v, %q", err, out)
	}
	inOrder(t, r.calls(t), `^docker buildx build --platform linux/amd64,linux/arm64 --pull --build-arg VERSION=\S+ --build-arg REVISION=[0-9a-f]{40} --build-arg SOURCE_DATE_EPOCH=\d+ --sbom=true --provenance=mode=max `+
		`--output type=image,name=ghcr\.io/athensctl/athensctl:1\.2\.3,push=true,oci-mediatypes=true,rewrite-timestamp=true --metadata-file \S+ \.$`)
}

func TestPlan(t *testing.T) {
	plan := func(json string) (sum, output, summary string) {
		t.Helper()
		r := newRun(t, "STATE_RESOURCE_GROUP=state-group", "STATE_ACCOUNT=stateaccount", "TFVARS=name = \"athensctl-staging\"\nlock = false")
		r.write(t, "plan", json)
		r.env = append(r.env, "GITHUB_OUTPUT="+filepath.Join(r.dir, "output"), "GITHUB_STEP_SUMMARY="+filepath.Join(r.dir, "summary"))
		if out, err := r.script("plan.sh", r.root, "-lock=false"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		inOrder(t, r.calls(t),
			`^terraform init -no-color -backend-config=resource_group_name=state-group -backend-config=storage_account_name=stateaccount$`,
			`^terraform plan -no-color -out=tfplan -lock=false$`)
		var texts []string
		for _, name := range []string{"root/tfplan.sha256", "output", "summary", "root/pipeline.auto.tfvars"} {
			b, err := os.ReadFile(filepath.Join(r.dir, name))
			if err != nil {
				t.Fatal(err)
			}
			texts = append(texts, string(b))
		}
		if texts[3] != "name = \"athensctl-staging\"\nlock = false\n" {
			t.Errorf("variables: %q", texts[3])
		}
		return texts[0], texts[1], texts[2]
	}
	const change = `{"address": "azurerm_x.y", "change": {"actions": ["update"], "before": {"a": 1}, "after": {"a": 2}}}`
	one, output, summary := plan(`{"timestamp": "1", "resource_changes": [` + change + `]}`)
	if output != "plan="+one || !strings.Contains(summary, "the plan, in words") {
		t.Errorf("output %q, summary %q", output, summary)
	}
	if same, _, _ := plan(`{"timestamp": "2", "resource_changes": [{"address": "azurerm_z.z", "change": {"actions": ["no-op"]}}, ` + change + `]}`); same != one {
		t.Error("a plan that does the same has another sum")
	}
	if other, _, _ := plan(`{"timestamp": "1", "resource_changes": [` + strings.Replace(change, `"a": 2`, `"a": 3`, 1) + `]}`); other == one {
		t.Error("a plan that does something else has the same sum")
	}
	if other, _, _ := plan(`{"resource_changes": [` + change + `], "output_changes": {"x": {"actions": ["create"]}}}`); other == one {
		t.Error("a plan that changes an output too has the same sum")
	}
	empty, _, _ := plan(`{}`)
	if none, _, _ := plan(`{"resource_changes": []}`); none != empty || none == one {
		t.Error("plans that do nothing")
	}

	r := newRun(t, "STATE_RESOURCE_GROUP=g", "STATE_ACCOUNT=a", "TFVARS=")
	if out, err := r.script("plan.sh", r.root); err == nil || !strings.Contains(out, "TFVARS") || r.calls(t) != "" {
		t.Errorf("without variables: %v, %q, %q", err, out, r.calls(t))
	}
}
