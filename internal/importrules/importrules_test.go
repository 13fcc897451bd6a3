// Package importrules holds who may import whom: "Who may import whom" of the
// design, as a test. A rule that has nothing to hold any more (its package was
// renamed, its dependency dropped) fails too. Imports of test files are free.
package importrules

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const ours = "github.com/athensctl/athensctl"

// Names of our packages are relative to the module, and "." is its root; all
// others are import paths. A pattern that ends in "/..." is a package and all
// below it; one that ends in "..." is all that begin so.

// allowed: which of our packages pkg may import directly. With alone set it
// imports no other module but these either.
var allowed = []struct {
	pkg   string
	only  []string
	alone bool
	why   string
}{
	{pkg: ".", only: []string{"internal/cli"}, alone: true,
		why: "main starts internal/cli, and nothing else"},
	{pkg: "goproxy", only: []string{"golang.org/x/mod/...", "golang.org/x/sync/...", "github.com/labstack/echo/v4/..."}, alone: true,
		why: "the protocol rests on nothing of ours, so that every role can speak it"},
	{pkg: "proxy", only: []string{"goproxy", "storage", "internal/..."},
		why: "the proxy reaches the other roles through interfaces alone"},
	{pkg: "crawler", only: []string{"goproxy", "storage", "internal/..."},
		why: "the crawler reaches storage and its Sources through interfaces alone"},
	{pkg: "storage", only: []string{"goproxy", "internal/..."},
		why: "storage knows the protocol, and neither its backends nor the other roles"},
	{pkg: "storage/disk", only: []string{"goproxy", "storage", "storage/kv", "internal/..."},
		why: "a backend knows no other backend"},
	{pkg: "storage/memory", only: []string{"goproxy", "storage", "storage/kv", "internal/..."},
		why: "a backend knows no other backend"},
	{pkg: "storage/cosmos", only: []string{"goproxy", "storage", "storage/kv", "storage/blob", "internal/..."},
		why: "a backend knows no other backend; cosmos keeps its zips in blob"},
	{pkg: "storage/blob", only: []string{"goproxy", "storage", "internal/..."},
		why: "a backend knows no other backend"},
	{pkg: "vcs", only: []string{"goproxy", "vcs/git", "vcs/remote"},
		why: "a git host is a Source, and nothing more"},
	{pkg: "vcs/git", only: []string{"goproxy"},
		why: "git's protocol knows nothing of modules"},
	{pkg: "vcs/remote", only: []string{"goproxy"},
		why: "who may be reached is not the protocol's business"},
	{pkg: "config", only: []string{"internal/..."},
		why: "settings are plain values: who uses them is the wiring's to know"},
}

// apart: what from must not reach, neither directly nor through others.
var apart = []struct {
	from, to []string
	why      string
}{
	{from: []string{"proxy"}, to: []string{"crawler"},
		why: "the roles are processes of their own"},
	{from: []string{"crawler"}, to: []string{"proxy"},
		why: "the roles are processes of their own"},
	{from: []string{"proxy", "crawler"}, to: []string{"storage/disk", "storage/memory", "storage/kv"},
		why: "only storage has a database"},
	{from: []string{"proxy", "crawler"}, to: []string{"storage/cosmos"},
		why: "only storage has a database and its credentials"},
	{from: []string{"proxy", "crawler"}, to: []string{"storage/blob"},
		why: "only storage has a database and its credentials"},
	{from: []string{"storage/..."}, to: []string{"proxy", "crawler", "config"},
		why: "storage serves the other roles, and is given its settings"},
	{from: []string{"proxy", "storage/..."}, to: []string{"vcs", "vcs/git", "vcs/remote"},
		why: "no git but in the crawler, which is handed it by internal/cli"},
	{from: []string{"proxy", "crawler", "storage/...", "goproxy"}, to: []string{"config"},
		why: "packages are given what they need, not the settings of everything"},
	{from: []string{"."}, to: []string{"bench/...", "internal/test...", "internal/e2e", "storage/storagetest"},
		why: "what only tests need is not in the binary"},
}

// homes: the only packages that import dep directly.
var homes = []struct {
	dep string
	in  []string
	why string
}{
	{dep: ours + "/internal/cli", in: []string{"."},
		why: "it knows every package, so none may know it"},
	{dep: "github.com/spf13/cobra", in: []string{"internal/cli"},
		why: "the command line is in one place"},
	{dep: "github.com/spf13/viper", in: []string{"config"},
		why: "settings are read in one place"},
	{dep: "go.etcd.io/bbolt/...", in: []string{"storage/disk"},
		why: "a database belongs to its backend"},
	{dep: "github.com/Azure/...", in: []string{"storage/cosmos", "storage/blob"},
		why: "Azure is the business of its two backends"},
	{dep: "github.com/pjbgf/sha1cd", in: []string{"vcs/git"},
		why: "git is spoken in one place"},
	{dep: "golang.org/x/crypto/ssh/...", in: []string{"vcs/remote", "internal/test..."},
		why: "who may be reached over SSH, and with which key, is decided in one place"},
	{dep: "go.opentelemetry.io/otel/sdk/...", in: []string{"internal/tracing"},
		why: "how spans are kept and sent is decided in one place; others know the interface"},
	{dep: "go.opentelemetry.io/otel/exporters/...", in: []string{"internal/tracing"},
		why: "traces leave the process in one place"},
	{dep: "os/exec", in: []string{"bench/...", "internal/test...", "internal/e2e", "test/image"},
		why: "no role starts a process"},
}

// A graph is what each package imports directly. It has every package of ours,
// and those that they reach.
type graph map[string]pkg

type pkg struct {
	imports  []string
	standard bool
}

func isOurs(path string) bool { return path == ours || strings.HasPrefix(path, ours+"/") }

// full is the import path of a name in the tables above.
func full(name string) string {
	first, _, _ := strings.Cut(name, "/")
	switch {
	case name == ".":
		return ours
	case strings.Contains(strings.TrimSuffix(first, "..."), "."), name == "os/exec":
		return name
	}
	return ours + "/" + name
}

func matches(name, path string) bool {
	name = full(name)
	if below, ok := strings.CutSuffix(name, "/..."); ok {
		return path == below || strings.HasPrefix(path, below+"/")
	}
	if prefix, ok := strings.CutSuffix(name, "..."); ok {
		return strings.HasPrefix(path, prefix)
	}
	return path == name
}

func matchesAny(names []string, path string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return matches(n, path) })
}

// here are the packages of the graph that the name matches.
func (g graph) here(name string) []string {
	var found []string
	for _, path := range slices.Sorted(maps.Keys(g)) {
		if matches(name, path) {
			found = append(found, path)
		}
	}
	return found
}

// chain is the shortest way from a package to one that names match, or nil.
func (g graph) chain(from string, names []string) []string {
	seen := map[string]bool{from: true}
	for ways := [][]string{{from}}; len(ways) > 0; ways = ways[1:] {
		way := ways[0]
		for _, i := range g[way[len(way)-1]].imports {
			longer := append(slices.Clip(way), i)
			if matchesAny(names, i) {
				return longer
			}
			if !seen[i] && isOurs(i) {
				seen[i] = true
				ways = append(ways, longer)
			}
		}
	}
	return nil
}

// check is what breaks a rule, each with the rule's why, and the rules that do
// not fit the packages there are.
func check(g graph) (broken, unfit []string) {
	breaks := func(why string, way ...string) {
		broken = append(broken, strings.ReplaceAll(strings.Join(way, " imports "), ours+"/", "")+": "+why)
	}
	fit := func(why string, absent ...string) {
		if len(absent) > 0 {
			unfit = append(unfit, fmt.Sprintf("%q: there is no %s", why, strings.Join(absent, ", ")))
		}
	}
	absentOf := func(names ...string) (absent []string) {
		for _, n := range names {
			if len(g.here(n)) == 0 {
				absent = append(absent, n)
			}
		}
		return absent
	}

	for _, r := range allowed {
		fit(r.why, absentOf(r.pkg)...)
		for _, i := range g[full(r.pkg)].imports {
			if (isOurs(i) || r.alone && !g[i].standard) && !matchesAny(r.only, i) {
				breaks(r.why, full(r.pkg), i)
			}
		}
	}
	for _, r := range apart {
		fit(r.why, absentOf(append(slices.Clone(r.from), r.to...)...)...)
		for _, from := range r.from {
			for _, path := range g.here(from) {
				if way := g.chain(path, r.to); way != nil {
					breaks(r.why, way...)
				}
			}
		}
	}
	for _, r := range homes {
		used := false
		for path, p := range g {
			if !isOurs(path) {
				continue
			}
			for _, i := range p.imports {
				switch {
				case !matches(r.dep, i) || matches(r.dep, path):
				case matchesAny(r.in, path):
					used = true
				default:
					breaks(r.why, path, i)
				}
			}
		}
		if !used {
			fit(r.why, strings.Join(r.in, " or ")+" that imports "+r.dep)
		}
	}
	slices.Sort(broken)
	return broken, unfit
}

func TestImports(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	watch(t, root)
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Imports,Standard", "./...")
	cmd.Dir = root
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	g := graph{}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
			Standard   bool
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		g[p.ImportPath] = pkg{p.Imports, p.Standard}
	}
	broken, unfit := check(g)
	for _, b := range broken {
		t.Error(b)
	}
	for _, u := range unfit {
		t.Errorf("the rule %s", u)
	}
}

// watch opens every folder of the module, so that go test sees when a file has
// changed and does not answer from its cache.
func watch(t *testing.T, root string) {
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // removed meanwhile
			return nil
		case err != nil:
			return err
		case e.IsDir() && path != root && (strings.HasPrefix(e.Name(), ".") || e.Name() == "bin" || e.Name() == "node_modules"):
			return fs.SkipDir
		case e.IsDir():
			_, err = os.ReadDir(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// sound is a made-up graph in which every rule but those of the future has
// something to hold, and none is broken.
func sound() graph {
	g := graph{}
	for path, imports := range map[string]string{
		".":                     "internal/cli os",
		"bench":                 "os/exec",
		"config":                "github.com/spf13/viper",
		"crawler":               "goproxy storage internal/fleet",
		"goproxy":               "net/http github.com/labstack/echo/v4 golang.org/x/mod/module golang.org/x/sync/singleflight",
		"internal/cli":          "config crawler goproxy proxy storage storage/disk storage/memory github.com/spf13/cobra",
		"internal/e2e":          "",
		"internal/fleet":        "",
		"internal/testupstream": "os/exec",
		"internal/tracing":      "go.opentelemetry.io/otel/sdk/trace go.opentelemetry.io/otel/exporters/otlp/otlptrace",
		"proxy":                 "goproxy storage internal/fleet",
		"storage":               "goproxy",
		"storage/blob":          "goproxy github.com/Azure/azure-sdk-for-go/sdk/storage/azblob",
		"storage/cosmos":        "goproxy storage github.com/Azure/azure-sdk-for-go/sdk/data/azcosmos",
		"storage/disk":          "goproxy storage storage/kv go.etcd.io/bbolt",
		"storage/kv":            "goproxy storage",
		"storage/memory":        "goproxy storage storage/kv",
		"storage/storagetest":   "goproxy storage",
		"vcs":                   "goproxy vcs/git vcs/remote",
		"vcs/git":               "goproxy github.com/pjbgf/sha1cd",
		"vcs/remote":            "goproxy golang.org/x/crypto/ssh",
	} {
		g.add(path, strings.Fields(imports)...)
	}
	for _, std := range []string{"os", "os/exec", "net/http"} {
		g[std] = pkg{standard: true}
	}
	return g
}

func (g graph) add(path string, imports ...string) {
	p := g[full(path)]
	for _, i := range imports {
		if i != "os" && i != "net/http" {
			i = full(i)
		}
		p.imports = append(p.imports, i)
	}
	g[full(path)] = p
}

func TestViolationsAreFound(t *testing.T) {
	if broken, unfit := check(sound()); len(broken)+len(unfit) > 0 {
		t.Fatalf("the sound graph: %q, %q", broken, unfit)
	}

	// Each makes one package import one more.
	seen := map[string]bool{}
	for _, tt := range []struct{ from, to, want string }{
		{".", "goproxy", "main starts"},
		{".", "github.com/spf13/pflag", "main starts"},
		{"bench", "internal/cli", "none may know it"},
		{"goproxy", "internal/fleet", "rests on nothing of ours"},
		{"goproxy", "github.com/prometheus/client_golang/prometheus", "rests on nothing of ours"},
		{"goproxy", "golang.org/x/model", "rests on nothing of ours"},
		{"proxy", "crawler", "processes of their own"},
		{"crawler", "proxy", "processes of their own"},
		{"internal/fleet", "crawler", "internal/fleet imports crawler: the roles are processes"},
		{"proxy", "storage/disk", "the proxy reaches"},
		{"crawler", "storage/memory", "the crawler reaches"},
		{"internal/fleet", "storage/kv", "only storage has a database"},
		{"proxy", "storage/cosmos", "only storage has a database and its credentials"},
		{"crawler", "storage/blob", "only storage has a database and its credentials"},
		{"proxy", "config", "packages are given"},
		{"storage", "storage/storagetest", "storage knows the protocol"},
		{"storage/disk", "storage/memory", "a backend knows no other"},
		{"storage/memory", "storage/disk", "a backend knows no other"},
		{"storage/cosmos", "storage/disk", "cosmos keeps its zips"},
		{"storage/blob", "storage/cosmos", "a backend knows no other"},
		{"storage/kv", "proxy", "storage serves"},
		{"storage", "vcs", "no git but in the crawler"},
		{"vcs", "storage", "a git host is a Source"},
		{"vcs/git", "vcs/remote", "git's protocol knows nothing"},
		{"vcs/remote", "vcs/git", "who may be reached"},
		{"vcs/git", "golang.org/x/crypto/ssh", "who may be reached over SSH"},
		{"config", "goproxy", "settings are plain values"},
		{"internal/cli", "internal/testupstream", "what only tests need"},
		{"internal/cli", "storage/storagetest", "what only tests need"},
		{"config", "github.com/spf13/cobra", "the command line"},
		{"internal/cli", "github.com/spf13/viper", "settings are read"},
		{"storage/kv", "go.etcd.io/bbolt/errors", "a database belongs"},
		{"internal/cli", "github.com/Azure/azure-sdk-for-go/sdk/azidentity", "Azure is"},
		{"crawler", "github.com/pjbgf/sha1cd", "git is spoken"},
		{"crawler", "go.opentelemetry.io/otel/sdk/trace", "how spans are kept"},
		{"internal/cli", "go.opentelemetry.io/otel/exporters/otlp/otlptrace", "traces leave"},
		{"crawler", "os/exec", "no role starts a process"},
		{"storage/storagetest", "os/exec", "no role starts a process"},
	} {
		g := sound()
		g.add(tt.from, tt.to)
		broken, _ := check(g)
		if !slices.ContainsFunc(broken, func(b string) bool { return strings.Contains(b, tt.want) }) {
			t.Errorf("%s imports %s: found %q, want %q", tt.from, tt.to, broken, tt.want)
		}
		for _, why := range whys() {
			if slices.ContainsFunc(broken, func(b string) bool { return strings.HasSuffix(b, ": "+why) }) {
				seen[why] = true
			}
		}
	}
	for _, why := range whys() {
		if !seen[why] {
			t.Errorf("no case above breaks the rule %q", why)
		}
	}
}

func whys() (whys []string) {
	for _, r := range allowed {
		whys = append(whys, r.why)
	}
	for _, r := range apart {
		whys = append(whys, r.why)
	}
	for _, r := range homes {
		whys = append(whys, r.why)
	}
	return whys
}

// A rule whose package is gone, or whose dependency is used no more, is told.
func TestUnfitRulesAreFound(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(graph)
		want string
	}{
		{"a role was renamed", func(g graph) { delete(g, ours+"/crawler") }, "there is no crawler"},
		{"a backend was renamed", func(g graph) { delete(g, ours+"/storage/disk") }, "there is no storage/disk"},
		{"a test package was renamed", func(g graph) { delete(g, ours+"/internal/testupstream") }, "there is no internal/test..."},
		{"viper was dropped", func(g graph) { g[ours+"/config"] = pkg{} }, "there is no config that imports github.com/spf13/viper"},
		{"sha1cd was dropped", func(g graph) { g[ours+"/vcs/git"] = pkg{} }, "there is no vcs/git that imports github.com/pjbgf/sha1cd"},
	} {
		g := sound()
		tt.edit(g)
		if _, unfit := check(g); !slices.ContainsFunc(unfit, func(u string) bool { return strings.Contains(u, tt.want) }) {
			t.Errorf("%s: found %q, want %q", tt.name, unfit, tt.want)
		}
	}
}
