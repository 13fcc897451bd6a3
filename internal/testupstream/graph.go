package testupstream

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/module"
)

// Graph describes modules that need each other.
type Graph struct {
	Prefix   string // of the module paths; "": graph.test
	Modules  int
	Versions int   // of each module, from v1.0.0 to v1.(n-1).0; 0: 3
	ZipBytes int64 // of each zip; 0: as small as can be
	Seed     uint64
}

// Root is a main module that needs every module of a graph, in a version in the
// middle, so that go list -m -u finds newer ones.
type Root struct {
	Requires []module.Version
	Files    map[string]string // go.mod and main.go
}

// Write puts the main module into a folder, which is made where it is missing.
func (r Root) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	for name, text := range r.Files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o666); err != nil {
			return err
		}
	}
	return nil
}

// AddGraph adds the modules of g and returns a main module for them. Each
// module needs up to three others in older versions. Every fourth one is of Go
// 1.16, before graph pruning, so that the go command reads go.mod files which
// the main module does not name.
func (u *Upstream) AddGraph(g Graph) (Root, error) {
	if g.Prefix == "" {
		g.Prefix = "graph.test"
	}
	if g.Versions == 0 {
		g.Versions = 3
	}
	path := func(i int) string { return fmt.Sprintf("%s/m%04d", g.Prefix, i) }
	version := func(k int) string { return fmt.Sprintf("v1.%d.0", k) }
	middle := g.Versions / 2
	var root Root
	var imports strings.Builder
	for i := range g.Modules {
		root.Requires = append(root.Requires, module.Version{Path: path(i), Version: version(middle)})
		fmt.Fprintf(&imports, "import _ %q\n", path(i))
		goVersion := "1.20"
		if i%4 == 0 {
			goVersion = "1.16"
		}
		var needs []module.Version
		for n := 1; n <= 3 && i+n < g.Modules; n++ {
			needs = append(needs, module.Version{Path: path(i + n), Version: version(max(0, middle-n))})
		}
		for k := range g.Versions {
			err := u.Add(Module{
				Path: path(i), Version: version(k), Time: defaultTime.Add(time.Duration(k) * 24 * time.Hour),
				Files: map[string]string{
					"go.mod": GoMod(path(i), goVersion, needs...),
					"m.go":   fmt.Sprintf("package m%04d\n\nconst Version = %q\n", i, version(k)),
				},
				ZipBytes: g.ZipBytes, Seed: g.Seed,
			})
			if err != nil {
				return Root{}, err
			}
		}
	}
	root.Files = map[string]string{
		"go.mod":  GoMod(g.Prefix+"/root", "1.21", root.Requires...),
		"main.go": "package main\n\n" + imports.String() + "\nfunc main() {}\n",
	}
	return root, nil
}
