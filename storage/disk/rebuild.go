package disk

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// rebuild makes catalog and index agree with the tree, and reports whether they do.
func (s *Store) rebuild(ctx context.Context) (agree bool) {
	start, added, removed, failed := time.Now(), 0, 0, 0
	root := filepath.Join(s.dir, "modules")
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			s.log.Error("rebuild: left out", "folder", name, "err", err)
			failed++
			return fs.SkipDir
		}
		if d.IsDir() || filepath.Ext(name) != ".zip" {
			return nil
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		req, err := goproxy.ParseRequest("/" + filepath.ToSlash(rel))
		if err != nil {
			s.log.Warn("rebuild: not a file of a module", "file", name, "err", err)
			return nil
		}
		m := module.Version{Path: req.Path, Version: req.Query}
		if ok, err := s.IsComplete(m); ok || err != nil {
			return err
		}
		mu := s.lock(m.Path)
		mu.Lock()
		defer mu.Unlock()
		added++
		return s.complete(m)
	})
	for after := ""; err == nil; {
		var page storage.Page
		if page, err = s.Catalog(ctx, after, 1000); err != nil {
			break
		}
		for _, m := range page.Versions {
			gone, err := s.removeIfGone(m)
			if err != nil {
				s.log.Error("rebuild", "module", m, "err", err)
				failed++
			} else if gone {
				removed++
			}
		}
		if after = page.Next; after == "" {
			break
		}
	}
	if ctx.Err() != nil {
		return false
	}
	if err != nil || failed > 0 {
		s.log.Error("rebuild: catalog and tree may differ until the next start", "failures", failed, "err", err)
	}
	if added+removed > 0 {
		s.log.Info("catalog made again from the tree", "added", added, "removed", removed, "took", time.Since(start).Round(time.Millisecond))
	}
	return err == nil && failed == 0
}

// removeIfGone takes a version of which a file is gone out of the catalog, and ends the
// deletion that took the file, if one did.
func (s *Store) removeIfGone(m module.Version) (bool, error) {
	mu := s.lock(m.Path)
	mu.Lock()
	defer mu.Unlock()
	for _, f := range allFiles {
		name, err := s.file(m, f)
		if err != nil {
			return false, err
		}
		if isThere(name) {
			continue
		}
		begun, err := s.Load(context.Background(), deletingKey(m))
		if err != nil {
			return false, err
		}
		if begun != nil {
			return true, s.remove(m)
		}
		return true, errors.Join(s.Removed(m), s.writeList(m.Path))
	}
	return false, nil
}
