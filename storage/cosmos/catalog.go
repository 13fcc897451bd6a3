package cosmos

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// listed is an item of the catalog, or of the list of its partitions. Key orders
// as pairs of path and version do: no byte of a path is below a space.
type listed struct {
	ID  string `json:"id"`
	PK  string `json:"pk"`
	Key string `json:"key"`
}

// shardBytes of a path make a partition: "github.com/ab". Their order is that of
// the paths, and no host has all its modules in one.
const shardBytes = 13

func shard(path string) string { return path[:min(len(path), shardBytes)] }

// publish enters a complete version in the index, once, and then in the catalog, if it is
// not there yet.
func (s *Store) publish(ctx context.Context, m module.Version, v *version, etag azcore.ETag) error {
	if _, err := s.get(ctx, s.modules, "catalog", catalogPK(m), entryID(m), new(listed)); err != errAbsent {
		return err
	}
	return s.enter(ctx, m, v, etag)
}

// enter enters a version in the index and the catalog. Only a page that the version's item
// names may have its entry; where that one is sealed without it, the item has to name
// another first.
//
// A Delete may be going on. It removes the item, and then the entries; so whoever enters
// one looks at the item again, and whoever removes one does too (withdraw). The last of
// them sees how it is.
func (s *Store) enter(ctx context.Context, m module.Version, v *version, etag azcore.ETag) (err error) {
	for {
		_, err = s.index.append(ctx, entry{ID: entryID(m), Path: m.Path, Version: m.Version}, v.Page)
		if err == nil {
			break
		} else if err != errSealed {
			return err
		}
		moved := *v
		if moved.Page, err = s.index.page(ctx); err != nil {
			return err
		}
		moved.stamp = newStamp()
		etag, err = s.replace(ctx, s.modules, "put", v.PK, v.ID, moved, moved.stamp, etag)
		v = &moved
		if err == errMoved || err == errAbsent {
			v, etag, err = s.version(ctx, "put", m)
		}
		if err == errAbsent {
			return nil // deleted
		} else if err != nil {
			return err
		}
	}
	defer func() {
		if err != nil {
			go s.lookAfter(m, v.Page)
		}
	}()
	if err := s.register(ctx, shard(m.Path)); err != nil {
		return err
	}
	item := listed{ID: entryID(m), PK: catalogPK(m), Key: m.Path + " " + m.Version}
	if _, err := s.create(ctx, s.modules, "catalog", item.PK, item.ID, item, stamp{}); err != nil && err != errExists {
		return err
	}
	now, _, err := s.version(ctx, "put", m)
	if err == nil && now.Complete == v.Complete && now.Page == v.Page {
		return nil
	} else if err != nil && err != errAbsent {
		return err
	}
	return s.withdraw(ctx, m, v.Page)
}

// withdraw takes a version whose item is gone out of a page of the index, and then out of
// the catalog: what is in the catalog is in the index, or somebody is here. Where a Put has
// made an item again meanwhile, and may have found the entries there, that is published.
func (s *Store) withdraw(ctx context.Context, m module.Version, page int) error {
	err := errors.Join(
		s.remove(ctx, s.modules, "delete", s.index.pk(page), entryID(m), ""),
		s.remove(ctx, s.modules, "delete", catalogPK(m), entryID(m), ""))
	if err != nil {
		return err
	}
	v, etag, err := s.version(ctx, "delete", m)
	if err == errAbsent || err == nil && v.Complete == 0 {
		return nil
	} else if err != nil {
		return err
	}
	return s.publish(ctx, m, v, etag)
}

// lookAfter looks at a version for who has entered it in a page of the index, and did not come to
// look itself: after a pause, since a request that was given up may be on its way still. It tries as
// long as any operation is; what fails then is as what a crash leaves.
func (s *Store) lookAfter(m module.Version, page int) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*s.patience)
	defer cancel()
	time.Sleep(lookAfterPause)
	v, _, err := s.version(ctx, "put", m)
	if err == errAbsent || err == nil && (v.Complete == 0 || v.Page != page) {
		err = s.withdraw(ctx, m, page)
	}
	if err != nil {
		s.o.Log.Warn("the index may have an entry of a version that was deleted", "version", m.String(), "err", err)
	}
}

const lookAfterPause = time.Second

func catalogPK(m module.Version) string { return "c/" + shard(m.Path) }

// Incomplete calls f for each version of which something is kept and not all, in no order: what the
// catalog does not have. It reads the names of all versions, so it is for who copies all of them.
func (s *Store) Incomplete(ctx context.Context, f func(module.Version) error) error {
	var stop error
	params := map[string]any{"@from": modulePK(""), "@to": "m0"} // the byte behind the slash
	err := s.query(ctx, s.modules, "incomplete", "", "SELECT c.pk, c.id, c.complete FROM c WHERE c.pk > @from AND c.pk < @to", 1000, params, decode(func(v *version) bool {
		if v.Complete == 0 {
			stop = f(module.Version{Path: strings.TrimPrefix(v.PK, modulePK("")), Version: v.ID})
		}
		return stop == nil
	}))
	return cmp.Or(stop, err)
}

// register makes a partition of the catalog known.
func (s *Store) register(ctx context.Context, shard string) error {
	if _, known := s.shards.Load(shard); known {
		return nil
	}
	item := listed{ID: strings.ReplaceAll(shard, "/", ":"), PK: "c", Key: shard}
	if _, err := s.create(ctx, s.modules, "catalog", item.PK, item.ID, item, stamp{}); err != nil && err != errExists {
		return err
	}
	s.shards.Store(shard, true)
	return nil
}

// A page of the catalog makes this many queries at most: one for each partition, and one
// for the names of this many. Then it ends, however few versions it has.
const catalogQueries = 50

// Catalog implements storage.Store. The token, in base64, is the last pair, or the last
// partition that is done with: its name, a space, and no version.
func (s *Store) Catalog(ctx context.Context, after string, limit int) (storage.Page, error) {
	var page storage.Page
	if limit < 1 {
		return page, goproxy.Errorf(http.StatusBadRequest, "bad request: page size %d: at least 1 is needed", limit)
	}
	at, last := "", "" // the partition, and the pair in it behind which to go on; "": it is done with
	if after != "" {
		b, err := base64.RawURLEncoding.DecodeString(after)
		if err != nil || strings.Count(string(b), " ") != 1 {
			return page, goproxy.Errorf(http.StatusBadRequest, "bad request: %.80q is not a catalog token", after)
		}
		path, version, _ := strings.Cut(string(b), " ")
		if at = shard(path); version != "" {
			last = string(b)
		}
	}
	token := func(at string) string { return base64.RawURLEncoding.EncodeToString([]byte(at)) }
	queries := 0
	ask := func(pk, after string, n int, f func(key string) bool) error {
		queries++
		text := fmt.Sprintf("SELECT TOP %d c.key FROM c WHERE c.pk = @pk AND c.key > @after ORDER BY c.key", n)
		return s.query(ctx, s.modules, "catalog", pk, text, min(n, 1000), map[string]any{"@after": after}, decode(func(l *listed) bool { return f(l.Key) }))
	}
	var next []string // partitions
	for begun := last != ""; ; begun = true {
		if begun {
			n := limit - len(page.Versions) + 1 // one more, to see whether there is
			err := ask("c/"+at, last, n, func(key string) bool {
				if len(page.Versions) == limit {
					page.Next = token(last)
					return false
				}
				path, v, _ := strings.Cut(key, " ")
				page.Versions = append(page.Versions, module.Version{Path: path, Version: v})
				last = key
				return true
			})
			if err != nil || page.Next != "" {
				return page, err
			}
		}
		if len(next) == 0 {
			err := ask("c", at, catalogQueries, func(key string) bool {
				next = append(next, key)
				return true
			})
			if err != nil || len(next) == 0 {
				return page, err
			}
		}
		if len(page.Versions) == limit || queries >= catalogQueries {
			page.Next = token(at + " ")
			return page, nil
		}
		at, next, last = next[0], next[1:], ""
	}
}
