// Package fleet is the HTTP transport between the roles: it spreads requests
// over the replicas of a role, and carries the token, the request id, the W3C
// trace context and the deadline.
package fleet

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/athensctl/athensctl/internal/tracing"
)

// Headers of internal calls, besides Authorization and the trace context.
const (
	HeaderRequestID = "X-Request-Id"
	// HeaderTimeout is how long the caller waits for the whole of the answer, in
	// milliseconds. Each call has it.
	HeaderTimeout = "Athensctl-Timeout"
	// HeaderPriority is "u=7" on what nobody waits for.
	// Source: https://www.rfc-editor.org/rfc/rfc9218.
	HeaderPriority = "Priority"
	background     = "u=7"
)

// Call is what a request carries through the roles.
type Call struct {
	RequestID  string
	Background bool // nobody waits for it: it may wait for others
}

// WithBackground marks a context's Call.
func WithBackground(ctx context.Context) context.Context {
	c := CallOf(ctx)
	c.Background = true
	return WithCall(ctx, c)
}

// IsBackground reports whether a request is so marked.
func IsBackground(h http.Header) bool { return h.Get(HeaderPriority) == background }

type callKey struct{}

// callContext is context.WithValue for a Call, at half the price: each request has one.
type callContext struct {
	context.Context
	call Call
}

func (c *callContext) Value(key any) any {
	if key == (callKey{}) {
		return &c.call
	}
	return c.Context.Value(key)
}

// WithCall puts a Call into a context; it outlives context.WithoutCancel.
func WithCall(ctx context.Context, c Call) context.Context { return &callContext{ctx, c} }

// CallOf is the context's Call; the zero value where there is none.
func CallOf(ctx context.Context) Call {
	if c, ok := ctx.Value(callKey{}).(*Call); ok {
		return *c
	}
	return Call{}
}

// NewID is n random bytes in hexadecimal, to tell things apart: it is no secret.
func NewID(n int) string {
	b := make([]byte, 0, n+7)
	for len(b) < n {
		b = binary.LittleEndian.AppendUint64(b, rand.Uint64())
	}
	return hex.EncodeToString(b[:n])
}

// Transport is an http.RoundTripper to a role.
type Transport struct {
	replicas []*replica
	token    string
	next     atomic.Uint32
	http     http.RoundTripper
	now      func() time.Time
}

// replica is one process of the role. One that could not be reached is left alone for a
// time, while others are there.
type replica struct {
	base *url.URL
	down atomic.Int64 // until then, nanoseconds since 1970
}

const (
	downFor = 5 * time.Second
	// patience is how long one replica may take to answer what can be asked of another.
	patience = 10 * time.Second
	// silentFor is how long a machine may be silent that packets are sent to.
	silentFor = 30 * time.Second
	// answerTimeout bounds what has no deadline; a body that is sent does not count.
	answerTimeout = 2 * time.Minute
	// streamTimeout bounds what has no deadline and a body that may take as long as it comes: a
	// zip, here or there. It is write-timeout's default, after which it would be cut anyway.
	streamTimeout = 30 * time.Minute
	// saveTimeout bounds the keeping of a zip that was sent whole: 500 MB in a database of few units.
	saveTimeout = 15 * time.Minute
)

// New returns a transport to the replicas at bases. A request is for
// bases[0]; it goes to each in turn. What changes nothing (GET, HEAD, and what has an
// Idempotency-Key, as net/http takes it) goes on to another where one cannot be
// reached, does not answer, or says 503; the rest where it has reached nobody. A user and password
// in a base are sent as Basic authentication. A 401 is an error: the answer is not meant for
// whoever asked this process.
func New(bases []*url.URL, token string) *Transport {
	t := &Transport{token: token, now: time.Now, http: &tracing.Transport{Fleet: true, Next: &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 3 * time.Second, KeepAlive: 30 * time.Second, Control: unacknowledged}).DialContext,
		MaxIdleConnsPerHost:   256,
		IdleConnTimeout:       90 * time.Second,
		ResponseHeaderTimeout: saveTimeout,
		DisableCompression:    true,
	}}}
	for _, b := range bases {
		t.replicas = append(t.replicas, &replica{base: b})
	}
	return t
}

// Base is what the URLs of requests start with.
func (t *Transport) Base() *url.URL {
	u := *t.replicas[0].base
	u.User = nil
	return &u
}

// order is the replicas in the order in which they are asked: each has its turn to be the
// first, and those that are down come last.
func (t *Transport) order() []*replica {
	first := int(t.next.Add(1) % uint32(len(t.replicas)))
	up, down := make([]*replica, 0, len(t.replicas)), []*replica(nil)
	now := t.now().UnixNano()
	for i := range t.replicas {
		r := t.replicas[(first+i)%len(t.replicas)]
		if r.down.Load() > now {
			down = append(down, r)
		} else {
			up = append(up, r)
		}
	}
	return append(up, down...)
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	_, keyed := req.Header["Idempotency-Key"]
	repeatable := req.Method == http.MethodGet || req.Method == http.MethodHead || keyed
	sendable := req.Body == nil || req.Body == http.NoBody || req.GetBody != nil
	most := answerTimeout
	if strings.HasSuffix(req.URL.Path, ".zip") || req.Body != nil && req.Body != http.NoBody && req.ContentLength <= 0 {
		most = streamTimeout
	}
	replicas := t.order()
	n := len(replicas)
	for i := 0; i < len(replicas); i++ {
		to, last := replicas[i], i == len(replicas)-1
		r := t.prepare(req, to.base, most)
		var err error
		if i > 0 && req.GetBody != nil {
			if r.Body, err = req.GetBody(); err != nil {
				return nil, err
			}
		}
		var wait time.Duration // for the answer to begin
		if _, deadline := ctx.Deadline(); repeatable && sendable && n > 1 && i < n {
			wait = patience
		} else if repeatable && !deadline {
			wait = answerTimeout
		}
		resp, err := t.ask(r, wait)
		switch {
		case err == nil && resp.StatusCode == http.StatusUnauthorized:
			defer resp.Body.Close()
			said, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
			return nil, fmt.Errorf("%s: %s: %s", to.base.Host, resp.Status, strings.TrimSpace(string(said)))
		case err == nil && (resp.StatusCode != http.StatusServiceUnavailable || last || !repeatable || !sendable):
			return resp, nil
		case err == nil:
			resp.Body.Close()
			continue
		case ctx.Err() != nil:
			return nil, err
		}
		var dial *net.OpError
		unreached := errors.As(err, &dial) && dial.Op == "dial"
		if unreached {
			to.down.Store(t.now().Add(downFor).UnixNano())
		}
		if wait == patience && errors.Is(err, errNoAnswer) {
			replicas = append(replicas, to) // it may only be slow: when no other answers, it is waited for
			continue
		}
		if last || !sendable || !unreached && !repeatable {
			return nil, err
		}
	}
	return nil, errors.New("there is no replica") // New was given none
}

// prepare is the request as one replica gets it; most is its time, where the context has
// none.
func (t *Transport) prepare(req *http.Request, base *url.URL, most time.Duration) *http.Request {
	call := CallOf(req.Context())
	r := req.Clone(req.Context())
	r.URL.Scheme, r.URL.Host, r.Host = base.Scheme, base.Host, ""
	r.URL.Path = strings.TrimSuffix(base.Path, "/") + strings.TrimPrefix(req.URL.Path, strings.TrimSuffix(t.replicas[0].base.Path, "/"))
	if base.User != nil {
		pw, _ := base.User.Password()
		r.SetBasicAuth(base.User.Username(), pw)
	} else if t.token != "" {
		r.Header.Set("Authorization", "Bearer "+t.token)
	}
	if call.RequestID != "" {
		r.Header.Set(HeaderRequestID, call.RequestID)
	}
	if call.Background {
		r.Header.Set(HeaderPriority, background)
	}
	if deadline, ok := req.Context().Deadline(); ok {
		most = time.Until(deadline)
	}
	r.Header.Set(HeaderTimeout, strconv.FormatInt(max(1, most.Milliseconds()), 10))
	return r
}

// errNoAnswer is why a replica was given up.
var errNoAnswer = errors.New("no answer in time")

// ask sends a request; the answer has to begin within wait, when that is not 0.
func (t *Transport) ask(r *http.Request, wait time.Duration) (*http.Response, error) {
	if wait == 0 {
		return t.http.RoundTrip(r)
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	timer := time.AfterFunc(wait, func() { cancel(errNoAnswer) })
	resp, err := t.http.RoundTrip(r.WithContext(ctx))
	if !timer.Stop() && err == nil { // given up as it began: its body is cut
		resp.Body.Close()
		err = errNoAnswer
		cancel(err)
	}
	if err != nil {
		if errors.Is(context.Cause(ctx), errNoAnswer) {
			err = fmt.Errorf("%s: %w: %v", r.URL.Host, errNoAnswer, wait)
		}
		cancel(nil)
		return nil, err
	}
	resp.Body = &body{resp.Body, cancel}
	return resp, nil
}

// body ends its request when it is closed.
type body struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

func (b *body) Close() error {
	defer b.cancel(nil)
	return b.ReadCloser.Close()
}
