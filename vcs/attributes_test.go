package vcs

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/testgit"
)

// checkAttr is what git says of the attributes of names under .gitattributes files, by
// folder.
func checkAttr(t *testing.T, files map[string]string, names []string) map[string]map[string]string {
	t.Helper()
	dir := t.TempDir()
	for folder, text := range files {
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, folder, ".gitattributes"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run := func(stdin string, args ...string) string {
		cmd := exec.Command("git", args...)
		cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "GIT_CONFIG_NOSYSTEM=1", "GIT_ATTR_NOSYSTEM=1"}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("git %v: %v: %s", args, err, stderr.Bytes())
		}
		return string(out)
	}
	run("", "init", "-q")
	got := map[string]map[string]string{}
	f := strings.Split(run(strings.Join(names, "\x00")+"\x00", "check-attr", "--stdin", "-z", "--all"), "\x00")
	for ; len(f) > 3; f = f[3:] {
		if strings.HasPrefix(f[1], "builtin_") { // of newer versions of git
			continue
		}
		if got[f[0]] == nil {
			got[f[0]] = map[string]string{}
		}
		got[f[0]][f[1]] = f[2]
	}
	return got
}

// compareAttributes compares what is made of files with what git says.
func compareAttributes(t *testing.T, files map[string]string, names []string) {
	t.Helper()
	a := &attributes{rules: map[string][]rule{}, macros: map[string][]setting{"binary": {{"diff", isUnset}, {"merge", isUnset}, {"text", isUnset}}}}
	for folder, text := range files {
		a.read(folder, []byte(text))
	}
	want := checkAttr(t, files, names)
	for _, name := range names {
		got := map[string]string{}
		for attr, v := range a.of(name) {
			switch v {
			case isUnspecified:
			case isSet, isUnset:
				got[attr] = v[1:]
			default:
				got[attr] = v
			}
		}
		for attr, v := range want[name] {
			if got[attr] != v {
				t.Errorf("%q: %s is %q, and %q to git", name, attr, got[attr], v)
			}
		}
		for attr, v := range got {
			if _, ok := want[name][attr]; !ok {
				t.Errorf("%q: %s is %q, and not there to git", name, attr, v)
			}
		}
	}
}

// Lines of .gitattributes mean what they mean to git.
func TestAttributes(t *testing.T) {
	testgit.Needs(t, "git")
	compareAttributes(t, map[string]string{
		".": strings.Join([]string{
			"# comment", "", "   ", "*.a set -unset !unspec value=x empty=", "  *.b indented", "\t*.b\ttabs\t-more", "*.c crlf\r", `"quo ted.d" q`, `"tab\there\"\\\101.d" esc`, `"bad\q.d" fallback`, `"open.d`,
			"!*.e negative", `\!x.e literal`, "*.f =novalue", "*.f ok bad/name", "*.f -", "[attr]mac one -two three=3", "*.g mac", "*.g -mac", "*.h mac", "*.h two", "[attr]", "[attr]x/y z", "a folder-a", "dir/ onlydir", "/root.i rooted",
			"sub/deep.i anchored", "*.bin binary", "*.bin -binary=x", "*.j a=1 a=2 -a", "*.k a", "*.k !a", "d/**/x any", "**/y.l anyy", "e/** below", "f**/x quirk", "*.m value=a=b",
			"nosettings", "*.n " + strings.Repeat("long", 600) + " much", "[attr]loop1 loop2", "[attr]loop2 loop1", "*.o loop1", "[attr]mac two",
		}, "\n") + "\n*.last eof",
		"sub":   "*.a -set\n*.h !two\n[attr]below x\nd.i below\n/deep.i top\nsub/x no\n",
		"sub/s": "*.a value=deeper\n",
	}, []string{
		"x.a", "sub/x.a", "sub/s/x.a", "x.b", "x.c", "quo ted.d", "tab\there\"\\A.d", `"bad\q.d"`, "open.d", "x.e", "!x.e", "x.f", "x.g", "x.h", "sub/x.h", "a", "sub/a", "dir", "dir/a", "root.i", "sub/root.i", "sub/deep.i", "deep.i",
		"x.bin", "x.j", "x.k", "d/x", "d/a/x", "d/a/b/x", "dx", "y.l", "q/y.l", "q/r/y.l", "e", "e/a", "e/a/b", "fx", "f/x", "fa/x", "fa/b/x", "x.m", "nosettings", "x.n", "x.o", "x.last", "sub/d.i", "sub/x", "sub/sub/x", "[attr]", "t",
	})
}

// Patterns of all kinds match what they match to git: random ones over few letters.
func TestPatterns(t *testing.T) {
	testgit.Needs(t, "git")
	for seed := range uint64(3) {
		randomPatterns(t, rand.New(rand.NewPCG(seed, 1)))
	}
}

func randomPatterns(t *testing.T, random *rand.Rand) {
	text := func(parts []string, n int) string {
		var b strings.Builder
		for range 1 + random.IntN(n) {
			b.WriteString(parts[random.IntN(len(parts))])
		}
		return b.String()
	}
	var lines []string
	for len(lines) < 1500 {
		p := text([]string{
			"a", "b", "ab", "/", "/", "*", "*", "**", "**/", "/**", "?", "[ab]", "[!a]", "[^b]", "[a-c]", "[]a]", "[a-]", "[[:alpha:]]", "[[:digit:]-b]", "[[:x", "[", "]", `\a`, `\*`, `\`, "-", "[\\]a]", "[b-a]", "[[:nope:]]", "[/a]", "é", "[é]",
		}, 6)
		if p[0] == '!' || p[0] == '#' {
			continue
		}
		lines = append(lines, fmt.Sprintf("%s a%d", p, len(lines)))
	}
	names := map[string]bool{}
	for len(names) < 400 {
		n := strings.Trim(text([]string{"a", "b", "c", "ab", "/", "/", "*", "]", "[", "-", "1", "é"}, 7), "/")
		for strings.Contains(n, "//") {
			n = strings.ReplaceAll(n, "//", "/")
		}
		if n != "" {
			names[n] = true
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%q", lines)
		}
	})
	compareAttributes(t, map[string]string{".": strings.Join(lines, "\n") + "\n"}, slices.Sorted(maps.Keys(names)))
}

// No pattern takes long.
func TestPatternTime(t *testing.T) {
	name := strings.Repeat("a/", 2000) + "b"
	start := time.Now()
	for _, p := range []string{strings.Repeat("*a", 500) + "/c", strings.Repeat("**/a/", 400) + "c", strings.Repeat("**/", 600) + "c", strings.Repeat("*", 2000) + "/c"} {
		if parsePattern(p).match(name) {
			t.Errorf("%.20s matches", p)
		}
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}

func FuzzAttributes(f *testing.F) {
	f.Add("* text\n[attr]a b\n\"q\\101\" c=d\n", "a/b")
	f.Add("a/**/[[:alpha:]-\\z]* -x\n/ y\n", "a/x/b")
	f.Fuzz(func(t *testing.T, text, name string) {
		if name == "" || strings.HasPrefix(name, "/") || strings.HasSuffix(name, "/") || filepath.Clean(name) != name || strings.HasPrefix(name, "..") {
			return
		}
		a := &attributes{rules: map[string][]rule{}, macros: map[string][]setting{}}
		a.read(".", []byte(text))
		for attr := range a.of(name) {
			if !validAttribute(attr) {
				t.Errorf("%q", attr)
			}
		}
		a.conversion(name)
	})
}

// What .gitattributes files take of memory is counted before they are read, and enough is:
// whatever is in them.
func TestAttributesMemory(t *testing.T) {
	for name, line := range map[string]string{
		"letters": strings.Repeat("a", 2000) + " x\n", "sets": strings.Repeat("[a]", 600) + " x\n", "stars": strings.Repeat("*a", 1000) + " x\n",
		"short lines": "a x\n", "settings": "a" + strings.Repeat(" b", 1000) + "\n", "macros": "[attr]m x\n",
	} {
		text := []byte(strings.Repeat(line, (1<<20)/len(line)))
		a := &attributes{rules: map[string][]rule{}, macros: map[string][]setting{}}
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		a.read(".", text)
		runtime.GC()
		runtime.ReadMemStats(&after)
		if grew, most := int64(after.HeapAlloc)-int64(before.HeapAlloc), int64(attributeBytes*len(text)); grew > most {
			t.Errorf("%s: %d bytes took %d of memory; %d are counted", name, len(text), grew, most)
		}
		runtime.KeepAlive(a)
	}
	script := "repo lib; gomod go.mod git.test.example/lib.git; yes 'a x' | head -c %d > .gitattributes; commit; tag v1.0.0\n"
	for _, tc := range []struct {
		bytes  int
		memory int64
		status int
		want   string
	}{
		{1 << 20, 0, http.StatusOK, ""},
		{1 << 20, 32 << 20, http.StatusServiceUnavailable, "memory"},
		{maxAttributesBytes + 1, 0, http.StatusForbidden, "more than 2097152 bytes of .gitattributes"},
	} {
		l := listen(t, fmt.Sprintf(script, tc.bytes), Options{MemoryBytes: tc.memory})
		z, err := l.Zip(t.Context(), module.Version{Path: "git.test.example/lib.git", Version: "v1.0.0"})
		if err == nil {
			z.Close()
		}
		if status := goproxy.Status(err); err != nil && (status != tc.status || !strings.Contains(err.Error(), tc.want)) || err == nil && tc.status != http.StatusOK {
			t.Errorf("%d bytes with %d of memory: %d %v, want %d and %q", tc.bytes, tc.memory, status, err, tc.status, tc.want)
		}
	}
}
