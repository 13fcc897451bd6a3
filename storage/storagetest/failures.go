package storagetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/storage"
)

var errBroken = errors.New("the source broke")

// A Put whose source breaks keeps nothing of that file, and can be made again.
func failedPut(t *testing.T, b Backend) {
	s, _ := b.open(t, t.TempDir(), time.Now)
	v := New("example.com/m", "v1.0.0", "")
	broken := io.MultiReader(bytes.NewReader(v.Zip[:len(v.Zip)/2]), brokenReader{})
	if err := s.Put(ctx, v.Version, storage.Files{Info: v.Info, Mod: v.Mod, Zip: broken}); err == nil {
		t.Fatal("a broken source was put")
	}
	_, err := s.Zip(ctx, v.Version)
	wantErr(t, "after a broken Put", err, fs.ErrNotExist)
	must(t, s.Put(ctx, v.Version, v.Files()))
	if !bytes.Equal(read(t, s, v.Version, storage.FileZip), v.Zip) {
		t.Error("other bytes came back")
	}
}

// held is a source that comes on when it is released.
type held struct {
	io.Reader
	once             sync.Once
	reached, release chan struct{}
}

func (h *held) Read(p []byte) (int, error) {
	h.once.Do(func() { close(h.reached) })
	<-h.release
	return h.Reader.Read(p)
}

// A Delete between the files of a Put takes all of them, or none: a zip without the go.mod file
// that came with it would get one of another day.
func deleteDuringPut(t *testing.T, b Backend) {
	s, _ := b.open(t, t.TempDir(), time.Now)
	v := New("example.com/m", "v1.0.0", "")
	zip := &held{Reader: bytes.NewReader(v.Zip), reached: make(chan struct{}), release: make(chan struct{})}
	done := make(chan error, 1)
	go func() { done <- s.Put(ctx, v.Version, storage.Files{Info: v.Info, Mod: v.Mod, Zip: zip}) }()
	<-zip.reached
	if err := s.Delete(ctx, v.Version); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	close(zip.release)
	must(t, <-done)
	_, err := s.Resolve(ctx, v.Path, v.Version.Version)
	for _, err := range []error{err, closed(s.Mod(ctx, v.Version)), closed(s.Zip(ctx, v.Version))} {
		if err != nil {
			t.Errorf("the Put that ended last: %v", err)
		}
	}
	if list, err := s.List(ctx, v.Path); err != nil || len(list.Versions) != 1 {
		t.Errorf("list: %v, %v", list, err)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errBroken }

// losing is a Store whose first Put takes effect and then does what lose says.
type losing struct {
	storage.Store
	lose func() error
	lost atomic.Int32
}

func (l *losing) Put(ctx context.Context, m module.Version, f storage.Files) error {
	if err := l.Store.Put(ctx, m, f); err != nil {
		return err
	}
	if l.lost.Add(1) > 1 {
		return nil
	}
	return l.lose()
}

// A Put that fails after it took effect, as an error of the server or as an answer that
// never comes: all is kept, and made again it is recognised as what is kept, and is no new version.
func lostAnswer(t *testing.T, b Backend) {
	for name, lose := range map[string]func() error{
		"an error":         func() error { return errBroken },
		"a cut connection": func() error { panic(http.ErrAbortHandler) },
	} {
		behind, ledger := b.open(t, t.TempDir(), time.Now)
		l := &losing{Store: behind, lose: lose}
		s := overHTTP(t, l, ledger)
		v, other := New("example.com/m", "v1.0.0", "a"), New("example.com/m", "v1.0.0", "b")
		if err := s.Put(ctx, v.Version, v.Files()); err == nil {
			t.Errorf("%s: Put succeeded", name)
		}
		if l.lost.Load() == 0 {
			t.Fatalf("%s: the Put took no effect", name)
		}
		before, err := behind.Index(ctx, time.Time{}, 10)
		must(t, err)
		if len(before) != 1 {
			t.Errorf("%s: the index after a Put that took effect: %v", name, before)
		}
		must(t, s.Put(ctx, v.Version, v.Files()))
		wantErr(t, name+": others put then", s.Put(ctx, v.Version, other.Files()), storage.ErrConflict)
		if !bytes.Equal(read(t, s, v.Version, storage.FileZip), v.Zip) {
			t.Errorf("%s: other bytes came back", name)
		}
		after, err := behind.Index(ctx, time.Time{}, 10)
		must(t, err)
		if !slices.Equal(before, after) {
			t.Errorf("%s: the index changed from %v to %v", name, before, after)
		}
	}
}

// A crash between two files of a Put: what was kept is there and whole, the version is none
// yet, and a later Put makes it one.
func crashBetweenFiles(t *testing.T, b Backend) {
	const info, mod, zip = 1, 2, 4
	for kept := range info | mod | zip {
		if kept&(mod|zip) == zip {
			continue // a zip comes with its go.mod
		}
		dir := t.TempDir()
		s, _ := b.open(t, dir, time.Now)
		v := New("example.com/m", "v1.0.0", "")
		var f storage.Files
		if kept&info != 0 {
			f.Info = v.Info
		}
		if kept&mod != 0 {
			f.Mod = v.Mod
		}
		if kept&zip != 0 {
			f.Zip = bytes.NewReader(v.Zip)
		}
		must(t, s.Put(ctx, v.Version, f))
		if !b.Volatile {
			s, _ = b.crash(t, dir)
		}
		list, err := s.List(ctx, v.Path)
		must(t, err)
		page, err := s.Catalog(ctx, "", 10)
		must(t, err)
		entries, err := s.Index(ctx, time.Time{}, 10)
		must(t, err)
		if len(list.Versions)+len(page.Versions)+len(entries) != 0 {
			t.Errorf("with files %03b of it, it is in the list %v, the catalog %v, the index %v", kept, list.Versions, page.Versions, entries)
		}
		_, err = s.Resolve(ctx, v.Path, "latest")
		wantErr(t, "latest", err, fs.ErrNotExist)
		for file, get := range map[int]func() error{
			info: func() error { _, err := s.Resolve(ctx, v.Path, v.Version.Version); return err },
			mod:  func() error { return closed(s.Mod(ctx, v.Version)) },
			zip:  func() error { return closed(s.Zip(ctx, v.Version)) },
		} {
			if err := get(); kept&file != 0 {
				must(t, err)
			} else {
				wantErr(t, "a file that was not put", err, fs.ErrNotExist)
			}
		}
		must(t, s.Put(ctx, v.Version, v.Files()))
		if !bytes.Equal(read(t, s, v.Version, storage.FileZip), v.Zip) || !bytes.Equal(read(t, s, v.Version, storage.FileMod), v.Mod) {
			t.Error("other bytes came back")
		}
		entries, err = s.Index(ctx, time.Time{}, 10)
		must(t, err)
		if list, err := s.List(ctx, v.Path); err != nil || len(list.Versions) != 1 || len(entries) != 1 {
			t.Errorf("files %03b, and then all: list %v, %v, index %v", kept, list, err, entries)
		}
	}
}

func closed(c io.Closer, err error) error {
	if err != nil {
		return err
	}
	return c.Close()
}

func cancelled(t *testing.T, b Backend) {
	s, l := b.open(t, t.TempDir(), time.Now)
	v := New("example.com/m", "v1.0.0", "")
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := s.Put(gone, v.Version, v.Files()); err == nil {
		t.Error("Put succeeded")
	}
	if _, err := s.List(gone, v.Path); err == nil {
		t.Error("List succeeded")
	}
	if _, err := s.Catalog(gone, "", 1); err == nil {
		t.Error("Catalog succeeded")
	}
	if _, err := l.Claim(gone, "w", time.Minute); err == nil {
		t.Error("Claim succeeded")
	}
	_, err := s.Zip(ctx, v.Version)
	wantErr(t, "after a cancelled Put", err, fs.ErrNotExist)
}

// cancelling cancels when so many bytes were read, and reads on.
type cancelling struct {
	io.Reader
	left   int
	cancel context.CancelFunc
}

func (c *cancelling) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p[:min(len(p), 32<<10)])
	if c.left -= n; c.left <= 0 {
		c.cancel()
	}
	return n, err
}

// A Put whose context ends in the middle of the zip keeps nothing of it, and can be made again.
func cancelledPut(t *testing.T, b Backend) {
	s, _ := b.open(t, t.TempDir(), time.Now)
	m := module.Version{Path: "example.com/m", Version: "v1.0.0"}
	var content bytes.Buffer
	must(t, bigZip(&content, m, 4<<20))
	gone, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := s.Put(gone, m, storage.Files{Zip: &cancelling{bytes.NewReader(content.Bytes()), 1 << 20, cancel}}); err == nil {
		t.Error("Put succeeded")
	}
	wantErr(t, "after a Put that was cancelled", closed(s.Zip(ctx, m)), fs.ErrNotExist)
	must(t, s.Put(ctx, m, storage.Files{Zip: bytes.NewReader(content.Bytes())}))
	if !bytes.Equal(read(t, s, m, storage.FileZip), content.Bytes()) {
		t.Error("other bytes came back")
	}
}

// A reader whose context ends in the middle gets an error or what is kept, never a zip that
// ends early; who reads at the same time is not concerned.
func cancelledReader(t *testing.T, b Backend) {
	s, _ := b.open(t, t.TempDir(), time.Now)
	m := module.Version{Path: "example.com/m", Version: "v1.0.0"}
	var content bytes.Buffer
	must(t, bigZip(&content, m, 4<<20))
	must(t, s.Put(ctx, m, storage.Files{Zip: bytes.NewReader(content.Bytes())}))
	gone, cancel := context.WithCancel(ctx)
	defer cancel()
	blob, err := s.Zip(gone, m)
	must(t, err)
	defer blob.Close()
	beside, err := s.Zip(ctx, m)
	must(t, err)
	defer beside.Close()
	got, err := io.ReadAll(&cancelling{blob, 1 << 20, cancel})
	if err == nil && len(got) != content.Len() || !bytes.HasPrefix(content.Bytes(), got) {
		t.Errorf("%d of %d bytes came, and then %v", len(got), content.Len(), err)
	}
	if got, err = io.ReadAll(beside); err != nil || !bytes.Equal(got, content.Bytes()) {
		t.Errorf("another reader: %d of %d bytes, %v", len(got), content.Len(), err)
	}
}
