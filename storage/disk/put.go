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

// Put implements storage.Store.
func (s *Store) Put(ctx context.Context, m module.Version, f storage.Files) error {
	if _, err := s.file(m, storage.FileZip); err != nil {
		return err // no name of a file
	}
	err := s.putAll(ctx, m, f)
	mu := s.lock(m.Path)
	mu.Lock()
	defer mu.Unlock()
	// All files may be there, whatever became of one.
	if failed := s.complete(m); failed != nil {
		s.differs.Store(true)
		if err == nil {
			err = failed
		}
	}
	return err
}

func (s *Store) putAll(ctx context.Context, m module.Version, f storage.Files) error {
	for _, part := range []struct {
		file storage.File
		r    io.Reader
	}{
		{storage.FileInfo, reader(f.Info)},
		{storage.FileMod, reader(f.Mod)},
		{storage.FileZip, f.Zip},
	} {
		if part.r == nil {
			continue
		}
		if err := s.put(ctx, m, part.file, part.r); err != nil {
			return fmt.Errorf("put %s (%s): %w", m, part.file, err)
		}
	}
	if f.Zip != nil && f.ZipH1 != "" {
		if err := s.putHash(m, f.ZipH1); err != nil {
			return fmt.Errorf("put %s (its hash): %w", m, err)
		}
	}
	return nil
}

// hashFile is where the go command too keeps the hash of a zip, in a module cache. What is
// in it can be computed again: it is not synced, and one that is cut is none.
const hashFile storage.File = "ziphash"

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
	mu := s.lock(m.Path)
	mu.Lock()
	defer mu.Unlock()
	if zip, err := s.file(m, storage.FileZip); err != nil || !isThere(zip) {
		return err // it was deleted meanwhile
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

func (s *Store) put(ctx context.Context, m module.Version, file storage.File, r io.Reader) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	name, err := s.file(m, file)
	if err != nil {
		return err
	}
	if b, ok := r.(*bytes.Reader); ok { // a small file: most are put again with its zip
		if have, err := os.ReadFile(name); err == nil {
			return same(have, b)
		}
	}
	tmp := s.link(r)
	if tmp == nil {
		if tmp, err = os.CreateTemp(filepath.Join(s.dir, "tmp"), "put-"); err != nil {
			return storage.FullDisk(err)
		}
	}
	defer func() {
		tmp.Close()
		os.Remove(tmp.Name())
	}()
	if _, err = io.Copy(tmp, ctxReader{ctx, r}); err != nil {
		return storage.FullDisk(err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if same, err := s.kept(name, tmp); err != nil || same {
		return err
	}
	if err := errors.Join(tmp.Chmod(0o644), tmp.Sync(), tmp.Close()); err != nil {
		return storage.FullDisk(err)
	}
	mu := s.lock(m.Path)
	mu.Lock()
	defer mu.Unlock()
	if same, err := s.kept(name, nil); errors.Is(err, storage.ErrConflict) {
		// Another writer was first; it wants a comparison.
		again, err := os.Open(tmp.Name())
		if err != nil {
			return err
		}
		defer again.Close()
		_, err = s.kept(name, again)
		return err
	} else if err != nil || same {
		return err
	}
	if err := s.mkdir(filepath.Dir(name)); err != nil {
		return storage.FullDisk(err)
	}
	if err := os.Rename(tmp.Name(), name); err != nil {
		return storage.FullDisk(err)
	}
	return syncDir(filepath.Dir(name))
}

// same compares what is kept with what was put.
func same(have []byte, r *bytes.Reader) error {
	b, err := io.ReadAll(r)
	if err == nil && !bytes.Equal(have, b) {
		err = storage.ErrConflict
	}
	return err
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

// kept reports whether name is kept with the content of f. It is ErrConflict
// when it is kept with another, or f is nil.
func (s *Store) kept(name string, f *os.File) (bool, error) {
	have, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	defer have.Close()
	if f == nil {
		return false, storage.ErrConflict
	}
	a, err := have.Stat()
	if err != nil {
		return false, err
	}
	b, err := f.Stat()
	if err != nil {
		return false, err
	}
	if a.Size() != b.Size() {
		return false, storage.ErrConflict
	}
	const chunk = 64 << 10
	x, y := make([]byte, chunk), make([]byte, chunk)
	for off := int64(0); off < a.Size(); off += chunk {
		n := min(chunk, a.Size()-off)
		if _, err := have.ReadAt(x[:n], off); err != nil {
			return false, err
		}
		if _, err := f.ReadAt(y[:n], off); err != nil {
			return false, err
		}
		if !bytes.Equal(x[:n], y[:n]) {
			return false, storage.ErrConflict
		}
	}
	return true, nil
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
