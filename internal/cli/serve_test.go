package cli

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/athensctl/athensctl/config"
	"github.com/athensctl/athensctl/storage/disk"
)

// A server waits for the end of the one before it, which has the store open while it drains;
// for as long as it was told, and not when it is to end itself.
func TestStoreOfThePredecessor(t *testing.T) {
	t.Parallel()
	before := func(dir string) *disk.Store {
		s, err := disk.Open(dir, disk.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	after := func(dir string, patience context.Context) error {
		p := &process{cfg: &config.Config{DataDir: dir}, log: slog.New(slog.NewTextHandler(io.Discard, nil)), patience: patience}
		s, err := p.openDisk()
		if err == nil {
			err = s.Close()
		}
		return err
	}
	t.Run("it ends", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		s := before(dir)
		// Later than one try of disk.Open takes.
		end := time.AfterFunc(2500*time.Millisecond, func() { s.Close() })
		defer end.Stop()
		patience, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := after(dir, patience); err != nil {
			t.Error(err)
		}
	})
	t.Run("it does not end", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		defer before(dir).Close()
		patience, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for _, p := range []context.Context{nil, patience} {
			err := after(dir, p)
			if !errors.Is(err, disk.ErrLocked) {
				t.Error(err)
			} else if p == nil && !strings.Contains(err.Error(), "storage-url") { // a command's: what to do is said
				t.Error(err)
			}
		}
	})
}

// What a crash has left is removed when nobody can be making it any more, also where the
// next process starts at once, and lives for long.
func TestLeftByACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &process{cfg: &config.Config{DataDir: t.TempDir()}, log: slog.New(slog.NewTextHandler(io.Discard, nil))}
		dir := filepath.Join(p.cfg.DataDir, "spool")
		leave := func(name string, age time.Duration) {
			at := time.Now().Add(-age)
			if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, name), []byte("half"), 0o600), os.Chtimes(filepath.Join(dir, name), at, at)); err != nil {
				t.Fatal(err)
			}
		}
		leave("fetch-old", staleTemp+time.Minute)
		leave("fetch-new", time.Minute)
		if _, err := p.tempDir(); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		for _, work := range p.work {
			go work(ctx)
		}
		left := func(want ...string) {
			t.Helper()
			synctest.Wait()
			found, err := os.ReadDir(dir)
			var names []string
			for _, f := range found {
				names = append(names, f.Name())
			}
			if err != nil || !slices.Equal(names, want) {
				t.Errorf("after %v: %q, %v; want %q", time.Since(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)), names, err, want)
			}
		}
		left("fetch-new")
		time.Sleep(staleTemp + time.Hour)
		leave("fetch-newer", time.Minute)
		left("fetch-newer")
	})
}
