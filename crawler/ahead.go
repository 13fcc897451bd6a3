package crawler

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"slices"
	"strconv"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
	"golang.org/x/sync/errgroup"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/fleet"
	"github.com/athensctl/athensctl/storage"
)

// Ahead says what is brought in before anybody asks. The zero value is nothing.
type Ahead struct {
	// Refresh: a list is kept from growing old for so long after it was last asked
	// for. No list that is looked after grows older than MaxStale.
	Refresh, MaxStale time.Duration

	Feeds    []Feed
	Since    time.Time // where a feed is followed from that was not followed before
	Catalogs []Catalog
	Every    time.Duration // between two walks of a catalog
	Poll     time.Duration // between two looks at the end of a feed

	Match    func(path string) bool // the modules of feeds and catalogs that are wanted; nil: all
	Versions Policy                 // of the modules of a catalog
	Parallel int                    // modules of a feed or a catalog, and lists, at once
}

// Policy says which versions of a module are brought in: "all", "minor" (the latest
// of each minor line), or a number, the latest so many. Pre-releases count where
// there is no release.
type Policy string

// Choose returns those of the versions, which are in semver order, that are wanted.
func (p Policy) Choose(versions []string) []string {
	if p == "all" {
		return versions
	}
	var releases []string
	for _, v := range versions {
		if semver.Prerelease(v) == "" {
			releases = append(releases, v)
		}
	}
	if len(releases) == 0 {
		releases = versions
	}
	if p == "minor" {
		var last []string
		for i, v := range releases {
			if i+1 == len(releases) || semver.MajorMinor(releases[i+1]) != semver.MajorMinor(v) {
				last = append(last, v)
			}
		}
		return last
	}
	n, _ := strconv.Atoi(string(p))
	return releases[max(0, len(releases)-n):]
}

// bring has a job done, ahead of demand in the background, by whichever crawler takes
// it, and waits until it was tried once. What fails is the queue's to try again. So no
// more jobs are in the queue than there are callers, but for those that failed; where a
// host is left alone for a time, that is waited for too, up to heldPatience.
// notQueued is the error where there is no job.
func (c *Crawler) bring(ctx context.Context, k storage.Key) error {
	background := fleet.CallOf(ctx).Background
	priority := storage.Demand
	if background {
		priority = storage.Ahead
	}
	for {
		_, err := c.ledger.Enqueue(ctx, jobOf(ctx, k, priority))
		if err == nil {
			break
		}
		if goproxy.Status(err) != http.StatusServiceUnavailable {
			return notQueued{err}
		}
		if !sleep(ctx, max(time.Second, retryAfter(err))) {
			return ctx.Err()
		}
	}
	c.wakeWorker()
	err := c.wait(ctx, k)
	for end := time.Now().Add(heldPatience); background && goproxy.Status(err) == http.StatusServiceUnavailable; {
		next := retryAfter(err)
		if next <= 0 || next > time.Until(end) || !sleep(ctx, next) {
			break
		}
		one, cancel := context.WithDeadline(ctx, end)
		again := c.wait(one, k)
		late := one.Err() != nil
		cancel()
		if late {
			break
		}
		err = again
	}
	return err
}

// heldPatience is how long what a feed names waits for a host that is left alone: the rest
// of the feed waits as well. Then it is the queue's, of which work ahead of demand has
// a part.
const heldPatience = time.Minute

// notQueued is the error of something that is not in the queue, and would be forgotten.
type notQueued struct{ error }

func (n notQueued) Unwrap() error { return n.error }

// forgotten reports whether err leaves something undone that is worth another try: not
// where the queue has it, nor where the queue will never take it.
func forgotten(err error) bool {
	var n notQueued
	s := goproxy.Status(err)
	return errors.As(err, &n) && s != http.StatusBadRequest && s != http.StatusRequestEntityTooLarge
}

// bringVersions brings those versions of a module that are not kept, with their zips.
// It fails when ctx has ended, or the queue does not take them; what could not be had is
// reported.
func (c *Crawler) bringVersions(ctx context.Context, path string, versions []string) error {
	kept := map[string]bool{}
	if list, err := c.store.List(ctx, path); err == nil {
		for _, v := range list.Versions {
			kept[v] = true
		}
	}
	for _, v := range versions {
		if kept[v] {
			c.ahead.WithLabelValues("kept").Inc()
			continue
		}
		err := c.bring(ctx, storage.Key{Path: path, Query: v, File: storage.FileZip})
		if ctx.Err() != nil {
			return ctx.Err()
		} else if forgotten(err) {
			return err
		}
		c.countAhead(path+"@"+v, err)
	}
	return nil
}

func (c *Crawler) countAhead(what string, err error) {
	switch {
	case err == nil:
		c.ahead.WithLabelValues("brought").Inc()
	case errors.Is(err, fs.ErrNotExist):
		c.ahead.WithLabelValues("refused").Inc()
	default:
		c.ahead.WithLabelValues("failed").Inc()
		c.o.Log.Warn("ahead of demand", "what", what, "err", err)
	}
}

// bringModule brings a module's list, when what is known of it is outdated or older than
// since, and the versions of it that are wanted.
func (c *Crawler) bringModule(ctx context.Context, path string, since time.Time) error {
	k := storage.Key{Path: path, File: storage.FileList}
	known, err := c.ledger.Known(ctx, k)
	if err != nil || known.Outdated || known.Checked.Before(since) {
		err := c.bring(ctx, k)
		if ctx.Err() != nil {
			return ctx.Err()
		} else if forgotten(err) {
			return err
		}
		c.countAhead(path, err)
		if known, err = c.ledger.Known(ctx, k); errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return c.bringVersions(ctx, path, c.o.Ahead.Versions.Choose(goproxy.NewVersionList(path, known.Versions, known.Checked).Versions))
}

// wanted are the versions of each module, without what is not a module version or is
// not wanted.
func (c *Crawler) wanted(list []module.Version) (paths []string, versions map[string][]string) {
	versions = map[string][]string{}
	for _, m := range list {
		if c.o.Ahead.Match != nil && !c.o.Ahead.Match(m.Path) {
			continue
		}
		if !goproxy.IsCanonical(m.Path, m.Version) || !mayBeAsked(m) {
			c.ahead.WithLabelValues("invalid").Inc()
			continue
		}
		if versions[m.Path] == nil {
			paths = append(paths, m.Path)
		}
		versions[m.Path] = append(versions[m.Path], m.Version)
	}
	slices.Sort(paths)
	return paths, versions
}

// mayBeAsked reports whether a version is one that could be asked for here: jobs are kept by
// their names, and those of others' feeds may be of any length.
func mayBeAsked(m module.Version) bool {
	p, err := goproxy.Request{Path: m.Path, Query: m.Version, File: storage.FileZip}.URLPath()
	if err == nil {
		_, err = goproxy.ParseRequest(p)
	}
	return err == nil
}

// each calls f for some paths at once, until one fails.
func (c *Crawler) each(ctx context.Context, paths []string, f func(context.Context, string) error) error {
	g, each := errgroup.WithContext(ctx)
	g.SetLimit(max(1, c.o.Ahead.Parallel))
	for _, p := range paths {
		if each.Err() != nil {
			break
		}
		g.Go(func() error { return f(each, p) })
	}
	return errors.Join(g.Wait(), ctx.Err())
}

// sleep reports whether d has passed, rather than ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
