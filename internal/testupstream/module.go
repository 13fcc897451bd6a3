package testupstream

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
	modzip "golang.org/x/mod/zip"
)

// Zips above this size are kept on disk, not in memory.
const maxMemoryZipBytes = 1 << 20

// defaultTime is the time of a version that has none of its own.
var defaultTime = time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)

// Module is one version of a module.
type Module struct {
	Path    string
	Version string // canonical for the path; may be a pseudo-version
	Time    time.Time

	// Files by name. Nil: a go.mod and a package of one file. Without a go.mod,
	// the .mod that is served is the synthesised one.
	Files map[string]string

	// ZipBytes, above 0, is the size that the zip gets to the byte, by one more
	// file, "filler.bin", which does not compress. It is made from path, version
	// and Seed when it is first asked for. A size that is too small for the other
	// files has no effect.
	ZipBytes int64
	Seed     uint64

	Origin json.RawMessage // for .info; may be nil

	// What a bad upstream serves.
	Mod      string // served as .mod in place of the go.mod in Files
	Zip      []byte // served as .zip in place of one made of Files
	Unlisted bool   // not in @v/list
}

// Add serves these versions from now on, each in place of an older one of the
// same path and version. Zips are made when they are first asked for; the
// error is about a path, a version or file names that x/mod/zip refuses.
func (u *Upstream) Add(modules ...Module) error {
	for _, m := range modules {
		v, err := newMemVersion(u, m)
		if err != nil {
			return fmt.Errorf("testupstream: %s@%s: %w", m.Path, m.Version, err)
		}
		u.mu.Lock()
		if u.modules[m.Path] == nil {
			u.modules[m.Path] = map[string]*memVersion{}
		}
		u.modules[m.Path][m.Version] = v
		u.mu.Unlock()
	}
	return nil
}

// Remove stops serving a version that was added. A path that has no version
// left is unknown.
func (u *Upstream) Remove(path, version string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.modules[path], version)
	if len(u.modules[path]) == 0 {
		delete(u.modules, path)
	}
}

// SetList makes these lines the body of the path's @v/list, right or wrong.
// Without lines, the list is again worked out from the versions.
func (u *Upstream) SetList(path string, lines ...string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(lines) == 0 {
		delete(u.lists, path)
		return
	}
	u.lists[path] = []byte(strings.Join(lines, "\n") + "\n")
}

// SetQuery makes a branch, a commit or any other query stand for a version.
// An empty version takes it back.
func (u *Upstream) SetQuery(path, query, version string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if version == "" {
		delete(u.queries, module.Version{Path: path, Version: query})
		return
	}
	u.queries[module.Version{Path: path, Version: query}] = version
}

// SetLatestOff makes @latest answer 404 for every module, as some mirrors do.
func (u *Upstream) SetLatestOff(off bool) { u.latestOff.Store(off) }

// version is one version that can be served: from memory or from a module cache.
type version interface {
	info() (json.RawMessage, time.Time, error)
	mod() ([]byte, error)
	zip() (zipFile, int64, error) // absent: fs.ErrNotExist
}

type zipFile interface {
	io.ReadSeekCloser
	io.ReaderAt
}

// find returns an error that matches fs.ErrNotExist for an unknown version.
func (u *Upstream) find(m module.Version) (version, error) {
	u.mu.Lock()
	v, cache := u.modules[m.Path][m.Version], u.modCache
	u.mu.Unlock()
	if v != nil {
		return v, nil
	}
	if cache != "" {
		return findCached(cache, m)
	}
	return nil, fmt.Errorf("%s: unknown revision: %w", m, fs.ErrNotExist)
}

// versions returns what is listed of a path and every version there is.
func (u *Upstream) versions(path string) (listed, all []string, err error) {
	u.mu.Lock()
	for v, mv := range u.modules[path] {
		all = append(all, v)
		if !module.IsPseudoVersion(v) && !mv.m.Unlisted {
			listed = append(listed, v)
		}
	}
	cache := u.modCache
	u.mu.Unlock()
	if cache != "" {
		l, a, err := cachedVersions(cache, path)
		if err != nil {
			return nil, nil, err
		}
		listed, all = append(listed, l...), append(all, a...)
	}
	if len(all) == 0 {
		return nil, nil, fmt.Errorf("module %s: %w", path, fs.ErrNotExist)
	}
	semver.Sort(listed)
	semver.Sort(all)
	return slices.Compact(listed), slices.Compact(all), nil
}

// latest is the highest release, else the highest pre-release, else the
// youngest of the rest.
func (u *Upstream) latest(path string) (string, error) {
	listed, all, err := u.versions(path)
	if err != nil {
		return "", err
	}
	for _, v := range slices.Backward(listed) {
		if semver.Prerelease(v) == "" {
			return v, nil
		}
	}
	if len(listed) > 0 {
		return listed[len(listed)-1], nil
	}
	var best string
	var bestTime time.Time
	for _, v := range all {
		found, err := u.find(module.Version{Path: path, Version: v})
		if err != nil {
			continue
		}
		if _, t, err := found.info(); err == nil && (best == "" || t.After(bestTime)) {
			best, bestTime = v, t
		}
	}
	return best, nil
}

// builtZip is in memory, or in a file.
type builtZip struct {
	data []byte
	file string
}

// memVersion is a version that was added. Its zip is made once.
type memVersion struct {
	u     *Upstream
	m     Module
	build func() (builtZip, error)
}

func newMemVersion(u *Upstream, m Module) (*memVersion, error) {
	if err := module.Check(m.Path, m.Version); err != nil {
		return nil, err
	}
	if m.Time.IsZero() {
		m.Time = defaultTime
		if t, err := module.PseudoVersionTime(m.Version); err == nil {
			m.Time = t
		}
	}
	if m.Files == nil {
		m.Files = defaultFiles(m)
	}
	if m.Zip == nil {
		checked, err := modzip.CheckFiles(zipFiles(m))
		if err == nil {
			err = checked.Err()
		}
		if err != nil {
			return nil, err
		}
	}
	v := &memVersion{u: u, m: m}
	v.build = sync.OnceValues(v.makeZip)
	return v, nil
}

func defaultFiles(m Module) map[string]string {
	prefix, _, _ := module.SplitPathVersion(m.Path)
	name := strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' || '0' <= r && r <= '9' {
			return r
		}
		return -1
	}, strings.ToLower(path.Base(prefix)))
	files := map[string]string{"p.go": fmt.Sprintf("package p%s\n\nconst Version = %q\n", name, m.Version)}
	if !strings.HasSuffix(m.Version, "+incompatible") {
		files["go.mod"] = GoMod(m.Path, "1.20")
	}
	return files
}

// GoMod is the text of a go.mod file. An empty goVersion leaves that line out.
func GoMod(path, goVersion string, requires ...module.Version) string {
	var b strings.Builder
	fmt.Fprintf(&b, "module %s\n", modfile.AutoQuote(path))
	if goVersion != "" {
		fmt.Fprintf(&b, "\ngo %s\n", goVersion)
	}
	if len(requires) > 0 {
		b.WriteString("\nrequire (\n")
		for _, r := range requires {
			fmt.Fprintf(&b, "\t%s %s\n", modfile.AutoQuote(r.Path), r.Version)
		}
		b.WriteString(")\n")
	}
	return b.String()
}

func (v *memVersion) info() (json.RawMessage, time.Time, error) {
	b, err := infoJSON(v.m.Version, v.m.Time, v.m.Origin)
	return b, v.m.Time, err
}

func infoJSON(version string, t time.Time, origin json.RawMessage) (json.RawMessage, error) {
	return json.Marshal(struct {
		Version string
		Time    time.Time
		Origin  json.RawMessage `json:",omitempty"`
	}{version, t.UTC(), origin})
}

func (v *memVersion) mod() ([]byte, error) {
	if v.m.Mod != "" {
		return []byte(v.m.Mod), nil
	}
	if text, ok := v.m.Files["go.mod"]; ok {
		return []byte(text), nil
	}
	return []byte(GoMod(v.m.Path, "")), nil
}

func (v *memVersion) zip() (zipFile, int64, error) {
	b, err := v.build()
	if err != nil {
		return nil, 0, err
	}
	if b.file == "" {
		return memZip{bytes.NewReader(b.data)}, int64(len(b.data)), nil
	}
	return openFile(b.file)
}

type memZip struct{ *bytes.Reader }

func (memZip) Close() error { return nil }

func openFile(name string) (zipFile, int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

func (v *memVersion) makeZip() (builtZip, error) {
	if v.m.Zip != nil {
		return builtZip{data: v.m.Zip}, nil
	}
	size := v.m.ZipBytes
	for _, text := range v.m.Files {
		size += int64(len(text))
	}
	if size <= maxMemoryZipBytes {
		var b bytes.Buffer
		err := v.writeZip(&b)
		return builtZip{data: b.Bytes()}, err
	}
	name, err := v.u.tempFile()
	if err != nil {
		return builtZip{}, err
	}
	f, err := os.Create(name)
	if err != nil {
		return builtZip{}, err
	}
	err = v.writeZip(f)
	if e := f.Close(); err == nil {
		err = e
	}
	return builtZip{file: name}, err
}

func (v *memVersion) writeZip(w io.Writer) error {
	if v.m.ZipBytes <= 0 {
		return modzip.Create(w, module.Version{Path: v.m.Path, Version: v.m.Version}, zipFiles(v.m))
	}
	// What a filler of no bytes takes is what the filler does not have to take.
	var empty countWriter
	if err := writeStored(&empty, v.m, 0); err != nil {
		return err
	}
	return writeStored(w, v.m, max(0, v.m.ZipBytes-int64(empty)))
}

// writeStored writes a module zip without compression, which for content that
// does not compress is many times faster than x/mod/zip.
func writeStored(w io.Writer, m Module, fillerBytes int64) error {
	z := zip.NewWriter(w)
	prefix := m.Path + "@" + m.Version + "/"
	for _, name := range slices.Sorted(maps.Keys(m.Files)) {
		f, err := z.CreateHeader(&zip.FileHeader{Name: prefix + name, Method: zip.Store})
		if err != nil {
			return err
		}
		if _, err := io.WriteString(f, m.Files[name]); err != nil {
			return err
		}
	}
	f, err := z.CreateHeader(&zip.FileHeader{Name: prefix + "filler.bin", Method: zip.Store})
	if err != nil {
		return err
	}
	seed := sha256.Sum256(fmt.Appendf(nil, "%s %d", prefix, m.Seed))
	if _, err := io.CopyN(f, rand.NewChaCha8(seed), fillerBytes); err != nil {
		return err
	}
	return z.Close()
}

type countWriter int64

func (c *countWriter) Write(p []byte) (int, error) {
	*c += countWriter(len(p))
	return len(p), nil
}

func zipFiles(m Module) []modzip.File {
	var files []modzip.File
	for _, name := range slices.Sorted(maps.Keys(m.Files)) {
		files = append(files, memFile{name, m.Files[name]})
	}
	return files
}

// memFile is a modzip.File and its fs.FileInfo.
type memFile struct{ name, text string }

func (f memFile) Path() string                 { return f.name }
func (f memFile) Lstat() (fs.FileInfo, error)  { return f, nil }
func (f memFile) Open() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(f.text)), nil }
func (f memFile) Name() string                 { return path.Base(f.name) }
func (f memFile) Size() int64                  { return int64(len(f.text)) }
func (f memFile) Mode() fs.FileMode            { return 0o644 }
func (f memFile) ModTime() time.Time           { return time.Time{} }
func (f memFile) IsDir() bool                  { return false }
func (f memFile) Sys() any                     { return nil }
