package fleet

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/athensctl/athensctl/internal/tracing"
)

const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// role is a server that counts its requests and keeps the last one's headers.
type role struct {
	*httptest.Server
	n    atomic.Int64
	last atomic.Pointer[http.Request]
	body atomic.Pointer[string]
}

func newReplica(t *testing.T) *role {
	r := &role{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		b, _ := io.ReadAll(req.Body)
		s := string(b)
		r.body.Store(&s)
		r.last.Store(req)
		r.n.Add(1)
	}))
	t.Cleanup(r.Close)
	return r
}

func parse(t *testing.T, urls ...string) (list []*url.URL) {
	t.Helper()
	for _, s := range urls {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, u)
	}
	return list
}

// dead is an address that refuses connections.
func dead(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

func do(t *testing.T, ctx context.Context, tr *Transport, method, path string, body io.Reader) error {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, tr.Base().JoinPath(path).String(), body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	if err == nil {
		resp.Body.Close()
	}
	return err
}

func TestCarried(t *testing.T) {
	r := newReplica(t)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	ctx = WithBackground(WithCall(tracing.WithParent(ctx, parent), Call{RequestID: "id-1"}))
	if err := do(t, ctx, New(parse(t, r.URL+"/base/"), "secret"), "GET", "/x/@v/list", nil); err != nil {
		t.Fatal(err)
	}
	got := r.last.Load()
	if got.URL.Path != "/base/x/@v/list" {
		t.Errorf("path %q", got.URL.Path)
	}
	for name, want := range map[string]string{"Authorization": "Bearer secret", HeaderRequestID: "id-1", HeaderPriority: "u=7"} {
		if got.Header.Get(name) != want {
			t.Errorf("%s: %q, want %q", name, got.Header.Get(name), want)
		}
	}
	if !IsBackground(got.Header) {
		t.Error("not seen as background")
	}
	if next := got.Header.Get("traceparent"); next != parent { // nobody records: it goes on as it came
		t.Errorf("traceparent %q of %q", next, parent)
	}
	if ms, err := strconv.Atoi(got.Header.Get(HeaderTimeout)); err != nil || ms < 20_000 || ms > 30_000 {
		t.Errorf("%s: %q", HeaderTimeout, got.Header.Get(HeaderTimeout))
	}

	u := parse(t, r.URL)
	u[0].User = url.UserPassword("athens", "other")
	tr := New(u, "secret")
	if err := do(t, context.Background(), tr, "GET", "/", nil); err != nil {
		t.Fatal(err)
	}
	if user, pw, _ := r.last.Load().BasicAuth(); user != "athens" || pw != "other" {
		t.Errorf("userinfo was sent as %q", r.last.Load().Header.Get("Authorization"))
	}
	if strings.Contains(tr.Base().String(), "other") {
		t.Error("Base has the password")
	}
	for _, h := range []string{"traceparent", HeaderRequestID, HeaderPriority} {
		if v, ok := r.last.Load().Header[http.CanonicalHeaderKey(h)]; ok {
			t.Errorf("%s: %q, of a context without one", h, v)
		}
	}
}

// Requests go to each replica in turn, and on to another where one is not there.
func TestReplicas(t *testing.T) {
	a, b := newReplica(t), newReplica(t)
	tr := New(parse(t, a.URL, dead(t), b.URL+"/b"), "")
	for range 30 {
		if err := do(t, context.Background(), tr, "GET", "/x", nil); err != nil {
			t.Fatal(err)
		}
	}
	if a.n.Load() < 10 || b.n.Load() < 10 || a.n.Load()+b.n.Load() != 30 {
		t.Errorf("%d and %d of 30 requests", a.n.Load(), b.n.Load())
	}
	if p := b.last.Load().URL.Path; p != "/b/x" {
		t.Errorf("path %q", p)
	}
	// A body that can be had again is sent whole to the next one.
	for range 3 {
		if err := do(t, context.Background(), tr, "POST", "/x", strings.NewReader("body")); err != nil {
			t.Fatal(err)
		}
	}
	if *a.body.Load() != "body" || *b.body.Load() != "body" {
		t.Errorf("bodies %q and %q", *a.body.Load(), *b.body.Load())
	}
	// One that cannot is not sent again: two of the three bases are there. The third, which
	// was away a moment ago, is left alone.
	posts := func() (failed int) {
		for range 3 {
			if do(t, context.Background(), tr, "POST", "/x", io.MultiReader(strings.NewReader("body"))) != nil {
				failed++
			}
		}
		return failed
	}
	if failed := posts(); failed != 0 {
		t.Errorf("%d of 3 POSTs were sent to a base that was away", failed)
	}
	tr.now = func() time.Time { return time.Now().Add(downFor) }
	if failed := posts(); failed != 1 {
		t.Errorf("%d of 3 POSTs failed, want the one to the base that is still away", failed)
	}
	if do(t, context.Background(), New(parse(t, dead(t), dead(t)), ""), "GET", "/", nil) == nil {
		t.Error("nobody is there, and no error")
	}
}

// What reached a replica that then broke is sent again only if it changes nothing.
func TestCutAnswer(t *testing.T) {
	var cuts atomic.Int64
	cut := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		cuts.Add(1)
		panic(http.ErrAbortHandler)
	}))
	defer cut.Close()
	good := newReplica(t)
	tr := New(parse(t, cut.URL, good.URL), "")
	for range 4 {
		if err := do(t, context.Background(), tr, "GET", "/", nil); err != nil {
			t.Errorf("GET: %v", err)
		}
	}
	before, failed := cuts.Load(), 0
	for range 4 {
		if do(t, context.Background(), tr, "POST", "/", strings.NewReader("x")) != nil {
			failed++
		}
	}
	if before == 0 || failed != 2 || cuts.Load() != before+2 {
		t.Errorf("%d GETs were cut; %d of 4 POSTs failed, %d reached the broken replica", before, failed, cuts.Load()-before)
	}
	// Who left is not sent elsewhere.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	n := good.n.Load()
	if do(t, ctx, tr, "GET", "/", nil) == nil || good.n.Load() != n {
		t.Error("a cancelled request was sent")
	}
}

// What changes nothing is asked of another replica when one is busy or hangs. A refused
// token is nobody else's error.
func TestOtherReplica(t *testing.T) {
	status := func(code int) *httptest.Server {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "said", code)
		}))
		t.Cleanup(srv.Close)
		return srv
	}
	good := newReplica(t)
	ask := func(tr *Transport, method string, header http.Header) (int, error) {
		req, err := http.NewRequest(method, tr.Base().String()+"/x", strings.NewReader("q"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = header
		resp, err := tr.RoundTrip(req)
		if err != nil {
			return 0, err
		}
		resp.Body.Close()
		return resp.StatusCode, nil
	}
	keyed := http.Header{"Idempotency-Key": nil}
	for _, tc := range []struct {
		name   string
		bad    int
		method string
		header http.Header
		want   map[int]int
	}{
		{"GET, busy", 503, "GET", http.Header{}, map[int]int{200: 4}},
		{"POST, busy", 503, "POST", http.Header{}, map[int]int{200: 2, 503: 2}},
		{"POST that changes nothing, busy", 503, "POST", keyed, map[int]int{200: 4}},
		{"GET, upstream failed", 502, "GET", http.Header{}, map[int]int{200: 2, 502: 2}},
		{"GET, not found", 404, "GET", http.Header{}, map[int]int{200: 2, 404: 2}},
	} {
		tr := New(parse(t, status(tc.bad).URL, good.URL), "")
		got := map[int]int{}
		for range 4 {
			code, err := ask(tr, tc.method, tc.header)
			if err != nil {
				t.Errorf("%s: %v", tc.name, err)
			}
			got[code]++
		}
		if !maps.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
	if sent := good.last.Load().Header; len(sent["Idempotency-Key"]) != 0 {
		t.Errorf("the empty key was sent: %v", sent)
	}
	busy := New(parse(t, status(503).URL, status(503).URL), "")
	if code, err := ask(busy, "GET", http.Header{}); code != 503 || err != nil {
		t.Errorf("all are busy: %d, %v", code, err)
	}
	wrong := New(parse(t, status(401).URL, good.URL), "")
	wrong.next.Store(1)
	if _, err := ask(wrong, "GET", http.Header{}); err == nil || !strings.Contains(err.Error(), "401 Unauthorized: said") {
		t.Errorf("a refused token: %v", err)
	}
}

// What has no deadline of its own is told one all the same: by then nobody waits for it.
func TestDeadline(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	r := newReplica(t)
	tr := New(parse(t, r.URL), "")
	for _, tc := range []struct {
		ctx          context.Context
		method, path string
		body         io.Reader
		want         time.Duration
	}{
		{t.Context(), "GET", "/x/@v/list", nil, answerTimeout},
		{t.Context(), "GET", "/x/@v/v1.0.0.zip", nil, streamTimeout},
		{t.Context(), "POST", "/internal/ledger", strings.NewReader("{}"), answerTimeout},
		{t.Context(), "POST", "/x/@v/v1.0.0.save", io.MultiReader(strings.NewReader("zip")), streamTimeout},
		{ctx, "GET", "/x/@v/v1.0.0.zip", nil, time.Hour},
	} {
		if err := do(t, tc.ctx, tr, tc.method, tc.path, tc.body); err != nil {
			t.Fatal(err)
		}
		ms, err := strconv.ParseInt(r.last.Load().Header.Get(HeaderTimeout), 10, 64)
		if got := time.Duration(ms) * time.Millisecond; err != nil || got > tc.want || got < tc.want-time.Minute {
			t.Errorf("%s %s: %v, %v; want %v", tc.method, tc.path, got, err, tc.want)
		}
	}
}

// A replica that takes connections and answers nothing is given up for another.
func TestHangingReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := make(chan string, 10)
		tr := New(parse(t, "http://hangs", "http://good/"), "")
		tr.http = roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.URL.Host == "hangs" {
				hangs <- r.Method
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader("good"))}, nil
		})
		for range 2 {
			start := time.Now()
			if err := do(t, t.Context(), tr, "GET", "/x", nil); err != nil {
				t.Error(err)
			}
			if took := time.Since(start); took != 0 && took != patience {
				t.Errorf("it took %v", took)
			}
		}
		// One that is only slow is waited for when the other is away.
		slow := New(parse(t, "http://away", "http://slow"), "")
		slow.http = roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.URL.Host == "away" {
				return nil, &net.OpError{Op: "dial", Err: errors.New("refused")}
			}
			select {
			case <-time.After(25 * time.Second):
			case <-r.Context().Done():
				return nil, r.Context().Err()
			}
			return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader("late"))}, nil
		})
		for range 2 {
			start := time.Now()
			if err := do(t, t.Context(), slow, "GET", "/x", nil); err != nil || time.Since(start) != patience+25*time.Second {
				t.Errorf("the only one that is there is slow: %v after %v", err, time.Since(start))
			}
		}
		// One that begins its answer as it is given up gives none.
		torn := New(parse(t, "http://torn", "http://good"), "")
		torn.next.Store(1)
		torn.http = roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.URL.Host == "good" {
				return tr.http.RoundTrip(r)
			}
			<-r.Context().Done()
			return &http.Response{StatusCode: 200, Body: io.NopCloser(iotest.ErrReader(r.Context().Err()))}, nil
		})
		req, err := http.NewRequestWithContext(t.Context(), "GET", torn.Base().String()+"/x", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := torn.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "good" {
			t.Errorf("in place of an answer that was cut: %q, %v", body, err)
		}
		alone := New(parse(t, "http://hangs"), "")
		alone.http = tr.http
		start := time.Now()
		if err := do(t, t.Context(), alone, "GET", "/x", nil); !errors.Is(err, errNoAnswer) || time.Since(start) != answerTimeout {
			t.Errorf("the only replica: %v after %v", err, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := do(t, ctx, alone, "GET", "/x", nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with a deadline: %v", err)
		}
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
