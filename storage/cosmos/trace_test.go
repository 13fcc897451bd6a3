package cosmos

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/internal/cosmosfake"
	"github.com/athensctl/athensctl/internal/testazure"
	"github.com/athensctl/athensctl/storage"
)

// Each operation of a traced request is a span that says what it cost, and each of a zip in Blob
// Storage; that something is not there is no error. There is none of what is not traced.
func TestSpans(t *testing.T) {
	_, a := fake(t)
	s := open(t, a, t.TempDir(), Options{Zips: openZips(t, testazure.Azurite(t), t.TempDir()), TempDir: t.TempDir()})
	defer s.Close()
	spans := tracetest.NewSpanRecorder()
	ctx, root := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("").Start(context.Background(), "root")
	if _, err := s.Load(context.Background(), "nothing"); err != nil || len(spans.Started()) != 1 {
		t.Fatal(err, len(spans.Started()))
	}
	took := func() (list []sdktrace.ReadOnlySpan, names string) {
		list = spans.Ended()
		spans.Reset()
		for _, sp := range list {
			names += sp.Name() + ", "
			if sp.SpanContext().TraceID() != root.SpanContext().TraceID() || sp.SpanKind() != trace.SpanKindClient {
				t.Errorf("%s: %v %v", sp.Name(), sp.SpanKind(), sp.Parent())
			}
		}
		return list, names
	}
	if _, err := s.Load(ctx, "nothing"); err != nil {
		t.Fatal(err)
	}
	list, names := took()
	if len(list) != 1 || list[0].Status().Code == codes.Error || valueOf(list[0], "azure.cosmosdb.operation.request_charge") <= "0" || valueOf(list[0], "athensctl.attempts") != "1" || valueOf(list[0], "db.system.name") != "azure.cosmosdb" {
		t.Errorf("%s %v", names, list)
	}
	if err := s.Put(ctx, module.Version{Path: "example.com/m", Version: "v1.0.0"}, storage.Files{Zip: strings.NewReader("a zip")}); err != nil {
		t.Fatal(err)
	}
	if _, names = took(); !strings.Contains(names, "blob put, ") || !strings.Contains(names, "cosmos put, ") {
		t.Errorf("Put: %s", names)
	}
	b, err := s.Zip(ctx, module.Version{Path: "example.com/m", Version: "v1.0.0"})
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	if _, names = took(); !strings.Contains(names, "blob get, ") {
		t.Errorf("Zip: %s", names)
	}
}

// One that fails says why, and how often it was tried.
func TestFailedSpan(t *testing.T) {
	f, a := fake(t)
	s := open(t, a, t.TempDir(), Options{Patience: 300 * time.Millisecond})
	defer s.Close()
	f.SetFault(func(cosmosfake.Call) *cosmosfake.Fault { return &cosmosfake.Fault{Status: 429} })
	spans := tracetest.NewSpanRecorder()
	ctx, _ := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("").Start(context.Background(), "root")
	if _, err := s.Load(ctx, "x"); err == nil {
		t.Fatal("no error")
	}
	sp := spans.Ended()[0]
	if sp.Name() != "cosmos load" || sp.Status().Code != codes.Error || !strings.Contains(sp.Status().Description, "429") || valueOf(sp, "athensctl.attempts") <= "1" {
		t.Errorf("%s: %+v %v", sp.Name(), sp.Status(), sp.Attributes())
	}
}

func valueOf(sp sdktrace.ReadOnlySpan, key string) string {
	for _, kv := range sp.Attributes() {
		if string(kv.Key) == key {
			return fmt.Sprint(kv.Value.AsInterface())
		}
	}
	return ""
}
