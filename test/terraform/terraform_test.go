//go:build terraform

// Package terraform holds deploy/terraform against the rest of the tree: the containers
// that athensctl storage init makes, the chart's schema, its names and its alerts; and
// looks at all of staging and production at once: who may what, and what is public. run.sh
// prepares a copy of deploy/terraform and runs it.
package terraform

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/athensctl/athensctl/internal/cosmosfake"
	"github.com/athensctl/athensctl/storage/cosmos"
)

type object = map[string]any

const chart = "../../charts/athensctl"

// roots are the sites; each has these runs in tests/site.tftest.hcl.
var roots = map[string][]string{
	"staging":    {"first", "published", "over_the_internet", "autoscale_in_two_regions"},
	"production": {"first", "published", "over_the_internet", "serverless"},
}

type resource struct {
	Address string `json:"address"`
	Type    string `json:"type"`
	Mode    string `json:"mode"`
	Values  object `json:"values"`
}

type tree struct {
	Resources []resource `json:"resources"`
	Children  []tree     `json:"child_modules"`
}

func (t tree) all() []resource {
	list := slices.Clone(t.Resources)
	for _, c := range t.Children {
		list = append(list, c.all()...)
	}
	return list
}

// applied is what a run of a root's test made.
type applied struct {
	resources []resource
	outputs   map[string]any
}

func (a applied) ofType(t *testing.T, kind string) (list []resource) {
	t.Helper()
	for _, r := range a.resources {
		if r.Type == kind {
			list = append(list, r)
		}
	}
	if len(list) == 0 {
		t.Fatalf("there is no %s", kind)
	}
	return list
}

// message is a line of terraform test -json.
type message struct {
	Type  string `json:"type"`
	Level string `json:"@level"`
	File  string `json:"@testfile"`
	Run   string `json:"@testrun"`
	State struct {
		Root    tree `json:"root_module"`
		Outputs map[string]struct {
			Value any `json:"value"`
		} `json:"outputs"`
	} `json:"test_state"`
	Diagnostic struct {
		Severity string `json:"severity"`
		Summary  string `json:"summary"`
		Detail   string `json:"detail"`
	} `json:"diagnostic"`
}

// terraformTest runs terraform test in a root and returns what it said, and whether it passed.
func terraformTest(t *testing.T, root string, args ...string) ([]message, bool) {
	t.Helper()
	cmd := exec.Command(os.Getenv("TERRAFORM"), append([]string{"-chdir=" + filepath.Join(os.Getenv("TERRAFORM_DIR"), root), "test", "-json"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var list []message
	for d := json.NewDecoder(stdout); ; {
		var m message
		if err := d.Decode(&m); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("terraform test -json: %v", err)
		}
		list = append(list, m)
	}
	err = cmd.Wait()
	if len(list) == 0 {
		t.Fatalf("terraform test said nothing: %v %s", err, stderr.String())
	}
	return list, err == nil
}

var (
	mutex sync.Mutex
	cache = map[string]map[string]applied{}
)

// sites are all runs of all roots: staging/first, …
func sites(t *testing.T) map[string]applied {
	t.Helper()
	mutex.Lock()
	defer mutex.Unlock()
	all := map[string]applied{}
	for root, runs := range roots {
		if cache[root] == nil {
			messages, ok := terraformTest(t, root, "-verbose", "-filter=tests/site.tftest.hcl")
			cache[root] = map[string]applied{}
			for _, m := range messages {
				if m.Type == "diagnostic" && m.Diagnostic.Severity == "error" {
					t.Errorf("%s: %s: %s %s", root, m.Run, m.Diagnostic.Summary, m.Diagnostic.Detail)
				}
				if m.Type != "test_state" {
					continue
				}
				a := applied{resources: m.State.Root.all(), outputs: map[string]any{}}
				for name, o := range m.State.Outputs {
					a.outputs[name] = o.Value
				}
				cache[root][m.Run] = a
			}
			if !ok {
				t.Fatalf("terraform test of %s failed", root)
			}
		}
		for _, run := range runs {
			a, ok := cache[root][run]
			if !ok || len(a.resources) < 30 {
				t.Fatalf("%s: run %s made %d resources", root, run, len(a.resources))
			}
			all[root+"/"+run] = a
		}
	}
	return all
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

// texts are the strings that at finds in each of a list.
func texts(list any, path ...any) []string {
	l, _ := list.([]any)
	var all []string
	for _, x := range l {
		all = append(all, fmt.Sprint(at(x, path...)))
	}
	slices.Sort(all)
	return all
}

// Terraform's database and containers are those that athensctl storage init makes.
func TestContainers(t *testing.T) {
	const key = "bm90IGEgc2VjcmV0LCBidXQgMzIgYnl0ZXMgbG9uZyE="
	fake := &cosmosfake.Server{Key: key}
	made := map[string]object{} // by path and id
	var mu sync.Mutex
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		if r.Method == http.MethodPost {
			var o object
			if err := json.Unmarshal(body, &o); err != nil {
				t.Error(err)
			}
			mu.Lock()
			made[r.URL.Path+" "+fmt.Sprint(o["id"])] = o
			mu.Unlock()
		}
		fake.ServeHTTP(w, r)
	}))
	defer server.Close()
	if err := cosmos.Init(t.Context(), cosmos.Account{Endpoint: server.URL, Key: key, Database: "athensctl"}, cosmos.Throughput{}, func(string) {}); err != nil {
		t.Fatal(err)
	}
	if len(made) < 3 || made["/dbs athensctl"] == nil {
		t.Fatalf("storage init made %v", slices.Sorted(maps.Keys(made)))
	}
	delete(made, "/dbs athensctl")

	for name, site := range sites(t) {
		if db := site.ofType(t, "azurerm_cosmosdb_sql_database"); len(db) != 1 || db[0].Values["name"] != "athensctl" {
			t.Errorf("%s: databases %v", name, db)
		}
		got := map[string]object{}
		for _, r := range site.ofType(t, "azurerm_cosmosdb_sql_container") {
			v := r.Values
			for _, other := range []string{"unique_key", "throughput", "autoscale_settings", "analytical_storage_ttl"} {
				// What is left out is an empty list or, where Azure would say it, a mocked 0.
				if l, isList := v[other].([]any); v[other] != nil && v[other] != 0.0 && !(isList && len(l) == 0) {
					t.Errorf("%s: %s has %s %v, which storage init sets none of", name, r.Address, other, v[other])
				}
			}
			policy := at(v, "indexing_policy", 0)
			for _, other := range []string{"composite_index", "spatial_index"} {
				if l, _ := at(policy, other).([]any); len(l) > 0 {
					t.Errorf("%s: %s has a %s", name, r.Address, other)
				}
			}
			got[fmt.Sprintf("/dbs/%v/colls %v", v["database_name"], v["name"])] = object{
				"paths": fmt.Sprint(v["partition_key_paths"]), "version": v["partition_key_version"], "ttl": v["default_ttl"],
				"mode": at(policy, "indexing_mode"), "included": texts(at(policy, "included_path"), "path"), "excluded": texts(at(policy, "excluded_path"), "path"),
			}
		}
		want := map[string]object{}
		for id, o := range made {
			policy := o["indexingPolicy"]
			if at(policy, "automatic") != true {
				t.Errorf("storage init: %s is indexed by hand", id)
			}
			want[id] = object{
				"paths": fmt.Sprint(at(o, "partitionKey", "paths")), "version": at(o, "partitionKey", "version"), "ttl": o["defaultTtl"],
				"mode": strings.ToLower(fmt.Sprint(at(policy, "indexingMode"))), "included": texts(at(policy, "includedPaths"), "path"), "excluded": texts(at(policy, "excludedPaths"), "path"),
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: Terraform makes\n%v\nathensctl storage init makes\n%v", name, got, want)
		}
	}
}

// Who may what, all of it: a right that is not in this table is one too many.
func TestRights(t *testing.T) {
	const (
		group    = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/"
		cluster  = group + "Microsoft.ContainerService/managedClusters/site"
		registry = group + "Microsoft.ContainerRegistry/registries/site"
		subnets  = group + "Microsoft.Network/virtualNetworks/site/subnets/"
		account  = group + "Microsoft.DocumentDB/databaseAccounts/site"
	)
	principals := map[string]string{
		"00000000-0000-0000-0000-0000000000c1": "cluster", "00000000-0000-0000-0000-000000000051": "storage", "00000000-0000-0000-0000-000000000021": "kubelet",
		"00000000-0000-0000-0000-00000000000a": "operators", "00000000-0000-0000-0000-00000000000d": "pipeline",
	}
	want := []string{
		"cluster: Managed Identity Operator on " + group + "Microsoft.ManagedIdentity/userAssignedIdentities/kubelet",
		"cluster: Network Contributor on " + subnets + "entrance",
		"cluster: Network Contributor on " + subnets + "nodes",
		"kubelet: AcrPull on " + registry,
		"operators: AcrPush on " + registry,
		"operators: Azure Kubernetes Service Cluster User Role on " + cluster,
		"operators: Azure Kubernetes Service RBAC Cluster Admin on " + cluster,
		"pipeline: AcrPush on " + registry,
		"pipeline: Azure Kubernetes Service Cluster User Role on " + cluster,
		"pipeline: Azure Kubernetes Service RBAC Cluster Admin on " + cluster + "/namespaces/athensctl",
		"storage: Cosmos DB " + account + "/sqlRoleDefinitions/00000000-0000-0000-0000-000000000002 on " + account + "/dbs/athensctl",
		"storage: Storage Blob Data Contributor on " + group + "Microsoft.Storage/storageAccounts/site/blobServices/default/containers/modules",
	}
	for name, site := range sites(t) {
		var got []string
		for _, r := range site.resources {
			who := principals[fmt.Sprint(r.Values["principal_id"])]
			switch {
			case r.Type == "azurerm_role_assignment":
				got = append(got, fmt.Sprintf("%s: %v on %v", who, r.Values["role_definition_name"], r.Values["scope"]))
			case r.Type == "azurerm_cosmosdb_sql_role_assignment":
				got = append(got, fmt.Sprintf("%s: Cosmos DB %v on %v", who, r.Values["role_definition_id"], r.Values["scope"]))
			case strings.Contains(r.Type, "role_assignment"), strings.Contains(r.Type, "role_definition"), strings.Contains(r.Type, "access_policy"):
				got = append(got, "unknown: "+r.Address)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: rights are\n%s\nwant\n%s", name, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		// Of these identities pods can be the one of storage alone.
		if ids := site.ofType(t, "azurerm_user_assigned_identity"); len(ids) != 3 {
			t.Errorf("%s: %d identities", name, len(ids))
		}
		if f := site.ofType(t, "azurerm_federated_identity_credential"); len(f) != 1 || !strings.HasSuffix(fmt.Sprint(f[0].Values["user_assigned_identity_id"]), "/storage") {
			t.Errorf("%s: federated credentials %v", name, f)
		}
	}
}

// closed fails for what keeps data and is public or has a password, and for what takes TLS
// older than 1.2: every attribute of every resource whose name says so is looked at.
func closed(t *testing.T, name string, resources []resource) {
	t.Helper()
	want := map[string]any{
		"shared_access_key_enabled": false, "access_key_metadata_writes_enabled": false, "local_user_enabled": false, "admin_enabled": false,
		"anonymous_pull_enabled": false, "allow_nested_items_to_be_public": false, "container_access_type": "private", "run_command_enabled": false,
		"local_account_disabled": true, "https_traffic_only_enabled": true, "https_redirect_enabled": true, "default_outbound_access_enabled": false,
		"minimal_tls_version": "Tls12", "min_tls_version": "TLS1_2", "minimum_version": "TLS12", "node_public_ip_enabled": false,
		"certificate_name_check_enabled": true, "multiple_write_locations_enabled": false,
	}
	// Azure Monitor takes what agents in the cluster send, and pipelines push to the
	// registry: with tokens of Entra ID, or a key that can only write.
	public := map[string]bool{
		"azurerm_monitor_workspace": true, "azurerm_monitor_data_collection_endpoint": true, "azurerm_container_registry": true,
	}
	seen := map[string]int{}
	var walk func(r resource, path string, v any)
	walk = func(r resource, path string, v any) {
		switch v := v.(type) {
		case object:
			for k, x := range v {
				if w, ok := want[k]; ok && x != nil {
					seen[k]++
					if x != w {
						t.Errorf("%s: %s: %s%s is %v, want %v", name, r.Address, path, k, x, w)
					}
				}
				if k == "public_network_access_enabled" && x != false && !public[r.Type] {
					t.Errorf("%s: %s is public", name, r.Address)
				}
				if k == "local_authentication_enabled" && x != false && r.Type != "azurerm_application_insights" && r.Type != "azurerm_log_analytics_workspace" {
					t.Errorf("%s: %s has passwords", name, r.Address)
				}
				walk(r, path+k+".", x)
			}
		case []any:
			for _, x := range v {
				walk(r, path, x)
			}
		}
	}
	routes := 0
	for _, r := range resources {
		walk(r, "", r.Values)
		switch r.Type {
		case "azurerm_public_ip":
			t.Errorf("%s: %s", name, r.Address)
		case "azurerm_cdn_frontdoor_route":
			routes++
		}
	}
	for _, k := range []string{"shared_access_key_enabled", "minimal_tls_version", "min_tls_version", "local_account_disabled", "container_access_type"} {
		if seen[k] == 0 {
			t.Errorf("%s: no resource has %s: this test looks at nothing", name, k)
		}
	}
	if seen["https_redirect_enabled"] != routes {
		t.Errorf("%s: %d of %d routes go to https", name, seen["https_redirect_enabled"], routes)
	}
}

func TestClosed(t *testing.T) {
	for name, site := range sites(t) {
		closed(t, name, site.resources)
		// Nodes in all zones, and zips in three data centres where it is production.
		for _, r := range append(site.ofType(t, "azurerm_kubernetes_cluster"), site.ofType(t, "azurerm_kubernetes_cluster_node_pool")...) {
			zones := r.Values["zones"]
			if pool := at(r.Values, "default_node_pool", 0); pool != nil {
				zones = at(pool, "zones")
			}
			if fmt.Sprint(zones) != "[1 2 3]" {
				t.Errorf("%s: %s is in zones %v", name, r.Address, zones)
			}
		}
		if blob := site.ofType(t, "azurerm_storage_account")[0].Values["account_replication_type"]; strings.HasPrefix(name, "production") && blob != "ZRS" {
			t.Errorf("%s: Blob Storage is %v", name, blob)
		}
	}
}

// The provider itself, not its mock, plans both sites from their example files: so its own
// checks between attributes have run, and its defaults are looked at too. It is signed in
// by a stand-in for a managed identity on this machine, and asks Azure nothing.
func TestPlan(t *testing.T) {
	part := func(v any) string {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(data)
	}
	identity := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		expires := time.Now().Add(time.Hour).Unix()
		token := part(object{"alg": "none", "typ": "JWT"}) + "." + part(object{"oid": "00000000-0000-0000-0000-00000000000a", "tid": "00000000-0000-0000-0000-00000000000e", "appid": "00000000-0000-0000-0000-00000000000c", "exp": expires}) + ".none"
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(object{"access_token": token, "token_type": "Bearer", "expires_in": "3600", "expires_on": fmt.Sprint(expires)})
	}))
	defer identity.Close()
	environment := append(os.Environ(), "ARM_USE_MSI=true", "ARM_MSI_ENDPOINT="+identity.URL, "ARM_USE_CLI=false",
		"ARM_SUBSCRIPTION_ID=00000000-0000-0000-0000-000000000001", "ARM_TENANT_ID=00000000-0000-0000-0000-00000000000e",
		"ARM_PROVIDER_ENHANCED_VALIDATION_LOCATIONS=false", "ARM_PROVIDER_ENHANCED_VALIDATION_RESOURCE_PROVIDERS=false")
	for root := range roots {
		// Beside the root, so that ../modules is what it was.
		dir := filepath.Join(os.Getenv("TERRAFORM_DIR"), "plan-"+root)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(os.Getenv("TERRAFORM_DIR"), root, "*.tf"))
		if err != nil || len(files) < 4 {
			t.Fatal(files, err)
		}
		copyOf := map[string]string{filepath.Join(os.Getenv("TERRAFORM_DIR"), root, "terraform.tfvars.example"): "terraform.tfvars"}
		for _, f := range files {
			copyOf[f] = filepath.Base(f)
		}
		for from, to := range copyOf {
			data, err := os.ReadFile(from)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, to), data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		override := "terraform {\n  backend \"local\" {}\n}\nprovider \"azurerm\" {\n  resource_providers_to_register = []\n}\n"
		if err := os.WriteFile(filepath.Join(dir, "override.tf"), []byte(override), 0o644); err != nil {
			t.Fatal(err)
		}
		terraform := func(args ...string) []byte {
			t.Helper()
			cmd := exec.Command(os.Getenv("TERRAFORM"), append([]string{"-chdir=" + dir}, args...)...)
			cmd.Env = environment
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%s: terraform %v: %v\n%s%s", root, args, err, out, stderr.String())
			}
			return out
		}
		terraform("init", "-input=false", "-no-color")
		for name, flags := range map[string][]string{
			"private link":      {"-var=publish=true"},
			"over the internet": {"-var=publish=true", "-var=private_link=false", "-var=origin_host_name=origin.example.org"},
			"serverless":        {`-var=cosmos={mode="serverless"}`},
			"two regions":       {`-var=cosmos={mode="autoscale",max_throughput=1000,second_region="northeurope",consistency="BoundedStaleness"}`},
			"webhook":           {"-var=publish=true", `-var=waf={webhook=true,managed_rules="Block"}`},
		} {
			terraform(append([]string{"plan", "-input=false", "-no-color", "-refresh=false", "-lock=false", "-out=tfplan"}, flags...)...)
			var plan struct {
				Values struct {
					Root tree `json:"root_module"`
				} `json:"planned_values"`
			}
			if err := json.Unmarshal(terraform("show", "-json", "tfplan"), &plan); err != nil {
				t.Fatal(err)
			}
			resources := plan.Values.Root.all()
			if len(resources) < 45 {
				t.Errorf("%s, %s: %d resources are planned", root, name, len(resources))
			}
			closed(t, root+", "+name, resources)
		}
	}
}

// render returns the objects that the chart makes of a site's values, by kind and name.
func render(t *testing.T, args ...string) map[string]object {
	t.Helper()
	cmd := exec.Command(os.Getenv("HELM"), append([]string{"template", "any", chart, "--namespace", "athensctl"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("helm template %v: %v: %s", args, err, stderr.String())
	}
	all := map[string]object{}
	for d := yaml.NewDecoder(bytes.NewReader(out)); ; {
		var o object
		if err := d.Decode(&o); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all[fmt.Sprint(o["kind"], " ", at(o, "metadata", "name"))] = o
	}
}

// The chart takes the output helm_values, alone and after the sizes for AKS (its schema and
// its refusals say no to what it can't use), and both mean the same by each name.
func TestHelmValues(t *testing.T) {
	for name, site := range sites(t) {
		values := filepath.Join(t.TempDir(), "values.yaml")
		if err := os.WriteFile(values, []byte(site.outputs["helm_values"].(string)), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"-f", values}, {"-f", chart + "/ci/aks-values.yaml", "-f", values}} {
			objects := render(t, args...)
			what := fmt.Sprintf("%s, %d files", name, len(args)/2)

			storage := objects["Deployment athensctl-storage"]
			pod := at(storage, "spec", "template", "spec")
			account := fmt.Sprint(at(pod, "serviceAccountName"))
			subject := site.ofType(t, "azurerm_federated_identity_credential")[0].Values["subject"]
			if subject != "system:serviceaccount:athensctl:"+account {
				t.Errorf("%s: storage is service account %s; Azure knows %v", what, account, subject)
			}
			if got := at(objects["ServiceAccount "+account], "metadata", "annotations", "azure.workload.identity/client-id"); got != "00000000-0000-0000-0000-000000000052" {
				t.Errorf("%s: service account of storage is identity %v", what, got)
			}
			if at(storage, "spec", "template", "metadata", "labels", "azure.workload.identity/use") != "true" {
				t.Errorf("%s: storage does not use workload identity", what)
			}
			for _, role := range []string{"proxy", "crawler"} {
				if o := objects["ServiceAccount athensctl-"+role]; o == nil || at(o, "metadata", "annotations") != nil {
					t.Errorf("%s: service account of %s: %v", what, role, o)
				}
			}
			if image := fmt.Sprint(at(pod, "containers", 0, "image")); !strings.HasPrefix(image, "site.azurecr.io/athensctl:") {
				t.Errorf("%s: image %s", what, image)
			}

			var config object
			if err := yaml.Unmarshal([]byte(fmt.Sprint(at(objects["ConfigMap athensctl"], "data", "storage.yaml"))), &config); err != nil {
				t.Fatal(err)
			}
			database := site.ofType(t, "azurerm_cosmosdb_sql_database")[0].Values["name"]
			container := site.ofType(t, "azurerm_storage_container")[0].Values["name"]
			if config["store"] != "cosmos" || config["cosmos-database"] != database || config["blob-container"] != container ||
				config["cosmos-endpoint"] != "https://site.documents.azure.com:443" || config["blob-endpoint"] != "https://site.blob.core.windows.net" {
				t.Errorf("%s: storage has %v", what, config)
			}
			// Of half the throughput each replica has its part.
			units, replicas := 2500, at(storage, "spec", "replicas").(int)
			if a, _ := site.ofType(t, "azurerm_cosmosdb_sql_database")[0].Values["autoscale_settings"].([]any); len(a) > 0 {
				units = int(at(a, 0, "max_throughput").(float64)) / 2
			}
			if got := config["cosmos-background-units"]; got != units/replicas {
				t.Errorf("%s: each of %d storage replicas spends %v units ahead of demand; the throughput's half is %d", what, replicas, got, units)
			}
			var regions []any
			for _, g := range site.ofType(t, "azurerm_cosmosdb_account")[0].Values["geo_location"].([]any) {
				regions = append(regions, at(g, "location"))
			}
			if !reflect.DeepEqual(config["cosmos-regions"], regions) {
				t.Errorf("%s: regions to read from are %v, the account has %v", what, config["cosmos-regions"], regions)
			}

			proxy, _ := json.Marshal(objects["Deployment athensctl-proxy"])
			if !bytes.Contains(proxy, []byte(`"ATHENSCTL_REQUIRE_HEADER"`)) || !bytes.Contains(proxy, []byte(`"athensctl-front-door"`)) {
				t.Errorf("%s: the proxy takes requests of anybody", what)
			}

			service, ingress := objects["Service athensctl"], objects["Ingress athensctl"]
			annotation := func(name string) any {
				return at(service, "metadata", "annotations", "service.beta.kubernetes.io/azure-"+name)
			}
			if strings.HasSuffix(name, "/over_the_internet") {
				if at(service, "spec", "type") != "ClusterIP" || at(ingress, "spec", "rules", 0, "host") != "origin.example.com" || at(ingress, "spec", "tls", 0, "secretName") == nil {
					t.Errorf("%s: without private link: %v %v", what, service, ingress)
				}
				if o := site.ofType(t, "azurerm_cdn_frontdoor_origin")[0]; o.Values["host_name"] != "origin.example.com" {
					t.Errorf("%s: Front Door asks %v", what, o.Values["host_name"])
				}
			} else {
				if ingress != nil || at(service, "spec", "type") != "LoadBalancer" || annotation("load-balancer-internal") != "true" || annotation("pls-create") != "true" {
					t.Errorf("%s: with private link: %v %v", what, service, ingress)
				}
				if origins, _ := site.outputs["cluster"].(object); origins["private_link_service"] != annotation("pls-name") {
					t.Errorf("%s: private link service %v, Front Door asks %v", what, annotation("pls-name"), origins)
				}
			}
			if strings.HasSuffix(name, "/published") {
				o := site.ofType(t, "azurerm_cdn_frontdoor_origin")[0].Values
				if id := fmt.Sprint(at(o, "private_link", 0, "private_link_target_id")); o["host_name"] != annotation("load-balancer-ipv4") || !strings.HasSuffix(id, fmt.Sprintf("/resourceGroups/site-nodes/providers/Microsoft.Network/privateLinkServices/%v", annotation("pls-name"))) {
					t.Errorf("%s: Front Door asks %v through %s; the chart makes %v", what, o["host_name"], id, service)
				}
			}
			if m := objects["ServiceMonitor athensctl"]; m == nil || m["apiVersion"] != "azmonitoring.coreos.com/v1" || objects["PrometheusRule athensctl"] != nil {
				t.Errorf("%s: metrics: %v", what, m)
			}
		}
	}
}

// Azure's alerts are the chart's.
func TestAlerts(t *testing.T) {
	rules := at(render(t, "--set", "metrics.rules.enabled=true", "--set", "fullnameOverride=athensctl")["PrometheusRule athensctl"], "spec", "groups", 0, "rules")
	want := map[string]object{}
	for _, r := range rules.([]any) {
		wait := "PT0M"
		if f := at(r, "for"); f != nil {
			wait = "PT" + strings.ToUpper(fmt.Sprint(f))
		}
		severity := 2.0
		if at(r, "labels", "severity") == "critical" {
			severity = 1
		}
		want[fmt.Sprint(at(r, "alert"))] = object{"expr": at(r, "expr"), "for": wait, "severity": severity, "annotations": at(r, "annotations")}
	}
	if len(want) < 7 {
		t.Fatalf("the chart has %d alerts", len(want))
	}
	for name, site := range sites(t) {
		got := map[string]object{}
		for _, r := range site.ofType(t, "azurerm_monitor_alert_prometheus_rule_group")[0].Values["rule"].([]any) {
			got[fmt.Sprint(at(r, "alert"))] = object{"expr": at(r, "expression"), "for": at(r, "for"), "severity": at(r, "severity"), "annotations": at(r, "annotations")}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: alerts are\n%v\nthe chart's\n%v", name, got, want)
		}
	}
}

// The outputs, resources and names that docs/aks.md has commands with are there.
func TestGuide(t *testing.T) {
	text, err := os.ReadFile("../../docs/aks.md")
	if err != nil {
		t.Fatal(err)
	}
	outputs := regexp.MustCompile(`terraform output (?:-raw |-json )?([a-z_]+)`).FindAllSubmatch(text, -1)
	addresses := regexp.MustCompile(`"\$data\.([a-z_]+\.[a-z]+)`).FindAllSubmatch(text, -1)
	fields := regexp.MustCompile(`terraform output -json cluster \| jq -r \.([a-z_]+)`).FindAllSubmatch(text, -1)
	if len(outputs) < 8 || len(addresses) < 8 || len(fields) < 3 {
		t.Fatalf("the guide has %d outputs, %d addresses, %d fields", len(outputs), len(addresses), len(fields))
	}
	for name, site := range sites(t) {
		for _, o := range outputs {
			if _, ok := site.outputs[string(o[1])]; !ok {
				t.Errorf("%s: there is no output %s", name, o[1])
			}
		}
		for _, f := range fields {
			if at(site.outputs["cluster"], string(f[1])) == nil {
				t.Errorf("%s: output cluster has no %s", name, f[1])
			}
		}
		if !strings.HasPrefix(name, "production") { // staging has no locks
			continue
		}
		for _, a := range addresses {
			if !slices.ContainsFunc(site.resources, func(r resource) bool {
				return strings.HasPrefix(r.Address+"[", "module.site.module.data."+string(a[1])+"[")
			}) {
				t.Errorf("%s: there is no %s", name, a[1])
			}
		}
	}
	secret := "athensctl-front-door --namespace athensctl --from-literal=header="
	if !bytes.Contains(text, []byte(secret)) {
		t.Errorf("the guide does not make the Secret that the chart asks for: %s…", secret)
	}
}

// What can't work is refused, with a sentence that says why.
func TestRefused(t *testing.T) {
	for root := range roots {
		head, err := os.ReadFile(filepath.Join(os.Getenv("TERRAFORM_DIR"), root, "tests", "site.tftest.hcl"))
		if err != nil {
			t.Fatal(err)
		}
		before, _, ok := strings.Cut(string(head), "\nrun \"first\"")
		if !ok {
			t.Fatal("no run first")
		}
		refused := map[string]string{
			`cosmos = { mode = "serverless", second_region = "northeurope" }`:                                                "Azure gives a serverless account one region",
			`cosmos = { mode = "serverless", max_throughput = 4000 }`:                                                        "a serverless account has no throughput",
			`cosmos = { mode = "autoscale", max_throughput = 4000 }`:                                                         "second_region is needed. For one region take serverless",
			`cosmos = { mode = "autoscale", second_region = "northeurope" }`:                                                 "max_throughput is needed",
			`cosmos = { mode = "autoscale", second_region = "northeurope", max_throughput = 1500 }`:                          "in thousands",
			`cosmos = { mode = "autoscale", second_region = "West Europe", max_throughput = 4000 }`:                          "cosmos.second_region is the first one too",
			`cosmos = { mode = "provisioned" }`:                                                                              `cosmos.mode is "provisioned"`,
			`cosmos = { mode = "autoscale", second_region = "northeurope", max_throughput = 4000, consistency = "Session" }`: "replicas of the storage role have to read what others have written",
			`cosmos = { mode = "serverless", consistency = "BoundedStaleness" }`:                                             "it costs what Strong costs and promises less",
			`cosmos = { mode = "serverless", backup_days = 14 }`:                                                             "for 7 or 30 days",
			`api_server_ranges = []`:             "Without one the API would be open to the internet",
			`api_server_ranges = ["0.0.0.0/0"]`:  "wider than a /8",
			`api_server_ranges = ["everywhere"]`: "one CIDR range or more is needed",
			`admins = {}`:                        "nobody could ever install anything",
			`deployers = { operators = "00000000-0000-0000-0000-00000000000d" }`: "a name in common: operators",
			`name = "Athens"`:                                            "small letters, digits and single hyphens",
			`name = "athensctl-in-a-very-large-house"`:                   "5 to 20 small letters",
			`private_link = false`:                                       "origin_host_name is needed",
			`origin_host_name = "origin.example.com"`:                    "Front Door would not use it",
			"private_link = false\n origin_host_name = \"198.51.100.7\"": "requests cross the internet",
			"private_link = false\n origin_host_name = \"goproxy.example.org\"\n host_name = \"goproxy.example.org\"": "Front Door would ask itself",
			`host_name = "https://goproxy.example.com"`:                                                               "without https://",
			`waf = { rate_limit = 10 }`:                                                                               "600 is the least",
			`waf = { managed_rules = "Allow" }`:                                                                       "Log or Block",
		}
		dir := filepath.Join(os.Getenv("TERRAFORM_DIR"), root, "refused")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		files := map[string]string{}
		for variables := range refused {
			// One site is enough for what both have from the same module as it is.
			if root != "staging" && !strings.HasPrefix(variables, "cosmos") {
				continue
			}
			file := fmt.Sprintf("r%d.tftest.hcl", len(files))
			text := before + "\nrun \"refused\" {\n  command = plan\n  variables {\n    " + variables + "\n  }\n}\n"
			if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			files["refused/"+file] = variables
		}
		messages, ok := terraformTest(t, root, "-test-directory=refused")
		if ok {
			t.Errorf("%s: nothing was refused", root)
		}
		said := map[string]string{}
		for _, m := range messages {
			if m.Type == "diagnostic" && m.Diagnostic.Severity == "error" {
				said[m.File] += m.Diagnostic.Detail + "\n"
			}
		}
		for file, variables := range files {
			if want := refused[variables]; !strings.Contains(strings.Join(strings.Fields(said[file]), " "), want) {
				t.Errorf("%s: %s: said %q, want %q", root, variables, said[file], want)
			}
		}
	}
}
