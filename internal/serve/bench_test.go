package serve

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
)

// atHand answers from memory, as a proxy's cache does.
type atHand struct {
	list *goproxy.VersionList
	info *goproxy.Info
	mod  []byte
}

func (s *atHand) List(context.Context, string) (*goproxy.VersionList, error) { return s.list, nil }
func (s *atHand) Resolve(context.Context, string, string) (*goproxy.Info, error) {
	return s.info, nil
}
func (s *atHand) Mod(context.Context, module.Version) (*goproxy.Blob, error) {
	return goproxy.NewBlob(s.mod, s.info.Kept), nil
}
func (s *atHand) Zip(ctx context.Context, m module.Version) (*goproxy.Blob, error) {
	return s.Mod(ctx, m)
}

// discard is a client that reads nothing.
type discard struct{ h http.Header }

func (d *discard) Header() http.Header         { return d.h }
func (d *discard) WriteHeader(int)             {}
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkRequest is what a request costs between net/http and a cache: routing,
// the bounds, metrics, the log line, the protocol's headers.
func BenchmarkRequest(b *testing.B) {
	kept := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	src := &atHand{
		list: goproxy.NewVersionList("example.com/bench/module", []string{"v1.0.0", "v1.1.0", "v1.2.3"}, kept),
		info: &goproxy.Info{Version: "v1.2.3", Time: kept, Raw: []byte(`{"Version":"v1.2.3","Time":"2026-01-02T03:04:05Z"}`), Kept: kept, Checked: kept},
		mod:  []byte("module example.com/bench/module\n\ngo 1.26\n"),
	}
	const sampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.NeverSample()))).Tracer("")
	for _, bb := range []struct {
		name, path  string
		tracer      trace.Tracer
		traceparent string
	}{
		{name: "info", path: "/@v/v1.2.3.info"},
		{name: "mod", path: "/@v/v1.2.3.mod"},
		{name: "list", path: "/@v/list"},
		{name: "latest", path: "/@latest"},
		{name: "mod, traceparent", path: "/@v/v1.2.3.mod", traceparent: sampled},
		{name: "mod, traces on, not sampled", path: "/@v/v1.2.3.mod", tracer: tracer},
		{name: "mod, sampled", path: "/@v/v1.2.3.mod", tracer: tracer, traceparent: sampled},
	} {
		b.Run(bb.name, func(b *testing.B) {
			s := New(Options{MaxRequests: 100, BodyTimeout: time.Second, Tracer: bb.tracer, Registry: prometheus.NewRegistry(), Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
			if err := s.Listen(Role{Name: "proxy", Address: "127.0.0.1:0", Routes: func(e *echo.Echo) { e.Any("/*", goproxy.Handler(src)) }}); err != nil {
				b.Fatal(err)
			}
			defer s.list[0].ln.Close()
			req := httptest.NewRequest("GET", "/example.com/bench/module"+bb.path, nil)
			if bb.traceparent != "" {
				req.Header.Set("Traceparent", bb.traceparent)
			}
			w := &discard{http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				clear(w.h)
				s.list[0].http.Handler.ServeHTTP(w, req)
			}
		})
	}
}
