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
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
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
	closed    bool        // whoever comes to a lock now changes nothing
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

var errClosed = goproxy.Busy(time.Second, "the store is closed")

// Close ends what goes on behind and closes the ledger. A Put that goes on still, since who
// waited for it was cut off, ends with what it has begun to change, or changes nothing. Where
// ledger.db may not agree with the tree, the next Open sees to it.
func (s *Store) Close() error {
	s.stop()
	s.reconcile.Wait()
	for i := range s.locks {
		s.locks[i].Lock()
		defer s.locks[i].Unlock()
	}
	s.closed = true
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

// Delete implements storage.Store. It ends one that was cut or failed before, though no
// file may be left.
func (s *Store) Delete(ctx context.Context, m module.Version) error {
	mu := s.lock(m.Path)
	mu.Lock()
	defer mu.Unlock()
	if s.closed {
		return errClosed
	}
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

// endDelete ends a deletion of m that failed or was cut on its way, so that what is put now is
// no part of that, and who keeps what there was is told. One that has removed nothing yet is forgotten.
// The caller holds the module's lock.
func (s *Store) endDelete(m module.Version) error {
	begun, err := s.Load(context.Background(), deletingKey(m))
	if begun == nil || err != nil {
		return err
	}
	for _, f := range allFiles {
		name, err := s.file(m, f)
		if err != nil {
			return err
		}
		if isThere(name) {
			continue
		}
		if err := s.remove(m); err != nil {
			s.differs.Store(true)
			return err
		}
		return nil
	}
	return s.CompareAndSwap(context.Background(), deletingKey(m), begun, nil)
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
