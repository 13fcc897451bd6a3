package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/athensctl/athensctl/goproxy"
)

// What the operator named is open to those who ask for it, not to whom another host sends
// there: not over a connection that is there already either.
func TestNoOthersConnection(t *testing.T) {
	asked := 0
	inside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked++ }))
	t.Cleanup(inside.Close)
	named := strings.Replace(inside.URL, "127.0.0.1", "localhost", 1)
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/twice" {
			http.Redirect(w, r, named+"/there", http.StatusFound)
			return
		}
		http.Redirect(w, r, named, http.StatusFound)
	}))
	t.Cleanup(other.Close)
	r := newRemote(t, Options{InsteadOf: []string{"https://git.example.org/=" + named + "/", "https://other.example.org/=" + other.URL + "/"}})
	for range 2 {
		req, _ := http.NewRequest(http.MethodGet, named, nil)
		resp, err := r.HTTP().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body) // the connection is kept
		resp.Body.Close()
	}
	for _, path := range []string{"/", "/twice"} {
		_, err := get(r, other.URL+path)
		var e *goproxy.Error
		if !errors.As(err, &e) || e.Status != http.StatusForbidden || !strings.Contains(err.Error(), "vcs-allow-host") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if asked != 2 {
		t.Errorf("%d requests came, 2 of them from who may", asked)
	}
}

// GOINSECURE is for the page, for the repository that it names, and for a .git path; not
// for a module that it does not name, and not for the secrets.
func TestInsecure(t *testing.T) {
	var auth []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		auth = append(auth, r.Header.Get("Authorization"))
		switch {
		case strings.HasSuffix(r.URL.Path, "/info/refs"):
			w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
		case r.Host == "plain.example.org" && r.URL.Path == "/x":
			fmt.Fprint(w, `<meta name="go-import" content="plain.example.org/x git http://git.example.org/x">`)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host == "plain.example.org" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, `<meta name="go-import" content="tls.example.org/x git http://git.example.org/x">`)
	}))
	t.Cleanup(secure.Close)
	newOne := func(insecure string, tls bool) *Remote {
		r := newRemote(t, Options{Insecure: insecure, Tokens: []string{"git.example.org=s3cret", "plain.example.org=s3cret"}, InsteadOf: []string{"https://named.example.org/=https://git.example.org/"}})
		// Port 80 of all hosts is srv; port 443 is secure, or nobody.
		inner := srv.Client().Transport.(*http.Transport).Clone()
		inner.TLSClientConfig = secure.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
		inner.TLSClientConfig.InsecureSkipVerify = true
		inner.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			if strings.HasSuffix(address, ":443") {
				if !tls {
					return nil, errors.New("connection refused")
				}
				return new(net.Dialer).DialContext(ctx, network, secure.Listener.Addr().String())
			}
			return new(net.Dialer).DialContext(ctx, network, srv.Listener.Addr().String())
		}
		guard := r.transport()
		r.HTTP().Transport = roundTripper(func(req *http.Request) (*http.Response, error) {
			if req.URL.Scheme == "http" && !r.plain[req.URL.Host] && req.Context().Value(openKey{}) == nil {
				return guard.RoundTrip(req) // which refuses it
			}
			return r.withCredentials(inner).RoundTrip(req)
		})
		return r
	}
	for _, tc := range []struct {
		insecure string
		tls      bool
		path     string
		want     string
	}{
		{"plain.example.org", false, "plain.example.org/x", "http://git.example.org/x"},
		{"*.example.org", false, "git.example.org/a/b.git/sub", "http://git.example.org/a/b"},
		{"", false, "git.example.org/a/b.git/sub", "https://git.example.org/a/b"},
		{"", false, "plain.example.org/x", "502"},
		{"tls.example.org", true, "tls.example.org/x", "http://git.example.org/x"},
		{"other.example.org", true, "tls.example.org/x", "403"},
		// It says that there is nothing, over https; nobody listens on port 80.
		{"plain.example.org/none", true, "plain.example.org/none", "404"},
	} {
		r := newOne(tc.insecure, tc.tls)
		if tc.path == "plain.example.org/none" {
			closed := httptest.NewServer(nil)
			closed.Close()
			old := r.HTTP().Transport
			r.HTTP().Transport = roundTripper(func(req *http.Request) (*http.Response, error) {
				if req.URL.Scheme == "http" {
					return nil, errors.New("connection refused")
				}
				return old.RoundTrip(req)
			})
		}
		repo, err := r.Discover(t.Context(), tc.path)
		got := fmt.Sprint(goproxy.Status(err))
		if err == nil {
			got = repo.URL.String()
		}
		if got != tc.want {
			t.Errorf("%+v: %s, %v", tc, got, err)
		}
		if err != nil || !strings.HasPrefix(got, "http:") {
			continue
		}
		// Its requests may go over http, and those of others not.
		for _, ok := range []bool{true, false} {
			ctx := t.Context()
			if ok {
				ctx = repo.Context(ctx)
			}
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, got+"/info/refs", nil)
			resp, err := r.HTTP().Do(req)
			if err == nil {
				resp.Body.Close()
			}
			if (err == nil) != ok {
				t.Errorf("%s, allowed %v: %v", got, ok, err)
			}
		}
	}
	for _, a := range auth {
		if a != "" {
			t.Errorf("a secret went over http: %q", a)
		}
	}
	if _, err := New(Options{Insecure: "a.example,[b"}); err == nil || !strings.Contains(err.Error(), `vcs-insecure: "[b"`) {
		t.Errorf("a pattern that is none: %v", err)
	}
	r := newRemote(t, Options{Tokens: []string{"h.example=s3cret"}, InsteadOf: []string{"https://a/=https://h.example/", "https://b/=http://p.example/"}})
	if c := r.credential(&url.URL{Scheme: "http", Host: "h.example", Path: "/x"}); c != nil {
		t.Error("a secret goes over http to a host that was named with https")
	}
	if _, err := get(r, "http://h.example/x"); goproxy.Status(err) != http.StatusForbidden {
		t.Errorf("http to a host that was named with https: %v", err)
	}
}

// The go-import page of a host that has too much to do says so.
func TestBusyPage(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "30")
		w.WriteHeader(http.StatusTooManyRequests)
	}))
	t.Cleanup(srv.Close)
	r := newRemote(t, Options{InsteadOf: []string{"https://busy.example.org/=" + srv.URL + "/"}})
	_, err := r.Discover(t.Context(), "busy.example.org/x")
	var e *goproxy.Error
	if !errors.As(err, &e) || e.Status != http.StatusServiceUnavailable || e.RetryAfter.Seconds() != 30 {
		t.Errorf("%v", err)
	}
}

// The errors for what is not git say what it is, and how to serve it.
func TestOtherSystems(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		kind := strings.TrimPrefix(r.URL.Path, "/")
		fmt.Fprintf(w, `<meta name="go-import" content="mod.example.org/%s %s https://code.example.org/x">`, kind, kind)
	}))
	t.Cleanup(srv.Close)
	r := newRemote(t, Options{InsteadOf: []string{"https://mod.example.org/=" + srv.URL + "/"}})
	for _, kind := range []string{"hg", "svn", "bzr", "fossil"} {
		for path, at := range map[string]string{"mod.example.org/" + kind: "https://code.example.org/x", "git.example.org/a/x." + kind + "/sub": "https://git.example.org/a/x"} {
			_, err := r.Discover(t.Context(), path)
			want := path + " is kept in " + kind + " at " + at + "; only git is supported: name an upstream proxy that has it (setting upstream)"
			if goproxy.Status(err) != http.StatusNotImplemented || err.Error() != want {
				t.Errorf("%s: %v, want %s", path, err, want)
			}
		}
	}
}
