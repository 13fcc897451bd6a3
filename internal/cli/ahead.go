package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/labstack/echo/v4"
	"golang.org/x/mod/module"
	"golang.org/x/sync/semaphore"

	"github.com/athensctl/athensctl/config"
	"github.com/athensctl/athensctl/crawler"
	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/fleet"
	"github.com/athensctl/athensctl/internal/webhook"
	"github.com/athensctl/athensctl/storage"
)

// ahead is what the settings say of work ahead of demand.
func (p *process) ahead(client *http.Client) crawler.Ahead {
	cfg := p.cfg
	since, _ := cfg.IndexSince(time.Now().UTC()) // Load has checked it
	a := crawler.Ahead{
		Refresh: cfg.RefreshAhead, MaxStale: cfg.ListMaxStale, Since: since, Every: cfg.CrawlEvery, Poll: cfg.CrawlPoll,
		Versions: crawler.Policy(cfg.CrawlVersions), Parallel: cfg.CrawlParallel,
	}
	if cfg.CrawlMatch != "" {
		a.Match = func(path string) bool { return module.MatchPrefixPatterns(cfg.CrawlMatch, path) }
	}
	other := func(raw string) (string, *storage.Client) {
		u, _ := url.Parse(raw)
		c := &storage.Client{Client: goproxy.Client{Base: u, HTTP: client, IdleTimeout: cfg.UpstreamTimeout}}
		return c.Name(), c
	}
	for _, raw := range cfg.CrawlIndex {
		name, c := other(raw)
		a.Feeds = append(a.Feeds, crawler.Feed{Name: name, Index: c.Index})
	}
	for _, raw := range cfg.CrawlCatalog {
		if raw == "store" {
			a.Catalogs = append(a.Catalogs, crawler.Catalog{Name: raw, Page: p.store.Catalog})
			continue
		}
		name, c := other(raw)
		a.Catalogs = append(a.Catalogs, crawler.Catalog{Name: name, Page: c.Catalog})
	}
	return a
}

// listRemember: where pushes are announced, a proxy looks every second whether a list
// was fetched anew.
func listRemember(cfg *config.Config) time.Duration {
	if cfg.WebhookSecret != "" {
		return min(time.Second, cfg.Freshness)
	}
	return cfg.Freshness
}

// pushTimeout is how long a git host waits for its webhook's answer; GitHub: 10 s.
const pushTimeout = 9 * time.Second

// webhooksAtOnce bounds the memory of webhooks' bodies.
const webhooksAtOnce = 4

// serveWebhook takes pushes: the proxy for the crawler, to which it hands them on.
func (p *process) serveWebhook(e *echo.Echo) {
	if p.webhook == nil || p.cfg.WebhookSecret == "" {
		return
	}
	reading := semaphore.NewWeighted(webhooksAtOnce)
	e.POST("/webhook", func(c echo.Context) error {
		r := c.Request()
		if !webhook.Signed(r.Header) {
			return webhookError(webhook.ErrUnsigned)
		}
		// A body is held in memory before its signature is known to be right.
		if !reading.TryAcquire(1) {
			return goproxy.Busy(time.Second, "busy: %d webhooks are being read already", webhooksAtOnce)
		}
		defer reading.Release(1)
		body, err := io.ReadAll(http.MaxBytesReader(c.Response().Writer, r.Body, webhook.MaxBytes))
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			return goproxy.Errorf(http.StatusRequestEntityTooLarge, "webhook: more than %d bytes", tooLarge.Limit)
		} else if err != nil {
			return goproxy.Errorf(http.StatusBadRequest, "bad request: %w", err)
		}
		// Nobody who does not know the secret makes work for others.
		if _, err := webhook.Parse(r.Header, body, p.cfg.WebhookSecret); err != nil {
			return webhookError(err)
		}
		ctx, cancel := context.WithTimeout(r.Context(), pushTimeout)
		defer cancel()
		if err := p.webhook(ctx, r.Header, body); err != nil {
			return err
		}
		c.Response().Header().Set("Cache-Control", goproxy.CacheNever)
		return c.String(http.StatusOK, "ok\n")
	})
}

func webhookError(err error) error {
	if errors.Is(err, webhook.ErrSignature) || errors.Is(err, webhook.ErrUnsigned) {
		return goproxy.Errorf(http.StatusForbidden, "webhook: %w", err)
	}
	return goproxy.Errorf(http.StatusBadRequest, "webhook: %w", err)
}

// takeWebhook tells the crawler of this process.
func takeWebhook(secret string, c *crawler.Crawler) func(context.Context, http.Header, []byte) error {
	return func(ctx context.Context, h http.Header, body []byte) error {
		pushes, err := webhook.Parse(h, body, secret)
		if err != nil {
			return webhookError(err)
		}
		var errs []error
		for _, push := range pushes {
			errs = append(errs, c.Pushed(ctx, push.Repo, push.Tag, push.Branch))
		}
		return errors.Join(errs...)
	}
}

// forwardWebhook tells a crawler of another process.
func forwardWebhook(t *fleet.Transport) func(context.Context, http.Header, []byte) error {
	return func(ctx context.Context, h http.Header, body []byte) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.Base().JoinPath("webhook").String(), bytes.NewReader(body))
		if err != nil {
			return err
		}
		for name, values := range h {
			if len(name) > 2 && name[:2] == "X-" && name != fleet.HeaderRequestID {
				req.Header[name] = values
			}
		}
		req.Header.Set("Content-Type", h.Get("Content-Type"))
		resp, err := t.RoundTrip(req)
		if err != nil {
			return goproxy.Busy(5*time.Second, "webhook: no crawler answers: %w", err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			said, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
			return &goproxy.Error{Status: resp.StatusCode, Message: string(bytes.TrimSpace(said))}
		}
		return nil
	}
}
