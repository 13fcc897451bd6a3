// Package disk keeps modules in a folder, for one process at a time.
//
//	DIR/modules/<escaped path>/@v/<version>.{info,mod,zip}   the files, and list
//	DIR/queue                                                the jobs (kv.Journal), and queue.damaged-… of one that was damaged
//	DIR/ledger.db                                            everything else (bbolt)
//	DIR/tmp/                                                 files being written
//
// The tree below modules is the one that GOPROXY=file:// and
// $GOMODCACHE/cache/download have, so it can be served without athensctl, and a
// module cache can be put there as it is. A file is written to tmp, synced, and
// renamed to its place: a reader never sees half of one. What ledger.db holds
// about files (catalog, index) is made again from the tree after a crash or
// when ledger.db is gone.
package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/kv"
)

// Options of Open. The zero value is good.
type Options struct {
	QueueMax int              // bounds the jobs in the queue, as storage.QueueCounts has it; 0: no bound
	Now      func() time.Time // nil: time.Now
	Log      *slog.Logger     // nil: slog.Default
}

// Store is the disk backend: a storage.Store and a storage.Ledger.
type Store struct {
	*kv.Ledger
	dir  string
	db   boltDB
	jobs *kv.Journal
	log  *slog.Logger
	seed maphash.Seed
	// locks order the writers of one module; one is chosen by the path's hash.
	locks [64]sync.Mutex

	stop      context.CancelFunc
	reconcile sync.WaitGroup
	rebuilt   bool        // once reconcile is done: ledger.db agreed with the tree
	differs   atomic.Bool // since then a change was made to the one and not to the other
}

var (
	_ storage.Store  = (*Store)(nil)
	_ storage.Ledger = (*Store)(nil)
)

// cleanKey is state that is there only while no process has the store open, and the last
// one left ledger.db in agreement with the tree. Its absence at Open means a crash, a
// failure, or a tree that was put there by hand.
const cleanKey = "disk/clean"

// deletingKey is state that is there from before the first file of a version is removed
// until its deletion is recorded.
func deletingKey(m module.Version) string { return "disk/deleting/" + m.String() }

// ErrLocked is that of Open for a folder that another process has open.
var ErrLocked = errors.New("another athensctl has it open")

// Open opens the store in dir, which is made when it is not there. A folder that
// another process has open, and keeps for 2 seconds more, is ErrLocked.
func Open(dir string, o Options) (*Store, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	for _, d := range []string{dir, filepath.Join(dir, "modules"), filepath.Join(dir, "tmp")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	ledger := filepath.Join(dir, "ledger.db")
	db, err := openBolt(ledger)
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("open store %s: %w", dir, ErrLocked)
	} else if err != nil {
		return nil, fmt.Errorf("open store: %s: %w (the folder modules beside it is whole: move ledger.db away, and it is made again)", ledger, err)
	}
	jobs, err := kv.OpenJournal(filepath.Join(dir, "queue"), o.Log)
	if err != nil {
		db.Close()
		return nil, fmt.Errorf("open store: the queue: %w", err)
	}
	s := &Store{Ledger: kv.NewLedger(db, queue{jobs}, o.QueueMax, o.Now), dir: dir, db: db, jobs: jobs, log: o.Log, seed: maphash.MakeSeed()}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop

	left, err := os.ReadDir(filepath.Join(dir, "tmp"))
	for _, f := range left {
		err = errors.Join(err, os.Remove(filepath.Join(dir, "tmp", f.Name())))
	}
	clean, err2 := s.Load(ctx, cleanKey)
	if err = errors.Join(err, err2); err == nil && clean != nil {
		err = s.CompareAndSwap(ctx, cleanKey, clean, nil)
	}
	if err != nil {
		jobs.Close()
		db.Close()
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	s.rebuilt = clean != nil
	if !s.rebuilt {
		s.reconcile.Go(func() { s.rebuilt = s.rebuild(ctx) })
	}
	return s, nil
}

// queue is the journal whose failures for want of space say so.
type queue struct{ *kv.Journal }

func (q queue) Update(f func(kv.Tx) error) error { return storage.FullDisk(q.Journal.Update(f)) }

// Close ends what goes on behind and closes the ledger. Where ledger.db may not agree
// with the tree, the next Open sees to it.
func (s *Store) Close() error {
	s.stop()
	s.reconcile.Wait()
	var err error
	if s.rebuilt && !s.differs.Load() {
		err = s.CompareAndSwap(context.Background(), cleanKey, nil, []byte("1"))
	}
	if errors.Is(err, storage.ErrSwapped) || errors.Is(err, berrors.ErrDatabaseNotOpen) {
		err = nil
	}
	return errors.Join(err, s.jobs.Close(), s.db.Close())
}

// file is the place of one file of m.
func (s *Store) file(m module.Version, f storage.File) (string, error) {
	p, err := goproxy.Request{Path: m.Path, Query: m.Version, File: f}.URLPath()
	if err != nil {
		return "", err
	}
	return filepath.Join(s.dir, "modules", filepath.FromSlash(p)), nil
}

func (s *Store) lock(path string) *sync.Mutex {
	return &s.locks[maphash.String(s.seed, path)%uint64(len(s.locks))]
}

// Resolve implements storage.Store.
func (s *Store) Resolve(ctx context.Context, path, query string) (*goproxy.Info, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if query == goproxy.Latest {
		v, err := s.Latest(path)
		if err != nil {
			return nil, err
		}
		query = v
	} else if !goproxy.IsCanonical(path, query) {
		return nil, goproxy.NotFound("%s@%s: only canonical versions are kept", path, query)
	}
	b, err := s.open(ctx, module.Version{Path: path, Version: query}, storage.FileInfo)
	if err != nil {
		return nil, err
	}
	raw, err := b.ReadAll(goproxy.MaxInfoBytes)
	if err != nil {
		return nil, err
	}
	info, err := goproxy.ParseInfo(path, query, raw)
	if err != nil {
		return nil, err
	}
	info.Kept = b.ModTime
	return info, nil
}

// Mod implements storage.Store.
func (s *Store) Mod(ctx context.Context, m module.Version) (*goproxy.Blob, error) {
	return s.open(ctx, m, storage.FileMod)
}

// Zip implements storage.Store. The Blob's reader is the *os.File.
func (s *Store) Zip(ctx context.Context, m module.Version) (*goproxy.Blob, error) {
	return s.open(ctx, m, storage.FileZip)
}

func (s *Store) open(ctx context.Context, m module.Version, file storage.File) (*goproxy.Blob, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	name, err := s.file(m, file)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, goproxy.NotFound("%s (%s): not kept", m, file)
	} else if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &goproxy.Blob{ReadCloser: f, SizeBytes: st.Size(), ModTime: st.ModTime()}, nil
}

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

// Delete implements storage.Store. It ends one that was cut or failed before, though no
// file may be left.
func (s *Store) Delete(ctx context.Context, m module.Version) error {
	mu := s.lock(m.Path)
	mu.Lock()
	defer mu.Unlock()
	begun, err := s.Load(ctx, deletingKey(m))
	if err != nil {
		return err
	}
	if begun == nil {
		kept, err := s.IsComplete(m)
		if err != nil {
			return err
		}
		for _, f := range allFiles {
			name, err := s.file(m, f)
			if err != nil {
				return err
			}
			kept = kept || isThere(name)
		}
		if !kept {
			return goproxy.NotFound("%s: not kept", m)
		}
		if err := s.CompareAndSwap(ctx, deletingKey(m), nil, []byte("1")); err != nil {
			return err
		}
	}
	if err := s.remove(m); err != nil {
		s.differs.Store(true)
		return err
	}
	return nil
}

var allFiles = [...]storage.File{storage.FileZip, storage.FileMod, storage.FileInfo}

// remove removes a version whose deletion is noted, and strikes the note out at the
// end. The caller holds the module's lock.
func (s *Store) remove(m module.Version) error {
	dir := ""
	for _, f := range append([]storage.File{hashFile}, allFiles[:]...) {
		name, err := s.file(m, f)
		if err != nil {
			return err
		}
		dir = filepath.Dir(name)
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			return err
		}
	}
	if isThere(dir) {
		if err := syncDir(dir); err != nil {
			return err
		}
	}
	if err := s.Removed(m); err != nil {
		return err
	}
	if err := s.writeList(m.Path); err != nil {
		return err
	}
	return s.CompareAndSwap(context.Background(), deletingKey(m), []byte("1"), nil)
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

// rebuild makes catalog and index agree with the tree, and reports whether they do.
func (s *Store) rebuild(ctx context.Context) (agree bool) {
	start, added, removed, failed := time.Now(), 0, 0, 0
	root := filepath.Join(s.dir, "modules")
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			s.log.Error("rebuild: left out", "folder", name, "err", err)
			failed++
			return fs.SkipDir
		}
		if d.IsDir() || filepath.Ext(name) != ".zip" {
			return nil
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		req, err := goproxy.ParseRequest("/" + filepath.ToSlash(rel))
		if err != nil {
			s.log.Warn("rebuild: not a file of a module", "file", name, "err", err)
			return nil
		}
		m := module.Version{Path: req.Path, Version: req.Query}
		if ok, err := s.IsComplete(m); ok || err != nil {
			return err
		}
		mu := s.lock(m.Path)
		mu.Lock()
		defer mu.Unlock()
		added++
		return s.complete(m)
	})
	for after := ""; err == nil; {
		var page storage.Page
		if page, err = s.Catalog(ctx, after, 1000); err != nil {
			break
		}
		for _, m := range page.Versions {
			gone, err := s.removeIfGone(m)
			if err != nil {
				s.log.Error("rebuild", "module", m, "err", err)
				failed++
			} else if gone {
				removed++
			}
		}
		if after = page.Next; after == "" {
			break
		}
	}
	if ctx.Err() != nil {
		return false
	}
	if err != nil || failed > 0 {
		s.log.Error("rebuild: catalog and tree may differ until the next start", "failures", failed, "err", err)
	}
	if added+removed > 0 {
		s.log.Info("catalog made again from the tree", "added", added, "removed", removed, "took", time.Since(start).Round(time.Millisecond))
	}
	return err == nil && failed == 0
}

// removeIfGone takes a version of which a file is gone out of the catalog, and ends the
// deletion that took the file, if one did.
func (s *Store) removeIfGone(m module.Version) (bool, error) {
	mu := s.lock(m.Path)
	mu.Lock()
	defer mu.Unlock()
	for _, f := range allFiles {
		name, err := s.file(m, f)
		if err != nil {
			return false, err
		}
		if isThere(name) {
			continue
		}
		begun, err := s.Load(context.Background(), deletingKey(m))
		if err != nil {
			return false, err
		}
		if begun != nil {
			return true, s.remove(m)
		}
		return true, errors.Join(s.Removed(m), s.writeList(m.Path))
	}
	return false, nil
}
