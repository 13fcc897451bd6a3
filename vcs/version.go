package vcs

import (
	"context"
	"encoding/json"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"

	"github.com/athensctl/athensctl/goproxy"
)

// origin is Info.Origin as the go command writes it.
// Source: https://go.dev/ref/mod#goproxy-protocol and cmd/go, codehost.Origin.
type origin struct {
	VCS       string `json:",omitempty"`
	URL       string `json:",omitempty"`
	Subdir    string `json:",omitempty"`
	Hash      string `json:",omitempty"`
	TagPrefix string `json:",omitempty"`
	TagSum    string `json:",omitempty"`
	Ref       string `json:",omitempty"`
}

// info is the answer for a version of a revision.
func (m *mod) info(ctx context.Context, r *revision, version, asked string) (*goproxy.Info, error) {
	o := origin{VCS: "git", URL: m.repo.PublicURL, Subdir: m.dir, Hash: r.hash, Ref: r.ref}
	switch {
	case !module.IsPseudoVersion(version):
	case version == asked: // it stays when the ref moves
		o.Ref = ""
	default: // another tag would make it another version
		rs, err := m.s.refsOf(ctx, m.repo, refsFor)
		if err != nil {
			return nil, err
		}
		o.TagPrefix = m.tagPrefix()
		if m.major != "" {
			o.TagPrefix += m.major[1:] + "."
		}
		o.TagSum = rs.tagSum(o.TagPrefix)
	}
	raw, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	return &goproxy.Info{Version: version, Time: r.time, Origin: raw}, nil
}

// dependsOnTags adds to an answer's origin that other tags would change it.
func (m *mod) dependsOnTags(ctx context.Context, info *goproxy.Info) error {
	rs, err := m.s.refsOf(ctx, m.repo, refsFor)
	if err != nil {
		return err
	}
	var o origin
	if err := json.Unmarshal(info.Origin, &o); err != nil {
		return err
	}
	o.TagPrefix, o.TagSum = m.tagPrefix(), rs.tagSum(m.tagPrefix())
	info.Origin, err = json.Marshal(o)
	return err
}

// convert says which version a revision is for the module. asked is the query; ""
// when it was none in particular. A canonical version that was asked for is either
// that version or an error.
func (m *mod) convert(ctx context.Context, r *revision, asked string) (*goproxy.Info, error) {
	if module.IsPseudoVersion(asked) {
		info, err := m.canonical(ctx, r, asked, asked)
		if err != nil {
			return nil, err
		}
		return info, m.checkPseudo(ctx, r, asked)
	}
	if v, whole := m.tagVersion(r.version); whole {
		if info, err := m.canonical(ctx, r, v, asked); err == nil {
			return info, nil
		} else if goproxy.Status(err) >= http.StatusInternalServerError {
			return nil, err
		}
	}
	versions, err := m.versions(ctx, refsFor)
	if err != nil {
		return nil, err
	}
	retracted := m.retracted(ctx, versions)

	// A tag of this very commit, or what a tag on it is almost.
	highest, base := "", ""
	for _, tag := range r.tags {
		v, whole := m.tagVersion(tag)
		if v == "" {
			continue
		}
		if asked != "" && semver.Compare(v, asked) == 0 {
			if whole {
				return m.canonical(ctx, r, v, asked)
			}
			base = v
		}
		if whole && semver.Compare(highest, v) < 0 && !retracted(v) {
			ok, err := m.fits(ctx, r, v, asked)
			if err != nil {
				return nil, err
			}
			if ok {
				highest = v
			}
		}
	}
	if highest != "" {
		return m.canonical(ctx, r, highest, asked)
	}
	if base == "" {
		var failed error
		tag, err := m.recentTag(ctx, r, func(tag string) bool {
			v, _ := m.tagVersion(tag)
			if v == "" || failed != nil || retracted(v) {
				return false
			}
			ok, err := m.fits(ctx, r, v, asked)
			failed = err
			return ok
		})
		if failed != nil {
			err = failed
		}
		if err != nil {
			return nil, err
		}
		if tag != "" {
			base, _ = m.tagVersion(tag)
		}
	}
	return m.canonical(ctx, r, module.PseudoVersion(module.PathMajorPrefix(m.major), base, r.time, r.short()), asked)
}

// tagVersion is the version that a tag of the module stands for, "" when none; whole
// says that the tag is just that, and not, say, v1.0.0+build.
func (m *mod) tagVersion(tag string) (v string, whole bool) {
	rest, ok := strings.CutPrefix(tag, m.tagPrefix())
	if !ok || module.IsPseudoVersion(tag) {
		return "", false
	}
	v = semver.Canonical(rest)
	if v == "" || !strings.HasPrefix(rest, v) {
		return "", false
	}
	return v, v == rest
}

// fits reports whether the module may have the version: its path's major version is
// the version's, or it may be +incompatible.
func (m *mod) fits(ctx context.Context, r *revision, v, asked string) (bool, error) {
	if module.MatchPathMajor(v, m.major) {
		return true, nil
	}
	return m.mayBeIncompatible(ctx, r, v, asked)
}

// mayBeIncompatible: a version above v1 of a path without a major version, at the
// root of a repository, that has no go.mod file there, nor in a folder of the major
// version (unless +incompatible was asked for: older go commands did not look).
func (m *mod) mayBeIncompatible(ctx context.Context, r *revision, v, asked string) (bool, error) {
	if m.dir != "" || m.major != "" {
		return false, nil
	}
	names := []string{"go.mod"}
	if !strings.HasSuffix(asked, "+incompatible") {
		names = append(names, path.Join(semver.Major(v), "go.mod"))
	}
	for _, name := range names {
		_, err := m.s.readFile(ctx, m.repo, r.hash, name, goproxy.MaxModBytes)
		if err == nil {
			return false, nil
		}
		if !isMissing(err) {
			return false, err
		}
	}
	return true, nil
}

// canonical is the answer for version v of a revision, with "+incompatible" where it
// belongs, after a check that the module may have it.
func (m *mod) canonical(ctx context.Context, r *revision, v, asked string) (*goproxy.Info, error) {
	if _, _, err := m.find(ctx, r); err != nil {
		return nil, err
	}
	if v == strings.TrimSuffix(asked, "+incompatible") {
		v = asked
	}
	base := strings.TrimSuffix(v, "+incompatible")
	switch matches := module.MatchPathMajor(base, m.major); {
	case !matches:
		ok, err := m.mayBeIncompatible(ctx, r, base, asked)
		switch {
		case err != nil:
			return nil, err
		case ok:
			v = base + "+incompatible"
		case m.major != "":
			return nil, m.notFound(v, "the path ends in %s, so the version must begin with it", m.major)
		default:
			return nil, m.notFound(v, "it has a go.mod file, so the path must end in /%s", semver.Major(v))
		}
	case strings.HasSuffix(v, "+incompatible"):
		return nil, m.notFound(v, "%s needs no +incompatible", semver.Major(v))
	}
	if asked != "" && asked == module.CanonicalVersion(asked) && strings.TrimSuffix(asked, "+incompatible") != base {
		return nil, m.notFound(asked, "it is version %s: there is no tag of that name", v)
	}
	return m.info(ctx, r, v, asked)
}

// checkPseudo says why a pseudo-version is not one of the revision: its hash and time
// must be the commit's, and its base a tag from which the commit descends.
// Source: https://go.dev/ref/mod#pseudo-versions.
func (m *mod) checkPseudo(ctx context.Context, r *revision, version string) error {
	rev, err := module.PseudoVersionRev(version)
	if err != nil {
		return m.notFound(version, "%w", err)
	}
	if rev != r.short() {
		return m.notFound(version, "the commit is written %s", r.short())
	}
	t, err := module.PseudoVersionTime(version)
	if err != nil {
		return m.notFound(version, "%w", err)
	}
	if !t.Equal(r.time.Truncate(time.Second)) {
		return m.notFound(version, "the commit's time is %s", r.time.UTC().Format(module.PseudoVersionTimestampFormat))
	}
	base, err := module.PseudoVersionBase(strings.TrimSuffix(version, "+incompatible"))
	if err != nil {
		return m.notFound(version, "%w", err)
	}
	if base == "" {
		if m.major == "" && semver.Major(version) == "v1" {
			return m.notFound(version, "without a tag before the commit, the major version must be v0")
		}
		return nil
	}
	for _, tag := range r.tags {
		if strings.TrimPrefix(tag, m.tagPrefix()) == base {
			return m.notFound(version, "the commit has the tag %s, and needs no pseudo-version", tag)
		}
	}
	rs, err := m.s.refsOf(ctx, m.repo, refsFor)
	if err != nil {
		return err
	}
	var tags []string
	for tag := range rs.tags {
		if strings.HasPrefix(tag, m.tagPrefix()+base) && semver.Compare(strings.TrimPrefix(tag, m.tagPrefix()), base) == 0 {
			tags = append(tags, tag)
		}
	}
	if len(tags) == 0 {
		return m.notFound(version, "there is no tag %s", base)
	}
	before, err := m.ancestors(ctx, r.hash)
	if err != nil {
		return err
	}
	for _, tag := range tags {
		if before.Has(rs.tags[tag]) {
			return nil
		}
	}
	return m.notFound(version, "the commit does not descend from the tag %s", tags[0])
}

// find finds the folder of the module in a revision, and its go.mod file; nil when
// there is none and none is needed. A module with a major version in its path is
// either in the folder of that name or, with a go.mod that says so, in the one above.
func (m *mod) find(ctx context.Context, r *revision) (dir string, content []byte, err error) {
	read := func(dir string) ([]byte, bool, error) {
		b, err := m.s.readFile(ctx, m.repo, r.hash, path.Join(dir, "go.mod"), goproxy.MaxModBytes)
		if isMissing(err) {
			return nil, false, nil
		}
		return b, err == nil, err
	}
	above, haveAbove, err := read(m.dir)
	if err != nil {
		return "", nil, err
	}
	abovePath := modfile.ModulePath(above)
	// A fork of a gopkg.in module may go by a path without a major version.
	fits := haveAbove && (sameMajor(abovePath, m.major) || m.major == "" && strings.HasPrefix(abovePath, "gopkg.in/"))

	folder := m.major != "" && m.repo.Root != m.path && !strings.HasPrefix(m.major, ".")
	if folder {
		dir := path.Join(m.dir, m.major[1:])
		below, have, err := read(dir)
		if err != nil {
			return "", nil, err
		}
		belowFits := have && sameMajor(modfile.ModulePath(below), m.major)
		switch {
		case belowFits && fits:
			return "", nil, m.notFound(r.version, "%s and %s both say that they are it", path.Join(m.dir, "go.mod"), path.Join(dir, "go.mod"))
		case belowFits:
			return dir, below, nil
		case have:
			return "", nil, m.notFound(r.version, "%s", saysOf(path.Join(dir, "go.mod"), modfile.ModulePath(below)))
		}
	}
	switch {
	case fits:
		return m.dir, above, nil
	case haveAbove:
		return "", nil, m.notFound(r.version, "%s", saysOf(path.Join(m.dir, "go.mod"), abovePath))
	case m.dir == "" && !folder && (m.major == "" || strings.HasPrefix(m.major, ".")):
		return "", nil, nil
	}
	return "", nil, m.notFound(r.version, "there is no %s", path.Join(m.dir, "go.mod"))
}

// saysOf is what a go.mod file says that it is, which is not the module that is wanted.
func saysOf(file, modulePath string) string {
	if modulePath == "" {
		return file + " names no module"
	}
	return file + " says that it is module " + strconv.Quote(modulePath)
}

// sameMajor reports whether a go.mod file's module path allows the versions that a
// path with this major version has.
func sameMajor(declared, major string) bool {
	_, m, ok := module.SplitPathVersion(declared)
	switch {
	case declared == "" || !ok:
		return false
	case major == "":
		p := module.PathMajorPrefix(m)
		return p == "" || p == "v0" || p == "v1"
	case m == "":
		return false
	}
	return major[1:] == m[1:] // /v2 and .v2 are one
}

// retracted reports which versions the go.mod of the latest one takes back.
func (m *mod) retracted(ctx context.Context, versions []string) func(string) bool {
	none := func(string) bool { return false }
	latest := ""
	for _, v := range versions { // in order; +incompatible ones, which have no go.mod, last
		if strings.HasSuffix(v, "+incompatible") {
			break
		}
		if semver.Prerelease(v) == "" || semver.Prerelease(latest) != "" || latest == "" {
			latest = v
		}
	}
	if latest == "" {
		return none
	}
	r, err := m.stat(ctx, latest)
	if err != nil {
		return none
	}
	_, content, err := m.find(ctx, r)
	if err != nil || content == nil {
		return none
	}
	f, err := goproxy.ParseMod("go.mod", content)
	if err != nil {
		return none
	}
	return func(v string) bool {
		for _, i := range f.Retract {
			if semver.Compare(i.Low, v) <= 0 && semver.Compare(v, i.High) <= 0 {
				return true
			}
		}
		return false
	}
}
