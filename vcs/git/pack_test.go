package git

import (
	"crypto/sha1"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/athensctl/athensctl/internal/testgit"
)

// Packs as git makes them, with deltas on deltas by offset and by hash: every object is
// there, with its type, size and content, however little is kept at hand.
func TestPacksOfGit(t *testing.T) {
	root := t.TempDir()
	testgit.Script(t, root, `
repo r
i=0; while [ $i -lt 60 ]; do i=$((i+1))
	for f in a b c d; do { seq $((i*7)) $((i*7+900)); echo $f $i; seq 1 $((i*11)); } > $f.txt; done
	head -c 3000 /dev/zero | tr '\\0' "x" > same-$((i%5)).txt
	mkdir -p d/e/f$((i%9)); echo $i > d/e/f$((i%9))/x; commit
done
atag v1.0.0
`)
	git := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", filepath.Join(root, "r")}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "HOME="+root)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("git %q: %v", args, err)
		}
		return string(out)
	}
	for _, offsets := range []string{"true", "false"} {
		git("-c", "repack.useDeltaBaseOffset="+offsets, "-c", "pack.threads=1", "repack", "-q", "-a", "-d", "-f", "--depth=50", "--window=30")
		packs, _ := filepath.Glob(filepath.Join(root, "r/.git/objects/pack/*.pack"))
		if len(packs) != 1 {
			t.Fatalf("packs: %q", packs)
		}
		want := strings.Split(strings.TrimSpace(git("cat-file", "--batch-all-objects", "--batch-check=%(objectname) %(objecttype) %(objectsize)")), "\n")
		for _, hold := range []int64{holdBytes, 1} {
			f, err := os.Open(packs[0])
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			p, err := readPackHolding(t.Context(), f, DefaultLimits, nil, hold)
			if err != nil {
				t.Fatalf("offsets %s, hold %d: %v", offsets, hold, err)
			}
			deltas := 0
			for _, o := range p.objects {
				if o.base != noBase {
					deltas++
				}
			}
			if len(p.objects) != len(want) || deltas < 100 {
				t.Errorf("offsets %s, hold %d: %d objects, %d of them deltas; want %d", offsets, hold, len(p.objects), deltas, len(want))
			}
			o := &Objects{limits: DefaultLimits, pack: p}
			var wg sync.WaitGroup
			for reader := range 4 {
				wg.Go(func() {
					for n, line := range want {
						hash, _, _ := strings.Cut(line, " ")
						i, obj, err := o.find(hash)
						if err != nil {
							t.Error(err)
							return
						}
						r, err := o.open(i)
						if err != nil {
							t.Error(err)
							return
						}
						b, err := io.ReadAll(r)
						r.Close()
						got := fmt.Sprintf("%x %s %d", sha1.Sum(fmt.Appendf(nil, "%s %d\x00%s", obj.typ, len(b), b)), obj.typ, obj.size)
						if err != nil || got != line || int64(len(b)) != obj.size {
							t.Errorf("offsets %s, hold %d: %s, %v; want %s", offsets, hold, got, err, line)
							return
						}
						if n%50 == reader {
							o.Rest()
						}
					}
				})
			}
			wg.Wait()
		}
	}
	for _, hash := range []string{"", "x", strings.Repeat("0", 40), strings.Repeat("0", 41)} {
		if _, _, err := (&Objects{pack: &packFile{}}).find(hash); err == nil {
			t.Errorf("%q is there", hash)
		}
	}
}

// A delta that is wrong in any way is an error.
func TestApplyDelta(t *testing.T) {
	base := []byte("0123456789")
	for name, tc := range map[string]struct {
		delta []byte
		want  string
	}{
		"copy and insert":      {[]byte{10, 7, 0x91, 2, 4, 3, 'a', 'b', 'c'}, "2345abc"},
		"all of it":            {[]byte{10, 10, 0x90, 10}, "0123456789"},
		"nothing":              {[]byte{10, 0}, ""},
		"another base":         {[]byte{9, 1, 1, 'x'}, "!"},
		"another size":         {[]byte{10, 3, 1, 'x'}, "!"},
		"more than it says":    {[]byte{10, 1, 3, 'a', 'b', 'c'}, "!"},
		"beyond the base":      {[]byte{10, 4, 0x91, 8, 4}, "!"},
		"a length of 65536":    {[]byte{10, 4, 0x80}, "!"},
		"cut insert":           {[]byte{10, 4, 4, 'a'}, "!"},
		"cut copy":             {[]byte{10, 4, 0x91, 1}, "!"},
		"instruction 0":        {[]byte{10, 0, 0}, "!"},
		"no sizes":             {[]byte{0x80}, "!"},
		"a size without end":   {[]byte{10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, "!"},
		"the largest offset":   {[]byte{10, 4, 0x9f, 0xff, 0xff, 0xff, 0xff, 4}, "!"},
		"nothing but the head": {nil, "!"},
	} {
		size := int64(len(tc.want))
		if tc.want == "!" && len(tc.delta) > 1 {
			size = int64(tc.delta[1])
		}
		got, err := applyDelta(base, tc.delta, size)
		if (err != nil) != (tc.want == "!") || err == nil && string(got) != tc.want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// A large file is read as a stream: it never is in memory as a whole.
func TestLargeFileIsStreamed(t *testing.T) {
	body := make([]byte, 16<<20)
	p := pack(1, object{kind: blobType, size: uint64(len(body)), body: body})
	want := hashed(blobType, body)
	f, err := os.CreateTemp(t.TempDir(), "pack-")
	if err != nil {
		t.Fatal(err)
	}
	f.Write(p)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	o, err := index(t.Context(), f, DefaultLimits, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	r, size, err := o.Blob(fmt.Sprintf("%x", want))
	if err != nil || size != int64(len(body)) {
		t.Fatal(size, err)
	}
	n, err := io.Copy(io.Discard, r)
	if err := r.Close(); err != nil || n != size {
		t.Errorf("%d of %d bytes, %v", n, size, err)
	}
	runtime.ReadMemStats(&after)
	if grew := after.TotalAlloc - before.TotalAlloc; err != nil || grew > 2<<20 {
		t.Errorf("%v; %d KB were allocated for a file of %d", err, grew>>10, size>>10)
	}
}
