// Package importrules holds who may import whom.
package importrules

import (
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const root = "github.com/athensctl/athensctl"

// A rule: packages that match from (and are not in except) import nothing that
// matches never. Patterns are path.Match, or a prefix that ends in "/...".
type rule struct {
	from   string
	except []string
	never  []string
	why    string
}

var rules = []rule{
	{root, nil, []string{root + "/config", root + "/proxy", root + "/storage", root + "/crawler", root + "/goproxy"}, "main only starts internal/cli"},
	{root + "/...", []string{root}, []string{root + "/internal/cli"}, "the wiring is at the top: nothing imports it"},
	{root + "/proxy", nil, []string{root + "/crawler", root + "/storage/...", root + "/config"}, "the proxy reaches the other roles through interfaces, and holds no database"},
	{root + "/crawler", nil, []string{root + "/proxy", root + "/storage/...", root + "/config"}, "the crawler reaches storage through its interfaces"},
	{root + "/storage", nil, []string{root + "/proxy", root + "/crawler", root + "/config", root + "/internal/..."}, "storage knows nobody but the protocol"},
	{root + "/storage/...", nil, []string{root + "/proxy", root + "/crawler", root + "/config"}, "a backend is storage's"},
	{root + "/goproxy", nil, []string{root + "/..."}, "the protocol rests on nothing of ours"},
	{root + "/...", []string{root + "/internal/cli"}, []string{"github.com/spf13/cobra"}, "the command line is in one place"},
	{root + "/...", []string{root + "/config"}, []string{"github.com/spf13/viper"}, "configuration is read in one place"},
	{root + "/...", []string{root + "/storage/disk"}, []string{"go.etcd.io/bbolt/..."}, "a database belongs to its backend"},
	{root + "/...", []string{root + "/bench"}, []string{"os/exec"}, "no role starts a process"},
}

func matches(pattern, pkg string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "/..."); ok {
		return strings.HasPrefix(pkg, prefix+"/") || pkg == prefix && !strings.HasPrefix(pattern, root)
	}
	ok, _ := path.Match(pattern, pkg)
	return ok
}

func violations(graph map[string][]string) (found, idle []string) {
	for _, r := range rules {
		applies := false
		for pkg, imports := range graph {
			if !matches(r.from, pkg) && !(r.from == root+"/..." && pkg == root) || slices.Contains(r.except, pkg) {
				continue
			}
			applies = true
			for _, i := range imports {
				if slices.ContainsFunc(r.never, func(n string) bool { return matches(n, i) }) {
					found = append(found, pkg+" imports "+i+": "+r.why)
				}
			}
		}
		if !applies {
			idle = append(idle, r.from)
		}
	}
	return found, idle
}

func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}} {{join .Imports \" \"}}", root+"/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	graph := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		graph[f[0]] = f[1:]
	}
	found, idle := violations(graph)
	for _, v := range found {
		t.Error(v)
	}
	for _, r := range idle {
		t.Errorf("the rule for %s matches no package", r)
	}
	// goproxy rests on x/mod, x/sync, echo and the standard library alone.
	for _, i := range graph[root+"/goproxy"] {
		if strings.Contains(strings.Split(i, "/")[0], ".") && !strings.HasPrefix(i, "golang.org/x/mod/") && !strings.HasPrefix(i, "golang.org/x/sync/") && i != "github.com/labstack/echo/v4" {
			t.Errorf("goproxy imports %s", i)
		}
	}
}

func TestViolationsAreFound(t *testing.T) {
	found, idle := violations(map[string][]string{
		root + "/proxy":   {root + "/storage/disk", "os/exec"},
		root + "/goproxy": {root + "/storage"},
	})
	if len(found) != 3 {
		t.Errorf("found %q, want 3 violations", found)
	}
	if !slices.Contains(idle, root+"/crawler") {
		t.Errorf("idle %q: the rule for crawler has nothing to check", idle)
	}
}
