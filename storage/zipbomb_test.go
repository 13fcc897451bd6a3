package storage

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
)

// zipEnd is an end of central directory record.
func zipEnd(files int, dirBytes, offset uint32) []byte {
	b := []byte("PK\x05\x06\x00\x00\x00\x00")
	b = binary.LittleEndian.AppendUint16(b, uint16(files))
	b = binary.LittleEndian.AppendUint16(b, uint16(files))
	b = binary.LittleEndian.AppendUint32(b, dirBytes)
	b = binary.LittleEndian.AppendUint32(b, offset)
	return append(b, 0, 0)
}

// zipEntry is a file's header in a directory.
func zipEntry(name string) []byte {
	b := make([]byte, 46, 46+len(name))
	copy(b, "PK\x01\x02")
	binary.LittleEndian.PutUint16(b[28:], uint16(len(name)))
	return append(b, name...)
}

// A zip that would take a lot of memory, or of time, is refused with a reason, and takes
// neither.
func TestCheckZipBombs(t *testing.T) {
	m := module.Version{Path: "example.com/m", Version: "v1.0.0"}
	name := m.String() + "/a"
	many := bytes.Repeat(zipEntry("x"), 400_000) // 19 MB: some 150 MB in memory
	few := zipEntry(name)
	zip64 := func(dirBytes uint32, pad int) []byte { // a locator and an end of its own, which says what it likes
		dir := append(bytes.Repeat(zipEntry("x"), 400_000), make([]byte, pad)...)
		b := append([]byte{}, dir...)
		at := uint64(len(b))
		b = append(b, "PK\x06\x06"...)
		b = binary.LittleEndian.AppendUint64(b, 44)
		b = append(b, make([]byte, 12)...)
		for _, v := range []uint64{400_000, 400_000, uint64(len(dir)), 0} {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
		b = append(b, "PK\x06\x07\x00\x00\x00\x00"...)
		b = binary.LittleEndian.AppendUint64(b, at)
		b = append(b, 1, 0, 0, 0)
		return append(b, zipEnd(400_000, dirBytes, uint32(len(b))-dirBytes)...)
	}
	deflated := func(declared, real int64) []byte {
		var b bytes.Buffer
		z := zip.NewWriter(&b)
		var data bytes.Buffer
		w, _ := flate.NewWriter(&data, flate.BestSpeed)
		sum := crc32.NewIEEE()
		if _, err := io.CopyN(io.MultiWriter(w, sum), zeros{}, real); err != nil {
			t.Fatal(err)
		}
		w.Close()
		raw, err := z.CreateRaw(&zip.FileHeader{Name: name, Method: zip.Deflate, CRC32: sum.Sum32(), CompressedSize64: uint64(data.Len()), UncompressedSize64: uint64(declared)})
		if err == nil {
			_, err = raw.Write(data.Bytes())
		}
		if err != nil || z.Close() != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	for _, tc := range []struct {
		name    string
		content []byte
		want    string
	}{
		{"a directory as large as it says", append(bytes.Clone(many), zipEnd(400_000, uint32(len(many)), 0)...), "at most 16777216 are accepted"},
		{"a larger one than it says", append(bytes.Clone(many), zipEnd(400_000, 47, 0)...), "does not end where its end is"},
		{"a larger one than it says, before", append(bytes.Clone(many), zipEnd(400_000, 47, uint32(len(many)-47))...), "does not have the 6784 files"},
		{"files beyond 65,536", append(bytes.Repeat(zipEntry(""), 65_537), zipEnd(65_537, 65_537*46, 0)...), "does not have the 1 files"},
		{"fewer files than it says", append(bytes.Clone(few), zipEnd(2, uint32(len(few)), 0)...), "does not have the 2 files"},
		{"a name that is cut", append(bytes.Clone(few[:len(few)-3]), zipEnd(1, uint32(len(few)-3), 0)...), "the directory is cut"},
		{"zip64", append(bytes.Clone(few), zipEnd(0xffff, uint32(len(few)), 0)...), "a zip64 file"},
		{"zip64 by its size", append(bytes.Clone(few), zipEnd(1, 0xffffffff, 0)...), "a zip64 file"},
		{"zip64 by its offset", append(bytes.Clone(few), zipEnd(1, uint32(len(few)), 0xffffffff)...), "does not end where its end is"},
		{"zip64 by the size that readers take for it", zip64(0xffff, 0), "a zip64 file"},
		{"something before it", append(append([]byte("#!/bin/sh\n"), few...), zipEnd(1, uint32(len(few)), 0)...), "does not end where its end is"},
		{"a file of more than 500 MB", deflated(goproxy.MaxZipBytes+1, 1<<10), "too large"},
		{"a file that is larger than it says", deflated(10, 16<<20), "not a valid zip file"},
		{"a file that is smaller than it says", deflated(100<<20, 10), "unexpected EOF"},
	} {
		file := filepath.Join(t.TempDir(), "m.zip")
		if err := os.WriteFile(file, tc.content, 0o600); err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _, err := CheckZip(m, file)
		runtime.ReadMemStats(&after)
		if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), m.String()) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
			t.Errorf("%s: %d MB were allocated", tc.name, n>>20)
		}
	}
	// What is wrong with very many files, or very long names, is not said of all of them.
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := range 2000 {
		if _, err := z.Create(strings.Repeat("x", 1000) + strconv.Itoa(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "m.zip")
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := CheckZip(m, file); err == nil || len(err.Error()) > 2100 || !strings.HasSuffix(err.Error(), "and 1990 more files") {
		t.Errorf("%d bytes: %.100v", len(err.Error()), err)
	}
	// A comment is no bomb, nor are as many files as there may be.
	long := append(bytes.Clone(zipEntry(name)), zipEnd(1, uint32(len(few)), 0)...)
	binary.LittleEndian.PutUint16(long[len(long)-2:], 0xffff)
	long = append(long, bytes.Repeat([]byte("x"), 0xffff)...)
	most := append(bytes.Repeat(zipEntry(""), 65_534), zipEnd(65_534, 65_534*46, 0)...)
	for what, content := range map[string][]byte{"a long comment": long, "65,534 files": most} {
		if _, err := checkDirectory(bytes.NewReader(content), int64(len(content))); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
