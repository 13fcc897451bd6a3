package cosmos

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/storagetest"
)

// Files that fit an item alone, and not together, are 413 and change nothing.
func TestTooLargeForAnItem(t *testing.T) {
	ctx := context.Background()
	_, a := fake(t)
	s := open(t, a, t.TempDir(), Options{})
	noise := rand.NewChaCha8([32]byte{1})
	comment := func(n int) []byte {
		b := make([]byte, n)
		noise.Read(b)
		return []byte(base64.RawURLEncoding.EncodeToString(b))
	}
	v := storagetest.New("example.com/m", "v1.0.0", "")
	info := fmt.Appendf(nil, `{"Version":"v1.0.0","Time":"2026-01-02T03:04:05Z","Origin":{"URL":"%s"}}`, comment(750<<10))
	mod := append(v.Mod, fmt.Appendf(nil, "// %s\n", comment(980<<10))...)
	if err := s.Put(ctx, v.Version, storage.Files{Mod: mod}); err != nil {
		t.Fatalf("a go.mod of %d bytes: %v", len(mod), err)
	}
	if err := s.Put(ctx, v.Version, storage.Files{Info: info, Zip: bytes.NewReader(v.Zip)}); goproxy.Status(err) != 413 {
		t.Errorf("an .info of %d bytes with it: %d %v", len(info), goproxy.Status(err), err)
	}
	if b, err := s.Mod(ctx, v.Version); err != nil || b.SizeBytes != int64(len(mod)) {
		t.Errorf("the go.mod afterwards: %v", err)
	}
	if _, err := s.Resolve(ctx, v.Path, "v1.0.0"); goproxy.Status(err) != 404 {
		t.Errorf("the .info afterwards: %v", err)
	}
	other := module.Version{Path: "example.com/other", Version: "v1.0.0"}
	if err := s.Put(ctx, other, storage.Files{Info: info}); err != nil {
		t.Errorf("the .info alone: %v", err)
	}
}

// A go.mod file that is much larger than what is kept of it takes no memory when it is read.
func TestLargeModStreams(t *testing.T) {
	_, a := fake(t)
	s := open(t, a, t.TempDir(), Options{})
	v := module.Version{Path: "example.com/m", Version: "v1.0.0"}
	mod := append([]byte("module example.com/m\n"), bytes.Repeat([]byte("//\n"), 5<<20)...)
	if err := s.Put(t.Context(), v, storage.Files{Mod: mod}); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	b, err := s.Mod(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, b)
	runtime.ReadMemStats(&after)
	if err != nil || n != int64(len(mod)) || b.SizeBytes != n {
		t.Errorf("%d bytes, said to be %d, of %d: %v", n, b.SizeBytes, len(mod), err)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 2<<20 {
		t.Errorf("%d bytes were allocated", n)
	}
	if b, err = s.Mod(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	if got, err := b.ReadAll(goproxy.MaxModBytes); err != nil || !bytes.Equal(got, mod) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// The name of a zip is one that a blob may have, however long or deep the path is, and
// no other's.
func TestZipNames(t *testing.T) {
	seen := map[string]string{}
	sha := hex.EncodeToString(make([]byte, sha256.Size))
	for _, path := range []string{
		"example.com/m", "github.com/Azure/azure-sdk-for-go", "github.com/azure/azure-sdk-for-go",
		"example.com" + strings.Repeat("/"+strings.Repeat("A", 50), 16),
		"example.com" + strings.Repeat("/"+strings.Repeat("A", 50), 15) + "/" + strings.Repeat("A", 49) + "a",
		"example.com" + strings.Repeat("/a", 400),
		"example.com" + strings.Repeat("/a", 399) + "/b",
	} {
		for _, version := range []string{"v1.0.0", "v1.0.0-PRE", "v1.0.0-pre"} {
			m := module.Version{Path: path, Version: version}
			if err := checkName(m); err != nil {
				t.Fatal(err)
			}
			name, err := zipName(m, sha)
			if err != nil {
				t.Fatal(err)
			}
			if other, ok := seen[name]; ok {
				t.Errorf("%s and %s have one name", m, other)
			}
			seen[name] = m.String()
			if len(name) > 1024 || strings.Count(name, "/") > 254 || !strings.Contains(name, sha) {
				t.Errorf("%.60s…: a name of %d bytes, %d folders deep: %s", m, len(name), strings.Count(name, "/"), name)
			}
		}
	}
}
