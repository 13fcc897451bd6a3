package cli

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/testupstream"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/memory"
	"github.com/athensctl/athensctl/storage/storagetest"
)

// write makes files in a folder of the test's.
func write(t *testing.T, files map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, content := range files {
		name = filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// What each kind of file names, by its name; what is none of it is an error that says where.
func TestSeeds(t *testing.T) {
	dir := write(t, map[string]string{
		"go.mod": "module example.com/main\n\ngo 1.21\n\ntoolchain go1.26.1\n\nrequire (\n\texample.com/a v1.0.0\n\texample.com/Upper v1.1.0 // indirect\n" +
			"\texample.com/local v1.0.0\n\texample.com/fork v1.0.0\n\texample.com/other v1.0.0\n)\n\nreplace example.com/local => ../local\n\n" +
			"replace example.com/fork v1.0.0 => example.com/ours v1.0.1\n\nreplace example.com/other v0.9.0 => example.com/never v1.0.0\n\nexclude example.com/bad v1.0.0\n",
		"other.mod":  "module example.com/x\n\nrequire example.com/b v0.0.0-20240102030405-abcdefabcdef\n\nunknown directive\n",
		"go.sum":     "example.com/a v1.0.0 h1:aaaa\nexample.com/a v1.0.0/go.mod h1:bbbb\n\nexample.com/modonly v1.2.0/go.mod h1:cccc\n",
		"list.txt":   "# the ones we need\nexample.com/a\nexample.com/b v1.2.3\nexample.com/c@main # a branch\n\n  example.com/d@v1.0.0-rc.1  \n",
		"go.work":    "go 1.21\n\nuse (\n\t./one\n\t./two\n)\n\nreplace example.com/w => example.com/w2 v1.0.0\n",
		"one/go.mod": "module example.com/one\n\nrequire example.com/a v1.0.0\n",
		"two/go.mod": "module example.com/two\n\nrequire example.com/b v1.0.0\n",
		"away.work":  "", "away/go.work": "go 1.21\n\nuse ./nowhere\n",
		"bad.mod": "module \"\n", "bad/go.work": "go 1.21\n\nuse\n",
		"short.sum": "example.com/a v1.0.0 h1:aaaa\nexample.com/a v1.0.0\n", "old.sum": "example.com/a v1.0.0 md5:aaaa\n",
		"words.txt": "example.com/a v1.0.0 and more\n", "path.txt": "example.com/a v1.0.0\nnot-a-path\n",
	})
	for _, tc := range []struct {
		file string
		want string // path@version, "+zip" where its zip is wanted, the hashes that are known
		err  string
	}{
		{"go.mod", "example.com/Upper@v1.1.0+zip, example.com/a@v1.0.0+zip, example.com/never@v1.0.0+zip, example.com/other@v1.0.0+zip, example.com/ours@v1.0.1+zip", ""},
		{"other.mod", "example.com/b@v0.0.0-20240102030405-abcdefabcdef+zip", ""},
		{"go.sum", "example.com/a@v1.0.0+zip h1:aaaa h1:bbbb, example.com/modonly@v1.2.0 h1:cccc", ""},
		{"list.txt", "example.com/a@latest+zip, example.com/b@v1.2.3+zip, example.com/c@main+zip, example.com/d@v1.0.0-rc.1+zip", ""},
		{"go.work", "example.com/a@v1.0.0+zip, example.com/b@v1.0.0+zip, example.com/w2@v1.0.0+zip", ""},
		{"away/go.work", "", filepath.Join("away", "nowhere", "go.mod")},
		{"bad.mod", "", "bad.mod:1"},
		{"bad/go.work", "", "go.work:3"},
		{"short.sum", "", "short.sum:2: not a line of a go.sum file"},
		{"old.sum", "", "old.sum:1: not a line of a go.sum file"},
		{"words.txt", "", `words.txt:1: "example.com/a v1.0.0 and more" is not a module path and a version`},
		{"path.txt", "", "path.txt:2: malformed module path"},
		{"none.txt", "", "none.txt"},
	} {
		s := seeds{}
		err := s.read(filepath.Join(dir, filepath.FromSlash(tc.file)))
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: %v, want %q", tc.file, err, tc.err)
			}
			continue
		}
		var got []string
		for m, want := range s {
			text := m.String()
			if want.zip {
				text += "+zip"
			}
			got = append(got, strings.Join(strings.Fields(text+" "+want.zipH1+" "+want.modH1), " "))
		}
		slices.Sort(got)
		if err != nil || strings.Join(got, ", ") != tc.want {
			t.Errorf("%s: %v, %v\nwant %s", tc.file, strings.Join(got, ", "), err, tc.want)
		}
	}
	// Several files are one set, with the most that any of them says.
	s := seeds{}
	for _, f := range []string{"go.sum", "list.txt", "go.mod"} {
		if err := s.read(filepath.Join(dir, f)); err != nil {
			t.Fatal(err)
		}
	}
	a := module.Version{Path: "example.com/a", Version: "v1.0.0"}
	if got := s[a]; got != (seed{zip: true, zipH1: "h1:aaaa", modH1: "h1:bbbb"}) || len(s) != 9+1 {
		t.Errorf("%+v; %d in all: %v", got, len(s), slices.Collect(maps.Keys(s)))
	}
}

// A workspace's seeds are the modules that the go command works with there, whatever replaces
// whose replacements; what is replaced need not be anywhere. Of a module of the workspace that
// another requires the go.mod file is needed, as by the go command.
func TestWorkspaceSeeds(t *testing.T) {
	up := testupstream.Start(t)
	for _, name := range []string{"plain", "work-all", "work-over-one", "work-one", "one-free", "one-other", "one", "two-free", "work-two"} {
		if err := up.Add(testupstream.Module{Path: "example.com/" + name, Version: "v1.0.0"}); err != nil {
			t.Fatal(err)
		}
	}
	dir := write(t, map[string]string{
		"go.work": "go 1.21\n\nuse (\n\t./one\n\t./two\n)\n\nreplace (\n" +
			// Of all versions, over what two modules say in two ways, and over that of one version.
			"\texample.com/x => example.com/work-all v1.0.0\n" +
			"\texample.com/y => example.com/work-over-one v1.0.0\n" +
			// Of one version: those of the others stay.
			"\texample.com/z v1.0.0 => example.com/work-one v1.0.0\n" +
			"\texample.com/other v0.9.0 => ./local\n" +
			"\texample.com/local v1.0.0 => ./local\n" +
			"\texample.com/two v1.0.0 => example.com/work-two v1.0.0\n)\n",
		"one/go.mod": "module example.com/one\n\ngo 1.21\n\nrequire (\n\texample.com/plain v1.0.0\n\texample.com/x v1.0.0\n\texample.com/y v1.0.0\n\texample.com/z v1.0.0\n" +
			"\texample.com/local v1.0.0\n\texample.com/free v1.0.0\n\texample.com/two v1.0.0\n)\n\nreplace (\n" +
			"\texample.com/x => example.com/never v1.0.0\n\texample.com/y v1.0.0 => example.com/never v1.1.0\n" +
			"\texample.com/free => example.com/one-free v1.0.0\n\texample.com/other => example.com/one-other v1.0.0\n)\n",
		"two/go.mod": "module example.com/two\n\ngo 1.21\n\nrequire (\n\texample.com/plain v1.0.0\n\texample.com/x v1.0.0\n" +
			"\texample.com/free v1.0.0\n\texample.com/other v1.0.0\n\texample.com/one v1.0.0\n)\n\nreplace example.com/x => ../elsewhere\n",
		"local/go.mod": "module example.com/local\n\ngo 1.21\n",
	})
	work := filepath.Join(dir, "go.work")
	list := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{with .Replace}}{{.Path}}@{{.Version}}{{else}}{{.Path}}@{{.Version}}{{end}}", "all")
	list.Dir = dir
	list.Env = append(up.GoEnv("", t.TempDir()), "GOWORK="+work)
	out, err := list.CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	var wantZips, wantMods []string
	for _, m := range strings.Fields(string(out)) {
		if !strings.HasSuffix(m, "@") { // a folder, or of the workspace
			wantZips = append(wantZips, m)
		}
	}
	for _, r := range up.Log() {
		if r.Kind == testupstream.Mod {
			wantMods = append(wantMods, r.Path+"@"+r.Version)
		}
	}
	all := seeds{}
	if err := all.read(work); err != nil {
		t.Fatal(err)
	}
	var zips, mods []string
	for m, s := range all {
		mods = append(mods, m.String())
		if s.zip {
			zips = append(zips, m.String())
		}
	}
	for _, list := range [][]string{zips, mods, wantZips, wantMods} {
		slices.Sort(list)
	}
	if !slices.Equal(zips, wantZips) || len(zips) != 6 {
		t.Errorf("zips of %q\nthe go command works with %q", zips, wantZips)
	}
	if !slices.Equal(mods, wantMods) || len(mods) != 8 {
		t.Errorf("go.mod files of %q\nthe go command asks for %q", mods, wantMods)
	}
}

// A hash of go.sum that is another one is a failure of that version, which says both; the
// others are brought.
func TestWarmMismatch(t *testing.T) {
	s := memory.New(0, nil)
	all := seeds{}
	h1 := func(v storagetest.Version) (zip, mod string) {
		name := filepath.Join(t.TempDir(), "zip")
		if err := os.WriteFile(name, v.Zip, 0o644); err != nil {
			t.Fatal(err)
		}
		zip, _, err := storage.CheckZip(v.Version, name)
		if err != nil {
			t.Fatal(err)
		}
		mod, err = goproxy.ModH1(v.Mod)
		if err != nil {
			t.Fatal(err)
		}
		return zip, mod
	}
	for i, spoil := range []string{"", "zip", "mod", ""} {
		v := storagetest.New(fmt.Sprintf("example.com/m%d", i), "v1.0.0", "x")
		if err := s.Put(t.Context(), v.Version, v.Files()); err != nil {
			t.Fatal(err)
		}
		zip, mod := h1(v)
		want := seed{zip: true, zipH1: zip, modH1: mod}
		switch spoil {
		case "zip":
			want.zipH1 = "h1:anotherzip="
		case "mod":
			want.modH1 = "h1:anothermod="
		}
		all.add(v.Version, want)
	}
	var stderr bytes.Buffer
	r := warmAll(t.Context(), s, all, 2, newBar(io.Discard), &stderr)
	if r.Done.Load() != 2 || r.Failed.Load() != 2 {
		t.Errorf("%d done, %d failed", r.Done.Load(), r.Failed.Load())
	}
	for _, want := range []string{"example.com/m1@v1.0.0: the zip has h1:", "go.sum says h1:anotherzip=", "example.com/m2@v1.0.0: go.mod has h1:", "go.sum says h1:anothermod="} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("%q is not in\n%s", want, stderr.String())
		}
	}
}

// Without a server warm fetches by itself into the store that the settings name, and what
// is there is not fetched again.
func TestWarmWithoutServer(t *testing.T) {
	up := testupstream.New(t)
	up.Add("example.com/a", "v1.0.0", 1<<10)
	up.Add("example.com/b", "v1.1.0", 1<<10)
	dir := write(t, map[string]string{"go.mod": "module example.com/main\n\nrequire (\n\texample.com/a v1.0.0\n\texample.com/b v1.1.0\n)\n"})
	data := t.TempDir()
	run := func(args ...string) (out, stderr string, status int) {
		var o, e bytes.Buffer
		status = Main(append([]string{"warm", "--upstream", up.URL, "--sumdb=off", "--data-dir", data, "--vcs-netrc=off"}, args...), nil, &o, &e)
		return o.String(), e.String(), status
	}
	for range 2 {
		if out, stderr, status := run(filepath.Join(dir, "go.mod")); status != 0 || !strings.HasPrefix(out, "2 versions, 0 failed, ") {
			t.Errorf("%d: %s%s", status, out, stderr)
		}
	}
	if path, n := up.MostAsked(".zip"); n != 1 {
		t.Errorf("%s was asked for %d times", path, n)
	}
	for _, name := range []string{"a/@v/v1.0.0.zip", "b/@v/v1.1.0.info"} {
		if found, err := filepath.Glob(filepath.Join(data, "*", "example.com", filepath.FromSlash(name))); err != nil || len(found) != 1 {
			t.Errorf("%s is not kept: %v, %v", name, found, err)
		}
	}
	if out, stderr, status := run("example.com/a@v1.0.0", "example.com/none@v1.0.0"); status != 1 || !strings.HasPrefix(out, "1 versions, 1 failed") || !strings.Contains(stderr, "example.com/none@v1.0.0: not found") {
		t.Errorf("what upstream has not: %d: %s%s", status, out, stderr)
	}
	for arg, want := range map[string]string{"--role=storage": "warm needs a crawler, or --server", "--network-mode=offline": "nothing can be fetched", "--server=ftp://x": "is not one http or https URL"} {
		if _, stderr, status := run(arg, "example.com/a@v1.0.0"); status != 1 || !strings.Contains(stderr, want) {
			t.Errorf("%s: %d: %s", arg, status, stderr)
		}
	}
}
