// Package fleet is the HTTP transport between the roles: it spreads requests
// over the replicas of a role, and carries the token, the request id, the W3C
// trace context and the deadline.
package fleet

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Headers of internal calls, besides Authorization and traceparent.
const (
	HeaderRequestID = "X-Request-Id"
	// HeaderTimeout is how long the caller waits, in milliseconds.
	HeaderTimeout = "Athensctl-Timeout"
	// HeaderTrace is the W3C trace context. Source: https://www.w3.org/TR/trace-context/.
	HeaderTrace = "Traceparent"
	// HeaderPriority is "u=7" on what nobody waits for.
	// Source: https://www.rfc-editor.org/rfc/rfc9218.
	HeaderPriority = "Priority"
	background     = "u=7"
)

// Call is what a request carries through the roles.
type Call struct {
	RequestID  string
	Trace      string // traceparent
	Background bool   // nobody waits for it: it may wait for others
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

// WithCall puts a Call into a context; it outlives context.WithoutCancel.
func WithCall(ctx context.Context, c Call) context.Context {
	return context.WithValue(ctx, callKey{}, c)
}

// CallOf is the context's Call; the zero value where there is none.
func CallOf(ctx context.Context) Call {
	c, _ := ctx.Value(callKey{}).(Call)
	return c
}

// NewID is n random bytes in hexadecimal.
func NewID(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// ValidTrace reports whether s is a traceparent of version 00.
func ValidTrace(s string) bool {
	return len(s) == 55 && strings.HasPrefix(s, "00-") && s[35] == '-' && s[52] == '-' &&
		strings.Trim(s, "0123456789abcdef-") == "" && strings.Trim(s[3:35], "0") != "" && strings.Trim(s[36:52], "0") != ""
}

// Transport is an http.RoundTripper to a role.
type Transport struct {
	bases []*url.URL
	token string
	next  atomic.Uint32
	http  *http.Transport
}

// New returns a transport to the replicas at bases. A request is for
// bases[0]; it goes to each in turn, and on to another where one cannot be
// reached. A user and password in a base are sent as Basic authentication.
func New(bases []*url.URL, token string) *Transport {
	return &Transport{bases: bases, token: token, http: &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 3 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		MaxIdleConnsPerHost:   256,
		IdleConnTimeout:       90 * time.Second,
		ResponseHeaderTimeout: answerWithin,
		DisableCompression:    true,
	}}
}

// An answer begins within this time, unless WaitFor says more.
const answerWithin = 2 * time.Minute

// WaitFor lets an answer take d, and a little more, where that is longer. Call it before
// the first request.
func (t *Transport) WaitFor(d time.Duration) {
	t.http.ResponseHeaderTimeout = max(answerWithin, d+10*time.Second)
}

// Base is what the URLs of requests start with.
func (t *Transport) Base() *url.URL {
	u := *t.bases[0]
	u.User = nil
	return &u
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	call := CallOf(req.Context())
	first := int(t.next.Add(1))
	var resp *http.Response
	var err error
	for i := range t.bases {
		base := t.bases[(first+i)%len(t.bases)]
		r := req.Clone(req.Context())
		r.URL.Scheme, r.URL.Host, r.Host = base.Scheme, base.Host, ""
		r.URL.Path = strings.TrimSuffix(base.Path, "/") + strings.TrimPrefix(req.URL.Path, strings.TrimSuffix(t.bases[0].Path, "/"))
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
		if ValidTrace(call.Trace) {
			r.Header.Set(HeaderTrace, call.Trace[:36]+NewID(8)+call.Trace[52:])
		}
		if deadline, ok := req.Context().Deadline(); ok {
			r.Header.Set(HeaderTimeout, strconv.FormatInt(max(1, time.Until(deadline).Milliseconds()), 10))
		}
		if i > 0 && req.GetBody != nil {
			if r.Body, err = req.GetBody(); err != nil {
				return nil, err
			}
		}
		resp, err = t.http.RoundTrip(r)
		if err == nil || req.Context().Err() != nil || !mayTryNext(req, err) {
			return resp, err
		}
	}
	return nil, err
}

// mayTryNext: the request has not reached anybody, or may be sent twice.
func mayTryNext(req *http.Request, err error) bool {
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		return req.Body == nil || req.GetBody != nil
	}
	return req.Method == http.MethodGet
}
