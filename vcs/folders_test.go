package vcs

import (
	"path"
	"slices"
	"testing"
)

// As the files of a tree are walked, each folder is counted once; in another order at least
// once.
func TestNewFolders(t *testing.T) {
	walked := []string{"a", "b/c", "b/c.d/e", "b/c/d/e", "b/c/d/f", "b/cd/e", "bc/d", "x/y/z/z", "x/y/zz/z"}
	folders := map[string]bool{}
	for _, name := range walked {
		for d := path.Dir(name); d != "."; d = path.Dir(d) {
			folders[d] = true
		}
	}
	count := func(names []string) (n int) {
		last := ""
		for _, name := range names {
			n += newFolders(last, name)
			last = name
		}
		return n
	}
	if n := count(walked); n != len(folders) {
		t.Errorf("%d folders, want %d", n, len(folders))
	}
	for range 2 {
		slices.Reverse(walked)
		if n := count(walked); n < len(folders) {
			t.Errorf("%d folders, of %d", n, len(folders))
		}
	}
}
