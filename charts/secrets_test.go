package charts

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
)

// sums are the checksums of the Secrets that each role reads, as its pods have them.
func sums(t *testing.T, args ...string) map[string]string {
	t.Helper()
	text, err := render(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	list := map[string]string{}
	for _, o := range objects(t, text) {
		if o["kind"] == "Deployment" {
			list[fmt.Sprint(at(o, "spec", "template", "metadata", "labels", "app.kubernetes.io/component"))] = fmt.Sprint(at(o, "spec", "template", "metadata", "annotations", "checksum/secrets"))
		}
	}
	if len(list) != 3 {
		t.Fatalf("%v", list)
	}
	return list
}

// differ says which roles have another checksum.
func differ(a, b map[string]string) string {
	var other []string
	for role := range a {
		if a[role] != b[role] {
			other = append(other, role)
		}
	}
	slices.Sort(other)
	return strings.Join(other, " ")
}

// Other Secrets make new pods: those of the roles that read them.
func TestChecksums(t *testing.T) {
	before := sums(t)
	for set, want := range map[string]string{
		"settings.log-level=warn":                             "",
		"internalToken.value=fedcba9876543210":                "crawler proxy storage",
		"internalToken.value=,internalToken.existingSecret=x": "crawler proxy storage",
		"webhook.existingSecret=x":                            "crawler proxy",
		"requireHeader.existingSecret=x":                      "proxy",
		"vcs.existingSecret=x":                                "crawler",
		"vcs.sshSecret=x":                                     "crawler",
		"store.type=cosmos,store.existingSecret=x,store.cosmos.endpoint=https://x":      "storage",
		"networkPolicy.enabled=false,tracing.endpoint=http://c,tracing.headersSecret=x": "crawler proxy storage",
	} {
		if got := differ(before, sums(t, "--set", set)); got != want {
			t.Errorf("--set %s: new pods of %q, want %q", set, got, want)
		}
	}
}

// What is in a Secret counts, not only its name: helm looks it up in the cluster, here one
// that knows the kinds and has two Secrets.
func TestRotated(t *testing.T) {
	var mu sync.Mutex
	content := map[string]string{"site-athensctl-token": "c2VjcmV0LXNlY3JldC1zZWNyZXQ=", "front-door": "bmFtZT12YWx1ZQ=="}
	kinds := map[string]string{
		"v1": "Secret ServiceAccount ConfigMap PersistentVolumeClaim Service Pod", "apps/v1": "Deployment",
		"networking.k8s.io/v1": "NetworkPolicy", "policy/v1": "PodDisruptionBudget",
	}
	cluster := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		name, secret := strings.CutPrefix(r.URL.Path, "/api/v1/namespaces/modules/secrets/")
		version := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/apis/"), "/api/")
		mu.Lock()
		data, ok := content[name]
		mu.Unlock()
		switch {
		case r.URL.Path == "/version":
			io.WriteString(w, `{"major":"1","minor":"35","gitVersion":"v1.35.4"}`)
		case r.URL.Path == "/api":
			io.WriteString(w, `{"kind":"APIVersions","versions":["v1"]}`)
		case r.URL.Path == "/apis":
			var groups []string
			for v := range kinds {
				if group, version, ok := strings.Cut(v, "/"); ok {
					groups = append(groups, fmt.Sprintf(`{"name":%q,"versions":[{"groupVersion":%q,"version":%q}]}`, group, v, version))
				}
			}
			fmt.Fprintf(w, `{"kind":"APIGroupList","apiVersion":"v1","groups":[%s]}`, strings.Join(groups, ","))
		case kinds[version] != "":
			var list []string
			for kind := range strings.FieldsSeq(kinds[version]) {
				list = append(list, fmt.Sprintf(`{"name":"%ss","namespaced":true,"kind":%q,"verbs":["get"]}`, strings.ToLower(kind), kind))
			}
			fmt.Fprintf(w, `{"kind":"APIResourceList","groupVersion":%q,"resources":[%s]}`, version, strings.Join(list, ","))
		case secret && ok:
			fmt.Fprintf(w, `{"kind":"Secret","apiVersion":"v1","metadata":{"name":%q,"namespace":"modules","labels":{"app.kubernetes.io/managed-by":"Helm"},"annotations":{"meta.helm.sh/release-name":"site","meta.helm.sh/release-namespace":"modules"}},"data":{"token":%q}}`, name, data)
		default:
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
		}
	}))
	defer cluster.Close()
	args := []string{"--dry-run=server", "--disable-openapi-validation", "--kube-apiserver", cluster.URL, "--set", "internalToken.value=,requireHeader.existingSecret=front-door", "--show-only", "templates/deployments.yaml", "--show-only", "templates/config.yaml"}
	before := sums(t, args...)
	text, err := render(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text, "token: "+content["site-athensctl-token"]) {
		t.Errorf("the token that is there is not kept:\n%.600s", text)
	}
	if again := sums(t, args...); !maps.Equal(before, again) {
		t.Errorf("the same Secrets: %v, and then %v", before, again)
	}
	for _, tc := range []struct{ name, want string }{{"front-door", "proxy"}, {"site-athensctl-token", "crawler proxy storage"}} {
		mu.Lock()
		old := content[tc.name]
		content[tc.name] = "b3RoZXItb3RoZXItb3RoZXI="
		mu.Unlock()
		if got := differ(before, sums(t, args...)); got != tc.want {
			t.Errorf("another %s: new pods of %q, want %q", tc.name, got, tc.want)
		}
		mu.Lock()
		content[tc.name] = old
		mu.Unlock()
	}
}
