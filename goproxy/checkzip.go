package goproxy

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	modzip "golang.org/x/mod/zip"
)

// maxZipDirectoryBytes bounds the memory that a zip's directory takes when it is
// read: room for the 65,534 files that a zip can hold without the zip64 format.
const maxZipDirectoryBytes = 16 << 20

// zip64LocatorBytes is the size of what stands before the end of a zip64 file.
const zip64LocatorBytes = 20

// maxInvalidFiles is how many files an error names.
const maxInvalidFiles = 5

// CheckMod says why a go.mod file cannot be used: too large, or not in the
// go.mod syntax. It may declare another path than m's: forks behind a replace
// directive do.
func CheckMod(m module.Version, mod []byte) error {
	if len(mod) > MaxModBytes {
		return fmt.Errorf("%s: go.mod is larger than %d bytes", m, MaxModBytes)
	}
	f, err := modfile.ParseLax(m.String()+"/go.mod", mod, nil)
	if err != nil && modfile.ModulePath(mod) != "" {
		// The go command finds a path in raw quotes, which its parser refuses:
		// https://go.dev/ref/mod#go-mod-file-lexical.
		f, err = modfile.ParseLax(m.String()+"/go.mod", bytes.ReplaceAll(mod, []byte("`"), []byte(`"`)), nil)
	}
	if err == nil && f.Module == nil {
		err = errors.New("it declares no module")
	}
	if err != nil {
		return fmt.Errorf("%s: go.mod cannot be parsed: %w", m, err)
	}
	return nil
}

// CheckZip checks a whole module zip: the rules of golang.org/x/mod/zip (names,
// prefix, sizes, case collisions, major version), the CRC of every file, and
// the go.mod in it. It returns the h1: hash of the zip and the go.mod file that
// goes with it: the one in the zip, or the synthesised one where there is none.
// It streams; memory grows only with the number of files.
func CheckZip(m module.Version, file string) (h1 string, mod []byte, err error) {
	f, err := os.Open(file)
	if err != nil {
		return "", nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", nil, err
	}
	if st.Size() > MaxZipBytes {
		return "", nil, fmt.Errorf("%s: zip is larger than %d bytes", m, MaxZipBytes)
	}
	if err := checkDirectorySize(f, st.Size()); err != nil {
		return "", nil, fmt.Errorf("%s: %w", m, err)
	}
	checked, err := modzip.CheckZip(m, file)
	if n := len(checked.Invalid); n > maxInvalidFiles { // each would have a line
		return "", nil, fmt.Errorf("%s: %d files are not valid, such as: %w", m, n, modzip.FileErrorList(checked.Invalid[:maxInvalidFiles]))
	}
	if err == nil {
		err = checked.Err()
	}
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", m, err)
	}
	z, err := zip.NewReader(f, st.Size())
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", m, err)
	}
	names := make([]string, len(z.File))
	entries := make(map[string]*zip.File, len(z.File))
	for i, zf := range z.File {
		names[i], entries[zf.Name] = zf.Name, zf
	}
	mod = SynthesisedMod(m.Path)
	if zf := entries[m.String()+"/go.mod"]; zf != nil {
		r, err := zf.Open()
		if err != nil {
			return "", nil, fmt.Errorf("%s: %w", m, err)
		}
		mod, err = io.ReadAll(io.LimitReader(r, MaxModBytes+1))
		r.Close()
		if err != nil {
			return "", nil, fmt.Errorf("%s: %w", m, err)
		}
	}
	if err := CheckMod(m, mod); err != nil {
		return "", nil, err
	}
	// It reads every file, and so checks every CRC.
	h1, err = dirhash.Hash1(names, func(name string) (io.ReadCloser, error) { return entries[name].Open() })
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", m, err)
	}
	return h1, mod, nil
}

// SynthesisedMod is the go.mod file of a module that has none.
// Source: https://go.dev/ref/mod#non-module-compat.
func SynthesisedMod(path string) []byte {
	return fmt.Appendf(nil, "module %s\n", modfile.AutoQuote(path))
}

// ModH1 is the h1: hash of a go.mod file as go.sum and the checksum database
// have it.
func ModH1(mod []byte) (string, error) {
	return dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(mod)), nil
	})
}

// checkDirectorySize refuses a zip whose directory would take too much memory,
// before anything reads it. What reads it goes by where it begins, and counts modulo
// 65,536, so that place and size must agree.
func checkDirectorySize(f io.ReaderAt, size int64) error {
	// The end of central directory record: 22 bytes and a comment of up to 64 KiB.
	// Source: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT 4.3.16.
	tail := min(size, zip64LocatorBytes+22+1<<16)
	buf := make([]byte, tail)
	if _, err := f.ReadAt(buf, size-tail); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	i := bytes.LastIndex(buf, []byte("PK\x05\x06"))
	if i < 0 || i+22 > len(buf) {
		return errors.New("zip: not a zip file: no end of central directory")
	}
	le16 := func(o int) int64 { return int64(buf[i+o]) | int64(buf[i+o+1])<<8 }
	dirBytes, dirBegin, dirEnd := le16(12)|le16(14)<<16, le16(16)|le16(18)<<16, size-tail+int64(i)
	if le16(10) == 0xffff || dirBytes == 0xffffffff || i >= zip64LocatorBytes && bytes.HasPrefix(buf[i-zip64LocatorBytes:], []byte("PK\x06\x07")) {
		return errors.New("zip: a zip64 file, one with more than 65,534 files in it, is not accepted")
	}
	if dirBytes > maxZipDirectoryBytes {
		return fmt.Errorf("zip: the directory takes %d bytes; at most %d are accepted", dirBytes, maxZipDirectoryBytes)
	}
	if dirBegin+dirBytes != dirEnd {
		return fmt.Errorf("zip: the directory is not where the file says: %d bytes from %d, and its end is at %d", dirBytes, dirBegin, dirEnd)
	}
	return nil
}
