package vcs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/mod/module"
	modzip "golang.org/x/mod/zip"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/vcs/git"
)

// maxLicenseBytes is the largest LICENSE that is taken from a repository's root.
const maxLicenseBytes = 16 << 20

// What a zip's list of files takes of memory while it is made, about (TestHostileMemory),
// and how much of it is accepted: 170,000 files with names of 50 bytes.
const (
	fileBytes     = 600 // and three times its name
	folderBytes   = 100 // golang.org/x/mod/zip remembers each folder of each path
	maxZipEntries = 120 << 20
)

// writeZip writes the zip of a version to f. What belongs in it golang.org/x/mod/zip
// decides: not what nested modules, vendor folders and links have.
func (m *mod) writeZip(ctx context.Context, r *revision, version string, f *os.File) error {
	dir, _, err := m.find(ctx, r)
	if err != nil {
		return err
	}
	t, err := m.s.treeOf(ctx, m.repo, r.hash, true)
	if err != nil {
		return err
	}
	defer t.release()
	attrs, err := readAttributes(t.objects, t.commit.Tree)
	defer t.objects.GiveMemory(attrs.memory)
	switch {
	case goproxy.Status(err) == http.StatusServiceUnavailable: // no memory for them
		return err
	case errors.Is(err, errGitsOwn), errors.Is(err, errManyAttributes):
		return goproxy.Errorf(http.StatusForbidden, "%s@%s: no module zip can be made of it: %w", m.path, version, err)
	case err != nil:
		return goproxy.Errorf(http.StatusBadGateway, "%s@%s: %w", m.path, version, err)
	}
	var files []modzip.File
	hasLicense := false
	list := 0  // bytes
	last := "" // file
	top, err := t.objects.Find(t.commit.Tree, dir)
	if err == nil && !top.IsTree() {
		err = m.notFound(version, "%s is not a folder", dir)
	}
	if err != nil {
		return err
	}
	defer func() { t.objects.GiveMemory(int64(list)) }()
	err = t.objects.Walk(top.Hash, func(name string, e git.Entry) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !e.IsFile() && !e.IsLink() { // a submodule
			return nil
		}
		cost := fileBytes + 3*len(name) + folderBytes*newFolders(last, name)
		last = name
		if list+cost > maxZipEntries {
			return goproxy.Errorf(http.StatusForbidden, "%s@%s: no module zip can be made of it: more than %d files, or names that are too long", m.path, version, len(files))
		}
		if err := t.objects.TakeMemory(int64(cost)); err != nil {
			return err
		}
		list += cost
		zf := &zipFile{objects: t.objects, name: name, entry: e}
		if e.IsFile() {
			var err error
			if zf.convert, err = attrs.conversion(path.Join(dir, name)); err != nil {
				return goproxy.Errorf(http.StatusNotImplemented, "%s@%s: %w", m.path, version, err)
			}
		}
		if zf.size, err = zf.count(); err != nil {
			return err
		}
		files = append(files, zf)
		hasLicense = hasLicense || name == "LICENSE"
		return nil
	})
	if err != nil {
		return err
	}
	if dir != "" && !hasLicense {
		if e, err := t.objects.Find(t.commit.Tree, "LICENSE"); err == nil && (e.IsFile() || e.IsLink()) {
			b, err := t.objects.ReadBlob(e.Hash, maxLicenseBytes)
			if err != nil {
				return goproxy.Errorf(http.StatusForbidden, "%s@%s: no module zip can be made of it: LICENSE: %w", m.path, version, err)
			}
			files = append(files, &zipFile{name: "LICENSE", content: b, size: int64(len(b)), entry: git.Entry{Mode: 0o100644}})
		}
	}
	if err := modzip.Create(f, module.Version{Path: m.path, Version: version}, files); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return goproxy.Errorf(http.StatusForbidden, "%s@%s: no module zip can be made of it: %w", m.path, version, err)
	}
	return nil
}

// newFolders is how many folders of a path are not those of the path before it.
func newFolders(last, name string) int {
	same := 0
	for same < min(len(last), len(name)) && last[same] == name[same] {
		same++
	}
	return strings.Count(name[same:], "/")
}

// zipFile is one file of a repository, as modzip wants it.
type zipFile struct {
	objects *git.Objects
	name    string
	entry   git.Entry
	size    int64
	content []byte // not nil: in place of the object's
	convert func(io.Reader) io.Reader
}

func (f *zipFile) Path() string                { return f.name }
func (f *zipFile) Lstat() (fs.FileInfo, error) { return fileInfo{f}, nil }

func (f *zipFile) Open() (io.ReadCloser, error) {
	if f.content != nil {
		return io.NopCloser(bytes.NewReader(f.content)), nil
	}
	r, _, err := f.objects.Blob(f.entry.Hash)
	if err != nil || f.convert == nil {
		return r, err
	}
	return struct {
		io.Reader
		io.Closer
	}{f.convert(r), r}, nil
}

// count is the size of the content.
func (f *zipFile) count() (int64, error) {
	if f.convert == nil {
		return f.objects.Size(f.entry.Hash)
	}
	r, _, err := f.objects.Blob(f.entry.Hash)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return io.Copy(io.Discard, f.convert(r))
}

type fileInfo struct{ f *zipFile }

func (i fileInfo) Name() string       { return path.Base(i.f.name) }
func (i fileInfo) Size() int64        { return i.f.size }
func (i fileInfo) ModTime() time.Time { return time.Time{} }
func (i fileInfo) IsDir() bool        { return false }
func (i fileInfo) Sys() any           { return nil }
func (i fileInfo) Mode() fs.FileMode {
	if i.f.entry.IsLink() {
		return fs.ModeSymlink | 0o777
	}
	return 0o644
}

// isText reports whether git takes content for text: no NUL, no lone CR, and few
// other control characters, in all of it.
// Source: https://git-scm.com/docs/gitattributes, "text".
func isText(b []byte) bool {
	printable, other, loneCR := 0, 0, 0
	for i, c := range b {
		switch {
		case c == 0:
			return false
		case c == '\r':
			if i+1 == len(b) || b[i+1] != '\n' {
				loneCR++
			}
		case c == '\n':
		case c == '\b' || c == '\t' || c == 033 || c == '\f' || c >= 0x20 && c != 0x7f:
			printable++
		default:
			other++
		}
	}
	if n := len(b); n > 0 && b[n-1] == 032 { // an old end of file
		other--
	}
	return loneCR == 0 && printable>>7 >= other
}

func hasCRLF(b []byte) bool { return strings.Contains(string(b), "\r\n") }
