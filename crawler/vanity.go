package crawler

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// vanity is a name that modules have in place of their repository's, by a go-import tag:
// what is in Dir and below is Base and below, without the major version.
// Source: https://go.dev/ref/mod#vcs-find.
type vanity struct {
	Base string
	Dir  string `json:",omitempty"`
}

const (
	// maxVanities bounds the names that are kept for a repository: what upstream says is
	// not verified, and each is looked at when somebody pushes.
	maxVanities = 200
	// maxNoted bounds the names that a crawler knows to be kept.
	maxNoted = 50_000
	// maxVanityBytes bounds one, with its repository: upstream may say anything.
	maxVanityBytes = 1000
)

// vanityOf is the name of which path is one module, in the folder subdir of the repository
// root. False: it is the repository's own, or no name at all.
func vanityOf(path, root, subdir string) (v vanity, ok bool) {
	base, major, ok := module.SplitPathVersion(path)
	if !ok || root == "" {
		return vanity{}, false
	}
	major = strings.TrimPrefix(major, "/")
	dir := strings.Trim(subdir, "/")
	if major != "" && (dir == major || strings.HasSuffix(dir, "/"+major)) {
		dir = strings.Trim(strings.TrimSuffix(dir, major), "/")
	}
	if rest, cut := strings.CutSuffix(base, "/"+dir); cut && dir != "" {
		base, dir = rest, ""
	}
	return vanity{base, dir}, dir != "" || base != root && base != root+".git"
}

// vanityKey is where the ledger has the names of a repository.
func vanityKey(root string) string { return "repository/" + root }

// rootOf is a repository as a module path, as Pushed is told it.
func (c *Crawler) rootOf(url string) string { return strings.TrimSuffix(c.o.ModuleOf(url), ".git") }

// noteVanity keeps under which name upstream has a module, where that is not its repository's,
// for whichever crawler is told of a push there.
func (c *Crawler) noteVanity(ctx context.Context, path string, info *goproxy.Info) {
	var origin struct{ URL, Subdir string }
	if c.o.ModuleOf == nil || json.Unmarshal(info.Origin, &origin) != nil || origin.URL == "" {
		return
	}
	root := c.rootOf(origin.URL)
	v, ok := vanityOf(path, root, origin.Subdir)
	if !ok || len(root)+len(v.Base)+len(v.Dir) > maxVanityBytes {
		return
	}
	root, v.Base, v.Dir = strings.Clone(root), strings.Clone(v.Base), strings.Clone(v.Dir) // each is a piece of more
	type noted struct {
		root string
		vanity
	}
	if _, known := c.vanities.Load(noted{root, v}); known {
		return
	}
	if err := c.keepVanity(ctx, root, v); err != nil {
		c.o.Log.Warn("a push to a repository may not be seen as one of the module", "module", path, "repository", root, "err", err)
		return
	}
	if c.noted.Add(1) > maxNoted {
		c.vanities.Clear()
		c.noted.Store(0)
	}
	c.vanities.Store(noted{root, v}, true)
}

func (c *Crawler) keepVanity(ctx context.Context, root string, v vanity) error {
	for {
		old, err := c.ledger.Load(ctx, vanityKey(root))
		if err != nil {
			return err
		}
		names, err := vanitiesIn(old)
		if err != nil {
			return err
		}
		if slices.Contains(names, v) || len(names) >= maxVanities {
			return nil
		}
		raw, err := json.Marshal(append(names, v))
		if err != nil {
			return err
		}
		if err := c.ledger.CompareAndSwap(ctx, vanityKey(root), old, raw); !errors.Is(err, storage.ErrSwapped) {
			return err
		}
	}
}

func vanitiesIn(raw []byte) (names []vanity, err error) {
	if raw == nil {
		return nil, nil
	}
	return names, json.Unmarshal(raw, &names)
}

// vanitiesOf are the names that modules of a repository have besides its own.
func (c *Crawler) vanitiesOf(ctx context.Context, root string) ([]vanity, error) {
	raw, err := c.ledger.Load(ctx, vanityKey(root))
	names, bad := vanitiesIn(raw)
	return names, cmp.Or(err, bad)
}
