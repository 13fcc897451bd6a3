package testupstream

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// Match says which requests meet a fault. An empty field matches all.
type Match struct {
	Kind    Kind
	Path    string
	Version string // or query
}

// Fault is what happens to a request. The zero Fault changes nothing, and so
// exempts what it matches from older faults. Waiting comes first (Latency, then
// Until), then the first that is set of Hang, Drop, Redirect, Status; else the
// true answer, changed by the fields below Status.
type Fault struct {
	Times int // it applies to that many requests and is then gone; 0: to all

	Latency time.Duration
	Until   <-chan struct{} // wait until it is closed; nil: no wait

	Hang       bool          // say nothing until the client leaves
	Drop       bool          // close the connection without an answer
	Redirect   string        // 302, or Status when that is set, to this and the request's path behind it
	Status     int           // 500, 403, 410, …
	Text       string        // body for Status; "": the status text
	RetryAfter time.Duration // header for Status; 0: none

	Version   string    // .info and @latest name this version instead
	Content   []byte    // the body in place of the true one; nil: the true one
	NoLength  bool      // no Content-Length
	Body      BodyFault // what happens after BodyBytes
	BodyBytes int64
}

// BodyFault is what happens to a body that is longer than Fault.BodyBytes.
type BodyFault int

const (
	BodyWhole BodyFault = iota
	BodyCut             // the connection is cut
	BodyEnd             // it ends as if it were whole, without a Content-Length to tell
	BodyHang            // nothing more comes until the client leaves
)

type fault struct {
	Match
	Fault
	left int
}

// Fault makes matching requests meet f. Of several faults that match, only the
// one added last applies. Requests that wait already are not affected. The
// returned function takes the fault back; it may be called more than once.
func (u *Upstream) Fault(m Match, f Fault) (remove func()) {
	added := &fault{m, f, f.Times}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.faults = append(u.faults, added)
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.faults = slices.DeleteFunc(u.faults, func(x *fault) bool { return x == added })
	}
}

// ClearFaults takes all faults back.
func (u *Upstream) ClearFaults() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.faults = nil
}

func (u *Upstream) faultFor(r *Request) Fault {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i, f := range slices.Backward(u.faults) {
		if f.Kind != "" && f.Kind != r.Kind || f.Path != "" && f.Path != r.Path || f.Match.Version != "" && f.Match.Version != r.Version {
			continue
		}
		if f.Times > 0 {
			if f.left--; f.left == 0 {
				u.faults = slices.Delete(u.faults, i, i+1)
			}
		}
		return f.Fault
	}
	return Fault{}
}

// wait does the waiting of f; false: the client left or the upstream closed.
func (u *Upstream) wait(ctx context.Context, f Fault) bool {
	var timer <-chan time.Time
	if f.Latency > 0 {
		t := time.NewTimer(f.Latency)
		defer t.Stop()
		timer = t.C
	}
	if timer != nil {
		select {
		case <-timer:
		case <-ctx.Done():
			return false
		case <-u.closed:
			return false
		}
	}
	if f.Until != nil {
		select {
		case <-f.Until:
		case <-ctx.Done():
			return false
		case <-u.closed:
			return false
		}
	}
	return true
}

func (u *Upstream) hang(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-u.closed:
	}
	panic(http.ErrAbortHandler)
}

// instead answers in place of the true answer; false: f does not say so.
func (u *Upstream) instead(w http.ResponseWriter, r *http.Request, f Fault) bool {
	switch {
	case f.Hang:
		u.hang(r.Context())
	case f.Drop:
		panic(http.ErrAbortHandler)
	case f.Redirect != "":
		status := f.Status
		if status == 0 {
			status = http.StatusFound
		}
		w.Header().Set("Location", f.Redirect+r.URL.EscapedPath())
		w.WriteHeader(status)
	case f.Status != 0:
		if f.RetryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int((f.RetryAfter+time.Second-1)/time.Second)))
		}
		text := f.Text
		if text == "" {
			text = http.StatusText(f.Status)
		}
		http.Error(w, text, f.Status)
	default:
		return false
	}
	return true
}

// answer is the ResponseWriter of a request: it counts, and spoils the body
// where its fault says so.
type answer struct {
	http.ResponseWriter
	u      *Upstream
	ctx    context.Context
	fault  Fault
	status int
	bytes  int64
}

func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *answer) WriteHeader(status int) {
	if a.status != 0 {
		return
	}
	a.status = status
	noLength := a.fault.NoLength || a.fault.Body == BodyEnd
	if noLength {
		a.Header().Del("Content-Length")
	}
	a.ResponseWriter.WriteHeader(status)
	if noLength {
		a.flush() // or net/http works the length of a short body out
	}
}

func (a *answer) flush() { http.NewResponseController(a.ResponseWriter).Flush() }

func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	if left := a.fault.BodyBytes - a.bytes; a.fault.Body != BodyWhole && int64(len(p)) > left {
		n, err := a.ResponseWriter.Write(p[:left])
		a.bytes += int64(n)
		if err != nil {
			return n, err
		}
		a.flush()
		switch a.fault.Body {
		case BodyCut:
			panic(http.ErrAbortHandler)
		case BodyHang:
			a.u.hang(a.ctx)
		}
		return len(p), nil // BodyEnd: the rest goes nowhere
	}
	n, err := a.ResponseWriter.Write(p)
	a.bytes += int64(n)
	return n, err
}

// ReadFrom keeps sendfile for whole bodies.
func (a *answer) ReadFrom(r io.Reader) (int64, error) {
	if a.fault.Body != BodyWhole {
		return io.Copy(struct{ io.Writer }{a}, r)
	}
	a.WriteHeader(http.StatusOK)
	n, err := io.Copy(a.ResponseWriter, r)
	a.bytes += n
	return n, err
}
