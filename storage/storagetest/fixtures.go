// Package storagetest is the conformance suite of storage.Store and
// storage.Ledger: every backend passes it, and client and server over each.
package storagetest

import (
	"archive/zip"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// Backend is one implementation under test.
type Backend struct {
	// Open opens the state in dir. It is closed before the test ends, or by
	// Close, when the Store has such a method.
	Open Opener
	// Volatile: nothing survives Close.
	Volatile bool
	// InMemory: zips are held in memory, so a large one shows there.
	InMemory bool
}

// Opener is Backend.Open.
type Opener = func(t *testing.T, dir string, o Options) (storage.Store, storage.Ledger)

// Options of a backend.
type Options struct {
	Now      func() time.Time // the clock of timestamps and leases
	QueueMax int              // as storage.QueueCounts has it; 0: no bound
}

func (b Backend) open(t *testing.T, dir string, now func() time.Time) (storage.Store, storage.Ledger) {
	return b.Open(t, dir, Options{Now: now})
}

// crash opens what is in dir as if the process that has it open had been killed: nothing is
// closed. A backend that keeps files there is given a copy of them, since one process has a
// folder at a time; any other lets processes share what the folder stands for.
func (b Backend) crash(t *testing.T, dir string) (storage.Store, storage.Ledger) {
	t.Helper()
	files, err := os.ReadDir(dir)
	must(t, err)
	if len(files) > 0 {
		from := dir
		dir = t.TempDir()
		must(t, os.CopyFS(dir, os.DirFS(from)))
	}
	return b.open(t, dir, time.Now)
}

// Version is one made-up version with valid files.
type Version struct {
	module.Version
	Info, Mod, Zip []byte
}

// New makes a version; salt changes its zip, and nothing else.
func New(path, version, salt string) Version {
	v := Version{Version: module.Version{Path: path, Version: version}}
	v.Info = fmt.Appendf(nil, `{"Version":%q,"Time":"2026-01-02T03:04:05Z"}`, version)
	v.Mod = goproxy.SynthesisedMod(path)
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, f := range [][2]string{{"go.mod", string(v.Mod)}, {"a.go", "package a // " + salt + "\n"}} {
		w, err := z.Create(v.String() + "/" + f[0])
		if err != nil {
			panic(err)
		}
		io.WriteString(w, f[1])
	}
	if err := z.Close(); err != nil {
		panic(err)
	}
	v.Zip = b.Bytes()
	return v
}

// Files are all files of the version.
func (v Version) Files() storage.Files {
	return storage.Files{Info: v.Info, Mod: v.Mod, Zip: bytes.NewReader(v.Zip)}
}

// bigZip writes a valid module zip of about size bytes that cannot be compressed.
func bigZip(w io.Writer, m module.Version, size int) error {
	z := zip.NewWriter(w)
	f, err := z.CreateHeader(&zip.FileHeader{Name: m.String() + "/go.mod", Method: zip.Store})
	if err != nil {
		return err
	}
	if _, err := f.Write(goproxy.SynthesisedMod(m.Path)); err != nil {
		return err
	}
	noise := rand.NewChaCha8([32]byte{1})
	f, err = z.CreateHeader(&zip.FileHeader{Name: m.String() + "/noise.bin", Method: zip.Store})
	if err != nil {
		return err
	}
	if _, err := io.CopyN(f, noise, int64(size)); err != nil {
		return err
	}
	return z.Close()
}

// clock is a clock that tests set.
type clock struct{ t time.Time }

func newClock() *clock                   { return &clock{time.Now()} }
func (c *clock) now() time.Time          { return c.t }
func (c *clock) advance(d time.Duration) { c.t = c.t.Add(d) }
