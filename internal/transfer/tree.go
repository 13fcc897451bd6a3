package transfer

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
)

// Tree is a folder that is a GOPROXY file tree: <escaped path>/@v/<version>.{info,mod,zip}.
type Tree struct{ dir string }

// OpenTree finds the tree in a folder: a data folder of athensctl, a module cache
// ($GOMODCACHE), or the tree itself.
func OpenTree(dir string) (*Tree, error) {
	for _, sub := range []string{"modules", filepath.Join("cache", "download"), "download", ""} {
		d := filepath.Join(dir, sub)
		if st, err := os.Stat(d); err != nil || !st.IsDir() {
			continue
		}
		found := false
		err := filepath.WalkDir(d, func(_ string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() && e.Name() == "@v" {
				found = true
				return fs.SkipAll
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		if found {
			return &Tree{d}, nil
		}
	}
	return nil, fmt.Errorf("%s holds no modules: neither a data folder, nor a module cache, nor a folder with <module>/@v/", dir)
}

// Versions implements Source. It looks at all names first, to count them.
func (t *Tree) Versions(ctx context.Context, f func(Entry, int) error) error {
	var all []Entry
	err := filepath.WalkDir(t.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || ctx.Err() != nil {
			return cmp.Or(err, ctx.Err())
		}
		if !e.IsDir() || e.Name() != "@v" {
			return nil
		}
		rel, err := filepath.Rel(t.dir, filepath.Dir(path))
		if err != nil {
			return err
		}
		escaped := filepath.ToSlash(rel)
		if strings.HasPrefix(escaped, "sumdb/") {
			return fs.SkipDir
		}
		modulePath, err := module.UnescapePath(escaped)
		if err != nil {
			return fs.SkipDir
		}
		files, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		seen := map[string]bool{} // v1.0.0-a.info, v1.0.0-a.b.info, v1.0.0-a.mod: those of a version need not stand together
		for _, file := range files {
			ext := filepath.Ext(file.Name())
			if ext != ".info" && ext != ".mod" && ext != ".zip" {
				continue
			}
			v, err := module.UnescapeVersion(strings.TrimSuffix(file.Name(), ext))
			if err != nil || seen[v] || !goproxy.IsCanonical(modulePath, v) {
				continue // the go command keeps answers for branches there too
			}
			seen[v] = true
			all = append(all, Entry{Version: module.Version{Path: modulePath, Version: v}})
		}
		return fs.SkipDir
	})
	if err != nil {
		return err
	}
	for _, e := range all {
		if err := f(e, len(all)); err != nil {
			return err
		}
	}
	return nil
}

func (t *Tree) open(m module.Version, f goproxy.File) (*goproxy.Blob, error) {
	p, err := goproxy.Request{Path: m.Path, Query: m.Version, File: f}.URLPath()
	if err != nil {
		return nil, err
	}
	file, err := os.Open(filepath.Join(t.dir, filepath.FromSlash(p)))
	if err != nil {
		return nil, err
	}
	st, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &goproxy.Blob{ReadCloser: file, SizeBytes: st.Size(), ModTime: st.ModTime()}, nil
}

// List implements goproxy.Source.
func (t *Tree) List(ctx context.Context, path string) (*goproxy.VersionList, error) {
	var versions []string
	err := t.Versions(ctx, func(e Entry, _ int) error {
		if e.Path == path {
			versions = append(versions, e.Version.Version)
		}
		return nil
	})
	return goproxy.NewVersionList(path, versions, time.Time{}), err
}

// Resolve implements goproxy.Source, for canonical versions.
func (t *Tree) Resolve(_ context.Context, path, query string) (*goproxy.Info, error) {
	b, err := t.open(module.Version{Path: path, Version: query}, goproxy.FileInfo)
	if err != nil {
		return nil, err
	}
	raw, err := b.ReadAll(goproxy.MaxInfoBytes)
	if err != nil {
		return nil, err
	}
	return goproxy.ParseInfo(path, query, raw)
}

// Mod implements goproxy.Source.
func (t *Tree) Mod(_ context.Context, m module.Version) (*goproxy.Blob, error) {
	return t.open(m, goproxy.FileMod)
}

// Zip implements goproxy.Source.
func (t *Tree) Zip(_ context.Context, m module.Version) (*goproxy.Blob, error) {
	return t.open(m, goproxy.FileZip)
}
