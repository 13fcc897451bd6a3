package serve

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
)

// inMemory is a Source that has every go.mod file.
type inMemory struct{ goproxy.Source }

func (inMemory) Mod(_ context.Context, m module.Version) (*goproxy.Blob, error) {
	return goproxy.NewBlob([]byte("module "+m.Path+"\n"), time.Unix(1, 0)), nil
}

// discard is a response that nobody reads.
type discard struct{ h http.Header }

func (d discard) Header() http.Header         { return d.h }
func (d discard) WriteHeader(int)             {}
func (d discard) Write(b []byte) (int, error) { return len(b), nil }

// BenchmarkRequest is what stands around a route, and the handler of a .mod file that is
// in memory; without the network.
func BenchmarkRequest(b *testing.B) {
	asked := http.Header{"Traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.NeverSample()))).Tracer("")
	for _, bm := range []struct {
		name   string
		header http.Header
		tracer trace.Tracer
	}{
		{"off", http.Header{}, nil},
		{"off, traceparent", asked, nil},
		{"on, not sampled", http.Header{}, tracer},
		{"on, sampled", asked, tracer},
	} {
		b.Run(bm.name, func(b *testing.B) {
			s := New(Options{MaxRequests: 100, Tracer: bm.tracer, Registry: prometheus.NewRegistry(), Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
			err := s.Listen(Role{
				Name: "proxy", Address: "127.0.0.1:0", Ready: func(context.Context) error { return nil },
				Routes: func(e *echo.Echo) { e.Any("/*", goproxy.Handler(inMemory{})) },
			})
			if err != nil {
				b.Fatal(err)
			}
			defer s.list[0].ln.Close()
			req, err := http.NewRequest(http.MethodGet, "/example.com/m/@v/v1.0.0.mod", nil)
			if err != nil {
				b.Fatal(err)
			}
			req.Header = bm.header
			b.ReportAllocs()
			for b.Loop() {
				s.list[0].http.Handler.ServeHTTP(discard{http.Header{}}, req)
			}
		})
	}
}
