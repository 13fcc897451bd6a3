package tracing

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"

	"github.com/athensctl/athensctl/internal/testotlp"
)

const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// site is a provider, its receiver, its log and its metrics.
type site struct {
	*Provider
	receiver *testotlp.Receiver
	log      *buffer
	metrics  *prometheus.Registry
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func open(t testing.TB, sample float64) *site {
	t.Helper()
	s := &site{receiver: testotlp.New(t), log: &buffer{}, metrics: prometheus.NewRegistry()}
	u, err := url.Parse(s.receiver.URL)
	if err != nil {
		t.Fatal(err)
	}
	s.Provider = New(Options{
		Receiver: Receiver{URL: u, Headers: []string{"X-Api-Key=s3cret=="}}, Sample: sample, Service: "athensctl-test", Version: "v9", Instance: "one",
		Metrics: s.metrics, Log: slog.New(slog.NewTextHandler(s.log, nil)),
	})
	return s
}

func (s *site) close(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
}

func (s *site) count(outcome string) float64 {
	families, _ := s.metrics.Gather()
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "athensctl_trace_spans_total" && m.GetLabel()[0].GetValue() == outcome {
				return m.GetCounter().GetValue()
			}
		}
	}
	return -1
}

// What is sent, whatever the environment says: the process, the trace of who asked, and
// nothing that may be a secret.
func TestSent(t *testing.T) {
	for k, v := range map[string]string{
		"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_SAMPLER": "always_off", "OTEL_TRACES_EXPORTER": "none", "OTEL_SERVICE_NAME": "other",
		"OTEL_RESOURCE_ATTRIBUTES": "who=environment", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_HEADERS": "x-other=1",
		"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "1", "OTEL_BSP_SCHEDULE_DELAY": "3600000", "OTEL_BSP_MAX_QUEUE_SIZE": "1",
		"HTTP_PROXY": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
	} {
		t.Setenv(k, v)
	}
	s := open(t, 1)
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if v := r.Header.Get("traceparent"); v != "" {
			t.Errorf("who is outside gets traceparent %q", v)
		}
		io.WriteString(w, "0123456789")
	}))
	defer upstream.Close()

	in := httptest.NewRequest(http.MethodGet, "/example.com/m/@v/v1.0.0.zip?token=hidden1", nil)
	in.Header.Set("traceparent", parent)
	in.Header.Set("Authorization", "Bearer hidden2")
	ctx, span := Serve(t.Context(), s.Tracer(), in, true)
	if ID(ctx) != parent[3:35] {
		t.Errorf("ID %q", ID(ctx))
	}
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, strings.Replace(upstream.URL, "//", "//user:hidden3@", 1)+"/example.com/m/@v/v1.0.0.zip?sig=hidden4", nil)
	req.Header.Set("X-Secret", "hidden5")
	resp, err := (&http.Client{Transport: &Transport{Next: http.DefaultTransport}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	_, work := Start(ctx, "work")
	End(work, errors.New("it broke"))
	Served(span, 200, 10, nil)
	// Behind the answer, in the same trace.
	_, late := Start(ctx, "late")
	late.SetAttributes(attribute.String("long", strings.Repeat("x", 5000)))
	End(late, nil)
	s.close(t)

	got := map[string]testotlp.Span{}
	for _, sp := range s.receiver.Spans() {
		got[sp.Kind+" "+sp.Name] = sp
		if sp.Trace != parent[3:35] {
			t.Errorf("%s is in trace %s", sp.Name, sp.Trace)
		}
		want := map[string]string{"service.name": "athensctl-test", "service.version": "v9", "service.instance.id": "one", "telemetry.sdk.language": "go"}
		for k, v := range want {
			if sp.Attributes["resource."+k] != v {
				t.Errorf("%s: %s is %q", sp.Name, k, sp.Attributes["resource."+k])
			}
		}
	}
	serve := got["server GET {module}/@v/{version}.zip"]
	if serve.Parent != parent[36:52] || serve.Failed || serve.Attributes["http.route"] != "{module}/@v/{version}.zip" || serve.Attributes["http.response.status_code"] != "200" ||
		serve.Attributes["url.path"] != "/example.com/m/@v/v1.0.0.zip" || serve.Attributes["http.response.body.size"] != "10" {
		t.Errorf("server span: %+v", serve)
	}
	out := got["client GET {module}/@v/{version}.zip"]
	if out.Parent != serve.ID || out.Attributes["url.full"] != upstream.URL+"/example.com/m/@v/v1.0.0.zip" || out.Attributes["http.response.body.size"] != "10" || out.Attributes["server.address"] != "127.0.0.1" {
		t.Errorf("client span: %+v", out)
	}
	if w := got["internal work"]; w.Parent != serve.ID || !w.Failed || w.Message != "it broke" {
		t.Errorf("work: %+v", w)
	}
	if l := got["internal late"]; l.Parent != serve.ID || l.StartNanos < serve.EndNanos || len(l.Attributes["long"]) != 1024 {
		t.Errorf("late: %+v", l)
	}
	if len(got) != 4 {
		t.Errorf("%d spans: %v", len(got), got)
	}
	for _, secret := range []string{"hidden", "s3cret", "environment"} {
		if s.receiver.Contains(secret) {
			t.Errorf("%q was sent", secret)
		}
	}
	if _, h := s.receiver.Requests(); h.Get("X-Api-Key") != "s3cret==" || h.Get("X-Other") != "" || h.Get("Content-Encoding") != "gzip" {
		t.Errorf("headers: %v", h)
	}
	if s.count("sent") != 4 || s.count("failed") != 0 || s.count("dropped") != 0 {
		t.Errorf("sent %v, failed %v, dropped %v", s.count("sent"), s.count("failed"), s.count("dropped"))
	}
}

// The public's word is not enough to have a trace recorded; that of another role is.
func TestSampling(t *testing.T) {
	none, all := open(t, 0), open(t, 1)
	for _, tc := range []struct {
		s        *site
		public   bool
		parent   string
		recorded bool
	}{
		{none, true, "", false}, {none, true, parent, false}, {none, true, parent[:53] + "00", false},
		{all, true, "", true}, {all, true, parent, true}, {all, true, parent[:53] + "00", false},
		{none, false, parent, true}, {none, false, parent[:53] + "00", false}, {all, false, parent[:53] + "00", false},
	} {
		in := httptest.NewRequest(http.MethodGet, "/", nil)
		if tc.parent != "" {
			in.Header.Set("traceparent", tc.parent)
		}
		ctx, span := Serve(t.Context(), tc.s.Tracer(), in, tc.public)
		if span.IsRecording() != tc.recorded || (ID(ctx) != "") != tc.recorded {
			t.Errorf("public %v, parent %q: recorded %v", tc.public, tc.parent, span.IsRecording())
		}
		_, below := Start(ctx, "below")
		if below.IsRecording() != tc.recorded {
			t.Errorf("public %v, parent %q: what is below is recorded: %v", tc.public, tc.parent, below.IsRecording())
		}
		// What goes on carries the decision.
		if p := Parent(ctx); p[53:] != map[bool]string{true: "01", false: "00"}[tc.recorded] || tc.parent != "" && (p[:36] != tc.parent[:36] || p[36:52] == tc.parent[36:52]) {
			t.Errorf("public %v, parent %q: %q goes on", tc.public, tc.parent, p)
		}
		below.End()
		Served(span, 200, 0, nil)
	}
	if _, span := Serve(t.Context(), all.Tracer(), httptest.NewRequest(http.MethodGet, "/", nil), false); span.IsRecording() {
		t.Error("a trace was begun by who begins none")
	}
	none.close(t)
	all.close(t)
	if n := len(none.receiver.Spans()); n != 2 {
		t.Errorf("sample 0: %d spans", n)
	}
}

// A client that says "sampled" with a trace id of its choice is recorded as often as others,
// and all that is done for it or none.
func TestSamplingShare(t *testing.T) {
	s := open(t, 0.25)
	defer s.close(t)
	in := httptest.NewRequest(http.MethodGet, "/", nil)
	in.Header.Set("traceparent", "00-00000000000000000000000000000001-b7ad6b7169203331-01")
	recorded := 0
	const times = 2000
	for range times {
		ctx, span := Serve(t.Context(), s.Tracer(), in, true)
		_, below := Start(ctx, "below")
		if below.IsRecording() != span.IsRecording() {
			t.Fatalf("recorded %v, below it %v", span.IsRecording(), below.IsRecording())
		}
		if span.IsRecording() {
			recorded++
		}
	}
	// 500 in the mean, with a standard deviation of 19.4: beyond six of them once in 500 million runs.
	if recorded < 380 || recorded > 620 {
		t.Errorf("%d of %d", recorded, times)
	}
}

// Without a provider nothing is recorded, and nothing is allocated for a request that is
// in no trace; one that is hands it on.
func TestOff(t *testing.T) {
	in := httptest.NewRequest(http.MethodGet, "/example.com/m/@v/v1.0.0.mod", nil)
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		ctx, span := Serve(ctx, nil, in, true)
		_, below := Begin(ctx, nil, "fetch")
		_, work := Start(ctx, "work")
		if span.IsRecording() || below.IsRecording() || work.IsRecording() || ID(ctx) != "" {
			t.Error("recorded")
		}
		End(work, nil)
		Served(span, 200, 0, nil)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	seen := make(chan string, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		seen <- r.Header.Get("traceparent") + " " + r.Header.Get("tracestate")
	}))
	defer srv.Close()
	for _, fleet := range []bool{true, false} {
		for _, given := range []string{parent, parent[:53] + "00", "", "00-nonsense"} {
			in.Header = http.Header{}
			if given != "" {
				in.Header = http.Header{"Traceparent": {given}, "Tracestate": {"a=b"}}
			}
			ctx, _ := Serve(t.Context(), nil, in, true)
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL, nil)
			resp, err := (&Transport{Next: http.DefaultTransport, Fleet: fleet}).RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			want := " "
			if fleet && strings.HasPrefix(given, parent[:53]) {
				want = given + " a=b"
			}
			if got := <-seen; got != want || req.Header.Get("traceparent") != "" {
				t.Errorf("of %q (fleet %v) %q went on, want %q; the caller's request has %v", given, fleet, got, want, req.Header)
			}
		}
	}
	if p := Parent(WithParent(t.Context(), parent)); p != parent {
		t.Errorf("Parent of WithParent: %q", p)
	}
	if WithParent(ctx, "") != ctx || WithParent(ctx, "x") != ctx {
		t.Error("no parent, and another context")
	}
}

// A client's request that fails, or whose answer is cut, is an error; that something is
// not there is none.
func TestTransportErrors(t *testing.T) {
	s := open(t, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/cut":
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "x")
		case "/404":
			w.WriteHeader(404)
		default:
			w.WriteHeader(503)
		}
	}))
	defer srv.Close()
	ctx, root := s.Tracer().Start(t.Context(), "root")
	client := &http.Client{Transport: &Transport{Next: &http.Transport{DisableKeepAlives: true}}}
	for _, u := range []string{srv.URL + "/cut", srv.URL + "/404", srv.URL + "/503", "http://127.0.0.1:1/away"} {
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
		if resp, err := client.Do(req); err == nil {
			io.ReadAll(resp.Body)
			resp.Body.Close()
		}
	}
	root.End()
	s.close(t)
	for path, want := range map[string]string{"/cut": "unexpected EOF", "/404": "", "/503": "503", "/away": "refused"} {
		sp := s.receiver.Wait(t, func(sp testotlp.Span) bool { return strings.HasSuffix(sp.Attributes["url.full"], path) })
		if sp.Failed != (want != "") || !strings.Contains(sp.Message, want) {
			t.Errorf("%s: %+v", path, sp)
		}
	}
}

// A receiver that hangs holds up nobody: what it does not take waits in a bounded queue, and is
// dropped beyond that. The end comes when it was told to.
func TestReceiverHangs(t *testing.T) {
	s := open(t, 1)
	leave := make(chan struct{})
	s.receiver.SetFault(func(http.ResponseWriter, *http.Request) { <-leave })
	defer close(leave)
	const n = 3 * queueMax
	for i := range n {
		_, span := s.Tracer().Start(context.Background(), fmt.Sprint("span ", i))
		span.End()
	}
	if s.count("dropped") != n-queueMax || s.count("sent") != 0 {
		t.Errorf("dropped %v, sent %v of %d", s.count("dropped"), s.count("sent"), n)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := s.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Close: %v", err)
	}
	// Nobody is hurt by what comes after.
	_, span := s.Tracer().Start(context.Background(), "after")
	span.End()
}

// One that refuses is complained about once in a while, by name and without secrets; one that
// says "later" is asked again.
func TestReceiverRefuses(t *testing.T) {
	s := open(t, 1)
	s.receiver.SetFault(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "who are you?", http.StatusForbidden) })
	for range 3 * batchMax {
		_, span := s.Tracer().Start(context.Background(), "x")
		span.End()
	}
	s.close(t)
	if s.count("failed") != 3*batchMax || s.count("sent") != 0 {
		t.Errorf("failed %v, sent %v", s.count("failed"), s.count("sent"))
	}
	log := s.log.String()
	if strings.Count(log, "traces are not sent") != 1 || !strings.Contains(log, "403 Forbidden") || !strings.Contains(log, "who are you?") || strings.Contains(log, "s3cret") {
		t.Errorf("log: %s", log)
	}
	if n, _ := s.receiver.Requests(); n != 3 {
		t.Errorf("%d requests: what is refused is sent again", n)
	}

	s = open(t, 1)
	var tries atomic.Int64
	s.receiver.SetFault(func(w http.ResponseWriter, r *http.Request) {
		if tries.Add(1) == 2 {
			s.receiver.SetFault(nil)
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	_, span := s.Tracer().Start(context.Background(), "later")
	span.End()
	s.close(t)
	if s.count("sent") != 1 || s.count("failed") != 0 || s.log.String() != "" {
		t.Errorf("sent %v, failed %v: %s", s.count("sent"), s.count("failed"), s.log)
	}
	s.receiver.Wait(t, func(sp testotlp.Span) bool { return sp.Name == "later" })
}

func TestCheck(t *testing.T) {
	r := testotlp.New(t)
	u, _ := url.Parse(r.URL + "/")
	if err := Check(t.Context(), Receiver{URL: u}); err != nil {
		t.Error(err)
	}
	r.SetFault(http.NotFound)
	if err := Check(t.Context(), Receiver{URL: u}); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("%v", err)
	}
	// The headers are for nobody else.
	r.SetFault(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
	})
	if err := Check(t.Context(), Receiver{URL: u}); err == nil || !strings.Contains(err.Error(), "307") {
		t.Errorf("%v", err)
	}
}

func TestRoute(t *testing.T) {
	for path, want := range map[string]string{
		"/example.com/m/@v/list":                    "{module}/@v/list",
		"/prefix/example.com/!m/@v/v1.0.0-x.y.info": "{module}/@v/{version}.info",
		"/example.com/m/@v/v1.0.0.mod":              "{module}/@v/{version}.mod",
		"/cached-only/example.com/m/@v/v1.0.0.zip":  "{module}/@v/{version}.zip",
		"/example.com/m/@v/v1.0.0.save":             "{module}/@v/{version}.save",
		"/example.com/m/@v/v1.0.0.exe":              "",
		"/example.com/m/@v/noending":                "",
		"/example.com/m/@latest":                    "{module}/@latest",
		"/internal/ledger/set-known":                "/internal/ledger/set-known",
		"/internal/ledger/../../x":                  "",
		"/sumdb/sum.golang.org/supported":           "/sumdb/{database}/supported",
		"/sumdb/sum.golang.org/lookup/x@v1":         "/sumdb/{database}/lookup/{module}@{version}",
		"/lookup/x@v1":                              "/sumdb/{database}/lookup/{module}@{version}",
		"/sumdb/sum.golang.org/tile/8/0/000":        "/sumdb/{database}/tile/{tile}",
		"/x/r.git/info/refs":                        "{repository}/info/refs",
		"/x/r.git/git-upload-pack":                  "{repository}/git-upload-pack",
		"/catalog":                                  "/catalog",
		"/":                                         "/",
		"/wp-login.php":                             "",
		"":                                          "",
	} {
		if got := Route(path); got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
	for _, m := range []string{"GET", "PROPFIND"} {
		if got, want := name(m, "/x"), map[string]string{"GET": "GET /x", "PROPFIND": "HTTP /x"}[m]; got != want {
			t.Errorf("%q", got)
		}
	}
}
