package kv

import (
	"bytes"
	"context"
	"encoding/base64"
	"net/http"
	"strings"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// Complete records that all files of m are kept: m enters the catalog and the
// index. It is idempotent.
func (l *Ledger) Complete(m module.Version) error {
	ck := key('c', m.Path, m.Version)
	known := false
	err := l.db.View(func(tx Tx) error {
		known = tx.Get(ck) != nil
		return nil
	})
	if err != nil || known {
		return err
	}
	return l.db.Update(func(tx Tx) error {
		if tx.Get(ck) != nil {
			return nil
		}
		t, err := l.nextTime(tx, 'i')
		if err != nil {
			return err
		}
		if err := tx.Put(ck, appendTime(nil, t)); err != nil {
			return err
		}
		return tx.Put(appendTime([]byte{'i'}, t), key('c', m.Path, m.Version)[1:])
	})
}

// Removed records that m was deleted: it leaves catalog and index, if it is there, and a
// tombstone appears. Tombstones older than their time are dropped.
func (l *Ledger) Removed(m module.Version) error {
	ck := key('c', m.Path, m.Version)
	return l.db.Update(func(tx Tx) error {
		if t := tx.Get(ck); t != nil {
			if err := tx.Delete(append([]byte{'i'}, t...)); err != nil {
				return err
			}
			if err := tx.Delete(ck); err != nil {
				return err
			}
		}
		var old [][]byte
		limit := l.now().Add(-2 * storage.TombstoneTTL)
		tx.Ascend([]byte{'t'}, func(k, _ []byte) bool {
			if k[0] != 't' || !readTime(k[1:]).Before(limit) || len(old) == 100 {
				return false
			}
			old = append(old, bytes.Clone(k))
			return true
		})
		t, err := l.nextTime(tx, 't')
		if err != nil {
			return err
		}
		if err := tx.Put(appendTime([]byte{'t'}, t), ck[1:]); err != nil {
			return err
		}
		for _, k := range old {
			if err := tx.Delete(k); err != nil {
				return err
			}
		}
		return nil
	})
}

// nextTime is now, or just after the last time in the feed: times in a feed
// only grow, whatever the clock does.
func (l *Ledger) nextTime(tx Tx, feed byte) (time.Time, error) {
	t := l.now().UTC().Truncate(time.Microsecond)
	lastKey := key('s', "last-time-", string(feed))
	if b := tx.Get(lastKey); b != nil {
		if last := readTime(b); !t.After(last) {
			t = last.Add(time.Microsecond)
		}
	}
	return t, tx.Put(lastKey, appendTime(nil, t))
}

// Catalog implements storage.Store. The token is the last pair, in base64.
func (l *Ledger) Catalog(ctx context.Context, after string, limit int) (storage.Page, error) {
	var page storage.Page
	if err := ctx.Err(); err != nil {
		return page, err
	}
	if limit < 1 {
		return page, goproxy.Errorf(http.StatusBadRequest, "bad request: page size %d: at least 1 is needed", limit)
	}
	from := []byte{'c'}
	if after != "" {
		pair, err := base64.RawURLEncoding.DecodeString(after)
		if err != nil || bytes.Count(pair, []byte{0}) != 1 {
			return page, goproxy.Errorf(http.StatusBadRequest, "bad request: %.80q is not a catalog token", after)
		}
		from = append(append(from, pair...), 0) // the first key behind the pair
	}
	err := l.db.View(func(tx Tx) error {
		tx.Ascend(from, func(k, _ []byte) bool {
			if k[0] != 'c' {
				return false
			}
			if len(page.Versions) == limit {
				last := page.Versions[limit-1]
				page.Next = base64.RawURLEncoding.EncodeToString(key('c', last.Path, last.Version)[1:])
				return false
			}
			page.Versions = append(page.Versions, pair(k[1:]))
			return true
		})
		return nil
	})
	return page, err
}

// Index implements storage.Store.
func (l *Ledger) Index(ctx context.Context, since time.Time, limit int) ([]storage.IndexEntry, error) {
	return l.feed(ctx, 'i', since, limit)
}

// Deleted implements storage.Store.
func (l *Ledger) Deleted(ctx context.Context, since time.Time, limit int) ([]storage.IndexEntry, error) {
	return l.feed(ctx, 't', since, limit)
}

func (l *Ledger) feed(ctx context.Context, feed byte, since time.Time, limit int) ([]storage.IndexEntry, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if limit < 1 {
		return nil, goproxy.Errorf(http.StatusBadRequest, "bad request: limit %d: at least 1 is needed", limit)
	}
	var entries []storage.IndexEntry
	err := l.db.View(func(tx Tx) error {
		tx.Ascend(appendTime([]byte{feed}, since), func(k, v []byte) bool {
			if k[0] != feed || len(entries) == limit {
				return false
			}
			m := pair(v)
			entries = append(entries, storage.IndexEntry{Path: m.Path, Version: m.Version, Timestamp: readTime(k[1:])})
			return true
		})
		return nil
	})
	return entries, err
}

func pair(b []byte) module.Version {
	path, version, _ := strings.Cut(string(b), "\x00")
	return module.Version{Path: path, Version: version}
}

// List implements goproxy.Source: the complete versions of a module.
func (l *Ledger) List(ctx context.Context, path string) (*goproxy.VersionList, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	versions, err := l.versions(path)
	if err != nil {
		return nil, err
	}
	return goproxy.NewVersionList(path, versions, time.Time{}), nil
}

// Latest is the complete version that "latest" means. None is fs.ErrNotExist.
func (l *Ledger) Latest(path string) (string, error) {
	versions, err := l.versions(path)
	if err != nil {
		return "", err
	}
	if v := goproxy.NewVersionList(path, versions, time.Time{}).LatestVersion(); v != "" {
		return v, nil
	}
	return "", goproxy.NotFound("%s@latest: no version is kept", path)
}

func (l *Ledger) versions(path string) ([]string, error) {
	var versions []string
	prefix := key('c', path, "")
	err := l.db.View(func(tx Tx) error {
		tx.Ascend(prefix, func(k, _ []byte) bool {
			v, ok := bytes.CutPrefix(k, prefix)
			if ok {
				versions = append(versions, string(v))
			}
			return ok
		})
		return nil
	})
	return versions, err
}

// IsComplete reports whether m is in the catalog.
func (l *Ledger) IsComplete(m module.Version) (ok bool, err error) {
	err = l.db.View(func(tx Tx) error {
		ok = tx.Get(key('c', m.Path, m.Version)) != nil
		return nil
	})
	return ok, err
}
