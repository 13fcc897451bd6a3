package storage

import (
	"archive/zip"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/flate"
	"golang.org/x/mod/module"
	modzip "golang.org/x/mod/zip"
	"golang.org/x/sync/errgroup"

	"github.com/athensctl/athensctl/goproxy"
)

// maxZipDirectoryBytes bounds the memory that a zip's directory takes when it is
// read: room for the 65,534 files that a zip can hold without the zip64 format.
const maxZipDirectoryBytes = 16 << 20

// maxZipEntries is how many files and folders there may be in a zip: golang.org/x/mod/zip
// remembers each folder of each path, and 65,534 files can be in six million of them. It is
// several folders for each file.
const maxZipEntries = 300_000

// largeDirectoryBytes is the directory of some 8,000 files. One of maxZipDirectoryBytes takes
// some 80 MB while its zip is checked.
const largeDirectoryBytes = 1 << 20

// What is said of a zip that is refused is shown to people, and kept: of so many files, in so
// many bytes.
const (
	maxReasons     = 10
	maxReasonBytes = 2000
)

// SameMod reports whether the go.mod file in a zip is the .mod file: byte for byte, but for
// line ends. The go command takes the .mod file as it was committed, and that in the zip as
// git archives it: with a CR before each LF where an attribute (eol=crlf) says so.
func SameMod(inZip, mod []byte) bool {
	lf := func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n")) }
	return bytes.Equal(inZip, mod) || bytes.Equal(lf(inZip), lf(mod))
}

// CheckZip checks a whole module zip: the rules of golang.org/x/mod/zip (names,
// prefix, sizes, case collisions, major version), the CRC of every file, and
// the go.mod in it. It returns the h1: hash of the zip and the go.mod file that
// goes with it: the one in the zip, or the synthesised one where there is none.
// It streams; memory grows only with the number of files.
func CheckZip(m module.Version, file string) (h1 string, mod []byte, err error) {
	return new(Checks).CheckZip(m, file)
}

// Checks checks zips, several at once; those that have so many files that it takes much
// memory, one after the other. The zero value is ready.
type Checks struct{ large sync.Mutex }

// CheckZip is the function of that name.
func (c *Checks) CheckZip(m module.Version, file string) (h1 string, mod []byte, err error) {
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
	dirBytes, err := checkDirectory(f, st.Size())
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", m, err)
	}
	if dirBytes > largeDirectoryBytes {
		c.large.Lock()
		defer c.large.Unlock()
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
	var p inflaters
	z.RegisterDecompressor(zip.Deflate, p.decompress)
	mod = goproxy.SynthesisedMod(m.Path)
	if i := slices.IndexFunc(z.File, func(zf *zip.File) bool { return zf.Name == m.String()+"/go.mod" }); i >= 0 {
		r, err := z.File[i].Open()
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
	h1, err = hash1(z.File)
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", m, err)
	}
	return h1, mod, nil
}

// checkDirectory refuses a zip whose directory would take too much memory,
// before anything reads it, and says how many bytes it has.
func checkDirectory(f io.ReaderAt, size int64) (dirBytes int64, err error) {
	// The end of central directory record: 22 bytes and a comment of up to 64 KiB; before
	// it may be the 20 bytes of zip64's locator.
	// Source: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT 4.3.15, 4.3.16.
	tail := min(size, 20+22+1<<16)
	buf := make([]byte, tail)
	if _, err := f.ReadAt(buf, size-tail); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	i := bytes.LastIndex(buf, []byte("PK\x05\x06"))
	if i < 0 || i+22 > len(buf) {
		return 0, errors.New("zip: not a zip file: no end of central directory")
	}
	end := buf[i:]
	dirBytes = int64(binary.LittleEndian.Uint32(end[12:]))
	files, offset := int(binary.LittleEndian.Uint16(end[10:])), int64(binary.LittleEndian.Uint32(end[16:]))
	endAt := size - tail + int64(i)
	// A reader may look for the zip64 format where one of these is all ones, and so it does
	// where the size is 0xffff.
	zip64 := files == 0xffff || dirBytes == 0xffffffff || dirBytes == 0xffff && i >= 20 && bytes.HasPrefix(buf[i-20:], []byte("PK\x06\x07"))
	switch {
	case zip64:
		return 0, errors.New("zip: a zip64 file, one with more than 65,534 files in it, is not accepted")
	case dirBytes > maxZipDirectoryBytes:
		return 0, fmt.Errorf("zip: the directory takes %d bytes; at most %d are accepted", dirBytes, maxZipDirectoryBytes)
	case offset+dirBytes != endAt:
		// Else a reader may begin elsewhere, and read on to the end of the file.
		return 0, fmt.Errorf("zip: the directory of %d bytes at %d does not end where its end is, at %d", dirBytes, offset, endAt)
	}
	return dirBytes, countFiles(bufio.NewReader(io.NewSectionReader(f, offset, dirBytes)), files)
}

// countFiles reads a zip's directory: there are as many files in it as its end says. A
// reader takes that modulo 65,536. And there are not too many folders. Source: APPNOTE.TXT 4.3.12.
func countFiles(dir *bufio.Reader, want int) error {
	var header [46]byte
	var name, last []byte
	for n, entries := 0, 0; ; n++ {
		if _, err := io.ReadFull(dir, header[:]); err == io.EOF && n == want {
			return nil
		} else if err != nil || n == want || !bytes.HasPrefix(header[:], []byte("PK\x01\x02")) {
			return fmt.Errorf("zip: the directory does not have the %d files that its end says", want)
		}
		length := int(binary.LittleEndian.Uint16(header[28:]))
		name = slices.Grow(name[:0], length)[:length]
		more := int(binary.LittleEndian.Uint16(header[30:])) + int(binary.LittleEndian.Uint16(header[32:]))
		if _, err := io.ReadFull(dir, name); err != nil {
			return errors.New("zip: the directory is cut")
		}
		if n, _ := dir.Discard(more); n < more {
			return errors.New("zip: the directory is cut")
		}
		// Those that are not the same as of the path before: paths stand in some order.
		same := 0
		for same < min(len(name), len(last)) && name[same] == last[same] {
			same++
		}
		if entries += 1 + bytes.Count(name[same:], []byte("/")); entries > maxZipEntries {
			return fmt.Errorf("zip: more than %d files and folders are not accepted", maxZipEntries)
		}
		name, last = last, name
	}
}

// hash1 is dirhash.Hash1 of the files of a zip, but that several are read at once: somebody
// waits for this. It checks their CRC.
// Source: https://go.dev/ref/mod#go-sum-files, golang.org/x/mod/sumdb/dirhash.
func hash1(files []*zip.File) (string, error) {
	files = slices.SortedFunc(slices.Values(files), func(a, b *zip.File) int { return strings.Compare(a.Name, b.Name) })
	sums := make([][sha256.Size]byte, len(files))
	var next atomic.Int64
	var g errgroup.Group
	for range min(runtime.GOMAXPROCS(0), len(files)) {
		g.Go(func() error {
			h, buf := sha256.New(), make([]byte, 64<<10)
			for {
				i := int(next.Add(1)) - 1
				if i >= len(files) {
					return nil
				}
				r, err := files[i].Open()
				if err != nil {
					next.Store(int64(len(files))) // for the others
					return err
				}
				h.Reset()
				_, err = io.CopyBuffer(h, struct{ io.Reader }{r}, buf)
				r.Close()
				if err != nil {
					next.Store(int64(len(files)))
					return fmt.Errorf("%s: %w", files[i].Name, err)
				}
				h.Sum(sums[i][:0])
			}
		})
	}
	if err := g.Wait(); err != nil {
		return "", err
	}
	h := sha256.New()
	for i, f := range files {
		fmt.Fprintf(h, "%x  %s\n", sums[i], f.Name)
	}
	return "h1:" + base64.StdEncoding.EncodeToString(h.Sum(nil)), nil
}

// inflaters are a zip.Decompressor that takes less time than archive/zip's own, which reads
// 4 KiB at a time through an interface. Inflating is most of what it costs to check a zip.
type inflaters struct{ free sync.Pool }

func (p *inflaters) decompress(r io.Reader) io.ReadCloser {
	i, ok := p.free.Get().(*inflater)
	if !ok {
		in := bufio.NewReaderSize(nil, 64<<10)
		i = &inflater{p, in, flate.NewReader(in)}
	}
	i.in.Reset(r)
	i.ReadCloser.(flate.Resetter).Reset(i.in, nil) // it fails for a dictionary alone
	return i
}

type inflater struct {
	of *inflaters
	in *bufio.Reader
	io.ReadCloser
}

// Close makes it free for another file; nobody reads from it any more.
func (i *inflater) Close() error {
	i.of.free.Put(i)
	return nil
}
