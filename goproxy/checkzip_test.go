package goproxy

import (
	"archive/zip"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
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
	for _, n := range []int{0, 1, 7, 200} {
		files := map[string]string{m.String() + "/go.mod": "module example.com/m\n"}
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

// A go.mod file is one when the go command finds its module in it.
func TestCheckMod(t *testing.T) {
	m := module.Version{Path: "example.com/m", Version: "v1.0.0"}
	for mod, ok := range map[string]bool{
		"module example.com/m\n":                                true,
		"module \"example.com/m\"\n":                            true,
		"module `example.com/m`\n":                              true,
		"module (\n\t`example.com/m`\n)\ngo 1.99\nwhatever x\n": true,
		"module example.com/fork\nretract `v1.0.0`\n":           true,
		"":                               false,
		"go 1.20\n":                      false,
		"<html>module example.com/m\n":   false,
		"module `example.com/m\n":        false,
		"module example.com/m\ngo (\n":   false,
		"module `example.com/m`\ngo (\n": false,
		strings.Repeat("// x\n", MaxModBytes/5) + "module example.com/m\n": false,
	} {
		if err := CheckMod(m, []byte(mod)); (err == nil) != ok {
			t.Errorf("%.60q: %v", mod, err)
		}
	}
}
