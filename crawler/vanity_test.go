package crawler

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage/memory"
)

// A name is the module's path without what says where in its repository it is, and the
// modules of a tag are found from it.
func TestVanityOf(t *testing.T) {
	const root = "github.com/o/r"
	for _, tc := range []struct {
		path, subdir string
		want         vanity // zero: it is the repository's own
		tag          string
		module       string // of that tag
	}{
		{path: root},
		{path: root + "/v2"},
		{path: root + "/v2", subdir: "v2"},
		{path: root + "/sub", subdir: "sub"},
		{path: root + "/sub/v3", subdir: "sub/v3"},
		{path: root + ".git/sub", subdir: "sub"},
		{"go.example.com/x", "", vanity{Base: "go.example.com/x"}, "v1.2.3", "go.example.com/x@v1.2.3"},
		{"go.example.com/x/v2", "", vanity{Base: "go.example.com/x"}, "v2.1.0", "go.example.com/x/v2@v2.1.0"},
		{"go.example.com/x/v2", "v2", vanity{Base: "go.example.com/x"}, "v2.1.0", "go.example.com/x/v2@v2.1.0"},
		{"go.example.com/x/sub", "sub", vanity{Base: "go.example.com/x"}, "other/v0.1.0", "go.example.com/x/other@v0.1.0"},
		{"go.example.com/x/sub/v3", "sub/v3", vanity{Base: "go.example.com/x"}, "sub/v3.0.1", "go.example.com/x/sub/v3@v3.0.1"},
		{"go.example.com/x/sub/v3", "sub", vanity{Base: "go.example.com/x"}, "sub/v3.0.1", "go.example.com/x/sub/v3@v3.0.1"},
		{"go.example.com/x", "deep/x", vanity{"go.example.com/x", "deep/x"}, "deep/x/v1.0.0", "go.example.com/x@v1.0.0"},
		{"go.example.com/x", "deep/x", vanity{"go.example.com/x", "deep/x"}, "deep/x/y/v1.0.0", "go.example.com/x/y@v1.0.0"},
		{"go.example.com/x", "deep/x", vanity{"go.example.com/x", "deep/x"}, "deep/xy/v1.0.0", ""},
		{"go.example.com/x", "deep/x", vanity{"go.example.com/x", "deep/x"}, "v1.0.0", ""},
		{root, "deep/x", vanity{root, "deep/x"}, "deep/x/v1.0.0", root + "@v1.0.0"},
		{"gopkg.in/x.v3", "", vanity{Base: "gopkg.in/x"}, "v3.0.1", "gopkg.in/x.v3@v3.0.1"},
		{"gopkg.in/o/x.v1", "", vanity{Base: "gopkg.in/o/x"}, "v1.0.1", "gopkg.in/o/x.v1@v1.0.1"},
	} {
		v, ok := vanityOf(tc.path, root, tc.subdir)
		if ok != (tc.want != vanity{}) || ok && v != tc.want {
			t.Errorf("%s in %q: %+v, %v, want %+v", tc.path, tc.subdir, v, ok, tc.want)
		}
		if !ok {
			continue
		}
		found := map[string]bool{}
		for _, m := range modulesOf("elsewhere.example.com/r", []vanity{v}, tc.tag) {
			if m.Path[0] != 'e' {
				found[m.String()] = true
			}
		}
		if tc.module == "" && len(found) > 0 || tc.module != "" && !found[tc.module] {
			t.Errorf("%s in %q: %s is of %v, want %s", tc.path, tc.subdir, tc.tag, found, tc.module)
		}
	}
	if v, ok := vanityOf("example.com/v1", root, ""); ok {
		t.Errorf("of no module path: %+v", v)
	}
}

// The names of a repository are kept once each, and no more than so many.
func TestVanities(t *testing.T) {
	s := memory.New(0, nil)
	a, b := New(s, s, options(source{})), New(s, s, options(source{}))
	info := func(url string) *goproxy.Info { return &goproxy.Info{Origin: fmt.Appendf(nil, `{"URL":%q}`, url)} }
	for range 2 {
		for _, c := range []*Crawler{a, b} {
			c.noteVanity(t.Context(), "go.example.com/x", info("https://github.com/o/r"))
			c.noteVanity(t.Context(), "go.example.com/y/v2", info("https://github.com/o/r.git"))
			c.noteVanity(t.Context(), "github.com/o/r", info("https://github.com/o/r"))
			c.noteVanity(t.Context(), "go.example.com/z", info(""))
			c.noteVanity(t.Context(), "go.example.com/z", &goproxy.Info{})
		}
	}
	names, err := a.vanitiesOf(t.Context(), "github.com/o/r")
	if err != nil || fmt.Sprint(names) != "[{go.example.com/x } {go.example.com/y }]" {
		t.Errorf("%v, %v", names, err)
	}
	before := a.noted.Load()
	a.noteVanity(t.Context(), "go.example.com/x", info("https://github.com/o/"+strings.Repeat("r", maxVanityBytes)))
	if n := a.noted.Load(); n != before {
		t.Errorf("a name of more than %d bytes is kept", maxVanityBytes)
	}
	for i := range 2 * maxVanities {
		b.noteVanity(t.Context(), fmt.Sprintf("go.example.com/m%d", i), info("https://github.com/o/r"))
	}
	if names, err := a.vanitiesOf(t.Context(), "github.com/o/r"); err != nil || len(names) != maxVanities {
		t.Errorf("%d names, %v", len(names), err)
	}
	if list := modulesOf("github.com/o/r", names, "v1.0.0"); len(list) != 4 || list[3] != (module.Version{Path: "go.example.com/y", Version: "v1.0.0"}) {
		t.Errorf("%v", list)
	}
}
