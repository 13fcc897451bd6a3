package crawler

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// Pushed brings what is known of the modules of a repository up to date, when
// somebody has pushed a tag or a branch: the lists and the answers that were asked for
// before, and the new version. url is the repository's. It takes no longer than a fetch.
func (c *Crawler) Pushed(ctx context.Context, url, tag, branch string) error {
	root := c.rootOf(url)
	vanities, err := c.vanitiesOf(ctx, root)
	errs := []error{err}
	for _, m := range modulesOf(root, vanities, tag) {
		list := storage.Key{Path: m.Path, File: storage.FileList}
		latest := storage.Key{Path: m.Path, Query: goproxy.Latest, File: storage.FileInfo}
		keys := []storage.Key{latest}
		if tag != "" {
			keys = []storage.Key{list, latest} // latest may be worked out from the list
		}
		if branch != "" {
			keys = append(keys, storage.Key{Path: m.Path, Query: branch, File: storage.FileInfo})
		}
		for _, k := range keys {
			if err := c.pushed(ctx, k, m.Version); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// pushed renews one answer, if somebody has asked for it. What fails is tried again, since
// nobody announces the push a second time. A fetch that began before the push may have the
// old answer: the new version has to be there.
func (c *Crawler) pushed(ctx context.Context, k storage.Key, version string) error {
	var err error
	for try := range 4 {
		pause := time.Duration(try) * 200 * time.Millisecond
		if err != nil {
			pause = time.Second << (try - 1)
		}
		if try > 0 && !sleep(ctx, pause) {
			return cmp.Or(err, ctx.Err())
		}
		if err = c.renew(ctx, k); errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			continue
		}
		if version == "" || k.File != storage.FileList {
			return nil
		}
		known, err := c.ledger.Known(ctx, k)
		if err != nil {
			return err
		}
		if slices.Contains(known.Versions, version) {
			c.countAhead(k.Path, nil)
			// Its files, before somebody asks; nobody waits for them.
			_, err := c.ledger.Enqueue(ctx, jobOf(ctx, storage.Key{Path: k.Path, Query: version, File: storage.FileZip}, storage.Ahead))
			c.wakeWorker()
			return err
		}
	}
	return err // nil: it was removed, or is not the module's
}

// modulesOf are the modules whose versions a tag may be: sub/v2.1.0 of
// example.com/r is v2.1.0 of example.com/r/sub/v2, or v2.1.0+incompatible of
// example.com/r/sub. Without a tag they are the module at the root.
func modulesOf(root string, vanities []vanity, tag string) (list []module.Version) {
	folder, version := path.Split(tag)
	folder = strings.TrimSuffix(folder, "/")
	if tag != "" && (!semver.IsValid(version) || semver.Canonical(version) != version) {
		return nil
	}
	major := semver.Major(version)
	// A path with .git is the repository's in so many words.
	for _, v := range append([]vanity{{Base: root}, {Base: root + ".git"}}, vanities...) {
		below, ok := strings.CutPrefix(folder+"/", v.Dir+"/")
		if v.Dir == "" {
			below, ok = folder, true
		}
		p := strings.TrimSuffix(v.Base+"/"+below, "/")
		switch {
		case tag == "":
			list = append(list, module.Version{Path: strings.TrimSuffix(v.Base, "/")})
		case !ok:
			// The tag is of another folder.
		case strings.HasPrefix(p, "gopkg.in/"):
			list = append(list, module.Version{Path: p + "." + major, Version: version})
		case major == "v0", major == "v1":
			list = append(list, module.Version{Path: p, Version: version})
		default:
			list = append(list, module.Version{Path: p + "/" + major, Version: version}, module.Version{Path: p, Version: version + "+incompatible"})
		}
	}
	return list
}
