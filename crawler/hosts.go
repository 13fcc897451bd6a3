package crawler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/fleet"
)

// HostOptions bound what is asked of one host.
type HostOptions struct {
	Connections int     // requests at once; those ahead of demand have half of them
	Rate        float64 // requests a second; 0: as many as come
	Failures    int     // in a row, after which nothing is sent for a time; 0: never
	Metrics     prometheus.Registerer
}

// Hosts is what the crawler knows of the hosts that it asks: each has its own bounds,
// and a host that is slow, dead or asks for a pause holds up nobody but those who want
// it.
type Hosts struct {
	o        HostOptions
	requests *prometheus.CounterVec
	received *prometheus.CounterVec

	mu    sync.Mutex
	hosts map[string]*host
}

// host is one host. After some failures in a row nothing is sent for a time (the
// circuit is open); then one request goes, and what becomes of it decides.
type host struct {
	slots, ahead *semaphore.Weighted
	limit        *rate.Limiter
	label        string
	received     prometheus.Counter
	most         int // failures; 0: any number

	mu       sync.Mutex
	failures int // in a row
	until    time.Time
	why      string
	probing  bool
}

const (
	openAtMost    = 30 * time.Second
	pauseAtMost   = 10 * time.Minute // however long a host asks for
	slotWait      = time.Minute      // clients wait less: the setting fetch-timeout
	slotWaitAhead = 10 * time.Second
	maxHosts      = 10_000
	maxHostLabels = 100
)

// NewHosts returns no hosts yet.
func NewHosts(o HostOptions) *Hosts {
	h := &Hosts{o: o, hosts: map[string]*host{}, requests: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "athensctl_host_requests_total",
		Help: "Requests to hosts on the internet, by host (the first 100, then other) and outcome (ok, refused: 4xx; limited: 429, 503 and spent rate limits; failed: other 5xx and no answer; held: not sent, for the host's bounds).",
	}, []string{"host", "outcome"}), received: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "athensctl_host_received_bytes_total",
		Help: "Bytes of the bodies that hosts on the internet have sent, by host (the first 100, then other).",
	}, []string{"host"})}
	if o.Metrics != nil {
		o.Metrics.MustRegister(h.requests, h.received)
	}
	return h
}

func (h *Hosts) get(name string) *host {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.hosts[name]
	if t == nil {
		if len(h.hosts) >= maxHosts {
			clear(h.hosts) // what was known of them is learned again
		}
		n := int64(max(1, h.o.Connections))
		t = &host{slots: semaphore.NewWeighted(n), ahead: semaphore.NewWeighted(max(1, n/2)), label: name, most: h.o.Failures}
		if h.o.Rate > 0 {
			t.limit = rate.NewLimiter(rate.Limit(h.o.Rate), max(1, int(h.o.Rate)))
		}
		if len(h.hosts) >= maxHostLabels {
			t.label = "other"
		}
		t.received = h.received.WithLabelValues(t.label)
		h.hosts[name] = t
	}
	return t
}

// notSent is the error of a request that was not sent, for the host's bounds: a 503.
type notSent struct{ err *goproxy.Error }

func (n notSent) Error() string { return n.err.Error() }
func (n notSent) Unwrap() error { return n.err }

func isNotSent(err error) bool {
	var n notSent
	return errors.As(err, &n)
}

// Wrap keeps the bounds of each host for the requests that go through next.
func (h *Hosts) Wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		t := h.get(req.URL.Host)
		release, err := t.enter(req.Context())
		if err != nil {
			h.requests.WithLabelValues(t.label, "held").Inc()
			return nil, err
		}
		resp, err := next.RoundTrip(req)
		h.requests.WithLabelValues(t.label, t.ended(req.Context(), resp, err, time.Now())).Inc()
		if err != nil {
			release()
			return nil, err
		}
		resp.Body = &heldBody{ReadCloser: resp.Body, release: release, received: t.received}
		return resp, nil
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// heldBody gives the host's slot back when it is closed.
type heldBody struct {
	io.ReadCloser
	release  func()
	received prometheus.Counter
}

func (b *heldBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.received.Add(float64(n))
	return n, err
}

func (b *heldBody) Close() error {
	b.release()
	return b.ReadCloser.Close()
}

// enter waits for a place among the host's requests. The function it returns gives it
// back; it may be called more than once.
func (t *host) enter(ctx context.Context) (release func(), err error) {
	if err := t.open(time.Now(), false); err != nil {
		return nil, err
	}
	most := slotWait
	if fleet.CallOf(ctx).Background {
		most = slotWaitAhead
	}
	wait, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	var taken []*semaphore.Weighted
	release = sync.OnceFunc(func() {
		for _, s := range taken {
			s.Release(1)
		}
	})
	sems := []*semaphore.Weighted{t.slots}
	if fleet.CallOf(ctx).Background {
		sems = []*semaphore.Weighted{t.ahead, t.slots}
	}
	for _, s := range sems {
		if s.Acquire(wait, 1) != nil {
			release()
			return nil, held(ctx, time.Second, "%s: too many requests wait for it", t.label)
		}
		taken = append(taken, s)
	}
	if t.limit != nil {
		if t.limit.Wait(wait) != nil {
			release()
			return nil, held(ctx, time.Second, "%s: too many requests a second are wanted of it", t.label)
		}
	}
	// It may have failed, or asked for a pause, in the meantime.
	if err := t.open(time.Now(), true); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

func held(ctx context.Context, pause time.Duration, format string, args ...any) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return notSent{&goproxy.Error{Status: http.StatusServiceUnavailable, RetryAfter: pause, Message: fmt.Sprintf(format, args...)}}
}

// open is an error while nothing is to be sent. sends says that a request follows.
func (t *host) open(now time.Time, sends bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if left := t.until.Sub(now); left > 0 {
		return held(context.Background(), max(time.Second, left), "%s: nothing is sent for %v: %s", t.label, left.Round(time.Second), t.why)
	}
	if t.most > 0 && t.failures >= t.most {
		if t.probing {
			return held(context.Background(), time.Second, "%s: it is being tried whether it is back: %s", t.label, t.why)
		}
		t.probing = sends
	}
	return nil
}

// ended notes how a request ended, and returns its outcome.
func (t *host) ended(ctx context.Context, resp *http.Response, err error, now time.Time) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.probing = false
	if err != nil {
		if ctx.Err() == nil { // else it is who asked that left
			t.failed(now, err.Error())
		}
		return "failed"
	}
	pause, asked := pauseOf(resp, now)
	if asked {
		t.until, t.why = now.Add(min(pause, pauseAtMost)), "it asked for a pause ("+resp.Status+")"
	}
	switch {
	case asked || resp.StatusCode == http.StatusTooManyRequests:
		t.failures = 0
		return "limited"
	case resp.StatusCode >= 500 && resp.StatusCode != http.StatusNotImplemented:
		t.failed(now, resp.Status)
		return "failed"
	case resp.StatusCode >= 400:
		t.failures = 0
		return "refused"
	}
	t.failures = 0
	return "ok"
}

func (t *host) failed(now time.Time, why string) {
	t.failures++
	if more := t.failures - t.most; t.most > 0 && more >= 0 {
		d := min(time.Second<<min(more, 10), openAtMost)
		t.until, t.why = now.Add(time.Duration(float64(d)*(0.75+rand.Float64()/2))), why
	}
}

// pauseOf is how long a host asks to be left alone: Retry-After of a 429 or 503
// (https://www.rfc-editor.org/rfc/rfc9110#field.retry-after), or a rate limit that is
// spent (https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api).
func pauseOf(resp *http.Response, now time.Time) (time.Duration, bool) {
	h := resp.Header
	limited := resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable || resp.StatusCode == http.StatusForbidden
	if text := h.Get("Retry-After"); text != "" && limited {
		if s, err := strconv.Atoi(text); err == nil && s > 0 {
			return time.Duration(min(s, 86_400)) * time.Second, true
		}
		if at, err := http.ParseTime(text); err == nil && at.After(now) {
			return at.Sub(now), true
		}
	}
	if h.Get("X-RateLimit-Remaining") == "0" {
		if at, err := strconv.ParseInt(h.Get("X-RateLimit-Reset"), 10, 64); err == nil && time.Unix(at, 0).After(now) {
			return time.Unix(at, 0).Sub(now), true
		}
	}
	return 0, false
}
