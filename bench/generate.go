package main

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
)

// genModule is a module that the bench makes up. All its versions have the same
// files, so that it costs little to have many.
type genModule struct {
	path     string
	versions []string // as @v/list has them; the last is the latest
	// require is the lines of the go.mod's require block, by version.
	require map[string][]string
	content []packedFile // of every version's zip, besides go.mod

	mu   sync.Mutex
	zips map[string][]byte // by version, made when asked for
}

// packedFile is a file as it lies in a zip. Compressing once and copying often
// makes a graph of modules in milliseconds.
type packedFile struct {
	method uint16
	crc    uint32
	size   uint64 // unpacked
	packed []byte
}

// file is what the protocol's file of that kind holds.
func (m *genModule) file(kind fileKind, version string) ([]byte, bool) {
	switch kind {
	case kindList:
		return []byte(strings.Join(m.versions, "\n") + "\n"), true
	case kindLatest:
		version = m.versions[len(m.versions)-1]
	}
	if !slices.Contains(m.versions, version) {
		return nil, false
	}
	switch kind {
	case kindInfo, kindLatest:
		return []byte(fmt.Sprintf(`{"Version":%q,"Time":"2026-01-02T03:04:05Z","Origin":{"VCS":"git","URL":"https://%s","Hash":"%040x","Ref":"refs/tags/%s"}}`,
			version, m.path, crc32.ChecksumIEEE([]byte(m.path+version)), version)), true
	case kindMod:
		return m.goMod(version), true
	}
	return m.zip(version), true
}

func (m *genModule) goMod(version string) []byte {
	s := "module " + m.path + "\n\ngo 1.16\n"
	if req := m.require[version]; len(req) > 0 {
		s += "\nrequire (\n\t" + strings.Join(req, "\n\t") + "\n)\n"
	}
	return []byte(s)
}

func (m *genModule) zip(version string) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	if z, ok := m.zips[version]; ok {
		return z
	}
	var buf bytes.Buffer
	zw := zip.NewWriter(&buf)
	add := func(name string, f packedFile) {
		w, err := zw.CreateRaw(&zip.FileHeader{
			Name: m.path + "@" + version + "/" + name, Method: f.method, CRC32: f.crc,
			UncompressedSize64: f.size, CompressedSize64: uint64(len(f.packed)),
		})
		if err == nil {
			_, err = w.Write(f.packed)
		}
		must(err)
	}
	add("go.mod", pack(m.goMod(version), zip.Store))
	for i, f := range m.content {
		add(fmt.Sprintf("file%03d.go", i), f)
	}
	must(zw.Close())
	if m.zips == nil {
		m.zips = map[string][]byte{}
	}
	m.zips[version] = buf.Bytes()
	return m.zips[version]
}

// must is for writes to memory.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

func pack(data []byte, method uint16) packedFile {
	f := packedFile{method: method, crc: crc32.ChecksumIEEE(data), size: uint64(len(data)), packed: data}
	if method == zip.Deflate {
		var buf bytes.Buffer
		w, err := flate.NewWriter(&buf, flate.DefaultCompression)
		must(err)
		_, err = w.Write(data)
		must(err)
		must(w.Close())
		f.packed = buf.Bytes()
	}
	return f
}

// randomFile is a file that does not compress, so that the zip's size is known.
func randomFile(size int, seed uint64) packedFile {
	data := make([]byte, size)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(data) // never fails
	return pack(data, zip.Store)
}

// sourcePool is files of about 16 KB, the mean of real modules' files, that
// compress about as well as Go source.
var sourcePool = sync.OnceValue(func() []packedFile {
	r := rand.New(rand.NewPCG(1, 2))
	words := make([]string, 2000)
	for i := range words {
		b := make([]byte, 3+r.IntN(9))
		for j := range b {
			b[j] = 'a' + byte(r.IntN(26))
		}
		words[i] = string(b)
	}
	word := func() string { return words[min(r.IntN(len(words)), r.IntN(len(words)))] }
	pool := make([]packedFile, 160)
	for i := range pool {
		var b bytes.Buffer
		b.WriteString("package p\n\n")
		for b.Len() < 16<<10 {
			fmt.Fprintf(&b, "func (%c *%s) %s(%s int) error {\n\tif err := %s.%s(%d); err != nil {\n\t\treturn err\n\t}\n\treturn nil\n}\n\n",
				'a'+byte(r.IntN(26)), word(), word(), word(), word(), word(), r.IntN(1000))
		}
		pool[i] = pack(b.Bytes(), zip.Deflate)
	}
	return pool
})

// sized is a module with one version whose zip has about that many bytes.
func sized(path string, bytes int, seed uint64) *genModule {
	return &genModule{path: path, versions: []string{"v1.0.0"}, content: []packedFile{randomFile(bytes, seed)}}
}

// goModOnly is a module with versions and no files besides go.mod.
func goModOnly(path string, versions ...string) *genModule {
	return &genModule{path: path, versions: versions}
}

// graph is n modules below prefix that require each other, and the go.mod of a
// program that requires them all. Each has a version that is newer than the one
// required; every fifth requires an older one too, whose go.mod the go command
// reads though it never wants the zip. All say go 1.16, so that no part of the
// graph is pruned. With n = 100: 100 zips of about 35 MB, 120 go.mod files.
func graph(prefix string, n int) (ms []*genModule, goMod []byte) {
	pool := sourcePool()
	path := func(i int) string { return fmt.Sprintf("%s/mod%03d", prefix, i%n) }
	root := "module bench.example/app\n\ngo 1.16\n\nrequire (\n"
	for i := range n {
		m := goModOnly(path(i), "v1.0.0", "v1.1.0", "v1.2.0")
		files := 36
		switch {
		case i%20 == 0:
			files = 600
		case i%5 == 0:
			files = 150
		}
		for j := range files {
			m.content = append(m.content, pool[(i+j)%len(pool)])
		}
		var req []string
		if i+1 < n {
			req = append(req, path(i+1)+" v1.1.0")
		}
		if i%5 == 0 {
			req = append(req, path(i+7)+" v1.0.0")
		}
		m.require = map[string][]string{"v1.1.0": req, "v1.2.0": req}
		ms = append(ms, m)
		root += "\t" + m.path + " v1.1.0\n"
	}
	return ms, []byte(root + ")\n")
}
