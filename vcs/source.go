// Package vcs is a git host as a goproxy.Source: it finds a module's repository,
// lists its versions from the repository's refs, and makes the .info, .mod and .zip
// of a version from a fetch of that one commit. There is no clone, no subprocess, and
// no git or go program. What it answers is what the go command makes of the same
// repository with GOPROXY=direct; where it cannot be sure to, it refuses.
//
// Sources: https://go.dev/ref/mod#vcs-version, https://go.dev/ref/mod#zip-files.
package vcs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
	"golang.org/x/sync/singleflight"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/vcs/git"
	"github.com/athensctl/athensctl/vcs/remote"
)

// Options of a Source. The zero value is good. One host has a part of each of its bounds
// at most: of Heavy all but one, of MemoryBytes two thirds, of the others half.
type Options struct {
	TempDir string // takes packs and zips while they are made; "": the system's
	// Heavy is how many packs are indexed at once. 0: 3.
	Heavy int
	// Fetches is how many packs of commits are fetched at once; each may wait for a slow
	// host. A go.mod file that is fetched alone is bounded as all requests are: for its host
	// by Wrap of remote.Options, and by how many ask. 0: 16.
	Fetches int
	// DiskBytes is how much the packs may take of TempDir; past it an answer is a 503.
	// 0: 4 GiB.
	DiskBytes int64
	// MemoryBytes is how much memory what is read of packs and refs may take; past it an
	// answer is a 503. Objects that are made of deltas take up to 168 MiB more.
	// 0: 192 MiB.
	MemoryBytes int64
	// Refused is told of each answer that is a 503 for a bound: "memory", "disk", or
	// "repositories", of which too many are read at once. nil: nobody is told.
	Refused func(bound string)
}

// Source is a goproxy.Source over git hosts. It is safe for concurrent use.
type Source struct {
	o      Options
	remote *remote.Remote
	git    *git.Client
	packs  *git.Budget // being fetched

	flights singleflight.Group
	mu      sync.Mutex
	refs    map[string]*refs  // by repository
	trees   []*tree           // the latest last
	files   map[string][]byte // by repository and hash
}

var _ goproxy.Source = (*Source)(nil)

// New returns a source that reaches hosts through r.
func New(r *remote.Remote, o Options) *Source {
	if o.Heavy <= 0 {
		o.Heavy = 3
	}
	if o.Fetches <= 0 {
		o.Fetches = 16
	}
	if o.DiskBytes <= 0 {
		o.DiskBytes = 4 << 30
	}
	if o.MemoryBytes <= 0 {
		o.MemoryBytes = 192 << 20
	}
	if o.Refused == nil {
		o.Refused = func(string) {}
	}
	made := git.MadeBytes(git.DefaultLimits)
	s := &Source{o: o, remote: r, packs: git.Half(int64(o.Fetches)), refs: map[string]*refs{}, files: map[string][]byte{}}
	s.git = &git.Client{
		HTTP: r.HTTP(), TempDir: o.TempDir, Evict: s.evict, Refused: o.Refused,
		Heavy: git.NewBudget(int64(o.Heavy), int64(max(1, o.Heavy-1))), Disk: git.Half(o.DiskBytes), Memory: git.NewBudget(o.MemoryBytes, o.MemoryBytes*2/3),
		// One of the largest at a time, and room for those of other hosts that are small.
		Deltas: git.NewBudget(made+made/6, made),
	}
	return s
}

// Close drops what is remembered.
func (s *Source) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, t := range s.trees {
		errs = append(errs, t.drop())
	}
	s.trees = nil
	return errors.Join(errs...)
}

// mod is a module in its repository.
type mod struct {
	s    *Source
	repo *remote.Repo
	path string // example.com/repo/sub/v2
	// prefix and major are its parts: example.com/repo/sub and /v2 (or .v2, "").
	prefix, major string
	dir           string // the folder that the path names, without the major version: sub
	whole         bool   // commits are fetched with their files, which will be needed
}

// open finds the repository of a module path. A module that another proxy has is
// answered by that. The context is the one in which the repository may be asked.
func (s *Source) open(ctx context.Context, modulePath string) (context.Context, *mod, goproxy.Source, error) {
	repo, err := s.remote.Discover(ctx, modulePath)
	if err != nil {
		return nil, nil, nil, err
	}
	ctx = repo.Context(ctx)
	if repo.VCS == "mod" {
		return ctx, nil, &goproxy.Client{Base: repo.URL, HTTP: s.remote.HTTP(), IdleTimeout: 30 * time.Second}, nil
	}
	m := &mod{s: s, repo: repo, path: modulePath}
	var ok bool
	if m.prefix, m.major, ok = module.SplitPathVersion(modulePath); !ok {
		return nil, nil, nil, goproxy.Errorf(http.StatusBadRequest, "bad request: %q is not a module path", modulePath)
	}
	if repo.Root == modulePath { // the repository has the whole path, its major version too
		m.prefix = modulePath
	} else {
		if !strings.HasPrefix(m.prefix+"/", repo.Root+"/") {
			return nil, nil, nil, goproxy.NotFound("%s: the repository of %s cannot have such a module", modulePath, repo.Root)
		}
		m.dir = strings.Trim(m.prefix[len(repo.Root):], "/")
	}
	m.dir = strings.TrimPrefix(path.Join(m.dir, repo.SubDir), "/")
	return ctx, m, nil, nil
}

// List implements goproxy.Source: one question to the host; and, for a module
// without a major version in its path whose repository has tags above v1, a look at
// the go.mod files of a few of them.
func (s *Source) List(ctx context.Context, modulePath string) (*goproxy.VersionList, error) {
	ctx, m, proxy, err := s.open(ctx, modulePath)
	if err != nil {
		return nil, err
	}
	if proxy != nil {
		return proxy.List(ctx, modulePath)
	}
	versions, err := m.versions(ctx, refsNow)
	if err != nil {
		return nil, err
	}
	return goproxy.NewVersionList(modulePath, versions, time.Now()), nil
}

// Resolve implements goproxy.Source.
func (s *Source) Resolve(ctx context.Context, modulePath, query string) (*goproxy.Info, error) {
	ctx, m, proxy, err := s.open(ctx, modulePath)
	if err != nil {
		return nil, err
	}
	if proxy != nil {
		return proxy.Resolve(ctx, modulePath, query)
	}
	if query == goproxy.Latest {
		versions, err := m.versions(ctx, refsNow)
		if err != nil {
			return nil, err
		}
		// Retracted versions are not the latest, unless nothing else is there.
		retracted := m.retracted(ctx, versions)
		var allowed []string
		for _, v := range versions {
			if !retracted(v) {
				allowed = append(allowed, v)
			}
		}
		if len(allowed) == 0 && len(versions) > 0 {
			if info, err := m.resolve(ctx, ""); err == nil && !retracted(info.Version) {
				return info, nil
			}
			allowed = versions
		}
		if v := latest(allowed); v != "" {
			info, err := m.resolve(ctx, v)
			if err != nil {
				return nil, err
			}
			return info, m.dependsOnTags(ctx, info)
		}
		return m.resolve(ctx, "")
	}
	return m.resolve(ctx, query)
}

// latest is the highest release, or else the highest pre-release. Versions that are
// +incompatible count as others: versions lists them where they do.
func latest(versions []string) string {
	best := ""
	for _, v := range versions {
		if best == "" || (semver.Prerelease(v) == "") == (semver.Prerelease(best) == "") && semver.Compare(v, best) > 0 ||
			semver.Prerelease(v) == "" && semver.Prerelease(best) != "" {
			best = v
		}
	}
	return best
}

// Mod implements goproxy.Source.
func (s *Source) Mod(ctx context.Context, v module.Version) (*goproxy.Blob, error) {
	ctx, m, proxy, err := s.open(ctx, v.Path)
	if err != nil {
		return nil, err
	}
	if proxy != nil {
		return proxy.Mod(ctx, v)
	}
	r, err := m.checked(ctx, v.Version)
	if err != nil {
		return nil, err
	}
	_, content, err := m.find(ctx, r)
	if err != nil {
		return nil, err
	}
	if content == nil {
		content = goproxy.SynthesisedMod(v.Path)
	}
	return goproxy.NewBlob(content, time.Time{}), nil
}

// Zip implements goproxy.Source. The zip is made in a temporary file, which is gone
// when the Blob is closed.
func (s *Source) Zip(ctx context.Context, v module.Version) (*goproxy.Blob, error) {
	ctx, m, proxy, err := s.open(ctx, v.Path)
	if err != nil {
		return nil, err
	}
	if proxy != nil {
		return proxy.Zip(ctx, v)
	}
	m.whole = true
	r, err := m.checked(ctx, v.Version)
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(s.o.TempDir, "zip-")
	if err != nil {
		return nil, err
	}
	zip := &temporary{f}
	if err := m.writeZip(ctx, r, v.Version, f); err != nil {
		zip.Close()
		return nil, err
	}
	st, err := f.Stat()
	if err == nil {
		_, err = f.Seek(0, 0)
	}
	if err != nil {
		zip.Close()
		return nil, err
	}
	return &goproxy.Blob{ReadCloser: zip, SizeBytes: st.Size()}, nil
}

// temporary is a file that is removed when it is closed.
type temporary struct{ *os.File }

func (t *temporary) Close() error { return errors.Join(t.File.Close(), os.Remove(t.Name())) }

// checked is the revision of a canonical version that the module really has.
func (m *mod) checked(ctx context.Context, version string) (*revision, error) {
	r, err := m.stat(ctx, version)
	if err != nil {
		return nil, err
	}
	info, err := m.convert(ctx, r, version)
	if err != nil {
		return nil, err
	}
	if info.Version != version {
		return nil, m.notFound(version, "it is version %s", info.Version)
	}
	return r, nil
}

// resolve is the answer to a query; "" is the end of the default branch.
func (m *mod) resolve(ctx context.Context, query string) (*goproxy.Info, error) {
	r, err := m.stat(ctx, query)
	if err != nil {
		return nil, err
	}
	return m.convert(ctx, r, query)
}

// notFound says that the repository has no such version, and why.
func (m *mod) notFound(version, format string, args ...any) error {
	return goproxy.NotFound("%s@%s at %s: %w", m.path, version, git.Name(m.repo.URL), fmt.Errorf(format, args...))
}

func isMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// tagPrefix is what stands before the version in the module's tags.
func (m *mod) tagPrefix() string {
	if m.dir == "" {
		return ""
	}
	return m.dir + "/"
}

// versions are those in the tags that belong in the module's list, as they were not
// longer ago than maxAge.
func (m *mod) versions(ctx context.Context, maxAge time.Duration) ([]string, error) {
	rs, err := m.s.refsOf(ctx, m.repo, maxAge)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(m.path, "gopkg.in/") && strings.HasSuffix(m.path, "-unstable") {
		return nil, nil // the tags are those of the path without it
	}
	var list, above []string
	for tag := range rs.tags {
		v, ok := strings.CutPrefix(tag, m.tagPrefix())
		if !ok || v == "" || v != semver.Canonical(v) || module.IsPseudoVersion(v) {
			continue
		}
		if module.CheckPathMajor(v, m.major) == nil {
			list = append(list, v)
		} else if m.dir == "" && m.major == "" && semver.Major(v) > "v1" {
			above = append(above, v)
		}
	}
	semver.Sort(list)
	semver.Sort(above)
	if len(above) == 0 {
		return list, nil
	}
	// From the first version with a go.mod file on, the author means it to be a
	// module, and versions above v1 to have a path of their own.
	if n := len(list); n > 0 {
		if has, err := m.hasMod(ctx, list[n-1]); has || err != nil {
			return list, err
		}
	}
	for len(above) > 0 {
		n := 1
		for n < len(above) && semver.Major(above[n]) == semver.Major(above[0]) {
			n++
		}
		has, err := m.hasMod(ctx, above[n-1])
		if err != nil {
			return nil, err
		}
		for _, v := range above[:n] {
			if !has {
				list = append(list, v+"+incompatible")
			}
		}
		above = above[n:]
	}
	return list, nil
}

// hasMod reports whether a tag has a go.mod file at its root.
func (m *mod) hasMod(ctx context.Context, tag string) (bool, error) {
	rs, err := m.s.refsOf(ctx, m.repo, refsFor)
	if err != nil {
		return false, err
	}
	_, err = m.s.readFile(ctx, m.repo, rs.tags[tag], "go.mod", goproxy.MaxModBytes)
	if isMissing(err) {
		return false, nil
	}
	return err == nil, err
}
