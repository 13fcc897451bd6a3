// Package testotlp is a receiver of OpenTelemetry traces, to test against. It shares no
// code with internal/tracing.
package testotlp

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Receiver takes OTLP over HTTP at /v1/traces. Its methods are safe for concurrent use.
type Receiver struct {
	URL string

	mu       sync.Mutex
	spans    []Span
	raw      []byte
	requests int
	header   http.Header
	fault    http.HandlerFunc
}

// Span is one that was sent.
type Span struct {
	Service, Name, Kind  string // Kind: server, client, consumer, internal
	Trace, ID, Parent    string // in hexadecimal; Parent "": none
	Links                []string
	Attributes           map[string]string // those of the resource begin with "resource."
	Failed               bool
	Message              string
	StartNanos, EndNanos uint64
}

// New starts a receiver that ends with the test.
func New(t testing.TB) *Receiver {
	r := &Receiver{}
	srv := httptest.NewServer(r)
	t.Cleanup(srv.Close)
	r.URL = srv.URL
	return r
}

// SetFault answers every request with f; nil ends that.
func (r *Receiver) SetFault(f http.HandlerFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = f
}

// Requests is how many have come, and the header of the last.
func (r *Receiver) Requests() (int, http.Header) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.requests, r.header
}

// Spans are those that have come.
func (r *Receiver) Spans() []Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.spans)
}

// Contains reports whether a text is anywhere in what was sent.
func (r *Receiver) Contains(text string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Contains(r.raw, []byte(text))
}

// Wait waits until a span is there for which f is true.
func (r *Receiver) Wait(t testing.TB, f func(Span) bool) Span {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		spans := r.Spans()
		if i := slices.IndexFunc(spans, f); i >= 0 {
			return spans[i]
		}
	}
	t.Fatalf("no such span has come: %+v", r.Spans())
	return Span{}
}

// ServeHTTP implements http.Handler.
func (r *Receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.requests++
	r.header = req.Header.Clone()
	fault := r.fault
	r.mu.Unlock()
	if fault != nil {
		fault(w, req)
		return
	}
	raw, spans, err := read(req)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	r.raw = append(r.raw, raw...)
	r.spans = append(r.spans, spans...)
	r.mu.Unlock()
	w.Header().Set("Content-Type", "application/x-protobuf")
}

func read(req *http.Request) (raw []byte, spans []Span, err error) {
	if req.Method != http.MethodPost || req.URL.Path != "/v1/traces" || req.Header.Get("Content-Type") != "application/x-protobuf" {
		return nil, nil, errors.New(req.Method + " " + req.URL.Path + " " + req.Header.Get("Content-Type"))
	}
	body := io.Reader(req.Body)
	if req.Header.Get("Content-Encoding") == "gzip" {
		if body, err = gzip.NewReader(body); err != nil {
			return nil, nil, err
		}
	}
	if raw, err = io.ReadAll(body); err != nil {
		return nil, nil, err
	}
	// The fields of an ExportTraceServiceRequest.
	var data tracepb.TracesData
	if err := proto.Unmarshal(raw, &data); err != nil {
		return nil, nil, err
	}
	for _, rs := range data.ResourceSpans {
		resource := attributes(rs.Resource.GetAttributes())
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				span := Span{
					Service: resource["service.name"], Name: s.Name, Kind: strings.ToLower(strings.TrimPrefix(s.Kind.String(), "SPAN_KIND_")),
					Trace: hex.EncodeToString(s.TraceId), ID: hex.EncodeToString(s.SpanId), Parent: hex.EncodeToString(s.ParentSpanId),
					Attributes: attributes(s.Attributes), Failed: s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR, Message: s.Status.GetMessage(),
					StartNanos: s.StartTimeUnixNano, EndNanos: s.EndTimeUnixNano,
				}
				for k, v := range resource {
					span.Attributes["resource."+k] = v
				}
				for _, l := range s.Links {
					span.Links = append(span.Links, hex.EncodeToString(l.TraceId)+"-"+hex.EncodeToString(l.SpanId))
				}
				spans = append(spans, span)
			}
		}
	}
	return raw, spans, nil
}

func attributes(list []*commonpb.KeyValue) map[string]string {
	m := map[string]string{}
	for _, kv := range list {
		switch v := kv.Value.Value.(type) {
		case *commonpb.AnyValue_StringValue:
			m[kv.Key] = v.StringValue
		case *commonpb.AnyValue_IntValue:
			m[kv.Key] = strconv.FormatInt(v.IntValue, 10)
		case *commonpb.AnyValue_DoubleValue:
			m[kv.Key] = strconv.FormatFloat(v.DoubleValue, 'g', -1, 64)
		case *commonpb.AnyValue_BoolValue:
			m[kv.Key] = strconv.FormatBool(v.BoolValue)
		}
	}
	return m
}
