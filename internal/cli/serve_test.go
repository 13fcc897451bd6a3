package cli

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
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
