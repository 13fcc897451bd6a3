package crawler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
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
	// Timeout is the longest pause in a body, and how long one may be slower than 8 KiB/s;
	// 0: 30 s.
	Timeout time.Duration
	Metrics prometheus.Registerer
}

// Hosts is what the crawler knows of the hosts that it asks: each has its own bounds,
// and a host that is slow, dead or asks for a pause holds up nobody but those who want
// it.
type Hosts struct {
	o        HostOptions
	requests *prometheus.CounterVec
	received *prometheus.CounterVec

	mu     sync.Mutex
	hosts  map[string]*host
	labels map[string]bool // the hosts that metrics name
}

// host is one host. After some failures in a row nothing is sent for a time (the
// circuit is open); then one request goes, and what becomes of it decides.
type host struct {
	slots, ahead *semaphore.Weighted
	limit        *rate.Limiter
	name, label  string
	received     prometheus.Counter
	requests     *prometheus.CounterVec // Hosts.requests
	most         int                    // failures; 0: any number
	timeout      time.Duration
	users        int // requests, under Hosts.mu: while there are any it is not forgotten

	mu       sync.Mutex
	failures int // in a row
	until    time.Time
	why      string
	paused   string // "pause": it asked for it; "circuit": it has failed
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
	h := &Hosts{o: o, hosts: map[string]*host{}, labels: map[string]bool{}, requests: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "athensctl_host_requests_total",
		Help: "Requests to hosts on the internet, by host (the first 100, then other), outcome (ok, refused: 4xx; limited: 429, 503 and spent rate limits; failed: other 5xx, no answer, or a body that was cut after an ok; held: not sent, for the host's bounds), and cause.",
	}, []string{"host", "outcome", "cause"}), received: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "athensctl_host_received_bytes_total",
		Help: "Bytes of the bodies that hosts on the internet have sent, by host (the first 100, then other).",
	}, []string{"host"})}
	if o.Metrics != nil {
		o.Metrics.MustRegister(h.requests, h.received)
	}
	return h
}

// get returns a host that is not forgotten before done.
func (h *Hosts) get(name string) (t *host, done func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t = h.hosts[name]
	if t == nil {
		if len(h.hosts) >= maxHosts {
			h.forget(time.Now())
		}
		n := int64(max(1, h.o.Connections))
		t = &host{slots: semaphore.NewWeighted(n), ahead: semaphore.NewWeighted(max(1, n/2)), name: name, label: name, requests: h.requests, most: h.o.Failures, timeout: cmp.Or(h.o.Timeout, 30*time.Second)}
		if h.o.Rate > 0 {
			// One after the other: a burst would make more of the first second.
			t.limit = rate.NewLimiter(rate.Limit(h.o.Rate), 1)
		}
		if len(h.labels) < maxHostLabels {
			h.labels[name] = true
		}
		if !h.labels[name] {
			t.label = "other"
		}
		t.received = h.received.WithLabelValues(t.label)
		h.hosts[name] = t
	}
	t.users++
	return t, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		t.users--
	}
}

// forget makes room: for those of which there is nothing to know, which are learned again.
// Where each asks for a pause, as somebody's thousands of hosts may, it is a tenth: those
// whose pauses end first.
func (h *Hosts) forget(now time.Time) {
	type pause struct {
		name  string
		until time.Time
	}
	var paused []pause
	for name, t := range h.hosts {
		t.mu.Lock()
		until := t.until
		t.mu.Unlock()
		switch {
		case t.users > 0:
		case until.After(now):
			paused = append(paused, pause{name, until})
		default:
			delete(h.hosts, name)
		}
	}
	if len(h.hosts) < maxHosts {
		return
	}
	slices.SortFunc(paused, func(a, b pause) int { return a.until.Compare(b.until) })
	for _, p := range paused[:(len(paused)+9)/10] {
		delete(h.hosts, p.name)
	}
}

// notSent is the error of a request that was not sent, for the host's bounds: a 503. cause
// says for which, in metrics.
type notSent struct {
	err   *goproxy.Error
	cause string
}

func (n notSent) Error() string { return n.err.Error() }
func (n notSent) Unwrap() error { return n.err }

func isNotSent(err error) bool {
	var n notSent
	return errors.As(err, &n)
}

// Wrap keeps the bounds of each host for the requests that go through next.
func (h *Hosts) Wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		t, done := h.get(req.URL.Host)
		leave, err := t.enter(req.Context())
		if err != nil {
			done()
			t.count("held", causeOf(err))
			return nil, err
		}
		release := sync.OnceFunc(func() { leave(); done() })
		ctx, cancel := context.WithCancelCause(req.Context())
		resp, err := next.RoundTrip(req.WithContext(ctx))
		outcome, cause := t.ended(req.Context(), resp, err, time.Now())
		t.count(outcome, cause)
		if err != nil {
			cancel(nil)
			release()
			return nil, err
		}
		body := newHeldBody(resp.Body, t, ctx, cancel, release)
		body.ok = outcome == "ok"
		resp.Body = body
		return resp, nil
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// bodyRate is what a host has to send, once it has begun to answer: bytes a second, on
// average, after HostOptions.Timeout.
const bodyRate = 8 << 10

// heldBody gives the host's slot back when it is closed, and is cut when it comes too
// slowly. What its reader does between two Reads does not count.
type heldBody struct {
	io.ReadCloser
	host    *host
	ctx     context.Context
	cancel  context.CancelCauseFunc
	release func()
	timer   *time.Timer
	spent   time.Duration // waiting for it
	bytes   int64
	ok      bool // the answer is neither a failure nor a refusal
	noted   bool // how it ended
}

func newHeldBody(r io.ReadCloser, t *host, ctx context.Context, cancel context.CancelCauseFunc, release func()) *heldBody {
	b := &heldBody{ReadCloser: r, host: t, ctx: ctx, cancel: cancel, release: release}
	b.timer = time.AfterFunc(t.timeout, func() { cancel(errSlow) })
	b.timer.Stop() // it runs only while a Read waits
	return b
}

// errSlow is why a body was cut.
var errSlow = errors.New("the answer comes too slowly")

func (b *heldBody) Read(p []byte) (int, error) {
	left := b.host.timeout + time.Duration(float64(b.bytes)/bodyRate*float64(time.Second)) - b.spent
	began := time.Now()
	b.timer.Reset(min(left, b.host.timeout))
	n, err := b.ReadCloser.Read(p)
	b.timer.Stop()
	b.spent += time.Since(began)
	b.bytes += int64(n)
	b.host.received.Add(float64(n))
	if err != nil && err != io.EOF && context.Cause(b.ctx) == errSlow {
		err = goproxy.Errorf(http.StatusBadGateway, "%s: %w: %d bytes in %v", b.host.name, errSlow, b.bytes, b.spent.Round(time.Second))
	}
	if err != nil {
		b.ended(err)
	}
	return n, err
}

// ended notes the first end of the body: who closes it before has what they wanted.
func (b *heldBody) ended(err error) {
	switch {
	case b.noted:
	case errors.Is(err, errSlow):
		b.host.count("failed", "slow")
		b.host.bodyEnded(err)
	case b.ok && err != nil && err != io.EOF && !left(b.ctx):
		cause := "cut"
		if b.ctx.Err() != nil {
			cause = "timeout"
		}
		b.host.count("failed", cause)
		b.host.bodyEnded(err)
	case b.ok && (err == nil || err == io.EOF):
		b.host.bodyEnded(nil)
	}
	b.noted = true
}

func (b *heldBody) Close() error {
	b.timer.Stop()
	if b.ctx.Err() == nil {
		b.ended(nil)
	}
	b.release()
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
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
			return nil, held(ctx, "connections", time.Second, "%s: too many requests wait for it", t.name)
		}
		taken = append(taken, s)
	}
	if t.limit != nil {
		if t.limit.Wait(wait) != nil {
			release()
			return nil, held(ctx, "rate", time.Second, "%s: too many requests a second are wanted of it", t.name)
		}
	}
	// It may have failed, or asked for a pause, in the meantime.
	if err := t.open(time.Now(), true); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

func held(ctx context.Context, cause string, pause time.Duration, format string, args ...any) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return notSent{cause: cause, err: &goproxy.Error{Status: http.StatusServiceUnavailable, RetryAfter: pause, Message: fmt.Sprintf(format, args...)}}
}

// open is an error while nothing is to be sent. sends says that a request follows.
func (t *host) open(now time.Time, sends bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if left := t.until.Sub(now); left > 0 {
		return held(context.Background(), t.paused, max(time.Second, left), "%s: nothing is sent for %v: %s", t.name, left.Round(time.Second), t.why)
	}
	if t.most > 0 && t.failures >= t.most {
		if t.probing {
			return held(context.Background(), "circuit", time.Second, "%s: it is being tried whether it is back: %s", t.name, t.why)
		}
		t.probing = sends
	}
	return nil
}

// count counts a request.
func (t *host) count(outcome, cause string) {
	t.requests.WithLabelValues(t.label, outcome, cause).Inc()
}

// ended notes how a request ended, and returns its outcome and the cause of that.
func (t *host) ended(ctx context.Context, resp *http.Response, err error, now time.Time) (outcome, cause string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.probing = false
	if err != nil {
		if !left(ctx) {
			t.failed(now, err.Error())
		}
		return "failed", causeOf(err)
	}
	pause := goproxy.Pause(resp, now)
	if pause > 0 {
		t.until, t.paused, t.why = now.Add(min(pause, pauseAtMost)), "pause", "it asked for a pause ("+resp.Status+")"
	}
	cause = statusCause(resp.StatusCode)
	switch {
	case pause > 0 || resp.StatusCode == http.StatusTooManyRequests:
		t.failures = 0
		if resp.StatusCode < 400 {
			cause = "spent" // the answer is there, and is the last for a time
		}
		return "limited", cause
	case resp.StatusCode >= 500 && resp.StatusCode != http.StatusNotImplemented:
		t.failed(now, resp.Status)
		return "failed", cause
	case resp.StatusCode >= 400:
		t.failures = 0
		return "refused", cause
	}
	return "ok", "" // the host has not failed when its body has ended: heldBody
}

// left reports whether who asked has left; a time that is over is the host's, and a git
// request's that is cancelled for it says so (vcs/git).
func left(ctx context.Context) bool {
	return errors.Is(ctx.Err(), context.Canceled) && !errors.Is(context.Cause(ctx), os.ErrDeadlineExceeded)
}

// bodyEnded notes how a body ended: with an error or without.
func (t *host) bodyEnded(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		t.failed(time.Now(), err.Error())
	} else {
		t.failures = 0
	}
}

func (t *host) failed(now time.Time, why string) {
	t.failures++
	if more := t.failures - t.most; t.most > 0 && more >= 0 {
		d := min(time.Second<<min(more, 10), openAtMost)
		t.until, t.paused, t.why = now.Add(time.Duration(float64(d)*(0.75+rand.Float64()/2))), "circuit", why
	}
}
