package crawler

import (
	"context"
	"errors"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/storage"
)

// restarting is a store that takes what it is sent, and cannot be reached some times.
type restarting struct {
	storage.Store
	away int
	got  []string
}

func (s *restarting) Put(_ context.Context, _ module.Version, f storage.Files) error {
	b, err := io.ReadAll(f.Zip)
	if err != nil {
		return err
	}
	s.got = append(s.got, string(b))
	if len(s.got) <= s.away {
		return &url.Error{Op: "Post", URL: "http://storage", Err: errors.New("connection refused")}
	}
	return nil
}

// Each attempt to keep a zip sends all of it.
func TestPutAgain(t *testing.T) {
	const content = "all of a zip"
	name := filepath.Join(t.TempDir(), "zip")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		s := &restarting{away: 4}
		c := &Crawler{store: s}
		if err := c.put(t.Context(), module.Version{Path: "example.com/m", Version: "v1.0.0"}, storage.Files{Zip: f}, int64(len(content))); err != nil {
			t.Fatal(err)
		}
		if len(s.got) != 5 {
			t.Errorf("%d attempts", len(s.got))
		}
		for i, got := range s.got {
			if got != content {
				t.Errorf("attempt %d sent %q", i+1, got)
			}
		}
	})
}
