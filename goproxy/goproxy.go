// Package goproxy speaks the GOPROXY protocol: it turns URL paths into module
// paths, versions and files and back, answers requests from a [Source]
// ([Handler]), and is itself a Source over HTTP ([Client]). Every role of
// athensctl is a Source behind the same handler.
//
// The protocol is specified at https://go.dev/ref/mod#goproxy-protocol. Only
// this package escapes and unescapes; all others pass plain module paths and
// versions.
package goproxy

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
)

// Limits of the module zip format, in bytes.
// Source: https://pkg.go.dev/golang.org/x/mod/zip#pkg-constants.
const (
	MaxZipBytes  = 500 << 20
	MaxModBytes  = 16 << 20
	MaxInfoBytes = 64 << 10 // not in the specification; a real one is below 1 KB
	MaxListBytes = 1 << 20  // not in the specification; about 40,000 versions

	// MaxSumDBBytes bounds an answer of a checksum database; a tile of records has some 50 KB.
	MaxSumDBBytes = 1 << 20
)

// Latest is the query that asks for a module's latest version.
const Latest = "latest"

// Source answers the read half of the GOPROXY protocol. It is safe for
// concurrent use. An error for what does not exist matches [fs.ErrNotExist];
// an error that has a status of its own is an [*Error].
type Source interface {
	// List returns the tagged versions of the module, without pseudo-versions.
	// A known module without tags has an empty list.
	List(ctx context.Context, path string) (*VersionList, error)

	// Resolve turns a query ("latest", a branch, a commit, a version) into a
	// version. For a canonical version Info.Version equals the query.
	Resolve(ctx context.Context, path, query string) (*Info, error)

	// Mod returns the go.mod file of a canonical version. The caller closes it.
	Mod(ctx context.Context, m module.Version) (*Blob, error)

	// Zip returns the zip file of a canonical version. The caller closes it.
	Zip(ctx context.Context, m module.Version) (*Blob, error)
}

// VersionList is what is known of the tagged versions of one module.
type VersionList struct {
	Versions []string  // semver order, oldest first, no pseudo-versions
	Checked  time.Time // when upstream last confirmed it; zero: not known
	Stale    bool      // older than it should be, because upstream did not answer

	// Pseudo is the newest pseudo-version among those that NewVersionList was
	// given; it is not in the list, but is "latest" where the list is empty.
	Pseudo string

	// Validator says whose list it is and in which state; "": its source says none. See WithValidator.
	Validator string

	text []byte // Text, made once
}

// Text is the body of an @v/list answer: a version a line.
func (l *VersionList) Text() []byte {
	if l.text == nil && len(l.Versions) > 0 {
		return []byte(strings.Join(l.Versions, "\n") + "\n")
	}
	return l.text
}

// NewVersionList keeps what belongs in a list (canonical versions that fit the
// module path, no pseudo-versions, each once) and sorts it in semver order.
func NewVersionList(path string, versions []string, checked time.Time) *VersionList {
	l := &VersionList{Checked: checked}
	kept := make([]string, 0, len(versions))
	var newest time.Time
	for _, v := range versions {
		switch {
		case !IsCanonical(path, v):
		case !module.IsPseudoVersion(v):
			kept = append(kept, v)
		default:
			if t, err := module.PseudoVersionTime(v); err == nil && t.After(newest) {
				newest, l.Pseudo = t, v
			}
		}
	}
	semver.Sort(kept)
	l.Versions = slices.Compact(kept)
	l.text = l.Text()
	return l
}

// LatestVersion is the version that "latest" means when only the list is
// known: the highest release, else the highest pre-release, with
// "+incompatible" versions considered only when there is nothing else, and
// pseudo-versions last. It is empty when there is none. Source: https://go.dev/ref/mod#version-queries.
func (l *VersionList) LatestVersion() string {
	var best string
	rank := func(v string) int {
		r := 0
		if semver.Prerelease(v) == "" {
			r++
		}
		if !strings.HasSuffix(v, "+incompatible") {
			r += 2
		}
		return r
	}
	for _, v := range l.Versions {
		if best == "" || rank(v) > rank(best) || rank(v) == rank(best) && semver.Compare(v, best) > 0 {
			best = v
		}
	}
	return cmp.Or(best, l.Pseudo)
}

// Info is the answer to a query, the content of a .info file.
type Info struct {
	Version string          // canonical
	Time    time.Time       // of the commit
	Origin  json.RawMessage `json:",omitempty"` // where it came from, as upstream sent it

	// Raw is the .info file byte for byte; nil when it was not read from one.
	Raw []byte `json:"-"`
	// Kept is when the file was stored; zero for an answer that is not kept.
	Kept time.Time `json:"-"`
	// Checked is when upstream gave this answer to a query that is not a
	// canonical version; zero when not known.
	Checked time.Time `json:"-"`
	// Stale says that upstream could not confirm the answer lately.
	Stale bool `json:"-"`
}

// ParseInfo reads a .info file. The version in it must be canonical for the
// module path, and equal to query when query is a canonical version.
func ParseInfo(path, query string, raw []byte) (*Info, error) {
	info := &Info{Raw: raw}
	if err := json.Unmarshal(raw, info); err != nil {
		return nil, fmt.Errorf("%s@%s: .info is not JSON: %w", path, query, err)
	}
	if IsCanonical(path, query) && info.Version != query {
		return nil, fmt.Errorf("%s@%s: .info names version %q", path, query, info.Version)
	}
	if !IsCanonical(path, info.Version) {
		return nil, fmt.Errorf("%s@%s: .info names version %q, which is not canonical for that module path", path, query, info.Version)
	}
	return info, nil
}

// JSON returns the .info file: Raw when there is one.
func (i *Info) JSON() []byte {
	if i.Raw != nil {
		return i.Raw
	}
	b, err := json.Marshal(i)
	if err != nil {
		panic(err) // a string, a time and valid JSON
	}
	return b
}

// Blob is the content of one immutable file. The reader is also an io.Seeker
// where the content is at hand (a file, memory).
type Blob struct {
	io.ReadCloser
	SizeBytes int64
	ModTime   time.Time // when it was stored, the same on every replica; zero: not known
}

// NewBlob is a Blob over bytes in memory.
func NewBlob(content []byte, modTime time.Time) *Blob {
	return &Blob{ReadCloser: memory{bytes.NewReader(content), content}, SizeBytes: int64(len(content)), ModTime: modTime}
}

type memory struct {
	*bytes.Reader
	content []byte
}

func (memory) Close() error { return nil }

// ReadAll reads and closes a small file. One that is larger than limit bytes is
// an error.
func (b *Blob) ReadAll(limit int64) ([]byte, error) {
	defer b.Close()
	content, err := io.ReadAll(io.LimitReader(b, limit+1))
	if err == nil && int64(len(content)) > limit {
		err = Errorf(http.StatusBadGateway, "larger than %d bytes", limit)
	}
	return content, err
}

type memoryKey struct{}

// WithMemory has a Source tell take of the bytes of a list, before it holds them: of all where
// it is said how many they are, else as they come, and how many more. An error of take is that of the Source. A Source that bounds its
// memory itself may ignore it.
func WithMemory(ctx context.Context, take func(bytes int64) error) context.Context {
	return context.WithValue(ctx, memoryKey{}, take)
}

// counted is b, of which WithMemory's take is told.
func counted(ctx context.Context, b *Blob) *Blob {
	if take, ok := ctx.Value(memoryKey{}).(func(int64) error); ok {
		b.ReadCloser = &takingReader{b.ReadCloser, take, min(b.SizeBytes, MaxListBytes+1)}
	}
	return b
}

type takingReader struct {
	io.ReadCloser
	take func(int64) error
	size int64 // to be taken before the first byte; below 0: not known
}

func (r *takingReader) Read(p []byte) (int, error) {
	if r.size > 0 {
		if err := r.take(r.size); err != nil {
			return 0, err
		}
		r.size = 0
	}
	n, err := r.ReadCloser.Read(p)
	if r.size < 0 {
		if e := r.take(int64(n)); e != nil {
			return 0, e
		}
	}
	return n, err
}

// ETag is the entity tag of a file of this size stored at that time, to the
// second. A stored file never changes, so the two identify its content on
// every replica.
func ETag(sizeBytes int64, modTime time.Time) string {
	if modTime.IsZero() {
		return ""
	}
	b := make([]byte, 0, 40)
	b = append(b, '"')
	b = strconv.AppendInt(b, modTime.Unix(), 16)
	b = append(b, '-')
	b = strconv.AppendInt(b, sizeBytes, 16)
	return string(append(b, '"'))
}

// IsCanonical reports whether v is a canonical version (a tag or a
// pseudo-version, "vX.Y.Z…", optionally "+incompatible") that the module path
// may have. Source: https://go.dev/ref/mod#glos-canonical-version.
func IsCanonical(path, v string) bool {
	if module.CanonicalVersion(v) != v || v == "" {
		return false
	}
	_, major, ok := module.SplitPathVersion(path)
	return ok && module.CheckPathMajor(v, major) == nil
}
