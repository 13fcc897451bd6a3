package cosmos

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// read returns at most limit entries from since on.
func (f *feed) read(ctx context.Context, since time.Time, limit int) ([]storage.IndexEntry, error) {
	if limit < 1 {
		return nil, goproxy.Errorf(http.StatusBadRequest, "bad request: limit %d: at least 1 is needed", limit)
	}
	from := micros(since.Add(time.Microsecond - 1)) // times have µs: the first not before since
	if since.IsZero() {
		from = 0
	}
	p, _, err := f.pages(ctx)
	if err != nil {
		return nil, err
	}
	page := 1
	for i, begins := range p.Froms {
		if begins < from {
			page = i + 1
		}
	}
	var entries []storage.IndexEntry
	for {
		sealed := false
		ask := limit - len(entries)
		text := fmt.Sprintf("SELECT TOP %d c.t, c.path, c.v, c.seal FROM c WHERE c.pk = @pk AND c.t >= @from ORDER BY c.t", ask)
		err := f.s.query(ctx, f.s.modules, "feed read", f.pk(page), text, min(ask, 1000), map[string]any{"@from": from}, decode(func(e *entry) bool {
			if sealed = e.Seal; !sealed {
				entries = append(entries, storage.IndexEntry{Path: e.Path, Version: e.Version, Timestamp: fromMicros(e.Time)})
			}
			return true
		}))
		if err != nil {
			return nil, err
		}
		if !sealed || len(entries) == limit {
			return entries, nil
		}
		page++
	}
}

// decode adapts a function of a value to what query calls.
func decode[T any](f func(*T) bool) func(json.RawMessage) (bool, error) {
	return func(raw json.RawMessage) (bool, error) {
		v := new(T)
		if err := json.Unmarshal(raw, v); err != nil {
			return false, err
		}
		return f(v), nil
	}
}

// Index implements storage.Store.
func (s *Store) Index(ctx context.Context, since time.Time, limit int) ([]storage.IndexEntry, error) {
	return s.index.read(ctx, since, limit)
}

// Deleted implements storage.Store.
func (s *Store) Deleted(ctx context.Context, since time.Time, limit int) ([]storage.IndexEntry, error) {
	return s.deleted.read(ctx, since, limit)
}
