package transfer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/memory"
	"github.com/athensctl/athensctl/storage/storagetest"
)

func fill(t *testing.T, s storage.Store, v storagetest.Version) {
	t.Helper()
	if err := s.Put(t.Context(), v.Version, v.Files()); err != nil {
		t.Fatal(err)
	}
}

// failed gathers what is reported.
func failed(t *testing.T) (map[string]error, Options) {
	errs := map[string]error{}
	return errs, Options{TempDir: t.TempDir(), Failed: func(m module.Version, err error) { errs[m.String()] = err }}
}

// The .info that is kept stays where another says something else of the origin: crawlers
// keep it before the zip, and older go commands wrote none of it.
func TestCopyOntoPart(t *testing.T) {
	v := storagetest.New("example.com/m", "v1.0.0", "")
	pseudo := storagetest.New("example.com/m", "v0.0.0-20260102030405-0123456789ab", "")
	from, to := memory.New(0, nil), memory.New(0, nil)
	fill(t, from, v)
	fill(t, from, pseudo)
	info := []byte(`{"Version":"v1.0.0","Time":"2026-01-02T03:04:05Z","Origin":{"VCS":"git"}}`)
	if err := to.Put(t.Context(), v.Version, storage.Files{Info: info}); err != nil {
		t.Fatal(err)
	}
	for round, want := range []int64{0, 2} {
		errs, o := failed(t)
		r, err := Copy(t.Context(), Stored{Store: from}, to, o)
		if err != nil || len(errs) > 0 || r.Skipped.Load() != want || r.Done.Load() != 2-want {
			t.Errorf("round %d: %v, %v, %d copied, %d were there; want %d", round, err, errs, r.Done.Load(), r.Skipped.Load(), want)
		}
	}
	if got, err := to.Resolve(t.Context(), v.Path, v.Version.Version); err != nil || !bytes.Equal(got.JSON(), info) {
		t.Errorf(".info is %s now, %v", got.JSON(), err)
	}
	if list, err := to.List(t.Context(), v.Path); err != nil || len(list.Versions) != 1 {
		t.Errorf("the version is not complete: %v, %v", list, err)
	}
}

// A go.mod file whose line ends are others in the zip alone is no damage.
func TestLineEndsOfGoMod(t *testing.T) {
	v := storagetest.New("example.com/m", "v1.0.0", "")
	v.Mod = bytes.ReplaceAll(v.Mod, []byte("\n"), []byte("\r\n"))
	from, to := memory.New(0, nil), memory.New(0, nil)
	fill(t, from, v)
	errs, o := failed(t)
	if r, err := Copy(t.Context(), Stored{Store: from}, to, o); err != nil || r.Done.Load() != 1 {
		t.Errorf("copied: %v, %v", errs, err)
	}
	if r, err := Verify(t.Context(), to, o); err != nil || r.Done.Load() != 1 {
		t.Errorf("verified: %v, %v", errs, err)
	}
}

// endless is a catalog whose token leads to itself.
type endless struct{ storage.Store }

func (endless) Catalog(context.Context, string, int) (storage.Page, error) {
	return storage.Page{Next: "x"}, nil
}

func TestEndlessCatalog(t *testing.T) {
	_, o := failed(t)
	if _, err := Copy(t.Context(), Stored{Store: endless{memory.New(0, nil)}}, memory.New(0, nil), o); err == nil || !strings.Contains(err.Error(), "does not end") {
		t.Errorf("got %v", err)
	}
}

// faulty answers for some versions otherwise than it should.
type faulty struct {
	storage.Store
	zip map[string]func() (*goproxy.Blob, error)
}

func (f faulty) Zip(ctx context.Context, m module.Version) (*goproxy.Blob, error) {
	if zip := f.zip[m.Version]; zip != nil {
		return zip()
	}
	return f.Store.Zip(ctx, m)
}

// Only what is proved is said to be damaged: that something does not answer proves
// nothing.
func TestVerify(t *testing.T) {
	s := faulty{Store: memory.New(0, nil), zip: map[string]func() (*goproxy.Blob, error){}}
	for _, v := range []string{"v1.0.0", "v1.1.0", "v1.2.0", "v1.3.0", "v1.4.0", "v1.5.0", "v1.6.0"} {
		fill(t, s.Store, storagetest.New("example.com/m", v, v))
	}
	// A private module's zip is another good one: only the hash kept with it tells.
	mine := storagetest.New("example.com/m", "v1.7.0", "mine")
	files := mine.Files()
	files.ZipH1, _, _ = checked(t, mine)
	if err := s.Store.Put(t.Context(), mine.Version, files); err != nil {
		t.Fatal(err)
	}
	forged := storagetest.New("example.com/m", "v1.7.0", "forged")
	s.zip["v1.7.0"] = func() (*goproxy.Blob, error) { return goproxy.NewBlob(forged.Zip, time.Unix(1, 0)), nil }
	other := storagetest.New("example.com/m", "v1.2.0", "another")
	blob := func(b []byte) (*goproxy.Blob, error) { return goproxy.NewBlob(b, time.Unix(1, 0)), nil }
	s.zip["v1.1.0"] = func() (*goproxy.Blob, error) { return blob([]byte("no zip")) }
	s.zip["v1.2.0"] = func() (*goproxy.Blob, error) { return blob(other.Zip) } // a good one, with other content
	s.zip["v1.3.0"] = func() (*goproxy.Blob, error) { return nil, goproxy.Busy(0, "storage is away") }
	s.zip["v1.4.0"] = func() (*goproxy.Blob, error) { return nil, goproxy.NotFound("no zip") }
	s.zip["v1.5.0"] = func() (*goproxy.Blob, error) {
		return &goproxy.Blob{ReadCloser: io.NopCloser(io.MultiReader(strings.NewReader("PK"), broken{})), SizeBytes: -1}, nil
	}
	errs, o := failed(t)
	want := storagetest.New("example.com/m", "v1.2.0", "v1.2.0")
	h1, _, err := checked(t, want)
	if err != nil {
		t.Fatal(err)
	}
	o.H1 = func(_ context.Context, path, version string) (string, error) {
		switch version {
		case "v1.2.0":
			return h1, nil
		case "v1.6.0":
			return "", goproxy.Busy(0, "the checksum database is away")
		}
		return "", nil
	}
	r, err := Verify(t.Context(), s, o)
	if err != nil || r.Done.Load() != 1 || r.Damaged.Load() != 4 || r.Failed.Load() != 3 {
		t.Errorf("%v: %d good, %d damaged, %d not checked; want 1, 4, 3", err, r.Done.Load(), r.Damaged.Load(), r.Failed.Load())
	}
	damaged := map[string]bool{}
	for name, err := range errs {
		damaged[name] = errors.As(err, &Damaged{})
	}
	if !maps.Equal(damaged, map[string]bool{
		"example.com/m@v1.1.0": true, "example.com/m@v1.2.0": true, "example.com/m@v1.3.0": false,
		"example.com/m@v1.4.0": true, "example.com/m@v1.5.0": false, "example.com/m@v1.6.0": false, "example.com/m@v1.7.0": true,
	}) {
		t.Errorf("damaged: %v\n%v", damaged, errs)
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("the disk is broken") }

// checked is what CheckZip says of a version's zip.
func checked(t *testing.T, v storagetest.Version) (h1 string, mod []byte, err error) {
	s := memory.New(0, nil)
	fill(t, s, v)
	tmp, h1, mod, err := spool(t.Context(), s, v.Version, t.TempDir())
	if err == nil {
		tmp.Close()
	}
	return h1, mod, err
}

// A version that is whole where it comes from, and whose zip is lost there, is not one that is copied:
// what there is of it is, and that it is not all is said.
func TestCopyLost(t *testing.T) {
	from, to := faulty{Store: memory.New(0, nil), zip: map[string]func() (*goproxy.Blob, error){}}, memory.New(0, nil)
	for _, v := range []string{"v1.0.0", "v1.1.0", "v1.2.0"} {
		fill(t, from.Store, storagetest.New("example.com/m", v, ""))
	}
	from.zip["v1.1.0"] = func() (*goproxy.Blob, error) { return nil, goproxy.NotFound("no zip") }
	from.zip["v1.2.0"] = func() (*goproxy.Blob, error) { // behind its first bytes
		return &goproxy.Blob{ReadCloser: io.NopCloser(io.MultiReader(strings.NewReader("PK"), lost{})), SizeBytes: 100}, nil
	}
	for round, copied := range []int64{1, 0} { // made again, it says so again
		errs, o := failed(t)
		r, err := Copy(t.Context(), Stored{Store: from}, to, o)
		if err != nil || r.Done.Load() != copied || r.Failed.Load() != 2 || len(errs) != 2 {
			t.Errorf("round %d: %v, %v, %d copied; want that %d are, and two failed", round, err, errs, r.Done.Load(), copied)
		}
	}
	for _, v := range []string{"v1.0.0", "v1.1.0", "v1.2.0"} {
		b, err := to.Mod(t.Context(), module.Version{Path: "example.com/m", Version: v})
		if err != nil {
			t.Errorf("%s: %v", v, err)
			continue
		}
		b.Close()
	}
}

type lost struct{}

func (lost) Read([]byte) (int, error) { return 0, storage.ErrLost }

// Each version of a folder is one, whatever stands between its files.
func TestTreeVersions(t *testing.T) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "example.com", "m", "@v")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{"v1.0.0-a", "v1.0.0-a.lib", "v1.0.0-a.nightly"} {
		for _, ext := range []string{".info", ".mod", ".zip"} {
			if err := os.WriteFile(filepath.Join(folder, v+ext), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	tree, err := OpenTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := tree.Versions(t.Context(), func(_ Entry, count int) error {
		if n++; count != 3 {
			t.Errorf("of %d, want 3", count)
		}
		return nil
	}); err != nil || n != 3 {
		t.Errorf("%d versions, want 3: %v", n, err)
	}
}
