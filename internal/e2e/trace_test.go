//go:build unix

package e2e

import (
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/athensctl/athensctl/internal/testgit"
	"github.com/athensctl/athensctl/internal/testotlp"
	"github.com/athensctl/athensctl/internal/testupstream"
)

const (
	traceID = "0af7651916cd43dd8448eb211c80319c"
	spanID  = "b7ad6b7169203331"
)

// traced asks as a client does that has begun a trace.
func traced(t *testing.T, url string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("traceparent", "00-"+traceID+"-"+spanID+"-01")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 200 {
		t.Fatalf("%s: %d %.200s %v", url, resp.StatusCode, body, err)
	}
}

// ancestors are the spans above one, the nearest first, as service, kind and name.
func ancestors(spans []testotlp.Span, s testotlp.Span) (list []string, last testotlp.Span) {
	for {
		list = append(list, strings.TrimPrefix(s.Service, "athensctl-")+" "+s.Kind+" "+s.Name)
		i := slices.IndexFunc(spans, func(o testotlp.Span) bool { return o.ID == s.Parent && o.Trace == s.Trace })
		if i < 0 {
			return list, s
		}
		s = spans[i]
	}
}

// A client's request is one trace through all roles to upstream; so is what comes from a
// git host.
func TestTrace(t *testing.T) {
	receiver := testotlp.New(t)
	up := testupstream.New(t)
	up.Add("example.com/m", "v1.0.0", 1<<20)
	root := t.TempDir()
	host := testgit.New(t, root)
	testgit.Script(t, root, "repo lib; gomod go.mod git.test.example/lib.git; src a.go; commit; tag v1.0.0\n")
	upstream := strings.Replace(up.URL, "//", "//user:hidden-password@", 1)
	f := startFleet(t, upstream+",direct", 1, 1, "--otlp-endpoint", receiver.URL, "--otlp-headers", "X-Key=hidden-key", "--log-level=info", "--log-format=json",
		"--vcs-instead-of=https://git.test.example/="+host.URL+"/", "--private=git.test.example/*")
	proxy := f.proxies[0]
	traced(t, proxy.url+"/example.com/m/@v/v1.0.0.zip")
	traced(t, proxy.url+"/git.test.example/lib.git/@v/v1.0.0.zip")
	traced(t, proxy.url+"/example.com/m/@v/list")
	traced(t, proxy.url+"/example.com/m/@v/v1.0.0.zip")
	if status, _, _ := get(t, proxy.url+"/example.com/m/@latest"); status != 200 { // it begins a trace of its own
		t.Errorf("@latest: %d", status)
	}
	logged := func() bool { return strings.Contains(proxy.log.String(), `"trace_id":"`+traceID+`"`) }
	for end := time.Now().Add(5 * time.Second); !logged() && time.Now().Before(end); { // lines are gathered for a moment
		time.Sleep(10 * time.Millisecond)
	}
	if !logged() {
		t.Errorf("the trace is not in the log:\n%s", proxy.log)
	}
	for _, p := range f.all() { // which sends what there is
		if status := p.terminate(); status != 0 {
			t.Errorf("exit status %d", status)
		}
	}

	var spans []testotlp.Span
	for _, s := range receiver.Spans() {
		if s.Trace == traceID {
			spans = append(spans, s)
		}
	}
	find := func(kind, name string, more func(testotlp.Span) bool) testotlp.Span {
		t.Helper()
		i := slices.IndexFunc(spans, func(s testotlp.Span) bool { return s.Kind == kind && s.Name == name && more(s) })
		if i < 0 {
			for _, s := range spans {
				t.Logf("%s %s %s %v", s.Service, s.Kind, s.Name, s.Attributes)
			}
			t.Fatalf("there is no %s span %s", kind, name)
		}
		return spans[i]
	}
	above := []string{
		"crawler consumer fetch zip", "crawler server GET {module}/@v/{version}.zip",
		"proxy client GET {module}/@v/{version}.zip", "proxy server GET {module}/@v/{version}.zip",
	}
	for what, s := range map[string]testotlp.Span{
		"upstream proxy": find("client", "GET {module}/@v/{version}.zip", func(s testotlp.Span) bool { return s.Attributes["url.full"] == up.URL+"/example.com/m/@v/v1.0.0.zip" }),
		"git refs":       find("client", "GET {repository}/info/refs", func(s testotlp.Span) bool { return s.Attributes["url.full"] == host.URL+"/lib/info/refs" }),
		"git fetch":      find("client", "POST {repository}/git-upload-pack", func(s testotlp.Span) bool { return s.Attributes["http.response.body.size"] > "0" }),
	} {
		list, top := ancestors(spans, s)
		if !slices.Equal(list[1:], above) || top.Parent != spanID {
			t.Errorf("%s is below %q, which is below %s", what, list[1:], top.Parent)
		}
		if s.Service != "athensctl-crawler" || s.Failed {
			t.Errorf("%s: %+v", what, s)
		}
	}
	saved := find("server", "POST {module}/@v/{version}.save", func(s testotlp.Span) bool { return s.Attributes["athensctl.module"] == "example.com/m" })
	if list, _ := ancestors(spans, saved); saved.Service != "athensctl-storage" || !slices.Equal(list[2:], above) {
		t.Errorf("the save in %s is below %q", saved.Service, list)
	}
	find("server", "GET {module}/@v/list", func(s testotlp.Span) bool { return s.Attributes["athensctl.tier"] == "crawler" })
	first := find("server", "GET {module}/@v/{version}.zip", func(s testotlp.Span) bool {
		return s.Service == "athensctl-proxy" && s.Attributes["athensctl.module"] == "example.com/m" && s.Attributes["athensctl.tier"] == "crawler"
	})
	if first.Attributes["athensctl.version"] != "v1.0.0" || first.Attributes["athensctl.role"] != "proxy" || first.Attributes["http.response.status_code"] != "200" || len(first.Attributes["athensctl.request_id"]) != 16 {
		t.Errorf("%+v", first)
	}
	find("server", "GET {module}/@v/{version}.zip", func(s testotlp.Span) bool { return s.Attributes["athensctl.tier"] == "disk" })
	find("consumer", "fetch zip", func(s testotlp.Span) bool {
		return s.Attributes["athensctl.outcome"] == "ok" && s.Attributes["athensctl.attempt"] == "1"
	})

	var begun []string
	for _, s := range receiver.Spans() {
		if s.Parent == "" {
			begun = append(begun, s.Service+" "+s.Name)
		}
	}
	if !slices.Equal(begun, []string{"athensctl-proxy GET {module}/@latest"}) { // and no look at the queue
		t.Errorf("traces were begun: %q", begun)
	}
	for _, secret := range []string{"hidden", token} {
		if receiver.Contains(secret) {
			t.Errorf("%q was sent", secret)
		}
		for _, p := range f.all() {
			if strings.Contains(p.log.String(), secret) {
				t.Errorf("%q is in the log of %v", secret, p.args)
			}
		}
	}
}

// Where no receiver is set none is sent anything, whatever the environment says, and the
// trace context of a client goes through the roles as it came, and not to upstream.
func TestNoTrace(t *testing.T) {
	receiver := testotlp.New(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.URL)
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", receiver.URL+"/v1/traces")
	t.Setenv("OTEL_TRACES_EXPORTER", "otlp")
	up := testupstream.New(t)
	up.Add("example.com/m", "v1.0.0", 1000)
	seen := make(chan string, 100)
	outside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if v := r.Header.Get("traceparent"); v != "" {
			seen <- v
		}
		up.ServeHTTP(w, r)
	}))
	defer outside.Close()
	f := startFleet(t, outside.URL, 1, 1, "--log-level=info")
	traced(t, f.proxies[0].url+"/example.com/m/@v/v1.0.0.zip")
	for _, p := range f.all() {
		if p.terminate(); !strings.Contains(p.log.String(), "trace_id="+traceID) {
			t.Errorf("%v: the client's trace is not in the log:\n%s", p.args, p.log)
		}
	}
	if n, _ := receiver.Requests(); n != 0 {
		t.Errorf("%d requests to a receiver that is not set", n)
	}
	select {
	case v := <-seen:
		t.Errorf("upstream was sent traceparent %s", v)
	default:
	}
}

// A receiver that hangs, or is not there, costs no request its answer and no process its end.
func TestTraceReceiverAway(t *testing.T) {
	t.Parallel() // it waits
	hanging := testotlp.New(t)
	leave := make(chan struct{})
	defer close(leave)
	hanging.SetFault(func(http.ResponseWriter, *http.Request) { <-leave })
	for what, url := range map[string]string{"hangs": hanging.URL, "is not there": "http://" + freeAddress(t)} {
		t.Run(what, func(t *testing.T) {
			up := testupstream.New(t)
			up.Add("example.com/m", "v1.0.0", 1000)
			p := start(t, "--upstream", up.URL, "--data-dir", t.TempDir(), "--otlp-endpoint", url)
			got := crowd(1500, func(i int) string {
				return p.url + "/example.com/m/@v/v1.0.0" + []string{".zip", ".mod", ".info"}[i%3]
			})
			if got["200"] != 1500 {
				t.Errorf("answers: %v", got)
			}
			if status := p.terminate(); status != 0 {
				t.Errorf("exit status %d\n%s", status, p.log)
			}
		})
	}
}
