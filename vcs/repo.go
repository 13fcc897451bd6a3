package vcs

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/vcs/git"
	"github.com/athensctl/athensctl/vcs/remote"
)

// refs is what a repository's host said of its refs: names to commits.
type refs struct {
	all     map[string]string // refs/heads/…, refs/tags/…, HEAD
	tags    map[string]string // by the name behind refs/tags/
	objects map[string]string // commit of a tag → the tag object, which is what must be asked for in old protocols
	listed  time.Time
	bytes   int64 // of memory, about
}

// How long refs and trees are remembered: the modules of one repository, and the
// files of one version, are asked for together. What is there now (a list, latest, a
// branch, what was not there a moment ago) is asked for anew, but for those who ask at
// about the same time.
const (
	refsFor  = time.Minute
	refsNow  = time.Second
	refsGone = 50 * time.Millisecond // a tag is not there: has it come just now?
	treesFor = time.Minute
	maxRefs  = 32 << 20 // bytes of memory; those of one repository may be more
	maxTrees = 64
	maxPacks = 1 << 30 // bytes of the trees' packs, on disk
	maxFiles = 200
	maxFile  = 32 << 10
)

// refsOf lists the refs of a repository, as they were not longer ago than maxAge.
// Those who ask at the same time share the answer.
func (s *Source) refsOf(ctx context.Context, repo *remote.Repo, maxAge time.Duration) (*refs, error) {
	key := repo.URL.String()
	s.mu.Lock()
	known := s.refs[key]
	s.mu.Unlock()
	if known != nil && time.Since(known.listed) < maxAge {
		return known, nil
	}
	v, err := s.once(ctx, "refs "+key, func(ctx context.Context) (any, error) {
		now := time.Now()
		list, err := s.git.Refs(ctx, repo.URL, "HEAD", "refs/heads/", "refs/tags/")
		if err != nil {
			return nil, err
		}
		rs := &refs{all: map[string]string{}, tags: map[string]string{}, objects: map[string]string{}, listed: now}
		for _, r := range list {
			rs.bytes += int64(len(r.Name)+len(r.Hash)+len(r.Peeled)) + git.RefBytes
			rs.all[r.Name] = r.Commit()
			if tag, ok := strings.CutPrefix(r.Name, "refs/tags/"); ok {
				rs.tags[tag] = r.Commit()
			}
			if r.Peeled != "" {
				rs.objects[r.Peeled] = r.Hash
			}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.refs[key] = rs
		s.forgetRefs(now)
		return rs, nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*refs), nil
}

// forgetRefs drops the refs that nobody may be answered with any more, and the oldest ones
// while all together are too much.
func (s *Source) forgetRefs(now time.Time) {
	total := int64(0)
	maps.DeleteFunc(s.refs, func(_ string, rs *refs) bool {
		old := now.Sub(rs.listed) >= refsFor
		if !old {
			total += rs.bytes
		}
		return old
	})
	for total > maxRefs && len(s.refs) > 1 {
		oldest := ""
		for key, rs := range s.refs {
			if oldest == "" || rs.listed.Before(s.refs[oldest].listed) {
				oldest = key
			}
		}
		total -= s.refs[oldest].bytes
		delete(s.refs, oldest)
	}
}

// once runs f once for all who want key at the same time. It goes on when one of
// them leaves.
func (s *Source) once(ctx context.Context, key string, f func(context.Context) (any, error)) (any, error) {
	ch := s.flights.DoChan(key, func() (_ any, err error) {
		defer goproxy.Recover(&err) // packs are strangers' bytes, and nobody else can in here
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Minute)
		defer cancel()
		return f(ctx)
	})
	select {
	case r := <-ch:
		return r.Val, r.Err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// history fetches the commits from which the given ones descend, without their
// content where the host can.
func (s *Source) history(ctx context.Context, repo *remote.Repo, of ...string) (*git.Objects, error) {
	if err := s.packs.Acquire(ctx, repo.URL.Host, 1); err != nil {
		return nil, err
	}
	defer s.packs.Release(repo.URL.Host, 1)
	return s.fetch(ctx, repo, git.Want{Hashes: of, Filter: "tree:0"})
}

// fetch fetches commits. Where the server refuses, as it gives only what its refs name (git
// over SSH when it is not told of version 2, Gerrit over SSH), all that is behind them is
// fetched: the go command's last resort.
func (s *Source) fetch(ctx context.Context, repo *remote.Repo, w git.Want) (*git.Objects, error) {
	rs, err := s.refsOf(ctx, repo, refsFor)
	if err != nil {
		return nil, err
	}
	advertised := func(commits []string) (list []string) {
		for _, h := range commits {
			list = append(list, cmp.Or(rs.objects[h], h))
		}
		return list
	}
	w.Hashes = advertised(w.Hashes)
	o, err := s.git.Fetch(ctx, repo.URL, w)
	all := advertised(slices.Compact(slices.Sorted(maps.Values(rs.all))))
	if errors.Is(err, git.ErrNotSent) && (w.Depth > 0 || !slices.Equal(w.Hashes, all)) {
		w.Hashes, w.Depth = all, 0
		o, err = s.git.Fetch(ctx, repo.URL, w)
	}
	return o, err
}

// revision is a commit that a query names.
type revision struct {
	hash    string
	version string // the tag, when the query was one; else the hash
	time    time.Time
	tags    []string // all that name the commit, sorted
	ref     string   // what the query named; for a hash the first of the refs at it, "" before them
}

func (r *revision) short() string { return r.hash[:12] }

// minHash is how many digits a hash has at least, to be taken for one.
const minHash = 7

// stat finds the commit that a query names: a version, a tag, a branch, HEAD, or a
// hash, of at least 7 digits, of a commit from which a branch or tag descends. "" is the
// end of the default branch: HEAD, though a tag or a branch has that name.
func (m *mod) stat(ctx context.Context, query string) (*revision, error) {
	rev := query
	if semver.IsValid(query) {
		if module.IsPseudoVersion(query) {
			rev, _ = module.PseudoVersionRev(query)
		} else {
			rev = m.tagPrefix() + strings.TrimSuffix(query, "+incompatible")
		}
	}
	maxAge := refsFor
	if !semver.IsValid(query) {
		maxAge = refsNow
	}
	rs, err := m.s.refsOf(ctx, m.repo, maxAge)
	if err == nil && semver.IsValid(query) && !module.IsPseudoVersion(query) && rs.tags[rev] == "" {
		rs, err = m.s.refsOf(ctx, m.repo, refsGone)
	}
	if err != nil {
		return nil, err
	}
	r := &revision{}
	switch {
	case query == "" && rs.all["HEAD"] != "":
		r.ref, r.hash = "HEAD", rs.all["HEAD"]
	case query == "":
		return nil, m.notFound("HEAD", "there is no default branch, or nothing in it")
	case rs.tags[rev] != "":
		r.ref, r.hash, r.version = "refs/tags/"+rev, rs.tags[rev], rev
	case rs.all["refs/heads/"+rev] != "":
		r.ref, r.hash = "refs/heads/"+rev, rs.all["refs/heads/"+rev]
	case rev == "HEAD" && rs.all["HEAD"] != "":
		r.hash = rs.all["HEAD"] // as a query, the go command does not name it in Origin
	case len(rev) >= minHash && len(rev) <= 40 && strings.Trim(rev, "0123456789abcdef") == "":
		if err := m.statHash(ctx, rs, r, rev); err != nil {
			return nil, err
		}
	default:
		return nil, m.notFound(query, "no tag, branch or commit %q", rev)
	}
	if r.version == "" {
		r.version = r.hash
	}
	t, err := m.s.treeOf(ctx, m.repo, r.hash, m.whole)
	if err != nil {
		return nil, err
	}
	defer t.release()
	if r.time = t.commit.Time; r.time.IsZero() {
		return nil, goproxy.Errorf(http.StatusBadGateway, "%s@%s at %s: its commit, %s, has no time that can be used", m.path, query, git.Name(m.repo.URL), r.hash)
	}
	for tag, hash := range rs.tags {
		if hash == r.hash {
			r.tags = append(r.tags, tag)
		}
	}
	slices.Sort(r.tags)
	return r, nil
}

func (m *mod) statHash(ctx context.Context, rs *refs, r *revision, rev string) error {
	ref := ""
	for name, hash := range rs.all {
		if !strings.HasPrefix(hash, rev) {
			continue
		}
		if r.hash != "" && r.hash != hash {
			return m.notFound(rev, "ambiguous: several commits begin with it")
		}
		r.hash = hash
		if ref == "" || name < ref {
			ref = name
		}
	}
	if r.hash != "" {
		if ref != "HEAD" { // which the go command does not name
			r.ref = ref
		}
		return nil
	}
	// Not the end of a branch or tag. It must be before one: hosts hand out commits
	// that were never in the repository, of forks and rejected changes.
	o, err := m.s.history(ctx, m.repo, slices.Compact(slices.Sorted(maps.Values(rs.all)))...)
	if err != nil {
		return err
	}
	defer o.Close()
	commits, err := o.Ancestors(ctx, slices.Collect(maps.Values(rs.all))...)
	if err == nil {
		r.hash, err = commits.Match(rev)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return goproxy.Errorf(http.StatusBadGateway, "%s@%s: %w", m.path, rev, err)
	}
	if r.hash == "" {
		return m.notFound(rev, "no commit that begins with it is in a branch or tag")
	}
	return nil
}

// recentTag is the highest tag, by its version behind the prefix, among those that
// the commit descends from and that are allowed. "": none.
func (m *mod) recentTag(ctx context.Context, r *revision, allowed func(tag string) bool) (string, error) {
	rs, err := m.s.refsOf(ctx, m.repo, refsFor)
	if err != nil {
		return "", err
	}
	var candidates []string
	for tag := range rs.tags {
		if strings.HasPrefix(tag, m.tagPrefix()) && allowed(tag) {
			candidates = append(candidates, tag)
		}
	}
	if len(candidates) == 0 {
		return "", nil
	}
	before, err := m.ancestors(ctx, r.hash)
	if err != nil {
		return "", err
	}
	best := ""
	for _, tag := range candidates {
		v := strings.TrimPrefix(tag, m.tagPrefix())
		if before.Has(rs.tags[tag]) && (best == "" || semver.Compare(v, strings.TrimPrefix(best, m.tagPrefix())) > 0) {
			best = tag
		}
	}
	return best, nil
}

// ancestors are the commits from which one descends, itself included.
func (m *mod) ancestors(ctx context.Context, hash string) (*git.Commits, error) {
	o, err := m.s.history(ctx, m.repo, hash)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	return o.Ancestors(ctx, hash)
}

// tagSum is the go command's hash of the tags with a prefix, by which it knows that
// an answer which depends on them still holds. Source: cmd/go, codehost.Origin.
func (rs *refs) tagSum(prefix string) string {
	dir := prefix[:strings.LastIndex(prefix, "/")+1]
	h := sha256.New()
	for _, tag := range slices.Sorted(maps.Keys(rs.tags)) {
		if !strings.HasPrefix(tag, prefix) {
			continue
		}
		v := strings.TrimPrefix(tag, dir)
		if c := semver.Canonical(v); c != "" && strings.HasPrefix(v, c) && !module.IsPseudoVersion(v) {
			fmt.Fprintf(h, "%q %s\n", tag, rs.tags[tag])
		}
	}
	return "t1:" + base64.StdEncoding.EncodeToString(h.Sum(nil))
}
