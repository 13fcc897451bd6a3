package serve

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/fleet"
	"github.com/athensctl/athensctl/internal/tracing"
)

type buffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

// site is one role's server that runs until stop.
type site struct {
	url     string
	log     *buffer
	servers *Servers
	stop    func() error
}

func run(t *testing.T, r Role, o Options) *site {
	t.Helper()
	s := &site{log: &buffer{}}
	o.Registry, o.Version = prometheus.NewRegistry(), "v9"
	o.Log = slog.New(slog.NewTextHandler(s.log, nil))
	if o.MaxRequests == 0 {
		o.MaxRequests = 100
	}
	if o.DrainTimeout == 0 {
		o.DrainTimeout = 10 * time.Second
	}
	r.Name, r.Address = "proxy", "127.0.0.1:0"
	if r.Ready == nil {
		r.Ready = func(context.Context) error { return nil }
	}
	if r.Routes == nil {
		r.Routes = func(e *echo.Echo) {
			e.Any("/*", func(c echo.Context) error { return c.String(http.StatusOK, "served") })
		}
	}
	servers := New(o)
	if err := servers.Listen(r); err != nil {
		t.Fatal(err)
	}
	s.url, s.servers = "http://"+servers.list[0].ln.Addr().String(), servers
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- servers.Run(ctx) }()
	s.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { s.stop() })
	return s
}

func get(t *testing.T, url string, headers ...string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header
}

func TestToken(t *testing.T) {
	s := run(t, Role{Internal: true}, Options{Token: "right"})
	basic := func(pw string) string {
		req, _ := http.NewRequest(http.MethodGet, "/", nil)
		req.SetBasicAuth("anybody", pw)
		return req.Header.Get("Authorization")
	}
	for _, tc := range []struct {
		path, auth string
		want       int
	}{
		{"/x", "", 401}, {"/x", "Bearer right", 200}, {"/x", "Bearer wrong", 401}, {"/x", "Bearer ", 401}, {"/x", "bearer right", 401},
		{"/x", basic("right"), 200}, {"/x", basic("wrong"), 401}, {"/x", "right", 401},
		{"/healthz", "", 200}, {"/readyz", "", 200}, {"/metrics", "", 401}, {"/version", "Bearer right", 200}, {"/healthz/..", "", 401},
	} {
		status, body, h := get(t, s.url+tc.path, "Authorization", tc.auth)
		if status != tc.want {
			t.Errorf("%s with %q: %d, want %d", tc.path, tc.auth, status, tc.want)
		}
		if status == 401 && (h.Get("WWW-Authenticate") == "" || h.Get("Cache-Control") != "no-store" || strings.Contains(body, "right")) {
			t.Errorf("%s: %v %s", tc.path, h, body)
		}
	}
	if log := s.log.String(); strings.Contains(log, "right") || strings.Contains(log, "cmlnaHQ") {
		t.Errorf("the token is in the log: %s", log)
	}
}

func TestRequireHeader(t *testing.T) {
	s := run(t, Role{RequireHeader: "X-Azure-FDID=front=door"}, Options{})
	for _, tc := range []struct {
		path, value string
		want        int
	}{{"/x", "", 403}, {"/x", "other", 403}, {"/x", "front=door", 200}, {"/healthz", "", 200}, {"/readyz", "", 200}, {"/metrics", "", 200}, {"/version", "", 403}} {
		if status, body, _ := get(t, s.url+tc.path, "X-Azure-FDID", tc.value); status != tc.want || strings.Contains(body, "front=door") {
			t.Errorf("%s with %q: %d, want %d: %s", tc.path, tc.value, status, tc.want, body)
		}
	}
}

// Past the bound the answer comes at once; health does not count.
func TestMaxRequests(t *testing.T) {
	inside, leave := make(chan struct{}, 2), make(chan struct{})
	s := run(t, Role{Routes: func(e *echo.Echo) {
		e.GET("/wait", func(c echo.Context) error {
			inside <- struct{}{}
			<-leave
			return c.String(200, "late")
		})
	}}, Options{MaxRequests: 2})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if status, body, _ := get(t, s.url+"/wait"); status != 200 || body != "late" {
				t.Errorf("%d %s", status, body)
			}
		})
	}
	<-inside
	<-inside
	status, body, h := get(t, s.url+"/wait")
	if status != 503 || h.Get("Retry-After") == "" || !strings.Contains(body, "2 requests are in flight") {
		t.Errorf("the third: %d %v %s", status, h, body)
	}
	if status, _, _ := get(t, s.url+"/healthz"); status != 200 {
		t.Errorf("healthz: %d", status)
	}
	_, metrics, _ := get(t, s.url+"/metrics")
	if !strings.Contains(metrics, `athensctl_requests_refused_total{bound="requests"} 1`) || !strings.Contains(metrics, `athensctl_requests_in_flight{role="proxy"} 3`) {
		t.Errorf("metrics:\n%s", metrics)
	}
	close(leave)
	wg.Wait()
}

// net/http refuses a header that is too large before any of our code; it is counted all the same.
func TestMaxHeader(t *testing.T) {
	s := run(t, Role{}, Options{MaxHeaderBytes: 8 << 10})
	for i := range 3 {
		c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "GET /x HTTP/1.1\r\nHost: x\r\nX-Big: %s\r\n\r\n", strings.Repeat("x", 20<<10))
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil || !strings.HasPrefix(line, "HTTP/1.1 431 ") {
			t.Errorf("header %d: %q, %v", i, line, err)
		}
		c.Close()
	}
	if status, _, _ := get(t, s.url+"/x"); status != 200 {
		t.Errorf("a small one: %d", status)
	}
	if _, metrics, _ := get(t, s.url+"/metrics"); !strings.Contains(metrics, `athensctl_requests_refused_total{bound="header-bytes"} 3`) {
		t.Errorf("metrics:\n%s", metrics)
	}
}

// An internal caller's deadline, id, trace and priority reach the handler; a public
// caller sets no deadline and no priority.
func TestCall(t *testing.T) {
	type seen struct {
		call     fleet.Call
		trace    string
		deadline time.Duration
	}
	for _, internal := range []bool{true, false} {
		var got seen
		s := run(t, Role{Internal: internal, Routes: func(e *echo.Echo) {
			e.GET("/x", func(c echo.Context) error {
				ctx := c.Request().Context()
				got = seen{call: fleet.CallOf(ctx), trace: tracing.Parent(ctx)}
				if d, ok := ctx.Deadline(); ok {
					got.deadline = time.Until(d)
				}
				return c.NoContent(204)
			})
		}}, Options{})
		parent := "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
		_, _, h := get(t, s.url+"/x", fleet.HeaderTimeout, "5000", fleet.HeaderRequestID, "my-id", fleet.HeaderPriority, "u=7", "traceparent", parent)
		answered := map[bool]string{true: "my-id"}[internal] // the public gets it with errors
		if h.Get(fleet.HeaderRequestID) != answered || got.call.RequestID != "my-id" || got.trace != parent {
			t.Errorf("internal %v: %+v, answered %v", internal, got, h)
		}
		if got.call.Background != internal || (got.deadline > 4*time.Second && got.deadline <= 5*time.Second) != internal {
			t.Errorf("internal %v: %+v", internal, got)
		}
		for _, id := range []string{"", strings.Repeat("x", 65), "with space", "caf\u00e9"} {
			get(t, s.url+"/x", fleet.HeaderRequestID, id)
			if made := got.call.RequestID; len(made) != 16 || made == id {
				t.Errorf("id %q became %q", id, made)
			}
		}
	}
}

// Whoever gets an error can say which request it was.
func TestErrorHasID(t *testing.T) {
	s := run(t, Role{Routes: func(e *echo.Echo) {
		e.GET("/x", func(echo.Context) error { return goproxy.NotFound("no x") })
		e.GET("/bug", func(echo.Context) error { panic("a bug") })
	}}, Options{})
	for path, want := range map[string]int{"/x": 404, "/no-route": 404, "/bug": 500} {
		if status, _, h := get(t, s.url+path, fleet.HeaderRequestID, "my-id"); status != want || h.Get(fleet.HeaderRequestID) != "my-id" {
			t.Errorf("%s: %d %v", path, status, h)
		}
	}
}

// A body that is announced and never sent holds up neither its connection nor the end,
// also where no handler reads it.
func TestUnsentBody(t *testing.T) {
	s := run(t, Role{}, Options{BodyTimeout: 200 * time.Millisecond, DrainTimeout: 10 * time.Second})
	dial := func(method string) net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(c, "%s /example.com/m/@v/list HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n", method)
		return c
	}
	for _, method := range []string{"GET", "POST"} {
		answer, err := io.ReadAll(dial(method)) // to the end of the connection
		if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200 OK") {
			t.Errorf("%s: %q, %v", method, answer, err)
		}
	}
	dial("GET")
	if err := s.stop(); err != nil {
		t.Error(err)
	}
}

// A write deadline is moved when it is worth it, one that is nearer always, and before what
// is written.
func TestWriteDeadline(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := listener{Listener: ln, apart: time.Minute}
	defer l.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	c := accepted.(*conn)
	var _ io.ReaderFrom = c
	now := time.Now()
	for i, tc := range []struct{ set, want time.Time }{
		{now.Add(time.Hour), now.Add(time.Hour)},
		{now.Add(time.Hour + time.Second), now.Add(time.Hour)},
		{now.Add(time.Hour + time.Minute), now.Add(time.Hour + time.Minute)},
		{now.Add(time.Second), now.Add(time.Second)},
		{time.Time{}, time.Time{}},
		{now.Add(-time.Second), now.Add(-time.Second)},
	} {
		c.SetWriteDeadline(time.Time{}) // as after each request
		c.SetWriteDeadline(tc.set)
		over := tc.want.Before(now) && !tc.want.IsZero()
		if _, err := c.Write([]byte("x")); errors.Is(err, os.ErrDeadlineExceeded) != over || !c.inUse.Equal(tc.want) {
			t.Errorf("%d: set to now%+v, it is now%+v, %v", i, tc.set.Sub(now), c.inUse.Sub(now), err)
		}
	}
	c.SetWriteDeadline(now.Add(-time.Second))
	if _, err := c.ReadFrom(strings.NewReader("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the deadline: %v", err)
	}
}

// The end: not ready, requests in flight are answered, and then it is over.
func TestDrain(t *testing.T) {
	inside, leave := make(chan struct{}), make(chan struct{})
	s := run(t, Role{Routes: func(e *echo.Echo) {
		e.GET("/wait", func(c echo.Context) error { close(inside); <-leave; return c.String(200, "late") })
	}}, Options{DrainDelay: 300 * time.Millisecond})
	answered := make(chan string, 1)
	go func() {
		_, body, _ := get(t, s.url+"/wait")
		answered <- body
	}()
	<-inside
	ended := make(chan error, 1)
	go func() { ended <- s.stop() }()
	for end := time.Now().Add(5 * time.Second); ; {
		if status, body, _ := get(t, s.url+"/readyz"); status == 503 && strings.Contains(body, "ending") {
			break
		}
		if time.Now().After(end) {
			t.Fatal("still ready")
		}
	}
	select {
	case err := <-ended:
		t.Fatalf("ended with a request in flight: %v", err)
	case <-time.After(500 * time.Millisecond):
	}
	if _, err := net.DialTimeout("tcp", strings.TrimPrefix(s.url, "http://"), time.Second); err == nil {
		t.Error("new connections are taken after the delay")
	}
	close(leave)
	if body := <-answered; body != "late" {
		t.Errorf("answer %q", body)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// Requests that only wait for something to happen end when they are told, and hold nobody up.
func TestDrainOfWhoWaits(t *testing.T) {
	inside := make(chan struct{})
	ending := make(chan context.Context, 1)
	s := run(t, Role{Routes: func(e *echo.Echo) {
		e.GET("/wait", func(c echo.Context) error {
			ctx := <-ending
			close(inside)
			select {
			case <-ctx.Done():
				return c.String(200, "ask again")
			case <-c.Request().Context().Done():
				return c.Request().Context().Err()
			}
		})
	}}, Options{})
	ending <- s.servers.Ending()
	answered := make(chan string, 1)
	go func() {
		resp, err := http.Get(s.url + "/wait")
		if err != nil {
			answered <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		answered <- string(body)
	}()
	<-inside
	if s.servers.Ending().Err() != nil {
		t.Error("it is ending before it is told to")
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	if body := <-answered; body != "ask again" {
		t.Errorf("answer %q", body)
	}
}

// Requests that outlast the drain are cut, and that is said.
func TestDrainTimeout(t *testing.T) {
	inside, leave := make(chan struct{}), make(chan struct{})
	s := run(t, Role{Routes: func(e *echo.Echo) {
		e.GET("/wait", func(echo.Context) error { close(inside); <-leave; return nil })
	}}, Options{DrainTimeout: 50 * time.Millisecond})
	defer close(leave)
	cut := make(chan error, 1)
	go func() {
		_, err := http.Get(s.url + "/wait")
		cut <- err
	}()
	<-inside
	if err := s.stop(); err == nil || !strings.Contains(err.Error(), "proxy role: requests were cut") {
		t.Errorf("end: %v", err)
	}
	if err := <-cut; err == nil {
		t.Error("the request was answered")
	}
}

func TestNotReady(t *testing.T) {
	s := run(t, Role{Ready: func(context.Context) error { return errors.New("storage is away") }}, Options{})
	if status, body, h := get(t, s.url+"/readyz"); status != 503 || !strings.Contains(body, "not ready: storage is away") || h.Get("Cache-Control") != "no-store" {
		t.Errorf("%d %v %s", status, h, body)
	}
	if status, _, _ := get(t, s.url+"/healthz"); status != 200 {
		t.Errorf("healthz: %d", status)
	}
}

// A body that pauses is given up, and its connection is not left waiting.
func TestSlowBody(t *testing.T) {
	s := run(t, Role{Routes: func(e *echo.Echo) {
		e.POST("/x", func(c echo.Context) error {
			if _, err := io.ReadAll(c.Request().Body); err != nil {
				return goproxy.Errorf(http.StatusRequestTimeout, "body: %w", err)
			}
			return c.NoContent(200)
		})
	}}, Options{BodyTimeout: 100 * time.Millisecond})
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(conn, "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
	answer := make([]byte, 12)
	if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != "HTTP/1.1 408" {
		t.Errorf("%q %v", answer, err)
	}
	_, metrics, _ := get(t, s.url+"/metrics")
	if !strings.Contains(metrics, `athensctl_requests_refused_total{bound="body"} 1`) {
		t.Errorf("metrics:\n%s", metrics)
	}
}

func TestLog(t *testing.T) {
	s := run(t, Role{Routes: func(e *echo.Echo) {
		e.GET("/fine", func(c echo.Context) error { return c.String(200, "12345") })
		e.GET("/bad", func(echo.Context) error { return goproxy.Errorf(502, "upstream cut the answer") })
	}}, Options{})
	for _, path := range []string{"/fine?secret=1", "/bad", "/healthz", "/readyz", "/metrics"} {
		get(t, s.url+path)
	}
	s.stop()
	lines := strings.Split(s.log.String(), "\n")
	var requests []string
	for _, l := range lines {
		if strings.Contains(l, "msg=request") {
			requests = append(requests, l)
		}
	}
	if len(requests) != 2 {
		t.Fatalf("%d lines: %q", len(requests), requests)
	}
	for i, wants := range [][]string{
		{"level=INFO", "role=proxy", "method=GET", "path=/fine ", "status=200", "bytes=5", "took=", "id="},
		{"level=WARN", "path=/bad ", "status=502", `err="upstream cut the answer"`},
	} {
		for _, want := range wants {
			if !strings.Contains(requests[i], want) {
				t.Errorf("no %q in %s", want, requests[i])
			}
		}
	}
}

// Connections are kept open while they are idle, as many as requests may be in flight. One
// more is served, and closed then.
func TestIdleConnections(t *testing.T) {
	s := run(t, Role{}, Options{MaxRequests: 3})
	addr := strings.TrimPrefix(s.url, "http://")
	ask := func() (c net.Conn, kept bool) {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		io.WriteString(c, "GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
		r := bufio.NewReader(c)
		resp, err := http.ReadResponse(r, nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%v, %v", resp, err)
		}
		io.Copy(io.Discard, resp.Body)
		// Another request is answered where the connection is kept, and nothing comes where not.
		io.WriteString(c, "GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
		resp, err = http.ReadResponse(r, nil)
		return c, err == nil && resp.StatusCode == 200
	}
	for i := range 6 {
		if _, kept := ask(); kept != (i < 3) {
			t.Errorf("connection %d: kept %v", i, kept)
		}
	}
}

// slowMetric is gathered when it is told.
type slowMetric struct{ asked, answer chan struct{} }

func (m slowMetric) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }
func (m slowMetric) Collect(ch chan<- prometheus.Metric) {
	m.asked <- struct{}{}
	<-m.answer
}

// Metrics are gathered for a few at once, whoever asks for them.
func TestMetricsAtOnce(t *testing.T) {
	m := slowMetric{make(chan struct{}, 1), make(chan struct{}, 1)}
	s := New(Options{MaxRequests: 100, Registry: prometheus.NewRegistry(), Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	m.answer <- struct{}{} // it is described
	s.o.Registry.MustRegister(m)
	<-m.asked
	if err := s.Listen(Role{Name: "proxy", Address: "127.0.0.1:0", Routes: func(*echo.Echo) {}}); err != nil {
		t.Fatal(err)
	}
	defer s.list[0].ln.Close()
	ask := func() (int, string) {
		w := httptest.NewRecorder()
		s.list[0].http.Handler.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		return w.Code, w.Body.String()
	}
	var wg sync.WaitGroup
	for range scrapesAtOnce {
		wg.Go(func() {
			if status, _ := ask(); status != 200 {
				t.Errorf("one of so many at once: %d", status)
			}
		})
	}
	for range scrapesAtOnce {
		<-m.asked
	}
	if status, text := ask(); status != 503 || !strings.Contains(text, "concurrent requests") { // and not that it takes too long
		t.Errorf("one more: %d %s", status, text)
	}
	close(m.answer)
	wg.Wait()
}

// A client's words, as large as a header may be, are not remembered, and fill no log.
func TestLongWords(t *testing.T) {
	log := &buffer{}
	s := New(Options{MaxRequests: 100, Registry: prometheus.NewRegistry(), Log: slog.New(slog.NewTextHandler(log, nil))})
	if err := s.Listen(Role{Name: "proxy", Address: "127.0.0.1:0", Routes: func(e *echo.Echo) { e.Any("/*", func(c echo.Context) error { return c.NoContent(200) }) }}); err != nil {
		t.Fatal(err)
	}
	defer s.list[0].ln.Close()
	ask := func(method, path string) (line string) {
		log.Reset()
		req := httptest.NewRequest("GET", "/", nil)
		req.Method, req.URL.Path = method, path
		s.list[0].http.Handler.ServeHTTP(httptest.NewRecorder(), req)
		return log.String()
	}
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	ask("GET", "/"+strings.Repeat("\x00", 32<<10))
	before := heap()
	for i := range 500 {
		if line := ask(fmt.Sprintf("%d", i)+strings.Repeat("x", 32<<10), "/"); !strings.Contains(line, "method=other") {
			t.Fatalf("%.200s", line)
		}
	}
	if n := heap() - before; n > 4<<20 {
		t.Errorf("%d bytes are remembered of 500 methods", n)
	}
	if line := ask("GET", "/"+strings.Repeat("\x00", 32<<10)); len(line) > 10_000 || !strings.Contains(line, "status=200") {
		t.Errorf("a line of %d bytes: %.200s", len(line), line)
	}
	runtime.KeepAlive(s)
}

// An answer that is cut is told to the client, counted and logged, and is in flight no more.
func TestCut(t *testing.T) {
	s := run(t, Role{Routes: func(e *echo.Echo) {
		e.GET("/x", func(c echo.Context) error {
			c.Response().Header().Set("Content-Length", "100")
			io.WriteString(c.Response(), "half")
			panic(http.ErrAbortHandler)
		})
	}}, Options{})
	for range 3 {
		resp, err := http.Get(s.url + "/x")
		if err != nil {
			continue // it was cut before the header was sent
		}
		if b, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("the client sees %q", b)
		}
		resp.Body.Close()
	}
	_, metrics, _ := get(t, s.url+"/metrics")
	for _, want := range []string{
		`athensctl_requests_in_flight{role="proxy"} 1`, // this one
		`athensctl_request_seconds_count{method="GET",role="proxy",status="200"} 3`, `athensctl_response_bytes_total{role="proxy"} 12`,
	} {
		if !strings.Contains(metrics, want+"\n") {
			t.Errorf("no %s in\n%s", want, metrics)
		}
	}
	s.stop()
	if n := strings.Count(s.log.String(), `err="the answer was cut"`); n != 3 {
		t.Errorf("%d lines of three:\n%s", n, s.log)
	}
}

// The line of a request says in which trace it is, where somebody records that one.
func TestTraceInLog(t *testing.T) {
	s := run(t, Role{}, Options{})
	const id = "0af7651916cd43dd8448eb211c80319c"
	for path, parent := range map[string]string{"/sampled": "00-" + id + "-b7ad6b7169203331-01", "/not": "00-" + id + "-b7ad6b7169203331-00", "/none": "nonsense"} {
		get(t, s.url+path, "traceparent", parent)
	}
	s.stop()
	for line := range strings.Lines(s.log.String()) {
		if strings.Contains(line, "msg=request") && strings.Contains(line, "trace_id="+id) != strings.Contains(line, "path=/sampled") {
			t.Error(line)
		}
	}
}

// Without a tracer a request costs as many allocations as it did before there was tracing.
func TestUntracedCostsNothing(t *testing.T) {
	s := New(Options{Registry: prometheus.NewRegistry()})
	req, err := http.NewRequest(http.MethodGet, "/example.com/m/@v/v1.0.0.mod", nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		ctx, span := s.trace(ctx, Role{Name: "proxy"}, fleet.Call{}, req)
		if tracing.ID(ctx) != "" {
			t.Error("traced")
		}
		tracing.Served(span, 200, 0, nil)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A panic is answered, logged with where it was, and takes no place of those in flight; one
// that cuts an answer is seen in the log as well.
func TestPanic(t *testing.T) {
	s := run(t, Role{Routes: func(e *echo.Echo) {
		e.GET("/bug", func(echo.Context) error { panic("a bug of ours") })
		e.GET("/late", func(c echo.Context) error { c.String(200, "half"); panic("a late bug") })
		e.GET("/cut", func(c echo.Context) error { c.String(200, "half"); panic(http.ErrAbortHandler) })
		e.GET("/fine", func(c echo.Context) error { return c.String(200, "fine") })
	}}, Options{MaxRequests: 1})
	for range 3 {
		if status, body, _ := get(t, s.url+"/bug"); status != 500 || !strings.Contains(body, "internal error; its id is ") || strings.Contains(body, "bug of ours") {
			t.Errorf("a panic: %d %q", status, body)
		}
		for _, path := range []string{"/late", "/cut"} {
			resp, err := http.Get(s.url + path)
			if err == nil {
				_, err = io.ReadAll(resp.Body)
				resp.Body.Close()
			}
			if err == nil {
				t.Errorf("%s: half an answer looks whole", path)
			}
		}
	}
	if status, body, _ := get(t, s.url+"/fine"); status != 200 || body != "fine" {
		t.Errorf("after the panics: %d %q", status, body)
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	log := s.log.String()
	// A client asks once more where a connection ends that was good before.
	if n := strings.Count(log, "level=ERROR msg=panic"); n < 6 || !strings.Contains(log, "a bug of ours") || !strings.Contains(log, "serve_test.go") {
		t.Errorf("%d panics in the log: %s", n, log)
	}
	for _, path := range []string{"/bug", "/late", "/cut"} {
		if n := strings.Count(log, " path="+path+" "); n < 3 {
			t.Errorf("%d lines of %s", n, path)
		}
	}
}
