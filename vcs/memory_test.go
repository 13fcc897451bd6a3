package vcs

import (
	"bytes"
	"compress/zlib"
	"context"
	"crypto/sha1"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/vcs/remote"
)

// packWriter writes a pack of a few kinds of objects, again and again the same.
type packWriter struct {
	f   *os.File
	sum hash.Hash
	n   uint32
	z   *zlib.Writer
	at  int64
}

func newPack(t *testing.T, count uint32) *packWriter {
	f, err := os.Create(filepath.Join(t.TempDir(), "pack"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	p := &packWriter{f: f, sum: sha1.New(), n: count, z: zlib.NewWriter(nil)}
	p.write(binary.BigEndian.AppendUint32([]byte("PACK\x00\x00\x00\x02"), count))
	return p
}

func (p *packWriter) write(b []byte) {
	p.sum.Write(b)
	n, err := p.f.Write(b)
	if p.at += int64(n); err != nil {
		panic(err)
	}
}

// raw is an object as a pack has it; before is what stands before its content.
func (p *packWriter) raw(kind int, before, body []byte) []byte {
	b := []byte{byte(kind<<4) | byte(len(body)&15)}
	for n := len(body) >> 4; n > 0; n >>= 7 {
		b[len(b)-1] |= 0x80
		b = append(b, byte(n&0x7f))
	}
	var z bytes.Buffer
	p.z.Reset(&z)
	p.z.Write(body)
	p.z.Close()
	return append(append(b, before...), z.Bytes()...)
}

// add writes an object that is no delta, and returns its hash and where it is.
func (p *packWriter) add(kind int, body []byte) (sum []byte, at int64) {
	at = p.at
	p.write(p.raw(kind, nil, body))
	h := sha1.New()
	fmt.Fprintf(h, "%s %d\x00", map[int]string{1: "commit", 2: "tree", 3: "blob"}[kind], len(body))
	h.Write(body)
	return h.Sum(nil), at
}

// delta writes a delta on what is at a place.
func (p *packWriter) delta(base int64, body []byte) (at int64) {
	at = p.at
	back := at - base
	digits := []byte{byte(back & 0x7f)}
	for back >>= 7; back > 0; back >>= 7 {
		back--
		digits = append([]byte{0x80 | byte(back&0x7f)}, digits...)
	}
	p.write(p.raw(6, digits, body))
	return at
}

func (p *packWriter) commit(tree []byte, parent, message string) (sum []byte) {
	if parent != "" {
		parent = "parent " + parent + "\n"
	}
	sum, _ = p.add(1, fmt.Appendf(nil, "tree %x\n%sauthor a <a@a> 1 +0000\ncommitter a <a@a> 1 +0000\n\n%s", tree, parent, message))
	return sum
}

func entry(b []byte, mode, name string, sum []byte) []byte {
	return append(fmt.Appendf(b, "%s %s\x00", mode, name), sum...)
}

// copies is a delta that makes an object of size bytes from one of the same size, and
// changes its end.
func copies(size int, end byte) []byte {
	b := binary.AppendUvarint(binary.AppendUvarint(nil, uint64(size)), uint64(size))
	for left := size - 1; left > 0; {
		n := min(left, 8<<20)
		b = append(b, 0xf0, byte(n), byte(n>>8), byte(n>>16))
		left -= n
	}
	return append(b, 1, end)
}

// hostileRepo is what a server says of each of its repositories.
type hostileRepo struct {
	refs func(io.Writer) // lines, without the commit's; nil: none
	head string
	pack *packWriter
}

func packet(s string) string { return fmt.Sprintf("%04x%s", len(s)+4, s) }

func (h *hostileRepo) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet {
		w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
		io.WriteString(w, packet("version 2\n")+packet("ls-refs\n")+packet("fetch=shallow\n")+"0000")
		return
	}
	if body, _ := io.ReadAll(r.Body); len(body) > 18 && string(body[4:19]) == "command=ls-refs" {
		io.WriteString(w, packet(h.head+" refs/tags/v1.0.0\n"))
		if h.refs != nil {
			h.refs(w)
		}
		io.WriteString(w, "0000")
		return
	}
	io.WriteString(w, packet("packfile\n"))
	src := io.MultiReader(io.NewSectionReader(h.pack.f, 0, h.pack.at), bytes.NewReader(h.pack.sum.Sum(nil)))
	for b := make([]byte, 60_000); ; {
		n, err := io.ReadFull(src, b)
		if _, e := io.WriteString(w, packet("\x01"+string(b[:n]))); e != nil || err != nil {
			break
		}
	}
	io.WriteString(w, "0000")
}

// The most that a crawler's container has by default, and of it what GOMEMLIMIT says
// (charts/athensctl).
const containerMiB = 512

// TestHostileMemory: whatever repositories say of themselves, a process with the default
// limits that is asked for several of them at once, of two hosts, stays below the memory
// of a crawler's container.
func TestHostileMemory(t *testing.T) {
	if what := os.Getenv("ATHENSCTL_TEST_HOSTILE"); what != "" {
		hostileChild(what)
		return
	}
	if underRace {
		t.Skip("the race detector takes memory of its own")
	}
	if testing.Short() {
		t.Skip("it writes some 100 MB of packs")
	}
	if _, err := os.Stat("/proc/self/status"); err != nil { // VmHWM is in it
		if os.Getenv("ATHENSCTL_TEST_REQUIRE") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	const modules = 6
	gomod := []byte("module m.example/m\n")
	for _, tc := range []struct {
		name string
		want string // what the answers are; "": any
		ask  string
		make func(*testing.T) *hostileRepo
	}{
		{"refs", "v1.0.0|used up", "list", func(t *testing.T) *hostileRepo {
			return &hostileRepo{head: strings.Repeat("1", 40), refs: func(w io.Writer) {
				for i := range 199_000 {
					io.WriteString(w, packet(fmt.Sprintf("%040x refs/tags/%d\n", i, i)))
				}
			}}
		}},
		{"too many refs", "more than 200000 refs|used up", "list", func(t *testing.T) *hostileRepo {
			return &hostileRepo{head: strings.Repeat("1", 40), refs: func(w io.Writer) {
				for i := range 400_000 {
					io.WriteString(w, packet(fmt.Sprintf("%040x refs/tags/%d\n", i, i)))
				}
			}}
		}},
		{"a million objects", "zip|used up", "zip", func(t *testing.T) *hostileRepo {
			p := newPack(t, 1_000_000)
			mod, _ := p.add(3, gomod)
			tree, _ := p.add(2, entry(nil, "100644", "go.mod", mod))
			head := p.commit(tree, "", "x")
			none := bytes.Repeat(p.raw(3, nil, nil), 1000)
			for range 999 {
				p.write(none)
			}
			p.write(none[:len(none)/1000*997])
			return &hostileRepo{head: fmt.Sprintf("%x", head), pack: p}
		}},
		{"twenty million objects", "at most 1000000", "zip", func(t *testing.T) *hostileRepo {
			return &hostileRepo{head: strings.Repeat("1", 40), pack: newPack(t, 20_000_000)}
		}},
		{"a million deltas", "zip|used up|cost", "zip", func(t *testing.T) *hostileRepo {
			p := newPack(t, 1_000_000)
			mod, _ := p.add(3, gomod)
			tree, _ := p.add(2, entry(nil, "100644", "go.mod", mod))
			head := p.commit(tree, "", "x")
			small := p.raw(7, mod, append([]byte{byte(len(gomod)), 1}, 1, 'x')) // each on the same
			many := bytes.Repeat(small, 1000)
			for range 999 {
				p.write(many)
			}
			p.write(many[:len(small)*997])
			return &hostileRepo{head: fmt.Sprintf("%x", head), pack: p}
		}},
		{"large deltas", "zip|used up", "zip", func(t *testing.T) *hostileRepo {
			const size = 48 << 20
			p := newPack(t, 9+3)
			body := make([]byte, size)
			mod, _ := p.add(3, gomod)
			_, at := p.add(3, body)
			tree := entry(nil, "100644", "go.mod", mod)
			for i := range 8 {
				at = p.delta(at, copies(size, byte(i+1)))
				body[size-1] = byte(i + 1)
				h := sha1.New()
				fmt.Fprintf(h, "blob %d\x00", size)
				h.Write(body)
				tree = entry(tree, "100644", fmt.Sprintf("x%02d", i), h.Sum(nil))
			}
			sum, _ := p.add(2, tree)
			return &hostileRepo{head: fmt.Sprintf("%x", p.commit(sum, "", "x")), pack: p}
		}},
		{"a delta of 500 MiB", "at most 50331648", "zip", func(t *testing.T) *hostileRepo {
			p := newPack(t, 3)
			_, at := p.add(3, make([]byte, 500<<20))
			p.delta(at, copies(500<<20, 1))
			p.commit(make([]byte, 20), "", "x")
			return &hostileRepo{head: strings.Repeat("1", 40), pack: p}
		}},
		{"large folders in each other", "zip|used up|folders|bytes", "zip", func(t *testing.T) *hostileRepo {
			p := newPack(t, 30+3)
			mod, _ := p.add(3, gomod)
			var names []byte
			for i := range 390_000 {
				names = entry(names, "100644", fmt.Sprintf("f%06d", i), mod)
			}
			var tree []byte
			for range 30 {
				b := bytes.Clone(names)
				if tree != nil {
					b = append(entry(nil, "40000", "d", tree), names...)
				}
				tree, _ = p.add(2, b)
			}
			top, _ := p.add(2, entry(entry(nil, "40000", "d", tree), "100644", "go.mod", mod))
			return &hostileRepo{head: fmt.Sprintf("%x", p.commit(top, "", "x")), pack: p}
		}},
		{"many files", "more than|used up", "zip", func(t *testing.T) *hostileRepo {
			p := newPack(t, 5)
			mod, _ := p.add(3, gomod)
			x, _ := p.add(3, []byte("x"))
			var names, folders []byte
			for i := range 5000 {
				names = entry(names, "100644", fmt.Sprintf("f%06d%s", i, strings.Repeat("n", 200)), x)
			}
			files, _ := p.add(2, names)
			for i := range 190 {
				folders = entry(folders, "40000", fmt.Sprintf("d%03d", i), files)
			}
			tree, _ := p.add(2, entry(folders, "100644", "go.mod", mod))
			return &hostileRepo{head: fmt.Sprintf("%x", p.commit(tree, "", "x")), pack: p}
		}},
		{"long messages", "not found|used up", "commit", func(t *testing.T) *hostileRepo {
			p := newPack(t, 2+400)
			mod, _ := p.add(3, gomod)
			tree, _ := p.add(2, entry(nil, "100644", "go.mod", mod))
			parent, message := "", strings.Repeat("x", 1<<20-1000)
			for range 400 {
				parent = fmt.Sprintf("%x", p.commit(tree, parent, message))
			}
			return &hostileRepo{head: parent, pack: p}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := httptest.NewServer(tc.make(t))
			defer srv.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestHostileMemory$")
			cmd.Env = append(os.Environ(), "ATHENSCTL_TEST_HOSTILE="+srv.URL+" "+tc.ask, "TMPDIR="+t.TempDir(), fmt.Sprintf("GOMEMLIMIT=%dMiB", containerMiB*9/10))
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			peak, answers := 0, 0
			for line := range strings.Lines(string(out)) {
				if kib, ok := strings.CutPrefix(line, "peak "); ok {
					peak, _ = strconv.Atoi(strings.TrimSpace(kib))
				}
				if text, ok := strings.CutPrefix(line, "answer "); ok {
					answers++
					fits := false
					for w := range strings.SplitSeq(tc.want, "|") {
						fits = fits || strings.Contains(text, w)
					}
					if !fits {
						t.Errorf("%s: want %q", text, tc.want)
					}
				}
			}
			t.Logf("peak %d MiB", peak>>10)
			if peak == 0 || answers != modules {
				t.Errorf("%d answers:\n%s", answers, out)
			}
			if peak>>10 >= containerMiB {
				t.Errorf("peak %d MiB:\n%s", peak>>10, out)
			}
		})
	}
}

// hostileChild asks for the modules of a hostile server, all at once, and prints what
// came and the process's peak memory.
func hostileChild(what string) {
	at, ask, _ := strings.Cut(what, " ")
	other := strings.Replace(at, "127.0.0.1", "localhost", 1)
	r, err := remote.New(remote.Options{InsteadOf: []string{"https://a.example/=" + at + "/", "https://b.example/=" + other + "/"}})
	if err != nil {
		panic(err)
	}
	s := New(r, Options{TempDir: os.TempDir()})
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			m := module.Version{Path: fmt.Sprintf("%c.example/m%d.git", 'a'+i%2, i), Version: "v1.0.0"}
			var err error
			got := ""
			switch ask {
			case "list":
				l, e := s.List(context.Background(), m.Path)
				if err = e; e == nil {
					got = fmt.Sprint(l.Versions)
				}
			case "commit":
				_, err = s.Resolve(context.Background(), m.Path, "abcdefabcdef")
			case "zip":
				z, e := s.Zip(context.Background(), m)
				if err = e; e == nil {
					got = fmt.Sprintf("a zip of %d bytes", z.SizeBytes)
					z.Close()
				}
			}
			fmt.Printf("answer %s %s %v\n", m.Path, got, err)
		})
	}
	wg.Wait()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		panic(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	fmt.Printf("peak %s\n", strings.Fields(rest)[0])
}
