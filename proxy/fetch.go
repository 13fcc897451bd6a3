package proxy

import (
	"context"
	"errors"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// fetch gets an immutable file from storage, or else from the crawler, and says from
// which; tier is "" where neither had an answer. Requests for the same key share one
// fetch, which goes on when they leave. Only those who wait for the crawler count as
// waiting.
func (p *Proxy) fetch(ctx context.Context, k storage.Key, get func(context.Context, goproxy.Source) (any, error)) (v any, tier string, err error) {
	if v, ok := p.memory.get(k); ok {
		if r, ok := v.(*refusal); ok && storage.Age(r.checked, time.Now()) < p.o.Freshness && p.o.Mode != Offline {
			return nil, fromMemory, r.err
		}
	}
	v, tier, err = p.share(ctx, "kept "+k.String(), k, func(ctx context.Context) (any, string, error) {
		return p.keep(ctx, k, fromStorage, func(ctx context.Context) (any, error) {
			return whenBack(ctx, p.o.FetchTimeout, func() (any, error) { return get(ctx, p.store) })
		})
	})
	switch {
	case !goproxy.IsAbsent(err):
		return v, tier, err
	case !p.mayFetch(ctx):
		return nil, tier, notKept(k)
	}
	leave, err := p.enter()
	if err != nil {
		return nil, "", err
	}
	defer leave()
	v, tier, err = p.share(ctx, k.String(), k, func(ctx context.Context) (any, string, error) {
		return p.keep(ctx, k, fromCrawler, func(ctx context.Context) (any, error) {
			v, err := get(ctx, p.crawler)
			p.rememberRefusal(k, err)
			return v, err
		})
	})
	if err != nil && p.o.Mode == Fallback && !isRefusal(err) && ctx.Err() == nil {
		if e := p.wasAbsent(p.fromLedger(ctx, k), err); e != nil {
			return nil, fromOld, e
		}
	}
	return v, tier, err
}

// keep remembers what get returns, unless it was deleted meanwhile.
func (p *Proxy) keep(ctx context.Context, k storage.Key, tier string, get func(context.Context) (any, error)) (any, string, error) {
	generation := p.generation.Load()
	v, err := get(ctx)
	if err != nil && !isRefusal(err) {
		return nil, "", err
	} else if err != nil {
		return nil, tier, err
	}
	switch v := v.(type) {
	case *file:
		p.remember(k, v, len(v.content))
	case *goproxy.Info:
		p.remember(k, v, 2*len(v.Raw)) // Origin is a part of it
	}
	if p.generation.Load() != generation {
		p.memory.remove(k)
		p.disk.remove(k.String())
	}
	return v, tier, nil
}

// A storage that restarts is waited for: a proxy that has just started has nothing
// else to answer from.
const (
	storageWait  = 20 * time.Second
	storagePause = 250 * time.Millisecond
)

// whenBack is get, which asks storage, once storage is there.
func whenBack[T any](ctx context.Context, fetchTimeout time.Duration, get func() (T, error)) (T, error) {
	v, err := get()
	for end := time.Now().Add(min(storageWait, fetchTimeout)); isAway(ctx, err); {
		pause := max(storagePause, retryAfter(err))
		if time.Now().Add(pause).After(end) {
			break
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return v, err
		}
		v, err = get()
	}
	return v, err
}

// isAway: storage has not answered, which says nothing of what it keeps.
func isAway(ctx context.Context, err error) bool {
	switch goproxy.Status(err) {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return ctx.Err() == nil
	}
	return false
}

// retryAfter is what an error says of when to come again, 5 s at most.
func retryAfter(err error) time.Duration {
	var e *goproxy.Error
	if errors.As(err, &e) {
		return min(e.RetryAfter, 5*time.Second)
	}
	return 0
}

func (p *Proxy) mayFetch(ctx context.Context) bool {
	return p.crawler != nil && p.o.Mode != Offline && !goproxy.NoFetch(ctx)
}

func notKept(k storage.Key) error {
	e := goproxy.NotFound("%s: not kept, and nothing is fetched for this request", k)
	e.NoStore = true
	return e
}

// flight is what those who share a fetch get, and whose trace has it.
type flight struct {
	value any
	tier  string
	span  trace.SpanContext
}

// enter takes a place among those who wait for a fetch; leave gives it back.
func (p *Proxy) enter() (leave func(), err error) {
	if n := p.waiting.Add(1); n > int64(p.o.MaxWaiting) {
		p.waiting.Add(-1)
		p.metrics.gaveUp.WithLabelValues("waiting").Inc()
		return nil, goproxy.Busy(2*time.Second, "busy: %d requests wait for a fetch already", p.o.MaxWaiting)
	}
	return func() { p.waiting.Add(-1) }, nil
}

// share runs f, which says from where its answer is, once for all who ask for key at the
// same time. It waits as long as FetchTimeout; f goes on behind, up to twice that.
func (p *Proxy) share(ctx context.Context, key string, k storage.Key, f func(context.Context) (any, string, error)) (v any, tier string, err error) {
	if goproxy.NoFetch(ctx) {
		key = "no-fetch " + key
	}
	ch := p.flights.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*p.o.FetchTimeout)
		defer cancel()
		v, tier, err := f(ctx)
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil { // not one of upstream's own
			err = p.late(k)
		}
		return &flight{v, tier, trace.SpanContextFromContext(ctx)}, err
	})
	timeout := time.NewTimer(p.o.FetchTimeout)
	defer timeout.Stop()
	select {
	case r := <-ch:
		got := r.Val.(*flight)
		if span := trace.SpanFromContext(ctx); span.IsRecording() && got.span.IsSampled() && !got.span.Equal(span.SpanContext()) {
			span.AddLink(trace.Link{SpanContext: got.span}) // the fetch is in another's trace
		}
		return got.value, got.tier, r.Err
	case <-ctx.Done():
		return nil, "", ctx.Err()
	case <-timeout.C:
		p.metrics.gaveUp.WithLabelValues("timeout").Inc()
		return nil, "", p.late(k)
	}
}

// late is the answer to who has waited long enough.
func (p *Proxy) late(k storage.Key) error {
	return &goproxy.Error{
		Status: p.o.FetchTimeoutStatus, NoStore: true,
		Message: k.String() + ": still being fetched after " + p.o.FetchTimeout.String() + "; it goes on, come again",
	}
}
