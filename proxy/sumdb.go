package proxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"
	"time"

	"github.com/labstack/echo/v4"
	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
)

// SumDB hands on a checksum database. Answers that never change (tiles, what
// was found by a lookup) are kept in the proxy's disk cache.
// Source: https://go.dev/ref/mod#checksum-database.
type SumDB struct {
	Name    string
	Private func(path string) bool
	// Get asks the crawler for a path of the database: /latest, /lookup/…, /tile/….
	Get func(ctx context.Context, path string) ([]byte, error)
}

// ServeSumDB answers /sumdb/{name}/…, and the same below /cached-only.
func (p *Proxy) ServeSumDB(s *SumDB) echo.HandlerFunc {
	return func(c echo.Context) error {
		if err := goproxy.CheckURL(c.Request()); err != nil {
			return err
		}
		name, path, _ := strings.Cut(strings.TrimPrefix(goproxy.MarkNoFetch(c), "/sumdb/"), "/")
		path = "/" + path
		if s == nil || name != s.Name {
			return goproxy.NotFound("checksum database %.80q is not proxied here", name)
		}
		h := c.Response().Header()
		cache := goproxy.CacheBriefly
		switch {
		case path == "/supported":
			h.Set("Cache-Control", cache)
			return c.NoContent(http.StatusOK)
		case path == "/latest":
		case strings.HasPrefix(path, "/lookup/"):
			modPath, version, err := lookup(path)
			if err != nil {
				return err
			}
			if s.Private(modPath) {
				return goproxy.Errorf(http.StatusForbidden, "%s@%s is private here: it is not looked up in a checksum database; GONOSUMDB has to have it too, where the go command runs", modPath, version)
			}
		case strings.HasPrefix(path, "/tile/") && !strings.Contains(path, ".."):
			cache = goproxy.CacheImmutable
		default:
			return goproxy.NotFound("%.120q is not a path of a checksum database", path)
		}
		b, kept, err := p.sumdb(c.Request().Context(), s, path)
		if err != nil {
			return err
		}
		if cache == goproxy.CacheBriefly && goproxy.NoFetch(c.Request().Context()) {
			cache = goproxy.CacheNever
		}
		h.Set("Cache-Control", cache)
		contentType := "application/octet-stream"
		if cache != goproxy.CacheImmutable {
			contentType, kept = "text/plain; charset=utf-8", time.Time{}
		}
		h.Set("Content-Type", contentType)
		sum := sha256.Sum256(b)
		h.Set("ETag", `"`+hex.EncodeToString(sum[:12])+`"`)
		goproxy.ServeContent(c, kept, bytes.NewReader(b))
		return nil
	}
}

// sumdb returns an answer of a checksum database, and when it was kept.
func (p *Proxy) sumdb(ctx context.Context, s *SumDB, path string) (b []byte, kept time.Time, err error) {
	key := sumdbPrefix + s.Name + path
	mayFetch := p.o.Mode != Offline && s.Get != nil && !goproxy.NoFetch(ctx)
	if path != "/latest" || !mayFetch {
		if b := p.disk.get(key); b != nil {
			return readKept(b)
		}
	}
	if !mayFetch {
		e := goproxy.NotFound("%s: not kept, and nothing is fetched for this request", key)
		if p.o.Mode == Offline {
			e = goproxy.NotFound("%s: not kept, and network-mode is offline: GOSUMDB=off, or GONOSUMDB, has the go command go by go.sum alone", key)
		}
		e.NoStore = true
		return nil, kept, e
	}
	answer, err := p.askSumDB(ctx, s, key, path)
	if err != nil && ctx.Err() == nil && p.o.Mode == Fallback && mayFallBack(err) {
		if b := p.disk.get(key); b != nil {
			return readKept(b)
		}
	}
	return answer.text, answer.kept, err
}

// askSumDB asks the crawler, once for all who want the same, and keeps the answer. Those who
// wait for it count among those who wait for a fetch.
func (p *Proxy) askSumDB(ctx context.Context, s *SumDB, key, path string) (sumdbAnswer, error) {
	leave, err := p.enter()
	if err != nil {
		return sumdbAnswer{}, err
	}
	defer leave()
	ch := p.flights.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.o.FetchTimeout)
		defer cancel()
		b, err := s.Get(ctx, path)
		answer := sumdbAnswer{b, time.Now()}
		if err == nil {
			err = p.cache(key, bytes.NewReader(b), int64(len(b)), answer.kept)
		}
		return answer, err
	})
	select {
	case r := <-ch:
		answer, _ := r.Val.(sumdbAnswer)
		return answer, r.Err
	case <-ctx.Done():
		return sumdbAnswer{}, ctx.Err()
	}
}

// sumdbAnswer is what those who ask at the same time share.
type sumdbAnswer struct {
	text []byte
	kept time.Time
}

func readKept(b *goproxy.Blob) ([]byte, time.Time, error) {
	text, err := b.ReadAll(goproxy.MaxSumDBBytes)
	return text, b.ModTime, err
}

func lookup(path string) (modPath, version string, err error) {
	escPath, escVersion, ok := strings.Cut(strings.TrimPrefix(path, "/lookup/"), "@")
	if ok {
		if modPath, err = module.UnescapePath(escPath); err == nil {
			version, err = module.UnescapeVersion(escVersion)
		}
	}
	if err != nil || !ok {
		return "", "", goproxy.Errorf(http.StatusBadRequest, "bad request: %.120q is not a lookup of a module version", path)
	}
	return modPath, version, nil
}
