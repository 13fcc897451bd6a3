package proxy

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// counted returns the answers since it was asked last, as "tier file" to how many.
func (b *bed) counted(before map[string]int) (now, since map[string]int) {
	b.t.Helper()
	now, since = map[string]int{}, map[string]int{}
	for k, c := range b.metrics.answers {
		var m dto.Metric
		if err := c.Write(&m); err != nil {
			b.t.Fatal(err)
		}
		name := k.tier + " " + string(k.file)
		if now[name] = int(m.GetCounter().GetValue()); now[name] > before[name] {
			since[name] = now[name] - before[name]
		}
	}
	return now, since
}

// ages are the served lists that were as old as that, in seconds, or younger, and all.
func (b *bed) ages(seconds float64) (younger, all uint64) {
	b.t.Helper()
	var m dto.Metric
	if err := b.metrics.age[storage.FileList].(prometheus.Metric).Write(&m); err != nil {
		b.t.Fatal(err)
	}
	for _, bucket := range m.GetHistogram().GetBucket() {
		if bucket.GetUpperBound() == seconds {
			return bucket.GetCumulativeCount(), m.GetHistogram().GetSampleCount()
		}
	}
	b.t.Fatalf("the list ages have no bucket of %v s", seconds)
	return 0, 0
}

// Each request that gets an answer is counted once, by where the answer came from; what is
// refreshed behind it is not.
func TestAnswersCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, Fallback)
		m := module.Version{Path: "example.com/other", Version: "v1.0.0"}
		var before map[string]int
		step := func(what string, want map[string]int, do func()) {
			t.Helper()
			do()
			synctest.Wait()
			var got map[string]int
			if before, got = b.counted(before); !maps.Equal(got, want) {
				t.Errorf("%s: %v, want %v", what, got, want)
			}
		}
		list := func() {
			if _, err := b.List(t.Context(), modPath); err != nil {
				t.Error(err)
			}
		}
		mod := func(m module.Version) func() {
			return func() {
				if blob, err := b.Mod(t.Context(), m); err == nil {
					blob.Close()
				}
			}
		}
		step("a .mod file", map[string]int{"crawler mod": 1}, mod(m))
		step("again", map[string]int{"memory mod": 1}, mod(m))
		kept := module.Version{Path: "example.com/other", Version: "v1.1.0"}
		if err := b.store.Put(t.Context(), kept, storage.Files{Mod: []byte("module x\n")}); err != nil {
			t.Fatal(err)
		}
		step("one that is kept", map[string]int{"storage mod": 1}, mod(kept))
		b.up.set(goproxy.NotFound("no such module"), 0)
		gone := module.Version{Path: "example.com/other", Version: "v1.2.0"}
		step("one that is not there", map[string]int{"crawler mod": 1}, mod(gone))
		step("again", map[string]int{"memory mod": 1}, mod(gone))
		b.up.set(goproxy.Errorf(502, "broken"), 0)
		step("a failure is no answer", map[string]int{}, mod(module.Version{Path: "example.com/other", Version: "v1.3.0"}))
		step("nothing is fetched", map[string]int{"storage list": 1}, func() { b.List(goproxy.WithNoFetch(t.Context()), modPath) })

		b.up.set(nil, time.Second, "v1.0.0")
		step("ten at once share a fetch", map[string]int{"crawler list": 10}, func() {
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(list)
			}
			wg.Wait()
		})
		step("a fresh list", map[string]int{"memory list": 1}, list)
		time.Sleep(10 * time.Minute)
		step("one that is refreshed behind", map[string]int{"storage list": 1}, list)
		time.Sleep(2 * time.Second)
		if young, all := b.ages(60); young != 11 || all != 12 {
			t.Errorf("%d of %d lists were below a minute old", young, all)
		}
		b.up.set(goproxy.Errorf(502, "broken"), 0)
		time.Sleep(2 * time.Hour)
		step("upstream is away", map[string]int{"stale list": 1}, list)
		if young, all := b.ages(3600); young != 12 || all != 13 {
			t.Errorf("%d of %d lists were below an hour old", young, all)
		}
	})
}

// Whoever shares another's fetch has a link to where its spans are.
func TestSharedFetchIsLinked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, Fallback)
		b.up.set(nil, time.Second, "v1.0.0")
		spans := tracetest.NewSpanRecorder()
		tracer := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("")
		for i := range 3 {
			go func() {
				ctx, span := tracer.Start(context.Background(), fmt.Sprint(i))
				defer span.End()
				if _, err := b.List(ctx, modPath); err != nil {
					t.Error(err)
				}
			}()
			synctest.Wait() // the first one leads
		}
		time.Sleep(2 * time.Second)
		ended := map[string]sdktrace.ReadOnlySpan{}
		for _, s := range spans.Ended() {
			ended[s.Name()] = s
			tier := ""
			for _, a := range s.Attributes() {
				if a.Key == "athensctl.tier" {
					tier = a.Value.AsString()
				}
			}
			if tier != "crawler" {
				t.Errorf("span %s: tier %q", s.Name(), tier)
			}
		}
		if n := len(ended["0"].Links()); n != 0 {
			t.Errorf("who leads has %d links", n)
		}
		for _, name := range []string{"1", "2"} {
			if l := ended[name].Links(); len(l) != 1 || !l[0].SpanContext.Equal(ended["0"].SpanContext()) {
				t.Errorf("span %s: links %v", name, l)
			}
		}
	})
}
