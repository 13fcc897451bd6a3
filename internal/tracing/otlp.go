package tracing

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"go.opentelemetry.io/otel/sdk"
	"go.opentelemetry.io/otel/semconv/v1.43.0"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/athensctl/athensctl/goproxy"
)

// Receiver takes OTLP over HTTP, as protobuf.
// Source: https://opentelemetry.io/docs/specs/otlp/#otlphttp.
type Receiver struct {
	URL     *url.URL // /v1/traces is added to its path; reached without a proxy
	Headers []string // NAME=VALUE, sent with each request
}

// client is an otlptrace.Client. The one of the SDK would bring gRPC with it, and takes
// settings from the environment.
type client struct {
	http     *http.Client
	url      string
	headers  []string
	resource *resourcepb.Resource
}

func newClient(o Options) *client {
	c := &client{
		url: o.URL.JoinPath("v1/traces").String(), headers: o.Headers, resource: &resourcepb.Resource{},
		http: &http.Client{
			Transport: &http.Transport{
				DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext, TLSHandshakeTimeout: 5 * time.Second,
				ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 1, IdleConnTimeout: 90 * time.Second,
			},
			// Elsewhere the headers are not for.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	for _, a := range [][2]string{
		{string(semconv.ServiceNameKey), o.Service}, {string(semconv.ServiceVersionKey), o.Version}, {string(semconv.ServiceInstanceIDKey), o.Instance},
		{string(semconv.TelemetrySDKNameKey), "opentelemetry"}, {string(semconv.TelemetrySDKLanguageKey), "go"}, {string(semconv.TelemetrySDKVersionKey), sdk.Version()},
	} {
		c.resource.Attributes = append(c.resource.Attributes, &commonpb.KeyValue{
			Key: a[0], Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: a[1]}},
		})
	}
	return c
}

// Check sends the receiver nothing, and says whether it takes that.
func Check(ctx context.Context, r Receiver) error {
	_, _, err := newClient(Options{Receiver: r}).post(ctx, nil)
	return err
}

func (c *client) Start(context.Context) error { return nil }
func (c *client) Stop(context.Context) error  { return nil }

// UploadTraces implements otlptrace.Client. It comes again for as long as ctx lets it,
// where the protocol says that this may help.
func (c *client) UploadTraces(ctx context.Context, spans []*tracepb.ResourceSpans) error {
	for _, s := range spans {
		s.Resource, s.SchemaUrl = c.resource, semconv.SchemaURL // not what the environment says
	}
	// On the wire TracesData is an ExportTraceServiceRequest, whose package is gRPC's.
	b, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: spans})
	if err != nil {
		return err
	}
	var body bytes.Buffer
	z := gzip.NewWriter(&body)
	z.Write(b)
	if err := z.Close(); err != nil {
		return err
	}
	for pause := time.Second; ; pause *= 2 {
		again, after, err := c.post(ctx, body.Bytes())
		if !again || err == nil {
			return err
		}
		after = max(pause, after)
		if end, ok := ctx.Deadline(); ok && time.Until(end) < after {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(after):
		}
	}
}

// post sends a body, which is compressed; an empty one is a request without spans. again
// says that the same may be taken later, not before after.
func (c *client) post(ctx context.Context, body []byte) (again bool, after time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return false, 0, err
	}
	for _, h := range c.headers {
		name, value, _ := strings.Cut(h, "=")
		req.Header.Set(name, value)
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	if len(body) > 0 {
		req.Header.Set("Content-Encoding", "gzip")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return true, 0, err
	}
	defer resp.Body.Close()
	// What it says of spans that it did not want is for its own log to say.
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	switch resp.StatusCode {
	case http.StatusOK, http.StatusAccepted, http.StatusNoContent:
		return false, 0, nil
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		again, after = true, goproxy.RetryAfter(resp.Header, time.Now())
	}
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/") {
		text = nil // a Status, in protobuf
	}
	return again, after, fmt.Errorf("%s: %s: %.200q", c.url, resp.Status, bytes.TrimSpace(text))
}
