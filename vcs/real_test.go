package vcs

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
	"golang.org/x/mod/sumdb/dirhash"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/testgit"
	"github.com/athensctl/athensctl/vcs/remote"
)

// realExceptions are the versions whose hash cannot come out of a repository that was
// made of their zip, and why. One that does come out is an error too.
var realExceptions = map[string]string{
	"github.com/docker/cli@v29.9.1+incompatible": crlfAdded,
	"github.com/docker/cli@v29.9.2+incompatible": crlfAdded,
	"github.com/docker/cli@v29.9.3+incompatible": crlfAdded,
}

const crlfAdded = "its .gitattributes says text=auto: git add makes LF of the CRLF that a file of the zip has"

// realModule is a line of testdata/real.txt.
type realModule struct {
	path     string
	root     string // of its repository
	dir      string // in it, of what is in the zip
	tags     string // before its versions: "", or "sub/dir/"
	folder   bool   // dir ends with the major version
	versions []string
}

func readRealModules(t *testing.T) (list []*realModule) {
	t.Helper()
	for line := range strings.Lines(readFile(t, "testdata/real.txt")) {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		m := &realModule{path: words[0]}
		prefix, major, ok := module.SplitPathVersion(m.path)
		if !ok {
			t.Fatalf("%q is not a module path", m.path)
		}
		m.root = prefix
		if strings.HasPrefix(m.path, "gopkg.in/") {
			m.root, prefix, major = m.path, m.path, ""
		} else if parts := strings.Split(prefix, "/"); parts[0] == "github.com" {
			m.root = strings.Join(parts[:3], "/")
		}
		for _, w := range words[1:] {
			switch key, value, _ := strings.Cut(w, "="); key {
			case "root":
				m.root = value
			case "layout":
				m.folder = value == "folder"
			default:
				m.versions = append(m.versions, w)
			}
		}
		if m.dir = strings.Trim(strings.TrimPrefix(prefix, m.root), "/"); m.dir != "" {
			m.tags = m.dir + "/"
		}
		if m.folder {
			m.dir = path.Join(m.dir, strings.Trim(major, "/"))
		}
		list = append(list, m)
	}
	return list
}

// realDownload is what go mod download -json says of a version.
type realDownload struct{ Path, Version, Error, Zip, GoMod, Sum, GoModSum string }

// downloadReal has the go command get the versions from the module proxy that it is set
// up with, and check them against the checksum database.
func downloadReal(t *testing.T, list []*realModule) map[string]realDownload {
	t.Helper()
	setting := func(name string) string {
		out, err := exec.CommandContext(t.Context(), "go", "env", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	proxy := strings.TrimSuffix(strings.TrimSuffix(setting("GOPROXY"), "direct"), ",")
	sumdb := setting("GOSUMDB")
	if proxy == "" || proxy == "off" || sumdb == "" || sumdb == "off" {
		t.Fatalf("it needs a module proxy and a checksum database: GOPROXY=%s, GOSUMDB=%s", proxy, sumdb)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module x.example/real\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var args []string
	for _, m := range list {
		for _, v := range m.versions {
			args = append(args, m.path+"@"+v)
		}
	}
	got := map[string]realDownload{}
	for some := range slices.Chunk(args, 100) {
		cmd := exec.CommandContext(t.Context(), "go", append([]string{"mod", "download", "-json"}, some...)...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOPROXY="+proxy, "GOSUMDB="+sumdb, "GONOSUMDB=", "GONOPROXY=", "GOPRIVATE=", "GOINSECURE=",
			"GOFLAGS=-modcacherw", "GOWORK=off", "GOTOOLCHAIN=local")
		out, _ := cmd.Output() // each version says its own error
		for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
			var r realDownload
			if err := d.Decode(&r); err != nil {
				t.Fatal(err)
			}
			if r.Error != "" {
				t.Errorf("%s@%s: %s", r.Path, r.Version, r.Error)
				continue
			}
			got[r.Path+"@"+r.Version] = r
		}
	}
	return got
}

// unpackReal puts what a module's zip has where its repository has it.
func unpackReal(t *testing.T, name, prefix, to, dir string) {
	t.Helper()
	z, err := zip.OpenReader(name)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	for _, f := range z.File {
		file, ok := strings.CutPrefix(f.Name, prefix)
		if !ok || !filepath.IsLocal(file) {
			t.Fatalf("%s has %q", name, f.Name)
		}
		at := filepath.Join(to, dir, file)
		if file == "LICENSE" {
			at = filepath.Join(to, file) // of a folder's module it may be at the root
		}
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		w, err := os.Create(at)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(w, r); err != nil {
			t.Fatal(err)
		}
		r.Close()
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// realHost is where the repositories' pages and they themselves are; everything is on
// this machine.
func realHost(t *testing.T, list []*realModule, root string) *remote.Remote {
	t.Helper()
	pages := map[string]string{}
	for _, m := range list {
		for _, p := range []string{m.path, m.root} {
			pages[p] = fmt.Sprintf("<html><head><meta name=\"go-import\" content=\"%s git https://git.test.example/%[1]s\"></head></html>", m.root)
		}
	}
	host := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		page, ok := pages[r.Host+strings.TrimSuffix(r.URL.Path, "/")]
		if !ok || r.Method != http.MethodGet {
			http.NotFound(w, r)
			return
		}
		io.WriteString(w, page)
	}))
	t.Cleanup(host.Close)
	repos := testgit.New(t, root)
	r, err := remote.New(remote.Options{
		InsteadOf: []string{"https://git.test.example/=" + repos.URL + "/", "https://github.com/=" + repos.URL + "/github.com/"}, Insecure: "*",
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if !strings.HasPrefix(address, "127.0.0.1:") {
				address = host.Listener.Addr().String()
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// The modules of the world: what the module proxy has of them is put into git
// repositories, served by git's own server, and fetched from there; every hash is the
// one that the checksum database knows.
func TestReal(t *testing.T) {
	if os.Getenv("ATHENSCTL_TEST_REAL") == "" {
		t.Skip("it needs the module proxy and the checksum database: make test-real")
	}
	list := readRealModules(t)
	downloads := downloadReal(t, list)
	root := t.TempDir()
	s := New(realHost(t, list, root), Options{TempDir: t.TempDir()})
	t.Cleanup(func() { s.Close() })
	byRoot := map[string][]*realModule{}
	for _, m := range list {
		byRoot[m.root] = append(byRoot[m.root], m)
	}

	var mu sync.Mutex
	same := map[string]int{}    // by module
	kinds := map[string]int{}   // of versions
	var zips, mods, infos int64 // bytes
	unused := map[string]bool{}
	for v := range realExceptions {
		unused[v] = true
	}
	one := func(t *testing.T, m *realModule, version string, d realDownload) {
		v := module.Version{Path: m.path, Version: version}
		info, err := s.Resolve(t.Context(), v.Path, v.Version)
		var mod []byte
		if err == nil {
			var b *goproxy.Blob
			if b, err = s.Mod(t.Context(), v); err == nil {
				mod, err = b.ReadAll(goproxy.MaxModBytes)
			}
		}
		var h1, modH1 string
		var size int64
		if err == nil {
			h1, size, err = zipH1(t, s, v)
		}
		if err == nil {
			modH1, err = goproxy.ModH1(mod)
		}
		mu.Lock()
		defer mu.Unlock()
		delete(unused, v.String())
		reason, excepted := realExceptions[v.String()]
		switch equal := err == nil && h1 == d.Sum && modH1 == d.GoModSum; {
		case excepted && equal:
			t.Errorf("%s is an exception (%s), and its hash is right", v, reason)
		case excepted && err != nil:
			t.Logf("exception: %s: %s: %v", v, reason, err)
		case excepted:
			t.Logf("exception: %s: %s", v, reason)
		case err != nil:
			t.Errorf("%s: %v", v, err)
		case !equal:
			t.Errorf("%s: zip %s, go.mod %s; the checksum database has %s, %s\n%s", v, h1, modH1, d.Sum, d.GoModSum, differences(t, s, v, d.Zip))
		default:
			same[m.path]++
			zips, mods, infos = zips+size, mods+int64(len(mod)), infos+int64(len(info.JSON()))
			for _, k := range m.kinds(version, mod) {
				kinds[k]++
			}
		}
	}
	t.Run("modules", func(t *testing.T) {
		for repo, modules := range byRoot {
			t.Run(repo, func(t *testing.T) {
				t.Parallel()
				var script strings.Builder
				stage := t.TempDir()
				fmt.Fprintf(&script, "repo %s; git config gc.auto 0; export GIT_DIR=$PWD/.git\n", repo)
				for _, m := range modules {
					for _, v := range m.versions {
						d, ok := downloads[m.path+"@"+v]
						if !ok {
							continue // said above
						}
						tag := m.tags + strings.TrimSuffix(v, "+incompatible")
						tree := filepath.Join(stage, tag)
						unpackReal(t, d.Zip, m.path+"@"+v+"/", tree, m.dir)
						fmt.Fprintf(&script, "export GIT_WORK_TREE=%s; cd %[1]s; commit %s; tag %[2]s\n", tree, tag)
					}
				}
				testgit.Script(t, root, script.String())
				for _, m := range modules {
					listed, err := s.List(t.Context(), m.path)
					if err != nil {
						t.Errorf("%s: %v", m.path, err)
						continue
					}
					for _, v := range m.versions {
						if d, ok := downloads[m.path+"@"+v]; ok {
							if !slices.Contains(listed.Versions, v) {
								t.Errorf("%s is not in the list %v", m.path+"@"+v, listed.Versions)
							}
							one(t, m, v, d)
						}
					}
				}
			})
		}
	})
	for v := range unused {
		t.Errorf("the exception %s is not in testdata/real.txt", v)
	}
	n := int64(0)
	for _, c := range same {
		n += int64(c)
	}
	t.Logf("%d versions of %d modules have the checksum database's hashes; %d exceptions; %v", n, len(same), len(realExceptions), kinds)
	if n < 300 || len(same) < 100 {
		t.Fatalf("%d versions of %d modules; want 300 of 100 and more", n, len(same))
	}
	t.Logf("mean sizes: zip %d bytes, go.mod %d, .info %d", zips/n, mods/n, infos/n)
	for _, k := range []string{"subfolder", "major version: branch", "major version: folder", "gopkg.in", "+incompatible", "no go.mod"} {
		if kinds[k] == 0 {
			t.Errorf("no version is of the kind %q", k)
		}
	}
}

func (m *realModule) kinds(version string, mod []byte) (kinds []string) {
	if m.tags != "" {
		kinds = append(kinds, "subfolder")
	}
	switch {
	case strings.HasPrefix(m.path, "gopkg.in/"):
		kinds = append(kinds, "gopkg.in")
	case m.folder:
		kinds = append(kinds, "major version: folder")
	case semver.Build(version) != "":
		kinds = append(kinds, "+incompatible")
	case semver.Major(version) > "v1":
		kinds = append(kinds, "major version: branch")
	}
	if bytes.Equal(mod, goproxy.SynthesisedMod(m.path)) {
		kinds = append(kinds, "no go.mod")
	}
	return kinds
}

func zipH1(t *testing.T, s *Source, v module.Version) (h1 string, size int64, err error) {
	b, err := s.Zip(t.Context(), v)
	if err != nil {
		return "", 0, err
	}
	defer b.Close()
	h1, err = dirhash.HashZip(b.ReadCloser.(*temporary).Name(), dirhash.Hash1)
	return h1, b.SizeBytes, err
}

// differences are the files in which a zip of vcs is not the proxy's.
func differences(t *testing.T, s *Source, v module.Version, want string) string {
	b, err := s.Zip(t.Context(), v)
	if err != nil {
		return err.Error()
	}
	defer b.Close()
	got, have := contents(t, b.ReadCloser.(*temporary).Name()), contents(t, want)
	var text strings.Builder
	for _, side := range []struct {
		name    string
		in, not []string
	}{{"vcs", got, have}, {"proxy", have, got}} {
		others := map[string]bool{}
		for _, f := range side.not {
			others[f] = true
		}
		for _, f := range side.in {
			if !others[f] {
				fmt.Fprintf(&text, "%s: %s\n", side.name, f)
			}
		}
	}
	return text.String()
}
