package storage

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"

	"github.com/athensctl/athensctl/goproxy"
)

func writeZip(t testing.TB, files map[string]string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "m.zip")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	z := zip.NewWriter(f)
	for name, content := range files { // in any order: the hash sorts
		w, err := z.Create(name)
		if err == nil {
			_, err = w.Write([]byte(content))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return name
}

// The hash is the one that golang.org/x/mod/sumdb/dirhash makes.
func TestCheckZipH1(t *testing.T) {
	m := module.Version{Path: "example.com/m", Version: "v1.2.3"}
	large := make([]byte, 1<<20) // half of it can be deflated: 16 of 32 KiB
	for i := 0; i < len(large); i += 32 << 10 {
		rand.NewChaCha8([32]byte{byte(i >> 15)}).Read(large[i : i+16<<10])
	}
	for _, n := range []int{0, 1, 7, 200} {
		files := map[string]string{m.String() + "/go.mod": "module example.com/m\n", m.String() + "/large": string(large)}
		for i := range n {
			files[fmt.Sprintf("%s/dir%d/File-%d.go", m, i%5, i)] = strings.Repeat("package x\n", i*10)
		}
		name := writeZip(t, files)
		h1, mod, err := CheckZip(m, name)
		if err != nil || string(mod) != "module example.com/m\n" {
			t.Fatalf("%d files: %q, %v", n, mod, err)
		}
		if want, err := dirhash.HashZip(name, dirhash.Hash1); err != nil || h1 != want {
			t.Errorf("%d files: %s, want %s, %v", n, h1, want, err)
		}
	}
}

// One changed byte of content is found, wherever it is.
func TestCheckZipCRC(t *testing.T) {
	m := module.Version{Path: "example.com/m", Version: "v1.2.3"}
	name := writeZip(t, map[string]string{
		m.String() + "/go.mod": "module example.com/m\n", m.String() + "/a.go": "package a // MARK\n", m.String() + "/b.go": "package a\n",
	})
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	r, err := zip.OpenReader(name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, f := range r.File {
		at, err := f.DataOffset()
		if err != nil {
			t.Fatal(err)
		}
		broken := append([]byte{}, raw...)
		broken[at+int64(f.CompressedSize64)/2] ^= 0x10
		if err := os.WriteFile(name, broken, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := CheckZip(m, name); err == nil {
			t.Errorf("%s: a flipped bit was not found", f.Name)
		}
	}
}

// A zip whose end does not tell the truth about its directory is refused before the directory
// is read: archive/zip reads what is there, and counts modulo 65,536.
func TestCheckZipDirectory(t *testing.T) {
	m := module.Version{Path: "example.com/m", Version: "v1.2.3"}
	good, err := os.ReadFile(writeZip(t, map[string]string{m.String() + "/go.mod": "module example.com/m\n", m.String() + "/a.go": "package a\n"}))
	if err != nil {
		t.Fatal(err)
	}
	end := len(good) - 22
	start := int(binary.LittleEndian.Uint32(good[end+16:]))
	u16 := func(at int) int { return int(binary.LittleEndian.Uint16(good[at:])) }
	entry := good[start : start+46+u16(start+28)+u16(start+30)+u16(start+32)]
	// zipOf has so many entries, and an end that says so many, in so many bytes, from there on.
	zipOf := func(entries, count int, size, from uint32, before ...byte) string {
		t.Helper()
		b := append([]byte{}, good[:start]...)
		b = append(append(b, bytes.Repeat(entry, entries)...), before...)
		b = append(b, good[end:]...)
		tail := b[len(b)-22:]
		binary.LittleEndian.PutUint16(tail[8:], uint16(count))
		binary.LittleEndian.PutUint16(tail[10:], uint16(count))
		binary.LittleEndian.PutUint32(tail[12:], size)
		binary.LittleEndian.PutUint32(tail[16:], from)
		name := filepath.Join(t.TempDir(), "m.zip")
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	n := maxZipDirectoryBytes/len(entry) + 1
	whole := uint32(n * len(entry))
	deep := map[string]string{}
	for i := range 4000 {
		deep[fmt.Sprintf("%s/%d%s/x", m, i, strings.Repeat("/a", 80))] = ""
	}
	// A locator of a zip64 end, which then counts in place of the other.
	locator := append([]byte("PK\x06\x07"), make([]byte, 12)...)
	locator = append(locator, 1, 0, 0, 0)
	for name, tc := range map[string]struct{ zip, want string }{
		"too large":                  {zipOf(n, n, whole, uint32(start)), "the directory takes"},
		"says that it is small":      {zipOf(n, n, uint32(len(entry)), uint32(start)), "does not end where"},
		"begins behind its end":      {zipOf(1, 1, uint32(len(entry)), 1<<30), "does not end where"},
		"its size hints at zip64":    {zipOf(1, 1, 0xffff, uint32(start), locator...), "zip64"},
		"its count hints at zip64":   {zipOf(1, 0xffff, uint32(len(entry)), uint32(start)), "zip64"},
		"its offset hints at zip64":  {zipOf(1, 1, uint32(len(entry)), 0xffffffff, locator...), "does not end where"},
		"count modulo 65,536 is one": {zipOf(65537, 1, uint32(65537*len(entry)), uint32(start)), "does not have the 1 files"},
		"is of many folders":         {writeZip(t, deep), "300000 files and folders"},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _, err := CheckZip(m, tc.zip)
		runtime.ReadMemStats(&after)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %.300v, want an error with %q", name, err, tc.want)
		} else if n := len(err.Error()); n > 1000 {
			t.Errorf("%s: the error has %d bytes: %.300v", name, n, err)
		}
		if used := (after.TotalAlloc - before.TotalAlloc) >> 20; used > 1 {
			t.Errorf("%s: %d MiB were allocated", name, used)
		}
	}
}

// Of zips with a large directory one is checked at a time; others do not wait for it.
func TestChecksLarge(t *testing.T) {
	m := module.Version{Path: "example.com/m", Version: "v1.2.3"}
	files := map[string]string{m.String() + "/go.mod": "module example.com/m\n"}
	small := writeZip(t, files)
	for i := range 5000 {
		files[fmt.Sprintf("%s/%s%d", m, strings.Repeat("n", 200), i)] = ""
	}
	large := writeZip(t, files)
	var c Checks
	c.large.Lock()
	done := make(chan error, 1)
	go func() {
		_, _, err := c.CheckZip(m, large)
		done <- err
	}()
	if _, _, err := c.CheckZip(m, small); err != nil {
		t.Error(err)
	}
	select {
	case err := <-done:
		t.Fatalf("two were checked at a time: %v", err)
	case <-time.After(200 * time.Millisecond): // it takes a tenth of that
	}
	c.large.Unlock()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Any bytes are either a zip that may be kept, or an error.
func FuzzCheckZip(f *testing.F) {
	m := module.Version{Path: "example.com/m", Version: "v1.0.0"}
	whole, err := os.ReadFile(writeZip(f, map[string]string{m.String() + "/go.mod": "module example.com/m\n", m.String() + "/a.go": "package a\n"}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add([]byte("PK\x05\x06" + strings.Repeat("\x00", 18)))
	f.Add(whole[:len(whole)-5])
	f.Fuzz(func(t *testing.T, b []byte) {
		name := filepath.Join(t.TempDir(), "m.zip")
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		h1, mod, err := CheckZip(m, name)
		if err == nil && (!strings.HasPrefix(h1, "h1:") || goproxy.CheckMod(m, mod) != nil) {
			t.Errorf("%s, %q", h1, mod)
		}
	})
}
