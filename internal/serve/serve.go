// Package serve runs the HTTP servers of a process: what every role's server
// has around its routes (health, metrics, authentication, limits, one log line a
// request), and the orderly end.
package serve

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/fleet"
	"github.com/athensctl/athensctl/internal/tracing"
)

// Options of the servers of a process.
type Options struct {
	Version           string
	Token             string // what internal roles ask for; "": nothing
	MaxRequests       int    // in flight
	MaxHeaderBytes    int
	ReadHeaderTimeout time.Duration
	BodyTimeout       time.Duration
	WriteTimeout      time.Duration
	IdleTimeout       time.Duration
	DrainDelay        time.Duration
	DrainTimeout      time.Duration
	Registry          *prometheus.Registry
	Tracer            trace.Tracer // nil: requests are not traced, but hand on the trace that they came with
	Log               *slog.Logger
}

// Servers are the servers of a process.
type Servers struct {
	o        Options
	requests *prometheus.HistogramVec
	bytes    *prometheus.CounterVec
	refused  *prometheus.CounterVec
	conns    prometheus.Gauge
	open     atomic.Int64 // as conns
	draining atomic.Bool
	ending   context.Context // ends when no connections are accepted any more
	end      context.CancelFunc
	list     []server
}

type server struct {
	role string
	ln   net.Listener
	http *http.Server
}

// New returns no servers yet.
func New(o Options) *Servers {
	s := &Servers{
		o: o,
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "athensctl_request_seconds", Help: "Time to answer a request, by role, method and status.",
			Buckets: []float64{.0005, .001, .005, .025, .1, .5, 2.5, 10, 60},
		}, []string{"role", "method", "status"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "athensctl_response_bytes_total", Help: "Bytes of answers' bodies that were sent, by role; health and metrics are not counted.",
		}, []string{"role"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "athensctl_requests_refused_total", Help: "Requests refused: requests (too many in flight), body (too large, or too slow), header-bytes (a header that is too large), header (without the one that require-header asks for).",
		}, []string{"bound"}),
		conns: prometheus.NewGauge(prometheus.GaugeOpts{Name: "athensctl_connections", Help: "Open connections of clients, idle ones too."}),
	}
	o.Registry.MustRegister(s.requests, s.bytes, s.refused, s.conns)
	s.ending, s.end = context.WithCancel(context.Background())
	return s
}

// Role is one role's server.
type Role struct {
	Name     string
	Address  string
	Internal bool // asks for the token
	// RequireHeader is NAME=VALUE: a request without it is refused; "": none is.
	RequireHeader string
	// Ready says why the role cannot work; nil: it can.
	Ready func(context.Context) error
	// Routes adds the role's routes.
	Routes func(*echo.Echo)
}

// Ending ends when Run waits for nothing but requests in flight: those that only wait for
// something to happen, which may not happen any more, end with it.
func (s *Servers) Ending() context.Context { return s.ending }

// Listen opens the address of a role; it is served by Run.
func (s *Servers) Listen(r Role) error {
	e := echo.New()
	e.HideBanner, e.HidePort = true, true
	e.HTTPErrorHandler = goproxy.ErrorHandler
	e.Use(s.around(r))
	health := func(c echo.Context) error { return plain(c, "ok\n") }
	metrics := promhttp.HandlerFor(s.o.Registry, promhttp.HandlerOpts{MaxRequestsInFlight: scrapesAtOnce, Timeout: scrapeTimeout})
	routes := map[string]echo.HandlerFunc{
		"/healthz": health,
		"/readyz": func(c echo.Context) error {
			if s.draining.Load() {
				return goproxy.Busy(time.Second, "not ready: the process is ending")
			}
			ctx, cancel := context.WithTimeout(c.Request().Context(), 5*time.Second)
			defer cancel()
			if err := r.Ready(ctx); err != nil {
				return goproxy.Busy(time.Second, "not ready: %w", err)
			}
			return plain(c, "ok\n")
		},
		"/version": func(c echo.Context) error { return plain(c, s.o.Version+"\n") },
		"/metrics": func(c echo.Context) error {
			c.Response().Header().Set("Cache-Control", goproxy.CacheNever)
			metrics.ServeHTTP(c.Response(), c.Request())
			return nil
		},
		"/robots.txt": func(c echo.Context) error { return plain(c, "User-agent: *\nDisallow: /\n") },
	}
	for path, h := range routes {
		e.GET(path, h)
		e.HEAD(path, h)
	}
	r.Routes(e)
	ln, err := net.Listen("tcp", r.Address)
	if err != nil {
		return fmt.Errorf("%s role: %w", r.Name, err)
	}
	s.list = append(s.list, server{r.Name, listener{ln, s.o.WriteTimeout / 100, s.refused.WithLabelValues("header-bytes")}, &http.Server{
		Handler:           e,
		ReadHeaderTimeout: s.o.ReadHeaderTimeout,
		WriteTimeout:      s.o.WriteTimeout,
		ConnState:         s.connState,
		IdleTimeout:       s.o.IdleTimeout,
		MaxHeaderBytes:    s.o.MaxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug),
	}})
	return nil
}

// Metrics are gathered for so many at once, whom no other bound holds; further ones are refused
// with 503. Who reads slowly takes no place.
const (
	scrapesAtOnce = 8
	scrapeTimeout = 20 * time.Second
)

func plain(c echo.Context, text string) error {
	c.Response().Header().Set("Cache-Control", goproxy.CacheNever)
	return c.String(http.StatusOK, text)
}

// connState counts connections. An idle one has some 20 KB; while more are open than requests
// may be in flight, they are closed when they become idle. New ones are not: health is asked
// over one, too.
func (s *Servers) connState(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.open.Add(1)
		s.conns.Inc()
	case http.StateIdle:
		if s.open.Load() > int64(s.o.MaxRequests) {
			c.Close()
		}
	case http.StateClosed, http.StateHijacked:
		s.open.Add(-1)
		s.conns.Dec()
	}
}

// Run serves until ctx ends, and then drains: not ready, DrainDelay, no new
// connections, requests in flight end within DrainTimeout.
func (s *Servers) Run(ctx context.Context) error {
	failed := make(chan error, len(s.list))
	for _, srv := range s.list {
		s.o.Log.Info("listening", "role", srv.role, "url", "http://"+srv.ln.Addr().String())
		go func() { failed <- srv.http.Serve(srv.ln) }()
	}
	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	s.draining.Store(true)
	if err == nil {
		s.o.Log.Info("draining", "delay", s.o.DrainDelay, "timeout", s.o.DrainTimeout)
		time.Sleep(s.o.DrainDelay)
	}
	s.end()
	end, cancel := context.WithTimeout(context.Background(), s.o.DrainTimeout)
	defer cancel()
	errs := make([]error, len(s.list))
	var wg sync.WaitGroup
	for i, srv := range s.list {
		wg.Go(func() {
			if e := srv.http.Shutdown(end); e != nil {
				srv.http.Close()
				errs[i] = fmt.Errorf("%s role: requests were cut: %w", srv.role, e)
			}
		})
	}
	wg.Wait()
	return errors.Join(append(errs, err)...)
}

// unlogged paths are asked all the time by machines.
func unlogged(path string) bool { return path == "/healthz" || path == "/readyz" || path == "/metrics" }

// around is what stands around every route.
func (s *Servers) around(r Role) echo.MiddlewareFunc {
	var inflight atomic.Int64
	s.o.Registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "athensctl_requests_in_flight", Help: "Requests being answered.", ConstLabels: prometheus.Labels{"role": r.Name},
	}, func() float64 { return float64(inflight.Load()) }))
	books := books{all: map[outcome]book{}}
	log := s.o.Log.Handler().WithAttrs([]slog.Attr{slog.String("role", r.Name)})
	bytes := s.bytes.WithLabelValues(r.Name)
	needName, needValue, _ := strings.Cut(r.RequireHeader, "=")
	// ended is for every request, also for one whose answer is cut by a panic.
	ended := func(ctx context.Context, c echo.Context, start time.Time, call fleet.Call, span trace.Span, err error) {
		inflight.Add(-1)
		req, res := c.Request(), c.Response()
		if unlogged(req.URL.Path) {
			return
		}
		took := time.Since(start)
		method := req.Method
		if method != "GET" && method != "HEAD" && method != "POST" && method != "DELETE" {
			method = "other" // any word, of up to max-header-bytes
		}
		book := books.get(outcome{method, res.Status}, func() book {
			return book{
				s.requests.WithLabelValues(r.Name, method, strconv.Itoa(res.Status)),
				log.WithAttrs([]slog.Attr{slog.String("method", method), slog.Int("status", res.Status)}),
			}
		})
		book.seconds.Observe(took.Seconds())
		bytes.Add(float64(res.Size))
		logRequest(ctx, book.log, start.Add(took), call, req, res, took, err)
		tracing.Served(span, res.Status, res.Size, err)
	}
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) (_ error) {
			start := time.Now()
			req, res := c.Request(), c.Response()
			call := fleet.Call{RequestID: req.Header.Get(fleet.HeaderRequestID)}
			if call.RequestID == "" || len(call.RequestID) > 64 || strings.ContainsFunc(call.RequestID, func(r rune) bool { return r < '!' || r > '~' }) {
				call.RequestID = fleet.NewID(8)
			}
			if r.Internal { // the public gets it with errors: what is good, a cache may hand to others
				res.Header()["X-Request-Id"] = []string{call.RequestID}
			}
			call.Background = r.Internal && fleet.IsBackground(req.Header)
			ctx := fleet.WithCall(req.Context(), call)
			if r.Internal {
				if ms, err := strconv.ParseInt(req.Header.Get(fleet.HeaderTimeout), 10, 64); err == nil && ms > 0 && ms < 1<<40 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, time.Duration(ms)*time.Millisecond)
					defer cancel()
				}
			}
			health := unlogged(req.URL.Path)
			var span trace.Span
			if !health {
				ctx, span = s.trace(ctx, r, call, req)
			}
			c.SetRequest(req.WithContext(ctx))
			s.pace(c)
			n := inflight.Add(1)
			fail := func(err error) { // with the id, so that whoever gets it can say which request it was
				res.Header()["X-Request-Id"] = []string{call.RequestID}
				goproxy.ErrorHandler(err, c)
			}
			err := errCut
			defer func() {
				// A panic ends the request, and not unseen; net/http does the rest.
				what := recover()
				if what != nil && what != http.ErrAbortHandler {
					s.o.Log.Error("panic", "role", r.Name, "path", req.URL.Path, "id", call.RequestID, "panic", what, "stack", string(debug.Stack()))
					err = goproxy.Errorf(http.StatusInternalServerError, "internal error; its id is %s", call.RequestID)
					if !res.Committed {
						fail(err)
						what = nil
					}
				}
				ended(ctx, c, start, call, span, err)
				if what != nil {
					panic(http.ErrAbortHandler)
				}
			}()
			switch {
			case n > int64(s.o.MaxRequests) && !health:
				s.refused.WithLabelValues("requests").Inc()
				err = goproxy.Busy(time.Second, "busy: %d requests are in flight already", s.o.MaxRequests)
			case r.Internal && s.o.Token != "" && req.URL.Path != "/healthz" && req.URL.Path != "/readyz" && !s.authorized(req):
				res.Header().Set("WWW-Authenticate", `Basic realm="athensctl"`)
				err = goproxy.Errorf(http.StatusUnauthorized, "unauthorized: the internal token is missing or wrong")
			case needName != "" && !health && subtle.ConstantTimeCompare([]byte(req.Header.Get(needName)), []byte(needValue)) != 1:
				s.refused.WithLabelValues("header").Inc()
				err = goproxy.Errorf(http.StatusForbidden, "forbidden: requests come through the CDN in front of this server, which adds a header")
			default:
				err = next(c)
			}
			if err != nil {
				if goproxy.Status(err) == http.StatusRequestEntityTooLarge || errors.Is(err, os.ErrDeadlineExceeded) {
					s.refused.WithLabelValues("body").Inc()
				}
				fail(err)
			}
			return nil
		}
	}
}

// errCut is the error of a request that was ended by a panic: http.ErrAbortHandler, when
// an answer that has begun cannot be finished.
var errCut = errors.New("the answer was cut")

// trace takes up the trace that a request came with, and begins the request's span in it
// where there is a tracer. An internal role begins no traces: it would be one for each look at the queue.
func (s *Servers) trace(ctx context.Context, role Role, call fleet.Call, req *http.Request) (context.Context, trace.Span) {
	ctx, span := tracing.Serve(ctx, s.o.Tracer, req, !role.Internal)
	if !span.IsRecording() {
		return ctx, span
	}
	span.SetAttributes(attribute.String("athensctl.role", role.Name), attribute.String("athensctl.request_id", call.RequestID))
	path := strings.TrimPrefix(req.URL.Path, "/cached-only")
	for _, suffix := range []string{".save", ".delete"} {
		if p, ok := strings.CutSuffix(path, suffix); ok {
			path = p + ".zip"
		}
	}
	if r, err := goproxy.ParseRequest(path); err == nil {
		span.SetAttributes(attribute.String("athensctl.module", r.Path), attribute.String("athensctl.version", r.Query))
	}
	return ctx, span
}

// logRequest writes the line of a request that ended at end. It goes to the handler
// itself: a Logger would ask the clock again, and who called it.
func logRequest(ctx context.Context, log slog.Handler, end time.Time, call fleet.Call, req *http.Request, res *echo.Response, took time.Duration, err error) {
	level := slog.LevelInfo
	if res.Status >= 500 || err == errCut {
		level = slog.LevelWarn
	}
	if !log.Enabled(ctx, level) {
		return
	}
	line := slog.NewRecord(end, level, "request", 0)
	line.AddAttrs(
		slog.String("path", loggedPath(req.URL.Path)), slog.Int64("bytes", res.Size), slog.Duration("took", took), slog.String("id", call.RequestID))
	if id := tracing.ID(ctx); id != "" {
		line.AddAttrs(slog.String("trace_id", id))
	}
	if err != nil {
		line.AddAttrs(slog.String("err", err.Error()))
	}
	log.Handle(ctx, line) // an error is the log file's, and has no other place to go to
}

// loggedPath is as much of a path as a request that is served may have, and "…" for the rest.
func loggedPath(path string) string {
	const most = 2048
	if len(path) <= most {
		return path
	}
	return path[:most] + "…"
}

func (s *Servers) authorized(req *http.Request) bool {
	token, ok := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
	if !ok {
		_, token, ok = req.BasicAuth()
	}
	return ok && subtle.ConstantTimeCompare([]byte(token), []byte(s.o.Token)) == 1
}
