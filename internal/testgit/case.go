package testgit

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
)

// Case is one of vcs's oracle cases: repositories, the go-import pages that name them,
// and what is asked of them.
type Case struct {
	Name string
	Root string // folder of the repositories
	// Pages is the address of a server that answers with the case's pages, by host and
	// path, to whoever takes it for a proxy or for the host itself.
	Pages   string
	Lists   []string // module paths
	Queries []string // path@query
}

// CaseFiles are the oracle cases below the module's root.
func CaseFiles(t testing.TB, moduleRoot string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(moduleRoot, "vcs/testdata/*.txtar"))
	if err != nil || len(files) < 40 {
		t.Fatalf("%d cases, %v", len(files), err)
	}
	return files
}

// OpenCase makes the repositories of a case and serves its pages until the test ends.
func OpenCase(t testing.TB, file string) *Case {
	t.Helper()
	ar, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	section := map[string]string{}
	for _, f := range ar.Files {
		section[f.Name] = string(f.Data)
	}
	c := &Case{Name: strings.TrimSuffix(filepath.Base(file), ".txtar")}
	// git may still write when the test ends: TempDir would complain.
	if c.Root, err = os.MkdirTemp("", "case-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(c.Root) })
	Script(t, c.Root, section["repo.sh"])
	pages := map[string]string{}
	for line := range strings.Lines(section["pages"]) {
		where, content, _ := strings.Cut(strings.TrimSpace(line), " ")
		pages[where] = content
	}
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content, ok := pages[r.Host+r.URL.Path]
		if r.Method == http.MethodConnect || !ok {
			http.Error(w, "not here", http.StatusNotFound)
			return
		}
		fmt.Fprintf(w, "<!DOCTYPE html><html><head><meta name=\"go-import\" content=%q></head><body>x</body></html>", content)
	}))
	t.Cleanup(ts.Close)
	c.Pages = ts.Listener.Addr().String()
	for _, name := range []string{"ask", "refused"} { // what is refused has its reason behind it
		for line := range strings.Lines(section[name]) {
			line = os.Expand(strings.TrimSpace(line), func(name string) string { return c.kept(t, name) })
			if modulePath, ok := strings.CutPrefix(line, "list "); ok {
				c.Lists = append(c.Lists, modulePath)
			} else if query, _, _ := strings.Cut(line, " "); query != "" {
				c.Queries = append(c.Queries, query)
			}
		}
	}
	if len(c.Lists)+len(c.Queries) == 0 {
		t.Fatalf("%s asks nothing", file)
	}
	return c
}

// kept is what the script kept under a name.
func (c *Case) kept(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(c.Root, "var", name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}
