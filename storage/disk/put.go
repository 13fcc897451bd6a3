package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// Put implements storage.Store. What can take long, the writing of temporary files, comes first; then
// all files get their places at once, as far as any Delete is concerned.
func (s *Store) Put(ctx context.Context, m module.Version, f storage.Files) error {
	if _, err := s.file(m, storage.FileZip); err != nil {
		return err // no name of a file
	}
	parts, err := s.stage(ctx, m, f)
	defer func() {
		for _, p := range parts {
			if p.tmp != "" {
				os.Remove(p.tmp)
			}
		}
	}()
	mu := s.lock(m.Path)
	mu.Lock()
	defer mu.Unlock()
	if s.closed {
		return errClosed
	}
	if failed := s.endDelete(m); failed != nil {
		return failed
	}
	if err == nil {
		err = s.keep(m, parts, f.ZipH1)
	}
	// All files may be there, whatever became of one.
	if failed := s.complete(m); failed != nil {
		s.differs.Store(true)
		if err == nil {
			err = failed
		}
	}
	return err
}

// part is a file of a Put.
type part struct {
	file  storage.File
	name  string      // its place
	small []byte      // its content, where it is not the zip
	tmp   string      // has its content, synced; "": that has not been written
	same  os.FileInfo // what was at its place, with that content; nil: nothing
}

// stage writes what is not kept already to temporary files, also where it fails.
func (s *Store) stage(ctx context.Context, m module.Version, f storage.Files) (parts []*part, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for _, p := range []*part{{file: storage.FileInfo, small: f.Info}, {file: storage.FileMod, small: f.Mod}, {file: storage.FileZip}} {
		r := f.Zip
		if p.file != storage.FileZip {
			r = reader(p.small)
		}
		if r == nil {
			continue
		}
		if p.name, err = s.file(m, p.file); err == nil {
			parts = append(parts, p)
			err = s.stageOne(ctx, p, r)
		}
		if err != nil {
			return parts, fmt.Errorf("put %s (%s): %w", m, p.file, err)
		}
	}
	return parts, nil
}

func (s *Store) stageOne(ctx context.Context, p *part, r io.Reader) (err error) {
	if p.small != nil { // most are put again with their zip
		if have, st, err := readFile(p.name); err == nil {
			if p.same = st; !bytes.Equal(have, p.small) {
				err = storage.ErrConflict
			}
			return err
		}
	}
	tmp := s.link(r)
	if tmp == nil {
		if tmp, err = os.CreateTemp(filepath.Join(s.dir, "tmp"), "put-"); err != nil {
			return storage.FullDisk(err)
		}
	}
	defer tmp.Close()
	p.tmp = tmp.Name()
	if _, err = io.Copy(tmp, ctxReader{ctx, r}); err != nil {
		return storage.FullDisk(err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.same, err = s.kept(p.name, tmp); err != nil || p.same != nil {
		return err
	}
	return storage.FullDisk(errors.Join(tmp.Chmod(0o644), tmp.Sync(), tmp.Close()))
}

// readFile is os.ReadFile that says which file it was.
func readFile(name string) ([]byte, os.FileInfo, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	b, err := io.ReadAll(f)
	return b, st, err
}

// keep gives the files their places. The caller holds the module's lock.
func (s *Store) keep(m module.Version, parts []*part, h1 string) (err error) {
	moved := false
	for _, p := range parts {
		var one bool
		if one, err = s.place(p); err != nil {
			err = fmt.Errorf("put %s (%s): %w", m, p.file, err)
			break
		}
		moved = moved || one
		if p.file == storage.FileZip && h1 != "" {
			if err = s.putHash(m, h1); err != nil {
				err = fmt.Errorf("put %s (its hash): %w", m, err)
			}
		}
	}
	if moved {
		if failed := syncDir(filepath.Dir(parts[0].name)); err == nil {
			err = failed
		}
	}
	return err
}

// place gives a file its place, unless it has it.
func (s *Store) place(p *part) (moved bool, err error) {
	switch st, err := os.Stat(p.name); {
	case err == nil && p.same != nil && os.SameFile(st, p.same):
		return false, nil
	case err == nil: // another writer was first; it wants a comparison
		return false, s.compare(p)
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR):
		return false, err
	}
	// What was there when it was staged is gone: that was not synced, or not written at all.
	if p.tmp == "" || p.same != nil {
		if err := s.writeAgain(p); err != nil {
			return false, storage.FullDisk(err)
		}
	}
	if err := s.mkdir(filepath.Dir(p.name)); err != nil {
		return false, storage.FullDisk(err)
	}
	if err := os.Rename(p.tmp, p.name); err != nil {
		return false, storage.FullDisk(err)
	}
	return true, nil
}

// compare is ErrConflict where what is at p's place is not p.
func (s *Store) compare(p *part) error {
	if p.small != nil {
		have, err := os.ReadFile(p.name)
		if err == nil && !bytes.Equal(have, p.small) {
			err = storage.ErrConflict
		}
		return err
	}
	tmp, err := os.Open(p.tmp)
	if err != nil {
		return err
	}
	defer tmp.Close()
	_, err = s.kept(p.name, tmp)
	return err
}

func (s *Store) writeAgain(p *part) error {
	if p.tmp == "" {
		tmp, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "put-")
		if err != nil {
			return err
		}
		p.tmp = tmp.Name()
		_, err = tmp.Write(p.small)
		if err := errors.Join(err, tmp.Close()); err != nil {
			return err
		}
	}
	tmp, err := os.OpenFile(p.tmp, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(tmp.Chmod(0o644), tmp.Sync(), tmp.Close())
}

// hashFile is where the go command too keeps the hash of a zip, in a module cache. What is
// in it can be computed again: it is not synced, and one that is cut is none.
const hashFile storage.File = "ziphash"

// putHash: the caller holds the module's lock.
func (s *Store) putHash(m module.Version, h1 string) error {
	if have, err := s.ZipH1(context.Background(), m); err != nil || have != "" {
		return err
	}
	name, err := s.file(m, hashFile)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "put-")
	if err != nil {
		return storage.FullDisk(err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.WriteString(h1)
	if err := errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err != nil {
		return storage.FullDisk(err)
	}
	return storage.FullDisk(os.Rename(tmp.Name(), name))
}

// ZipH1 implements storage.Store.
func (s *Store) ZipH1(_ context.Context, m module.Version) (string, error) {
	name, err := s.file(m, hashFile)
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return "", nil
	} else if err != nil {
		return "", err
	}
	h1 := strings.TrimSpace(string(b))
	if !validH1.MatchString(h1) {
		return "", nil
	}
	return h1, nil
}

var validH1 = regexp.MustCompile(`^h1:[A-Za-z0-9+/]{43}=$`)

func reader(b []byte) io.Reader {
	if b == nil {
		return nil
	}
	return bytes.NewReader(b)
}

// link gives a file on the same file system, from its start, a name in tmp, so
// that it need not be copied; the reader is then at its end. nil: it can't be.
func (s *Store) link(r io.Reader) *os.File {
	f, ok := r.(*os.File)
	if !ok {
		return nil
	}
	if at, err := f.Seek(0, io.SeekCurrent); err != nil || at != 0 {
		return nil
	}
	name := filepath.Join(s.dir, "tmp", fmt.Sprintf("link-%x", rand.Uint64()))
	if os.Link(f.Name(), name) != nil {
		return nil
	}
	linked, err := os.OpenFile(name, os.O_RDWR, 0)
	if err == nil {
		_, err = f.Seek(0, io.SeekEnd)
	}
	if err != nil {
		linked.Close()
		os.Remove(name)
		return nil
	}
	return linked
}

// kept is the file at name, where that has the content of f; nil: there is none. It is
// ErrConflict where it has another.
func (s *Store) kept(name string, f *os.File) (os.FileInfo, error) {
	have, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer have.Close()
	a, err := have.Stat()
	if err != nil {
		return nil, err
	}
	b, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if a.Size() != b.Size() {
		return nil, storage.ErrConflict
	}
	const chunk = 64 << 10
	x, y := make([]byte, chunk), make([]byte, chunk)
	for off := int64(0); off < a.Size(); off += chunk {
		n := min(chunk, a.Size()-off)
		if _, err := have.ReadAt(x[:n], off); err != nil {
			return nil, err
		}
		if _, err := f.ReadAt(y[:n], off); err != nil {
			return nil, err
		}
		if !bytes.Equal(x[:n], y[:n]) {
			return nil, storage.ErrConflict
		}
	}
	return a, nil
}

// complete enters m in the catalog when all its files are there. The caller
// holds the module's lock.
func (s *Store) complete(m module.Version) error {
	for _, f := range allFiles {
		name, err := s.file(m, f)
		if err != nil {
			return err
		}
		if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
	}
	if err := s.Complete(m); err != nil {
		return storage.FullDisk(fmt.Errorf("catalog %s: %w", m, err))
	}
	if module.IsPseudoVersion(m.Version) {
		return nil
	}
	return s.writeList(m.Path)
}

// writeList writes the file list of a module, which GOPROXY=file:// reads and
// nothing here does. A module without a folder has none.
func (s *Store) writeList(path string) error {
	list, err := s.List(context.Background(), path)
	if err != nil {
		return err
	}
	p, err := goproxy.Request{Path: path, File: storage.FileList}.URLPath()
	if err != nil {
		return err
	}
	name := filepath.Join(s.dir, "modules", filepath.FromSlash(p))
	if !isThere(filepath.Dir(name)) {
		return nil
	}
	tmp, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "list-")
	if err != nil {
		return storage.FullDisk(err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(list.Text())
	if err := errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err != nil {
		return storage.FullDisk(err)
	}
	return os.Rename(tmp.Name(), name)
}

func isThere(name string) bool {
	_, err := os.Stat(name)
	return !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR)
}

// mkdir makes a folder below modules and syncs the folders that it changed.
func (s *Store) mkdir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	parent := filepath.Dir(dir)
	if err := s.mkdir(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(parent)
}

func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // a folder cannot be synced there
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
