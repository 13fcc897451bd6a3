package crawler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/athensctl/athensctl/goproxy"
)

// answering is a transport whose bodies are read from what body returns.
type answering func(req *http.Request) (body func(p []byte) (int, error), err error)

func (a answering) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := a(req)
	if err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode: 200, Status: "200 OK", Header: http.Header{}, ProtoMajor: 1, ProtoMinor: 1, Request: req, ContentLength: -1,
		Body: io.NopCloser(readerFunc(body)),
	}, nil
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// pause is a sleep that ends with the request.
func pause(ctx context.Context, d time.Duration) error {
	if !sleep(ctx, d) {
		return ctx.Err()
	}
	return nil
}

// A body that comes too slowly is cut, and its host has failed: not one that pauses now
// and then, nor one that is read slowly.
func TestSlowBody(t *testing.T) {
	type body struct {
		chunk, size int
		every       time.Duration
		reader      time.Duration // between two reads
	}
	for name, tc := range map[string]struct {
		body
		cut time.Duration // 0: not
	}{
		"at once":             {body{1 << 10, 1 << 20, 0, 0}, 0},
		"a dripping byte":     {body{1, 1 << 20, 29 * time.Second, 0}, 30 * time.Second},
		"nothing":             {body{1, 1, 24 * time.Hour, 0}, 30 * time.Second},
		"4 KiB/s":             {body{4 << 10, 1 << 20, time.Second, 0}, time.Minute},
		"10 KiB/s":            {body{10 << 10, 1 << 20, time.Second, 0}, 0},
		"1 MiB every 29 s":    {body{1 << 20, 10 << 20, 29 * time.Second, 0}, 0},
		"1 MiB every 31 s":    {body{1 << 20, 10 << 20, 31 * time.Second, 0}, 30 * time.Second},
		"a reader that rests": {body{1 << 10, 100 << 10, 0, time.Minute}, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := NewHosts(HostOptions{Connections: 1, Failures: 1})
			client := &http.Client{Transport: h.Wrap(answering(func(req *http.Request) (func([]byte) (int, error), error) {
				left := tc.size
				return func(p []byte) (int, error) {
					if left <= 0 {
						return 0, io.EOF
					}
					if err := pause(req.Context(), tc.every); err != nil {
						return 0, err
					}
					n := min(tc.chunk, left, len(p))
					left -= n
					return n, nil
				}, nil
			}))}
			resp, err := client.Get("https://a.example/")
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			buf := make([]byte, 1<<20)
			for err == nil {
				_, err = resp.Body.Read(buf)
				time.Sleep(tc.reader)
			}
			took := time.Since(began)
			resp.Body.Close()
			if cut := errors.Is(err, errSlow); cut != (tc.cut > 0) || cut && took.Round(10*time.Second) != tc.cut || !cut && err != io.EOF || cut && goproxy.Status(err) != 502 {
				t.Errorf("%s: %v after %v", name, err, took)
			}
			// The place is free; the circuit is open where it was cut.
			if _, err = client.Get("https://a.example/"); isNotSent(err) != (tc.cut > 0) {
				t.Errorf("%s: the next request: %v", name, err)
			}
		})
	}
	h := NewHosts(HostOptions{Connections: 1, Timeout: 2 * time.Minute})
	if a, _ := h.get("a.example"); a.timeout != 2*time.Minute {
		t.Errorf("a timeout of 2 minutes is %v", a.timeout)
	}
}

// A request that the caller cancels has not failed; its end is not held.
func TestHeldBodyCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHosts(HostOptions{Connections: 1, Failures: 1})
		client := &http.Client{Transport: h.Wrap(answering(func(req *http.Request) (func([]byte) (int, error), error) {
			return func([]byte) (int, error) { return 0, pause(req.Context(), time.Hour) }, nil
		}))}
		ctx, cancel := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, "GET", "https://a.example/", strings.NewReader(""))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Second, cancel)
		if _, err := io.ReadAll(resp.Body); !errors.Is(err, context.Canceled) {
			t.Errorf("read: %v", err)
		}
		resp.Body.Close()
		if _, err := client.Get("https://a.example/"); err != nil {
			t.Errorf("the next request: %v", err)
		}
	})
}

// A host that does not answer before the time for the request is over has failed; not one
// that the caller did not wait for.
func TestCircuitOfHangingHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, cancels := range []bool{false, true} {
			asked := 0
			client := &http.Client{Transport: NewHosts(HostOptions{Connections: 4, Failures: 3}).Wrap(answering(func(req *http.Request) (func([]byte) (int, error), error) {
				asked++
				<-req.Context().Done()
				return nil, req.Context().Err()
			}))}
			for range 20 {
				ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
				if cancels {
					ctx, stop = context.WithCancel(t.Context())
					time.AfterFunc(30*time.Second, stop)
				}
				req, err := http.NewRequestWithContext(ctx, "GET", "https://hangs.example/", nil)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := client.Do(req); err == nil {
					t.Error("no error")
				}
				stop()
			}
			if cancels && asked != 20 || !cancels && asked > 5 {
				t.Errorf("cancelled %v: asked %d times of 20", cancels, asked)
			}
		}
	})
}

// However many hosts there are, a host's pause is kept, and so is one that is being asked.
func TestManyHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan struct{})
		h := NewHosts(HostOptions{Connections: 1, Failures: 1})
		client := &http.Client{Transport: h.Wrap(roundTripper(func(req *http.Request) (*http.Response, error) {
			resp := &http.Response{StatusCode: 200, Header: http.Header{}, Body: http.NoBody, Request: req}
			switch host, _, _ := strings.Cut(req.URL.Host, "."); {
			case host == "busy":
				<-ended
			case host == "paused":
				resp.StatusCode = 429
				resp.Header.Set("Retry-After", "600")
			case host == "broken":
				return nil, errors.New("connection refused")
			case strings.HasPrefix(host, "rude"):
				resp.StatusCode = 429
				resp.Header.Set("Retry-After", "300")
			}
			return resp, nil
		}))}
		get := func(host string) error {
			resp, err := client.Get("https://" + host + "/")
			if err == nil {
				resp.Body.Close()
			}
			return err
		}
		done := make(chan error)
		go func() { done <- get("busy.example") }()
		synctest.Wait()
		get("paused.example")
		for _, kind := range []string{"plain", "rude"} {
			get("broken.example") // its circuit is open for a second
			for i := range maxHosts + 100 {
				if err := get(fmt.Sprintf("%s%d.example", kind, i)); err != nil {
					t.Fatal(err)
				}
			}
			if n := len(h.hosts); n > maxHosts {
				t.Errorf("%s: %d hosts are remembered", kind, n)
			}
			if err := get("paused.example"); !isNotSent(err) {
				t.Errorf("%s: the pause is forgotten: %v", kind, err)
			}
			if kind == "plain" && !isNotSent(get("broken.example")) {
				t.Errorf("%s: the circuit is forgotten", kind)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			req, _ := http.NewRequestWithContext(ctx, "GET", "https://busy.example/", nil)
			if _, err := client.Do(req); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: a second request to a host with one connection: %v", kind, err)
			}
			cancel()
		}
		close(ended)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := len(h.labels); n != maxHostLabels {
			t.Errorf("%d labels", n)
		}
		for name, host := range h.hosts {
			if host.users != 0 {
				t.Errorf("%s has %d users", name, host.users)
			}
		}
	})
}

// What became of a request is counted with its cause.
func TestHostCauses(t *testing.T) {
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for k, v := range r.URL.Query() {
			w.Header().Set(k, v[0])
		}
		switch status := r.URL.Path[1:]; status {
		case "hang":
			<-r.Context().Done()
		case "gone":
			panic(http.ErrAbortHandler)
		case "cut":
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "x")
		default:
			n, _ := strconv.Atoi(status)
			w.WriteHeader(n)
		}
	}))
	defer plain.Close()
	secure := httptest.NewTLSServer(plain.Config.Handler)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	defer secure.Close()
	closed := httptest.NewServer(nil)
	closed.Close()
	spent := fmt.Sprintf("?X-RateLimit-Remaining=0&X-RateLimit-Reset=%d", time.Now().Add(time.Hour).Unix())
	guard := &net.Dialer{ControlContext: func(_ context.Context, _, _ string, _ syscall.RawConn) error {
		return goproxy.Errorf(http.StatusForbidden, "inside")
	}}
	for _, tc := range []struct{ url, again, want string }{
		{plain.URL + "/200", "", "ok"},
		{plain.URL + "/404", "", "refused 404"},
		{plain.URL + "/501", "", "refused 501"},
		{plain.URL + "/499", "", "refused 4xx"},
		{plain.URL + "/429", "", "limited 429"},
		{plain.URL + "/429?Retry-After=9", "/200", "held pause, limited 429"},
		{plain.URL + "/403" + spent, "", "limited 403"},
		{plain.URL + "/200" + spent, "", "limited spent"},
		{plain.URL + "/500", "/200", "failed 500, held circuit"},
		{plain.URL + "/599", "", "failed 5xx"},
		{plain.URL + "/gone", "", "failed cut"},
		{plain.URL + "/cut", "", "failed cut, ok"},
		{plain.URL + "/hang", "", "failed timeout"},
		{closed.URL, "", "failed connect"},
		{secure.URL + "/200", "", "failed tls"},
		{strings.Replace(secure.URL, "https", "http", 1) + "/200", "", "refused 400"},
		{strings.Replace(plain.URL, "http", "https", 1) + "/200", "", "failed tls"},
		{"http://no-such-host.invalid/", "", "failed dns"},
		{"http://guarded/", "", "failed forbidden"},
	} {
		h := NewHosts(HostOptions{Connections: 1, Failures: 1})
		client := &http.Client{Transport: h.Wrap(&http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			switch {
			case strings.HasPrefix(address, "guarded:"):
				return guard.DialContext(ctx, network, plain.Listener.Addr().String())
			case strings.HasPrefix(address, "no-such-host"): // as a resolver says it, which is not there in every place
				return nil, &net.OpError{Op: "dial", Net: network, Err: &net.DNSError{Err: "no such host", Name: "no-such-host.invalid", IsNotFound: true}}
			}
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}})}
		get := func(u string) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if strings.HasSuffix(u, "/hang") {
				ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
			}
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
			if err != nil {
				t.Fatal(err)
			}
			if resp, err := client.Do(req); err == nil {
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		}
		get(tc.url)
		if tc.again != "" {
			get(plain.URL + tc.again)
		}
		if got := counted(t, h.requests); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.url, got, tc.want)
		}
	}
}

// counted is what a counter of requests has counted once: its outcomes and causes.
func counted(t *testing.T, c prometheus.Collector) string {
	t.Helper()
	r := prometheus.NewRegistry()
	r.MustRegister(c)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, f := range families {
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if n := m.GetCounter().GetValue(); n != 1 {
				t.Errorf("%v is counted %v times", labels, n)
			}
			all = append(all, strings.TrimSpace(labels["outcome"]+" "+labels["cause"]))
		}
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// A host that answers git with nothing, or with a body that never ends, has failed: the
// request is cancelled for its time, and not because who asked has left. A good beginning
// is no success.
func TestCircuitOfHangingBodies(t *testing.T) {
	for name, headers := range map[string]bool{"no answer": false, "no body": true} {
		synctest.Test(t, func(t *testing.T) {
			h := NewHosts(HostOptions{Connections: 4, Failures: 3, Timeout: time.Hour})
			sent := 0
			works := false
			client := &http.Client{Transport: h.Wrap(answering(func(req *http.Request) (func([]byte) (int, error), error) {
				sent++
				hang := func([]byte) (int, error) {
					if works {
						return 0, io.EOF
					}
					<-req.Context().Done()
					return 0, req.Context().Err()
				}
				if !headers {
					if _, err := hang(nil); err != io.EOF {
						return nil, err
					}
				}
				return hang, nil
			}))}
			ask := func(cause error) {
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				timer := time.AfterFunc(30*time.Second, func() { cancel(cause) })
				defer timer.Stop()
				req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "https://git.example/", nil)
				if resp, err := client.Do(req); err == nil {
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			}
			for range 5 {
				ask(context.Canceled) // who asked leaves, which says nothing of the host
			}
			if sent != 5 {
				t.Fatalf("%s: %d of 5 requests were sent", name, sent)
			}
			for range 5 {
				ask(fmt.Errorf("no byte for 30s: %w", os.ErrDeadlineExceeded))
			}
			if sent != 8 {
				t.Errorf("%s: %d of 5 requests were sent to a host that hangs, want 3", name, sent-5)
			}
			time.Sleep(2 * time.Second)
			works = true
			for range 4 {
				ask(nil)
			}
			if sent != 12 {
				t.Errorf("%s: %d of 4 requests were sent to a host that is back", name, sent-8)
			}
		})
	}
}
