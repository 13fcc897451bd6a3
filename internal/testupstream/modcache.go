package testupstream

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
)

// ServeModCache serves what a module cache has of modules that were not added:
// dir is a GOMODCACHE or its cache/download folder. Versions of which only the
// go.mod is there answer .info and .mod. A list has the tagged versions whose
// zip is there. The checksum database covers all of it.
func (u *Upstream) ServeModCache(dir string) error {
	dir, err := downloadFolder(dir)
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.modCache = dir
	return nil
}

// ModCacheVersions returns every version in a module cache that has a go.mod
// and a zip, ordered by path and then by version.
func ModCacheVersions(dir string) ([]module.Version, error) {
	dir, err := downloadFolder(dir)
	if err != nil {
		return nil, err
	}
	var found []module.Version
	err = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		base, ok := strings.CutSuffix(name, ".zip")
		if !ok || filepath.Base(filepath.Dir(name)) != "@v" {
			return nil
		}
		if _, err := os.Stat(base + ".mod"); err != nil {
			return nil
		}
		rel, err := filepath.Rel(dir, filepath.Dir(filepath.Dir(name)))
		if err != nil {
			return err
		}
		path, err := module.UnescapePath(filepath.ToSlash(rel))
		if err != nil {
			return nil // not of the go command
		}
		version, err := module.UnescapeVersion(filepath.Base(base))
		if err == nil {
			found = append(found, module.Version{Path: path, Version: version})
		}
		return nil
	})
	module.Sort(found)
	return found, err
}

func downloadFolder(dir string) (string, error) {
	if sub := filepath.Join(dir, "cache", "download"); isDir(sub) {
		return sub, nil
	}
	if !isDir(dir) {
		return "", fmt.Errorf("testupstream: module cache %s: not a folder", dir)
	}
	return dir, nil
}

func isDir(name string) bool {
	st, err := os.Stat(name)
	return err == nil && st.IsDir()
}

// cachedVersion is the name of a version's files in a module cache, without
// the suffix.
type cachedVersion struct {
	base    string
	version string
}

func findCached(dir string, m module.Version) (version, error) {
	path, err := module.EscapePath(m.Path)
	if err != nil {
		return nil, err
	}
	escaped, err := module.EscapeVersion(m.Version)
	if err != nil {
		return nil, err
	}
	base := filepath.Join(dir, filepath.FromSlash(path), "@v", escaped)
	if _, err := os.Stat(base + ".mod"); err != nil {
		return nil, fmt.Errorf("%s: unknown revision: %w", m, fs.ErrNotExist)
	}
	return cachedVersion{base, m.Version}, nil
}

func cachedVersions(dir, path string) (listed, all []string, err error) {
	escaped, err := module.EscapePath(path)
	if err != nil {
		return nil, nil, err
	}
	entries, err := os.ReadDir(filepath.Join(dir, filepath.FromSlash(escaped), "@v"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	has := map[string]bool{}
	for _, e := range entries {
		has[e.Name()] = true
	}
	for name := range has {
		base, ok := strings.CutSuffix(name, ".mod")
		if !ok {
			continue
		}
		version, err := module.UnescapeVersion(base)
		if err != nil || !semver.IsValid(version) {
			continue
		}
		all = append(all, version)
		if has[base+".zip"] && !module.IsPseudoVersion(version) {
			listed = append(listed, version)
		}
	}
	return listed, all, nil
}

func (v cachedVersion) info() (json.RawMessage, time.Time, error) {
	b, err := os.ReadFile(v.base + ".info")
	if errors.Is(err, fs.ErrNotExist) {
		t := defaultTime
		if pt, err := module.PseudoVersionTime(v.version); err == nil {
			t = pt
		}
		b, err := infoJSON(v.version, t, nil)
		return b, t, err
	}
	if err != nil {
		return nil, time.Time{}, err
	}
	var info struct{ Time time.Time }
	err = json.Unmarshal(b, &info)
	return b, info.Time, err
}

func (v cachedVersion) mod() ([]byte, error) { return os.ReadFile(v.base + ".mod") }

func (v cachedVersion) zip() (zipFile, int64, error) { return openFile(v.base + ".zip") }
