// Package transfer copies versions between stores, and checks those of one.
package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/mod/module"
	"golang.org/x/sync/errgroup"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// Source is what versions are copied from.
type Source interface {
	goproxy.Source
	// Versions calls f for each version until it returns an error. count is how many there
	// are; below 0: not known.
	Versions(ctx context.Context, f func(e Entry, count int) error) error
}

// Entry is a version of a Source. Any of its files may be absent, where it is not Whole.
type Entry struct {
	module.Version
	Whole bool
}

// Stored makes a store, here or at another process, a Source of its complete
// versions.
type Stored struct {
	storage.Store
	// Incomplete adds the versions of which not all files are kept, where the store can say
	// which those are: most of a site's are of modules of which somebody wanted the go.mod file alone.
	Incomplete bool
}

// Versions implements Source.
func (s Stored) Versions(ctx context.Context, f func(Entry, int) error) error {
	for token := ""; ; {
		page, err := s.Catalog(ctx, token, 1000)
		if err != nil {
			return err
		}
		for _, m := range page.Versions {
			if err := f(Entry{m, true}, -1); err != nil {
				return err
			}
		}
		if page.Next == "" {
			break
		}
		if page.Next == token {
			return fmt.Errorf("the catalog does not end: its token %q leads to itself", token)
		}
		token = page.Next
	}
	all, can := s.Store.(interface {
		Incomplete(context.Context, func(module.Version) error) error
	})
	if !s.Incomplete || !can {
		return nil
	}
	return all.Incomplete(ctx, func(m module.Version) error { return f(Entry{Version: m}, -1) })
}

// Result counts versions.
type Result struct {
	Done, Skipped, Failed atomic.Int64 // Skipped: was there already; Failed: not Damaged ones
	Damaged               atomic.Int64 // of Verify
	Bytes                 atomic.Int64 // of zips
}

// Damaged is the error of a version that is proved to be bad: a file is not there, or is not
// what it must be. Any other error of Verify says nothing of the version: storage or
// the checksum database did not answer, say.
type Damaged struct{ Err error }

func (d Damaged) Error() string { return d.Err.Error() }

// Unwrap returns the cause.
func (d Damaged) Unwrap() error { return d.Err }

// Options of Copy and Verify.
type Options struct {
	Parallel int                                                             // versions at once; 0: 8
	TempDir  string                                                          // takes zips while they are checked
	Progress func(r *Result, count int)                                      // after each version; may be nil
	Failed   func(m module.Version, e error)                                 // each version that failed; needed
	H1       func(ctx context.Context, path, version string) (string, error) // what the checksum database says; may be nil
}

// Copy copies all versions of from to the store to. Each is checked (as a crawler
// does it, without the checksum database) before it is put. What is there already is
// skipped, so that a copy that was cut can be made again. A version that fails is
// reported, and the others go on; an error of the walk itself is returned. What there is of one that
// should be whole and is not is copied, and reported.
func Copy(ctx context.Context, from Source, to storage.Store, o Options) (*Result, error) {
	there := &target{store: to}
	return each(ctx, from, o, func(ctx context.Context, r *Result, e Entry) error {
		m := e.Version
		if there.has(ctx, m) {
			err := there.finish(ctx, m)
			if err == nil {
				r.Skipped.Add(1)
			}
			return err
		}
		n, err := copyOne(ctx, from, to, e, o.TempDir)
		if damaged := (Damaged{}); errors.As(err, &damaged) {
			err = damaged.Err
		}
		if err == nil {
			r.Done.Add(1)
			r.Bytes.Add(n)
		}
		return err
	})
}

func each(ctx context.Context, from Source, o Options, work func(context.Context, *Result, Entry) error) (*Result, error) {
	r := new(Result)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, o.Parallel))
	if o.Parallel == 0 {
		g.SetLimit(8)
	}
	var mu sync.Mutex
	err := from.Versions(ctx, func(e Entry, count int) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		g.Go(func() error {
			err := work(ctx, r, e)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				if errors.As(err, &Damaged{}) {
					r.Damaged.Add(1)
				} else {
					r.Failed.Add(1)
				}
				o.Failed(e.Version, err)
			}
			if o.Progress != nil {
				o.Progress(r, count)
			}
			return nil
		})
		return nil
	})
	return r, errors.Join(err, g.Wait())
}

// target is a store that versions are copied to. Versions of one module come one after
// the other: its list is asked for once.
type target struct {
	store storage.Store
	mu    sync.Mutex
	path  string
	list  []string
}

// has reports whether all files of a version are there.
func (t *target) has(ctx context.Context, m module.Version) bool {
	if module.IsPseudoVersion(m.Version) { // not in lists
		if _, err := t.store.Resolve(ctx, m.Path, m.Version); err != nil {
			return false
		}
		for _, get := range []func(context.Context, module.Version) (*goproxy.Blob, error){t.store.Mod, t.store.Zip} {
			b, err := get(ctx, m)
			if err != nil {
				return false
			}
			b.Close()
		}
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.path != m.Path {
		l, err := t.store.List(ctx, m.Path)
		if err != nil {
			return false
		}
		t.path, t.list = m.Path, l.Versions
	}
	return slices.Contains(t.list, m.Version)
}

// finish ends a Put that was cut when all files were kept: one that changes nothing does. A
// store of another process has looked to that itself.
func (t *target) finish(ctx context.Context, m module.Version) error {
	if _, remote := t.store.(*storage.Client); remote {
		return nil
	}
	info, err := t.store.Resolve(ctx, m.Path, m.Version)
	if err != nil {
		return err
	}
	return t.store.Put(ctx, m, storage.Files{Info: info.JSON()})
}

// copyOne copies the files that there are of one version.
func copyOne(ctx context.Context, from goproxy.Source, to storage.Store, e Entry, tempDir string) (int64, error) {
	var f storage.Files
	m := e.Version
	info, err := from.Resolve(ctx, m.Path, m.Version)
	if err == nil {
		f.Info = info.JSON()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	mod, err := from.Mod(ctx, m)
	if err == nil {
		if f.Mod, err = mod.ReadAll(goproxy.MaxModBytes); err == nil {
			err = goproxy.CheckMod(m, f.Mod)
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	tmp, h1, zipMod, err := spool(ctx, from, m, tempDir)
	if errors.Is(err, fs.ErrNotExist) {
		if f.Info == nil && f.Mod == nil {
			return 0, err
		}
		lost := err
		if err = put(ctx, to, m, f); err == nil && (e.Whole || errors.Is(lost, storage.ErrLost)) {
			err = fmt.Errorf("it should have a zip: %w", lost)
		}
		return 0, err
	} else if err != nil {
		return 0, err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	if f.Mod == nil {
		f.Mod = zipMod
	} else if !storage.SameMod(zipMod, f.Mod) {
		return 0, errors.New("the go.mod in the zip is not the .mod file")
	}
	st, err := tmp.Stat()
	if err != nil {
		return 0, err
	}
	f.Zip, f.ZipH1 = tmp, h1
	if err := put(ctx, to, m, f); err != nil {
		return 0, err
	}
	if e.Whole && f.Info == nil {
		return 0, errors.New("it should have a .info file, and has none")
	}
	return st.Size(), nil
}

// put keeps the files. Two .info files of one version may differ in what they say of its
// origin: the one that is kept already stays.
func put(ctx context.Context, to storage.Store, m module.Version, f storage.Files) error {
	if f.Info != nil {
		if _, err := to.Resolve(ctx, m.Path, m.Version); err == nil {
			f.Info = nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return to.Put(ctx, m, f)
}

// spool writes the zip of m to a temporary file, at whose start it is, and checks it.
func spool(ctx context.Context, from goproxy.Source, m module.Version, dir string) (_ *os.File, h1 string, mod []byte, err error) {
	b, err := from.Zip(ctx, m)
	if err != nil {
		return nil, "", nil, err
	}
	defer b.Close()
	tmp, err := os.CreateTemp(dir, "transfer-")
	if err != nil {
		return nil, "", nil, err
	}
	defer func() {
		if err != nil {
			tmp.Close()
			os.Remove(tmp.Name())
		}
	}()
	n, err := io.Copy(tmp, io.LimitReader(b, goproxy.MaxZipBytes+1))
	if err != nil {
		return nil, "", nil, err
	}
	if b.SizeBytes >= 0 && n != b.SizeBytes {
		return nil, "", nil, Damaged{fmt.Errorf("the zip was cut after %d of %d bytes", n, b.SizeBytes)}
	}
	if h1, mod, err = storage.CheckZip(m, tmp.Name()); err != nil {
		if local := (*fs.PathError)(nil); !errors.As(err, &local) {
			err = Damaged{err}
		}
		return nil, "", nil, err
	}
	_, err = tmp.Seek(0, io.SeekStart)
	return tmp, h1, mod, err
}

// Verify reads every complete version of a store again: that its zip is a good one
// of that version, with the go.mod file that is kept and the hash that was kept with it,
// and, with Options.H1, that both are what the checksum database says. Versions that are not, and those that could not be
// checked, are reported to Options.Failed: the first as Damaged.
func Verify(ctx context.Context, s storage.Store, o Options) (*Result, error) {
	return each(ctx, Stored{Store: s}, o, func(ctx context.Context, r *Result, e Entry) error {
		m := e.Version
		// A complete version has all files, unless it was deleted just now.
		absent := func(file string, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				err = Damaged{err}
			}
			return fmt.Errorf("%s: %w", file, err)
		}
		if _, err := s.Resolve(ctx, m.Path, m.Version); err != nil {
			return absent(".info", err)
		}
		b, err := s.Mod(ctx, m)
		if err != nil {
			return absent(".mod", err)
		}
		mod, err := b.ReadAll(goproxy.MaxModBytes)
		if err != nil {
			return fmt.Errorf(".mod: %w", err)
		}
		tmp, h1, zipMod, err := spool(ctx, s, m, o.TempDir)
		if err != nil {
			return absent("zip", err)
		}
		if st, err := tmp.Stat(); err == nil {
			r.Bytes.Add(st.Size())
		}
		tmp.Close()
		os.Remove(tmp.Name())
		if !storage.SameMod(zipMod, mod) {
			return Damaged{errors.New("the go.mod in the zip is not the .mod file")}
		}
		put, err := s.ZipH1(ctx, m)
		if err != nil {
			return fmt.Errorf("the hash that was kept with the zip: %w", err)
		}
		if put != "" && put != h1 {
			return Damaged{fmt.Errorf("checksum mismatch: the zip was put with %s, and has %s now", put, h1)}
		}
		if o.H1 != nil {
			modH1, err := goproxy.ModH1(mod)
			if err != nil {
				return err
			}
			for version, have := range map[string]string{m.Version: h1, m.Version + "/go.mod": modH1} {
				want, err := o.H1(ctx, m.Path, version)
				if err != nil {
					return fmt.Errorf("checksum database: %w", err)
				}
				if want != "" && want != have {
					return Damaged{fmt.Errorf("checksum mismatch: %s is kept with %s, the checksum database says %s", version, have, want)}
				}
			}
		}
		r.Done.Add(1)
		return nil
	})
}
