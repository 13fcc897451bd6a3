package fleet

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// replica counts its requests and keeps the last one's headers.
type replica struct {
	*httptest.Server
	n    atomic.Int64
	last atomic.Pointer[http.Request]
	body atomic.Pointer[string]
}

func newReplica(t *testing.T) *replica {
	r := &replica{}
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
	ctx = WithBackground(WithCall(ctx, Call{RequestID: "id-1", Trace: trace}))
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
	next := got.Header.Get(HeaderTrace)
	if !ValidTrace(next) || next == trace || next[:36] != trace[:36] || next[52:] != trace[52:] {
		t.Errorf("traceparent %q of %q: want the same trace, another span", next, trace)
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
	for _, h := range []string{HeaderTrace, HeaderTimeout, HeaderRequestID, HeaderPriority} {
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
	// One that cannot is not sent again: two of the three bases are there.
	failed := 0
	for range 3 {
		if do(t, context.Background(), tr, "POST", "/x", io.MultiReader(strings.NewReader("body"))) != nil {
			failed++
		}
	}
	if failed != 1 {
		t.Errorf("%d of 3 POSTs failed, want the one to the base that is away", failed)
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

func TestValidTrace(t *testing.T) {
	for s, want := range map[string]bool{
		trace:                  true,
		"":                     false,
		strings.ToUpper(trace): false,
		"01" + trace[2:]:       false,
		trace + "-x":           false,
		"00-" + strings.Repeat("0", 32) + trace[35:]:      false,
		trace[:36] + strings.Repeat("0", 16) + trace[52:]: false,
		strings.Replace(trace, "0af7", "0ag7", 1):         false,
	} {
		if ValidTrace(s) != want {
			t.Errorf("%q: %v", s, !want)
		}
	}
}

func TestWaitFor(t *testing.T) {
	tr := New([]*url.URL{{Scheme: "http", Host: "127.0.0.1:1"}}, "")
	for _, tc := range []struct{ wait, want time.Duration }{{0, 2 * time.Minute}, {50 * time.Second, 2 * time.Minute}, {10 * time.Minute, 10*time.Minute + 10*time.Second}} {
		if tr.WaitFor(tc.wait); tr.http.ResponseHeaderTimeout != tc.want {
			t.Errorf("WaitFor(%v): answers may take %v, want %v", tc.wait, tr.http.ResponseHeaderTimeout, tc.want)
		}
	}
}
