// Package memory keeps modules in memory, for tests and demonstrations. Nothing
// survives the process.
package memory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/kv"
)

// Store is the memory backend: a storage.Store and a storage.Ledger.
type Store struct {
	*kv.Ledger
	now func() time.Time

	mu    sync.RWMutex
	files map[fileKey]file
}

type fileKey struct {
	module.Version
	file storage.File
}

type file struct {
	content []byte
	kept    time.Time
	h1      string // of a zip, where it was given
}

var (
	_ storage.Store  = (*Store)(nil)
	_ storage.Ledger = (*Store)(nil)
)

// New returns an empty store. queueMax bounds the jobs in the queue, as
// storage.QueueCounts has it; 0: no bound. now is the clock; nil is time.Now.
func New(queueMax int, now func() time.Time) *Store {
	if now == nil {
		now = time.Now
	}
	return &Store{Ledger: kv.NewLedger(&kv.Tree{}, &kv.Tree{}, queueMax, now), now: now, files: map[fileKey]file{}}
}

func (s *Store) get(ctx context.Context, m module.Version, f storage.File) (file, error) {
	if err := ctx.Err(); err != nil {
		return file{}, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	got, ok := s.files[fileKey{m, f}]
	if !ok {
		return file{}, goproxy.NotFound("%s (%s): not kept", m, f)
	}
	return got, nil
}

// Resolve implements storage.Store.
func (s *Store) Resolve(ctx context.Context, path, query string) (*goproxy.Info, error) {
	if query == goproxy.Latest {
		v, err := s.Latest(path)
		if err != nil {
			return nil, err
		}
		query = v
	} else if !goproxy.IsCanonical(path, query) {
		return nil, goproxy.NotFound("%s@%s: only canonical versions are kept", path, query)
	}
	f, err := s.get(ctx, module.Version{Path: path, Version: query}, storage.FileInfo)
	if err != nil {
		return nil, err
	}
	info, err := goproxy.ParseInfo(path, query, f.content)
	if err != nil {
		return nil, err
	}
	info.Kept = f.kept
	return info, nil
}

// Mod implements storage.Store.
func (s *Store) Mod(ctx context.Context, m module.Version) (*goproxy.Blob, error) {
	f, err := s.get(ctx, m, storage.FileMod)
	if err != nil {
		return nil, err
	}
	return goproxy.NewBlob(f.content, f.kept), nil
}

// Zip implements storage.Store.
func (s *Store) Zip(ctx context.Context, m module.Version) (*goproxy.Blob, error) {
	f, err := s.get(ctx, m, storage.FileZip)
	if err != nil {
		return nil, err
	}
	return goproxy.NewBlob(f.content, f.kept), nil
}

// Put implements storage.Store.
func (s *Store) Put(ctx context.Context, m module.Version, f storage.Files) error {
	var zip []byte
	var err error
	if f.Zip != nil {
		if zip, err = io.ReadAll(f.Zip); err != nil {
			return fmt.Errorf("put %s (zip): %w", m, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err = ctx.Err(); err == nil {
		err = s.putAll(m, f, zip)
	}
	for _, name := range []storage.File{storage.FileInfo, storage.FileMod, storage.FileZip} {
		if _, ok := s.files[fileKey{m, name}]; !ok {
			return err
		}
	}
	return errors.Join(err, s.Complete(m))
}

func (s *Store) putAll(m module.Version, f storage.Files, zip []byte) error {
	if f.Info != nil {
		if err := s.put(m, storage.FileInfo, f.Info); err != nil {
			return err
		}
	}
	if f.Mod != nil {
		if err := s.put(m, storage.FileMod, f.Mod); err != nil {
			return err
		}
	}
	// The zip last: where it is kept, so is what came with it.
	if f.Zip == nil {
		return nil
	}
	if err := s.put(m, storage.FileZip, zip); err != nil {
		return err
	}
	k := fileKey{m, storage.FileZip}
	if kept := s.files[k]; kept.h1 == "" {
		kept.h1 = f.ZipH1
		s.files[k] = kept
	}
	return nil
}

// ZipH1 implements storage.Store.
func (s *Store) ZipH1(_ context.Context, m module.Version) (string, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.files[fileKey{m, storage.FileZip}].h1, nil
}

func (s *Store) put(m module.Version, name storage.File, content []byte) error {
	k := fileKey{m, name}
	if have, ok := s.files[k]; ok {
		if !bytes.Equal(have.content, content) {
			return fmt.Errorf("put %s (%s): %w", m, name, storage.ErrConflict)
		}
		return nil
	}
	s.files[k] = file{content: bytes.Clone(content), kept: s.now()}
	return nil
}

// Delete implements storage.Store.
func (s *Store) Delete(ctx context.Context, m module.Version) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	found := false
	for _, name := range []storage.File{storage.FileInfo, storage.FileMod, storage.FileZip} {
		k := fileKey{m, name}
		if _, ok := s.files[k]; ok {
			delete(s.files, k)
			found = true
		}
	}
	if !found {
		return goproxy.NotFound("%s: not kept", m)
	}
	return s.Removed(m)
}
