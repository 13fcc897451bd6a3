package storage

import (
	"archive/zip"
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/klauspost/compress/flate"
	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	modzip "golang.org/x/mod/zip"

	"github.com/athensctl/athensctl/goproxy"
)

// maxZipDirectoryBytes bounds the memory that a zip's directory takes when it is
// read: room for the 65,534 files that a zip can hold without the zip64 format.
const maxZipDirectoryBytes = 16 << 20

// What is said of a zip that is refused is shown to people, and kept: of so many files, in so
// many bytes.
const (
	maxReasons     = 10
	maxReasonBytes = 2000
)

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
	if st.Size() > goproxy.MaxZipBytes {
		return "", nil, fmt.Errorf("%s: zip is larger than %d bytes", m, goproxy.MaxZipBytes)
	}
	if err := checkDirectorySize(f, st.Size()); err != nil {
		return "", nil, fmt.Errorf("%s: %w", m, err)
	}
	checked, err := modzip.CheckZip(m, file)
	n := len(checked.Invalid)
	checked.Invalid = checked.Invalid[:min(n, maxReasons)]
	if e := checked.Err(); e != nil {
		err = e
	}
	if err != nil {
		text := err.Error()
		if len(text) > maxReasonBytes {
			text = strings.ToValidUTF8(text[:maxReasonBytes], "") + "…"
		}
		if n > maxReasons {
			text += fmt.Sprintf(", and %d more files", n-maxReasons)
		}
		return "", nil, fmt.Errorf("%s: %s", m, text)
	}
	z, err := zip.NewReader(f, st.Size())
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", m, err)
	}
	inflate := newInflater()
	z.RegisterDecompressor(zip.Deflate, inflate.decompress)
	names := make([]string, len(z.File))
	entries := make(map[string]*zip.File, len(z.File))
	for i, zf := range z.File {
		names[i], entries[zf.Name] = zf.Name, zf
	}
	mod = goproxy.SynthesisedMod(m.Path)
	if zf := entries[m.String()+"/go.mod"]; zf != nil {
		r, err := zf.Open()
		if err != nil {
			return "", nil, fmt.Errorf("%s: %w", m, err)
		}
		mod, err = io.ReadAll(io.LimitReader(r, goproxy.MaxModBytes+1))
		r.Close()
		if err != nil {
			return "", nil, fmt.Errorf("%s: %w", m, err)
		}
	}
	if err := goproxy.CheckMod(m, mod); err != nil {
		return "", nil, err
	}
	// It reads every file, and so checks every CRC.
	h1, err = dirhash.Hash1(names, func(name string) (io.ReadCloser, error) { return inflate.open(entries[name]) })
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", m, err)
	}
	return h1, mod, nil
}

// checkDirectorySize refuses a zip whose directory would take too much memory,
// before anything reads it.
func checkDirectorySize(f io.ReaderAt, size int64) error {
	// The end of central directory record: 22 bytes and a comment of up to 64 KiB; before
	// it may be the 20 bytes of zip64's locator.
	// Source: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT 4.3.15, 4.3.16.
	tail := min(size, 20+22+1<<16)
	buf := make([]byte, tail)
	if _, err := f.ReadAt(buf, size-tail); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	i := bytes.LastIndex(buf, []byte("PK\x05\x06"))
	if i < 0 || i+22 > len(buf) {
		return errors.New("zip: not a zip file: no end of central directory")
	}
	end := buf[i:]
	files, dirBytes, offset := int(binary.LittleEndian.Uint16(end[10:])), int64(binary.LittleEndian.Uint32(end[12:])), int64(binary.LittleEndian.Uint32(end[16:]))
	endAt := size - tail + int64(i)
	// A reader may look for the zip64 format where one of these is all ones, and so it does
	// where the size is 0xffff.
	zip64 := files == 0xffff || dirBytes == 0xffffffff || dirBytes == 0xffff && i >= 20 && bytes.HasPrefix(buf[i-20:], []byte("PK\x06\x07"))
	switch {
	case zip64:
		return errors.New("zip: a zip64 file, one with more than 65,534 files in it, is not accepted")
	case dirBytes > maxZipDirectoryBytes:
		return fmt.Errorf("zip: the directory takes %d bytes; at most %d are accepted", dirBytes, maxZipDirectoryBytes)
	case offset+dirBytes != endAt:
		// Else a reader may begin elsewhere, and read on to the end of the file.
		return fmt.Errorf("zip: the directory of %d bytes at %d does not end where its end is, at %d", dirBytes, offset, endAt)
	}
	return countFiles(bufio.NewReader(io.NewSectionReader(f, offset, dirBytes)), files)
}

// countFiles reads a zip's directory: there are as many files in it as its end says. A
// reader takes that modulo 65,536. Source: APPNOTE.TXT 4.3.12.
func countFiles(dir *bufio.Reader, want int) error {
	var header [46]byte
	for n := 0; ; n++ {
		if _, err := io.ReadFull(dir, header[:]); err == io.EOF && n == want {
			return nil
		} else if err != nil || n == want || !bytes.HasPrefix(header[:], []byte("PK\x01\x02")) {
			return fmt.Errorf("zip: the directory does not have the %d files that its end says", want)
		}
		more := int(binary.LittleEndian.Uint16(header[28:])) + int(binary.LittleEndian.Uint16(header[30:])) + int(binary.LittleEndian.Uint16(header[32:]))
		if n, _ := dir.Discard(more); n < more {
			return errors.New("zip: the directory is cut")
		}
	}
}

// inflater reads the files of a zip, one after the other, with the same memory. Most of
// what it costs to keep a zip is this; archive/zip's own takes nearly twice as long, and a
// buffer for each file.
type inflater struct {
	in  *bufio.Reader
	out io.ReadCloser // a flate.Resetter
	buf []byte
}

func newInflater() *inflater {
	in := bufio.NewReaderSize(nil, 64<<10)
	return &inflater{in: in, out: flate.NewReader(in), buf: make([]byte, 64<<10)}
}

// decompress is a zip.Decompressor, for one file at a time.
func (i *inflater) decompress(r io.Reader) io.ReadCloser {
	i.in.Reset(r)
	i.out.(flate.Resetter).Reset(i.in, nil) // it fails for a dictionary alone
	return i.out
}

// open opens a file of the zip for io.Copy.
func (i *inflater) open(f *zip.File) (io.ReadCloser, error) {
	r, err := f.Open()
	return inflated{r, i.buf}, err
}

type inflated struct {
	io.ReadCloser
	buf []byte
}

func (f inflated) WriteTo(w io.Writer) (int64, error) {
	return io.CopyBuffer(w, struct{ io.Reader }{f.ReadCloser}, f.buf)
}
