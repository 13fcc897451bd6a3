// Package tracing makes OpenTelemetry traces. It hands on the W3C trace context of a
// request, makes spans of what is done for it, and sends those of sampled traces to an
// OTLP receiver.
//
// Nothing of it holds up a request or fails one: spans wait in a bounded queue, and
// those that do not fit or cannot be sent are dropped and counted. Without a Provider
// there are no spans, and the trace context that a request came with still goes on to
// the other roles.
//
// A span holds no header but User-Agent, and no URL's user, password or query.
package tracing

import (
	"context"
	"net/http"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// scope names what makes the spans.
const scope = "github.com/athensctl/athensctl"

var none trace.Span = noop.Span{}

// Start starts a span below the one in ctx, if the trace is recorded here; else the
// span is one that does nothing. The span above may have ended.
func Start(ctx context.Context, name string, o ...trace.SpanStartOption) (context.Context, trace.Span) {
	above := trace.SpanFromContext(ctx)
	if !above.SpanContext().IsSampled() {
		return ctx, none
	}
	return above.TracerProvider().Tracer(scope).Start(ctx, name, o...)
}

// Begin is t.Start; without a tracer the span is one that does nothing.
func Begin(ctx context.Context, t trace.Tracer, name string, o ...trace.SpanStartOption) (context.Context, trace.Span) {
	if t == nil {
		return ctx, none
	}
	return t.Start(ctx, name, o...)
}

// End ends a span that failed with err; nil: it went well.
func End(span trace.Span, err error) {
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

// ID is the trace's id for a log line; "" where nobody records it.
func ID(ctx context.Context) string {
	if sc := trace.SpanContextFromContext(ctx); sc.IsSampled() {
		return sc.TraceID().String()
	}
	return ""
}

// Extract returns ctx with the trace context that a request came with.
// Source: https://www.w3.org/TR/trace-context/.
func Extract(ctx context.Context, h http.Header) context.Context {
	if h[traceparent] == nil { // Get would allocate
		return ctx
	}
	return propagation.TraceContext{}.Extract(ctx, propagation.HeaderCarrier(h))
}

// traceparent is the header, as net/http spells it.
const traceparent = "Traceparent"

// Parent is the trace context in ctx as a traceparent; "" where there is none.
func Parent(ctx context.Context) string {
	c := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, c)
	return c["traceparent"]
}

// WithParent returns ctx below what Parent has returned; "" changes nothing.
func WithParent(ctx context.Context, parent string) context.Context {
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": parent})
}
