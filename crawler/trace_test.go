package crawler

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/fleet"
	"github.com/athensctl/athensctl/internal/tracing"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/memory"
)

const asked = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// remembering is a store that remembers the trace contexts of the Puts.
type remembering struct {
	*memory.Store
	puts chan string
}

func (r *remembering) Put(ctx context.Context, m module.Version, f storage.Files) error {
	r.puts <- tracing.Parent(ctx)
	return r.Store.Put(ctx, m, f)
}

// A fetch is in the trace of who waits for it, whichever crawler makes it; what nobody waits
// for is a trace of its own.
func TestJobTrace(t *testing.T) {
	s := &remembering{memory.New(0, nil), make(chan string, 100)}
	u := newUpstream()
	u.add("example.com/m", "v1.0.0", "v1.1.0", "v1.2.0", "v1.3.0")
	spans := tracetest.NewSpanRecorder()
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("")
	crawler := func(name string, tracer trace.Tracer) *Crawler {
		return New(s, s, Options{
			Name: name, Origins: []Origin{{Name: "test", Source: u}}, TempDir: t.TempDir(), Freshness: time.Minute, Workers: 8, ZipWorkers: 8,
			InflightBytes: 1 << 30, Lease: 15 * time.Second, Attempts: 1, Tracer: tracer, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		})
	}
	run := func(c *Crawler) (stop func()) {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { c.Run(ctx); close(done) }()
		return func() { cancel(); <-done }
	}
	stop := run(crawler("works", tracer))
	ctx := tracing.WithParent(context.Background(), asked)
	take := func(n int) (list []sdktrace.ReadOnlySpan) {
		t.Helper()
		eventually(t, "spans", func() bool { return len(spans.Ended()) >= n })
		list = spans.Ended()
		spans.Reset()
		return list
	}

	// The crawler that is asked does not work: the other one takes the job.
	idle := crawler("is asked", tracer)
	b, err := idle.Mod(ctx, module.Version{Path: "example.com/m", Version: "v1.0.0"})
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	sp := take(1)[0]
	if sp.Name() != "fetch mod" || sp.Parent().SpanID().String() != asked[36:52] || sp.SpanContext().TraceID().String() != asked[3:35] || sp.SpanKind() != trace.SpanKindConsumer {
		t.Errorf("%s is below %v", sp.Name(), sp.Parent())
	}
	if put := <-s.puts; put[:36] != asked[:36] || put[36:52] != sp.SpanContext().SpanID().String() {
		t.Errorf("the Put is below %s, not the fetch", put)
	}

	// Ahead of demand: a trace of its own, that says where the job comes from.
	if _, err := s.Enqueue(ctx, jobOf(ctx, storage.Key{Path: "example.com/m", Query: "v1.1.0", File: storage.FileMod}, storage.Ahead)); err != nil {
		t.Fatal(err)
	}
	sp = take(1)[0]
	if sp.Parent().IsValid() || len(sp.Links()) != 1 || sp.Links()[0].SpanContext.SpanID().String() != asked[36:52] || sp.SpanContext().TraceID().String() == asked[3:35] {
		t.Errorf("ahead: below %v, links %v", sp.Parent(), sp.Links())
	}
	if err := idle.bring(fleet.WithBackground(context.Background()), storage.Key{Path: "example.com/m", Query: "v1.2.0", File: storage.FileMod}); err != nil {
		t.Fatal(err)
	}
	if sp = take(1)[0]; sp.Parent().IsValid() || len(sp.Links()) != 0 {
		t.Errorf("ahead, of nobody: below %v, links %v", sp.Parent(), sp.Links())
	}

	// One that fails says so, and when it was parked and is tried again nobody waits any more.
	u.mu.Lock()
	u.fail = func(string) error { return goproxy.Errorf(502, "upstream is broken") }
	u.mu.Unlock()
	if _, err := idle.Mod(ctx, module.Version{Path: "example.com/m", Version: "v1.3.0"}); err == nil {
		t.Fatal("no error")
	}
	if sp = take(1)[0]; sp.Status().Code != codes.Error || !strings.Contains(sp.Status().Description, "upstream is broken") || sp.SpanContext().TraceID().String() != asked[3:35] {
		t.Errorf("failed: %+v in %v", sp.Status(), sp.SpanContext())
	}
	for _, tc := range []struct {
		attempts int
		p        storage.Priority
		inTrace  bool
	}{{1, storage.Demand, true}, {2, storage.Demand, false}, {1, storage.Ahead, false}} {
		_, sp := idle.trace(context.Background(), &storage.Job{Attempts: tc.attempts, Priority: tc.p, Trace: asked})
		if got := sp.SpanContext().TraceID().String() == asked[3:35]; got != tc.inTrace {
			t.Errorf("%+v: in the trace: %v", tc, got)
		}
		sp.End()
	}
	take(3)
	stop()
	<-s.puts
	<-s.puts

	// Without a tracer the trace context goes with the job all the same.
	u.mu.Lock()
	u.fail = nil
	u.mu.Unlock()
	untraced := crawler("has no tracer", nil)
	defer run(untraced)()
	eventually(t, "it runs", func() bool {
		_, ok := untraced.begin()
		if ok {
			untraced.begun.Done()
		}
		return ok
	})
	b, err = untraced.Zip(ctx, module.Version{Path: "example.com/m", Version: "v1.1.0"})
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	if put := <-s.puts; put != asked {
		t.Errorf("the Put is below %q, not %s", put, asked)
	}
}

// The bytes that hosts send are counted, also those of an answer that is not read to its end.
func TestHostBytes(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, strings.Repeat("x", 100_000)) }))
	defer srv.Close()
	h := NewHosts(HostOptions{Connections: 2})
	client := &http.Client{Transport: h.Wrap(http.DefaultTransport)}
	for _, n := range []int64{100_000, 10} {
		resp, err := client.Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.CopyN(io.Discard, resp.Body, n); got != n || err != nil {
			t.Fatal(got, err)
		}
		resp.Body.Close()
	}
	var m dto.Metric
	ch := make(chan prometheus.Metric, 10)
	h.received.Collect(ch)
	if err := (<-ch).Write(&m); err != nil || len(ch) != 0 {
		t.Fatal(err, len(ch))
	}
	if got := m.GetCounter().GetValue(); m.GetLabel()[0].GetValue() != strings.TrimPrefix(srv.URL, "http://") || got < 100_010 || got >= 200_000 {
		t.Errorf("%v", &m)
	}
}
