package vcs

import (
	"context"
	"strings"
	"testing"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/vcs/remote"
)

// What panics over a repository's bytes, on behalf of all who want it, is their error.
func TestOncePanics(t *testing.T) {
	r, err := remote.New(remote.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := New(r, Options{TempDir: t.TempDir()})
	defer s.Close()
	_, err = s.once(t.Context(), "k", func(context.Context) (any, error) { panic("a delta of -1 bytes") })
	if goproxy.Status(err) != 500 || !strings.Contains(err.Error(), "a delta of -1 bytes") {
		t.Errorf("%d %v", goproxy.Status(err), err)
	}
}
