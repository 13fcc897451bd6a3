package tracing

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// The attributes of HTTP spans are those of
// https://opentelemetry.io/docs/specs/semconv/http/http-spans/.

// Serve begins the span of a request that has come, in the trace of who asks, or where
// there is none in a new one if public says so. Who asks is then anybody: that a trace is
// to be recorded, which the public says at no cost, is a wish, and the Provider's share of
// such requests is granted it. Without a tracer nothing is recorded, and the trace goes on.
func Serve(ctx context.Context, t trace.Tracer, req *http.Request, public bool) (context.Context, trace.Span) {
	ctx = Extract(ctx, req.Header)
	if t == nil || !public && !trace.SpanContextFromContext(ctx).IsValid() {
		return ctx, none
	}
	if public && trace.SpanContextFromContext(ctx).IsSampled() {
		ctx = context.WithValue(ctx, wish{}, true)
	}
	ctx, span := t.Start(ctx, method(req.Method), trace.WithSpanKind(trace.SpanKindServer))
	if span.IsRecording() {
		route := Route(req.URL.Path)
		span.SetName(name(req.Method, route))
		span.SetAttributes(semconv.HTTPRequestMethodKey.String(method(req.Method)), semconv.URLScheme("http"), semconv.URLPath(req.URL.Path), semconv.UserAgentOriginal(req.UserAgent()))
		if route != "" {
			span.SetAttributes(semconv.HTTPRoute(route))
		}
	}
	return ctx, span
}

// Served ends the span of a request. That a request was refused (4xx) is no error.
func Served(span trace.Span, status int, bytes int64, err error) {
	if !span.IsRecording() {
		return
	}
	span.SetAttributes(semconv.HTTPResponseStatusCode(status), semconv.HTTPResponseBodySize(int(bytes)))
	if err != nil && (status < 400 || status >= 500) {
		span.SetAttributes(semconv.ErrorTypeKey.String(strconv.Itoa(status)))
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

// Transport makes a span of each request that belongs to a recorded trace. The span
// ends with the answer's body.
type Transport struct {
	Next http.RoundTripper
	// Fleet: the request is for another role; it carries the trace context, spans or none.
	Fleet bool
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, span := req.Context(), none
	if trace.SpanContextFromContext(ctx).IsSampled() {
		ctx, span = Start(ctx, name(req.Method, Route(req.URL.Path)), trace.WithSpanKind(trace.SpanKindClient))
	}
	if t.Fleet && trace.SpanContextFromContext(ctx).IsValid() {
		req = req.Clone(ctx)
		propagation.TraceContext{}.Inject(ctx, propagation.HeaderCarrier(req.Header))
	}
	if !span.IsRecording() {
		return t.Next.RoundTrip(req)
	}
	span.SetAttributes(semconv.HTTPRequestMethodKey.String(method(req.Method)), semconv.URLFull(plain(req.URL)))
	span.SetAttributes(server(req.URL)...)
	resp, err := t.Next.RoundTrip(req)
	if err != nil {
		End(span, err)
		return nil, err
	}
	span.SetAttributes(semconv.HTTPResponseStatusCode(resp.StatusCode))
	// That something is not there is an answer.
	if s := resp.StatusCode; s >= 400 && s != http.StatusNotFound && s != http.StatusGone {
		span.SetAttributes(semconv.ErrorTypeKey.String(strconv.Itoa(s)))
		span.SetStatus(codes.Error, resp.Status)
	}
	resp.Body = &body{ReadCloser: resp.Body, span: span}
	return resp, nil
}

// body ends the span.
type body struct {
	io.ReadCloser
	span trace.Span
	n    atomic.Int64
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	switch err {
	case nil:
	case io.EOF:
		b.end(nil)
	default:
		b.end(err)
	}
	return n, err
}

func (b *body) Close() error {
	b.end(nil)
	return b.ReadCloser.Close()
}

// end does nothing the second time: a span that has ended takes no changes.
func (b *body) end(err error) {
	b.span.SetAttributes(semconv.HTTPResponseBodySize(int(b.n.Load())))
	End(b.span, err)
}

// plain is a URL without what may be a secret.
func plain(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String()
}

func server(u *url.URL) []attribute.KeyValue {
	port := map[string]int{"http": 80, "https": 443}[u.Scheme]
	if p, err := strconv.Atoi(u.Port()); err == nil {
		port = p
	}
	return []attribute.KeyValue{semconv.ServerAddress(u.Hostname()), semconv.ServerPort(port)}
}

// method is one of those that there are, so that there are not too many.
func method(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions, http.MethodPatch, http.MethodConnect, http.MethodTrace:
		return m
	}
	return "_OTHER"
}

func name(m, route string) string {
	if m = method(m); m == "_OTHER" {
		m = "HTTP"
	}
	if route == "" {
		return m
	}
	return m + " " + route
}

// Route is a path of a protocol that is spoken here, with names in place of what varies;
// "" where it is another's. What stands before the module's path is left out too.
func Route(path string) string {
	if i := strings.LastIndex(path, "/@v/"); i >= 0 {
		file := path[i+len("/@v/"):]
		if file == "list" {
			return "{module}/@v/list"
		}
		switch ext := file[max(0, strings.LastIndexByte(file, '.')):]; ext {
		case ".info", ".mod", ".zip", ".save", ".delete":
			return "{module}/@v/{version}" + ext
		}
		return ""
	}
	for suffix, route := range map[string]string{
		"/@latest": "{module}/@latest", "/info/refs": "{repository}/info/refs", "/git-upload-pack": "{repository}/git-upload-pack",
	} {
		if strings.HasSuffix(path, suffix) {
			return route
		}
	}
	switch path {
	case "/", "/catalog", "/index", "/webhook", "/version", "/robots.txt":
		return path
	}
	if call, ok := strings.CutPrefix(path, "/internal/ledger/"); ok {
		if len(call) <= 20 && strings.Trim(call, "abcdefghijklmnopqrstuvwxyz-") == "" {
			return path
		}
		return ""
	}
	// A checksum database, itself or handed on.
	if _, rest, ok := strings.Cut(path, "/sumdb/"); ok {
		_, rest, _ = strings.Cut(rest, "/")
		path = "/" + rest
	}
	switch {
	case path == "/latest", path == "/supported":
		return "/sumdb/{database}" + path
	case strings.HasPrefix(path, "/lookup/"):
		return "/sumdb/{database}/lookup/{module}@{version}"
	case strings.HasPrefix(path, "/tile/"):
		return "/sumdb/{database}/tile/{tile}"
	}
	return ""
}
