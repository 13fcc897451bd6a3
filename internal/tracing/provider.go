package tracing

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Options of a Provider. All are needed unless it says otherwise.
type Options struct {
	Receiver
	Sample  float64 // share of the traces that begin here, and of those that the public wants; another role's is as it says
	Service string  // service.name
	Version string  // service.version
	// Instance is unique among the processes of a Service: service.instance.id.
	Instance string
	Metrics  prometheus.Registerer // nil: nothing is shown
	Log      *slog.Logger
}

// Provider makes the spans of a process and sends them.
type Provider struct{ sdk *sdktrace.TracerProvider }

// Bounds of what waits to be sent and of how it is sent.
const (
	queueMax      = 2048 // spans, some KB each
	batchMax      = 512
	batchEvery    = 2 * time.Second
	exportTimeout = 10 * time.Second // for one batch, with its repetitions
	complainEvery = time.Minute
)

// limits bound what one span holds; the zero depth is the SDK's own.
var limits = sdktrace.SpanLimits{
	AttributeValueLengthLimit: 1024, AttributeCountLimit: 64, EventCountLimit: 16, LinkCountLimit: 16,
	AttributePerEventCountLimit: 16, AttributePerLinkCountLimit: 16,
}

// New returns a provider. The receiver need not be there. Of the environment variables that
// the SDK knows (OTEL_…) none has an effect.
func New(o Options) *Provider {
	spans := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "athensctl_trace_spans_total",
		Help: "Spans of traces, by outcome: sent, failed (the receiver did not take them), dropped (too many waited to be sent).",
	}, []string{"outcome"})
	if o.Metrics != nil {
		o.Metrics.MustRegister(spans)
	}
	sender := &sender{
		SpanExporter: otlptrace.NewUnstarted(newClient(o)), log: o.Log,
		sent: spans.WithLabelValues("sent"), failed: spans.WithLabelValues("failed"),
	}
	q := &queue{
		sender: sender, dropped: spans.WithLabelValues("dropped"),
		SpanProcessor: sdktrace.NewBatchSpanProcessor(sender, sdktrace.WithMaxQueueSize(queueMax), sdktrace.WithMaxExportBatchSize(batchMax),
			sdktrace.WithBatchTimeout(batchEvery), sdktrace.WithExportTimeout(exportTimeout)),
	}
	return &Provider{sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(q), sdktrace.WithRawSpanLimits(limits),
		sdktrace.WithSampler(sampler{sdktrace.ParentBased(sdktrace.TraceIDRatioBased(o.Sample)), o.Sample}))}
}

// wish is the key of a context whose remote parent is sampled because the public says so.
type wish struct{}

// sampler does not take the word of the public, nor its trace ids, which might be chosen
// to be sampled.
type sampler struct {
	sdktrace.Sampler
	share float64
}

// ShouldSample implements sdktrace.Sampler.
func (s sampler) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	r := s.Sampler.ShouldSample(p)
	if p.ParentContext.Value(wish{}) != nil && trace.SpanContextFromContext(p.ParentContext).IsRemote() && rand.Float64() >= s.share {
		r.Decision = sdktrace.Drop
	}
	return r
}

// Tracer makes the first span of what the process is asked for, or does by itself.
func (p *Provider) Tracer() trace.Tracer { return p.sdk.Tracer(scope) }

// Close sends what waits, until ctx ends.
func (p *Provider) Close(ctx context.Context) error { return p.sdk.Shutdown(ctx) }

// queue bounds the spans that wait, those of the batch on its way included.
type queue struct {
	sdktrace.SpanProcessor
	sender  *sender
	dropped prometheus.Counter
}

// OnEnd implements sdktrace.SpanProcessor. It never waits.
func (q *queue) OnEnd(s sdktrace.ReadOnlySpan) {
	if q.sender.waiting.Add(1) > queueMax {
		q.sender.waiting.Add(-1)
		q.dropped.Inc()
		return
	}
	q.SpanProcessor.OnEnd(s)
}

// sender counts what is sent, and says now and then that it is not. The SDK calls it
// from one goroutine.
type sender struct {
	sdktrace.SpanExporter
	waiting      atomic.Int64
	sent, failed prometheus.Counter
	log          *slog.Logger
	complained   time.Time
	lost         int // since then
}

// ExportSpans implements sdktrace.SpanExporter. It returns no error: the SDK would write
// each to standard error.
func (s *sender) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := s.SpanExporter.ExportSpans(ctx, spans)
	s.waiting.Add(-int64(len(spans)))
	if err == nil {
		s.sent.Add(float64(len(spans)))
		return nil
	}
	s.failed.Add(float64(len(spans)))
	s.lost += len(spans)
	if time.Since(s.complained) >= complainEvery {
		s.log.Warn("traces are not sent", "spans", s.lost, "err", err)
		s.complained, s.lost = time.Now(), 0
	}
	return nil
}
