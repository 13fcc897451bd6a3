package crawler

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// Feed is an index feed: what became available, in the order of time.
// Source: https://index.golang.org.
type Feed struct {
	Name string
	// Index returns up to limit entries that are not older than since, the oldest
	// first; the zero time is the beginning.
	Index func(ctx context.Context, since time.Time, limit int) ([]storage.IndexEntry, error)
}

// Catalog is a list of all that is kept somewhere.
type Catalog struct {
	Name string
	Page func(ctx context.Context, after string, limit int) (storage.Page, error)
}

const (
	feedPage    = 2000 // the most that index.golang.org gives
	catalogPage = 1000
)

// feedPlace is how far a feed was followed: everything before Since, and what is in
// Seen of that very time.
type feedPlace struct {
	Since time.Time
	Seen  []string `json:",omitempty"` // path@version
}

// catalogPlace is how far a walk has come.
type catalogPlace struct {
	Token   string `json:",omitempty"`
	Started time.Time
	Ended   time.Time // of the last walk that was whole
}

// stateKey names the cursor of something with a name of any length.
func stateKey(kind, name string) string {
	sum := sha256.Sum256([]byte(name))
	return fmt.Sprintf("crawl/%s/%x", kind, sum[:12])
}

// every calls f until ctx ends, with a pause after each call: a minute after one that
// failed. What another crawler does is left to it.
func (c *Crawler) every(ctx context.Context, pause time.Duration, what string, f func(context.Context) error) {
	for ctx.Err() == nil {
		wait := pause
		switch err := f(ctx); {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errHeld):
			wait = min(pause, holdFor)
		case err != nil:
			c.o.Log.Warn(what, "err", err)
			wait = max(min(pause, time.Minute), retryAfter(err))
		}
		sleep(ctx, wait)
	}
}

// follow brings in what a feed says is new, page by page, up to its end.
func (c *Crawler) follow(ctx context.Context, feed Feed) error {
	cu := &cursor[feedPlace]{ledger: c.ledger, key: stateKey("index", feed.Name), holder: c.o.Name}
	return cu.hold(ctx, func(ctx context.Context) error {
		at := cu.at
		if at.Since.IsZero() {
			at.Since = c.o.Ahead.Since
		}
		for {
			entries, err := feed.Index(ctx, at.Since, feedPage)
			if err != nil {
				return err
			}
			seen := map[string]bool{}
			for _, s := range at.Seen {
				seen[s] = true
			}
			next := at
			var fresh []module.Version
			for _, e := range entries {
				m := module.Version{Path: e.Path, Version: e.Version}
				switch {
				case e.Timestamp.Before(next.Since):
					if e.Timestamp.Before(at.Since) {
						continue // not asked for
					}
					return fmt.Errorf("%s is not in the order of time: %s at %v comes after %v", feed.Name, m, e.Timestamp, next.Since)
				case e.Timestamp.After(next.Since):
					next = feedPlace{Since: e.Timestamp}
				}
				next.Seen = append(next.Seen, m.String())
				if !seen[m.String()] || e.Timestamp.After(at.Since) {
					fresh = append(fresh, m)
				} else {
					next.Seen = next.Seen[:len(next.Seen)-1]
				}
			}
			if len(fresh) == 0 {
				if len(entries) >= feedPage {
					return fmt.Errorf("%s has more than %d entries of one time, %v: it can't be followed", feed.Name, feedPage, at.Since)
				}
				return cu.move(ctx, at)
			}
			paths, versions := c.wanted(fresh)
			err = c.each(ctx, paths, func(ctx context.Context, path string) error {
				if err := c.outdateList(ctx, path, versions[path]); err != nil {
					return err
				}
				return c.bringVersions(ctx, path, versions[path])
			})
			if err != nil {
				return err
			}
			at = next
			if err := cu.move(ctx, at); err != nil {
				return err
			}
			c.feedTime.WithLabelValues(feed.Name).Set(float64(at.Since.Unix()))
		}
	})
}

// outdateList has a list that is known fetched anew when it lacks one of the versions.
func (c *Crawler) outdateList(ctx context.Context, path string, versions []string) error {
	k := storage.Key{Path: path, File: storage.FileList}
	known, err := c.ledger.Known(ctx, k)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nobody has asked
	} else if err != nil {
		return err
	}
	has := map[string]bool{}
	for _, v := range known.Versions {
		has[v] = true
	}
	for _, v := range versions {
		if !has[v] && !module.IsPseudoVersion(v) {
			if err := c.renew(ctx, k); forgotten(err) {
				return err
			} else if ctx.Err() == nil {
				c.countAhead(path, err)
			}
			break
		}
	}
	return ctx.Err()
}

// renew has an answer fetched anew, however fresh it is; until it is, the one that is known
// is served as what it is. An answer that nobody has asked for is not fetched: fs.ErrNotExist.
func (c *Crawler) renew(ctx context.Context, k storage.Key) error {
	known, err := c.ledger.Known(ctx, k)
	if err != nil {
		return err
	}
	if !known.Outdated {
		old := *known
		old.Outdated = true
		if err := c.ledger.SetKnown(ctx, k, &old); err != nil {
			return notQueued{err}
		}
	}
	return c.bring(ctx, k)
}

// walk brings in the modules of a catalog, once in a while.
func (c *Crawler) walk(ctx context.Context, catalog Catalog) error {
	cu := &cursor[catalogPlace]{ledger: c.ledger, key: stateKey("catalog", catalog.Name), holder: c.o.Name}
	return cu.hold(ctx, func(ctx context.Context) error {
		at := cu.at
		if at.Started.IsZero() {
			if time.Since(at.Ended) < c.o.Ahead.Every {
				return nil
			}
			at = catalogPlace{Started: time.Now().UTC(), Ended: at.Ended}
			if err := cu.move(ctx, at); err != nil {
				return err
			}
		}
		for {
			page, err := catalog.Page(ctx, at.Token, catalogPage)
			if at.Token != "" && goproxy.Status(err) == http.StatusBadRequest {
				// A catalog that has moved to another database does not know its own tokens:
				// what has been looked at since the walk began is not asked for again.
				at.Token = ""
				return errors.Join(err, cu.move(ctx, at))
			}
			if err != nil {
				return err
			}
			paths, _ := c.wanted(page.Versions)
			err = c.each(ctx, paths, func(ctx context.Context, path string) error { return c.bringModule(ctx, path, at.Started) })
			if err != nil {
				return err
			}
			if page.Next == at.Token && page.Next != "" {
				return fmt.Errorf("%s: the page after %q is the same again", catalog.Name, at.Token)
			}
			if at.Token = page.Next; at.Token == "" {
				c.o.Log.Info("catalog walked", "catalog", catalog.Name, "took", time.Since(at.Started).Round(time.Second))
				return cu.move(ctx, catalogPlace{Ended: at.Started})
			}
			if err := cu.move(ctx, at); err != nil {
				return err
			}
		}
	})
}
