package cosmos

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"

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
func (s *Store) enter(ctx context.Context, m module.Version, v *version, etag azcore.ETag) error {
	for {
		_, err := s.index.append(ctx, entry{ID: entryID(m), Path: m.Path, Version: m.Version}, v.Page)
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

func catalogPK(m module.Version) string { return "c/" + shard(m.Path) }

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

// Catalog implements storage.Store. The token is the last pair, in base64.
func (s *Store) Catalog(ctx context.Context, after string, limit int) (storage.Page, error) {
	var page storage.Page
	if limit < 1 {
		return page, goproxy.Errorf(http.StatusBadRequest, "bad request: page size %d: at least 1 is needed", limit)
	}
	last := ""
	if after != "" {
		b, err := base64.RawURLEncoding.DecodeString(after)
		if err != nil || strings.Count(string(b), " ") != 1 {
			return page, goproxy.Errorf(http.StatusBadRequest, "bad request: %.80q is not a catalog token", after)
		}
		last = string(b)
	}
	at, begun := "", last != ""
	if begun {
		path, _, _ := strings.Cut(last, " ")
		at = shard(path)
	}
	for {
		if begun {
			ask := limit - len(page.Versions) + 1 // one more, to see whether there is
			text := fmt.Sprintf("SELECT TOP %d c.key FROM c WHERE c.pk = @pk AND c.key > @after ORDER BY c.key", ask)
			err := s.query(ctx, s.modules, "catalog", "c/"+at, text, min(ask, 1000), map[string]any{"@after": last}, decode(func(l *listed) bool {
				if len(page.Versions) == limit {
					page.Next = base64.RawURLEncoding.EncodeToString([]byte(last))
					return false
				}
				path, v, _ := strings.Cut(l.Key, " ")
				page.Versions = append(page.Versions, module.Version{Path: path, Version: v})
				last = l.Key
				return true
			}))
			if err != nil || page.Next != "" {
				return page, err
			}
		}
		next := ""
		err := s.query(ctx, s.modules, "catalog", "c", "SELECT TOP 1 c.key FROM c WHERE c.pk = @pk AND c.key > @after ORDER BY c.key", 1, map[string]any{"@after": at}, decode(func(l *listed) bool {
			next = l.Key
			return false
		}))
		if err != nil || next == "" {
			return page, err
		}
		at, begun = next, true
	}
}
