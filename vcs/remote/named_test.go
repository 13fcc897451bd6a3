package remote

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/athensctl/athensctl/goproxy"
)

// What the operator wrote is reached wherever it is; where it redirects to only if that is
// on the internet, or allowed.
func TestNamed(t *testing.T) {
	reached := 0
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached++ }))
	t.Cleanup(inside.Close)
	_, port, _ := net.SplitHostPort(inside.Listener.Addr().String())
	to := ""
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/here":
		case "/loop":
			http.Redirect(w, r, "/loop", http.StatusFound)
		default:
			http.Redirect(w, r, to, http.StatusFound)
		}
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	t.Cleanup(plain.Close)
	t.Cleanup(secure.Close)

	for _, tc := range []struct {
		what, from, to string
		o              Options
		status         int // 0: it is reached
		says           string
	}{
		{"what is named", plain.URL + "/here", "", Options{}, 0, ""},
		{"the same host", plain.URL, "/here", Options{}, 0, ""},
		{"another port", plain.URL, inside.URL, Options{}, 403, "not an address on the internet (setting vcs-allow-host)"},
		{"another name of it", plain.URL, "http://localhost:" + port, Options{}, 403, "not an address on the internet"},
		{"another form of it", plain.URL, "http://[::ffff:127.0.0.1]:" + port, Options{}, 403, "not an address on the internet"},
		{"a link-local address", plain.URL, "http://169.254.169.254/latest/meta-data/", Options{}, 403, "not an address on the internet"},
		{"a private address", plain.URL, "https://10.0.0.1/", Options{}, 403, "not an address on the internet"},
		{"a user", plain.URL, strings.Replace(inside.URL, "://", "://user@", 1), Options{AllowHosts: []string{"*"}}, 403, "a user in it"},
		{"a loop", plain.URL + "/loop", "", Options{}, 502, "redirects"},
		{"no longer https", secure.URL, inside.URL, Options{AllowHosts: []string{"127.0.0.1"}}, 403, "from https to http"},
		{"a file", plain.URL, "file:///etc/passwd", Options{}, 403, "redirect to file"},
		{"allowed by its address", plain.URL, inside.URL, Options{AllowHosts: []string{"127.0.0.1"}}, 0, ""},
		{"allowed with its port", plain.URL, inside.URL, Options{AllowHosts: []string{"127.0.0.1:" + port}}, 0, ""},
		{"allowed by its name", plain.URL, "http://localhost:" + port, Options{AllowHosts: []string{"local*"}}, 0, ""},
		{"another is allowed", plain.URL, inside.URL, Options{AllowHosts: []string{"git.corp.example"}}, 403, "not an address on the internet"},
		{"named for git", plain.URL, inside.URL, Options{InsteadOf: []string{"https://github.com/=" + inside.URL + "/"}}, 403, "not an address on the internet"},
		{"on the internet", plain.URL, "http://cdn.example/", Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if address != "cdn.example:80" {
				t.Errorf("%s is dialled", address)
			}
			return (&net.Dialer{}).DialContext(ctx, network, inside.Listener.Addr().String())
		}}, 0, ""},
	} {
		to, reached = tc.to, 0
		client := newRemote(t, tc.o).Named(secure.Client().Transport.(*http.Transport).Clone())
		u, err := url.Parse(tc.from)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&goproxy.Client{Base: &url.URL{Scheme: u.Scheme, Host: u.Host}, HTTP: client}).Get(t.Context(), u.Path)
		if err == nil {
			resp.Body.Close()
		}
		want := tc.status
		if want == 0 {
			want = 200
		}
		if goproxy.Status(err) != want || err != nil && !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %d %v; want %d %s", tc.what, goproxy.Status(err), err, want, tc.says)
		}
		if tc.status != 0 && reached != 0 {
			t.Errorf("%s: it was reached", tc.what)
		}
	}
}

// A host that is named and redirects elsewhere, where one more redirect stays on the spot,
// is not trusted there; nor is a connection that was made to a host that is named.
func TestNamedMarks(t *testing.T) {
	r := newRemote(t, Options{})
	request := func(u string) *http.Request { return httptest.NewRequest(http.MethodGet, u, nil) }
	for _, tc := range []struct {
		via    []string
		marked bool
	}{
		{[]string{"https://a.example/1", "https://a.example/2"}, false},
		{[]string{"https://a.example/1", "https://b.example/2"}, true},
		{[]string{"https://a.example/1", "https://b.example/2", "https://b.example/3"}, true},
		{[]string{"https://a.example/1", "https://b.example/2", "https://a.example/3"}, true},
	} {
		var via []*http.Request
		for _, u := range tc.via[:len(tc.via)-1] {
			via = append(via, request(u))
		}
		req := request(tc.via[len(tc.via)-1])
		if err := r.checkNamedRedirect(req, via); err != nil || (req.Context().Value(redirectedKey{}) != nil) != tc.marked {
			t.Errorf("%v: %v", tc.via, err)
		}
	}
	reached := 0
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached++ }))
	defer inside.Close()
	away := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, inside.URL, http.StatusFound) }))
	defer away.Close()
	client := r.Named(&http.Transport{})
	for i, u := range []string{inside.URL, away.URL, inside.URL} {
		resp, err := client.Get(u)
		if (err != nil) != (u == away.URL) {
			t.Errorf("%d: %v", i, err)
		}
		if err == nil {
			resp.Body.Close()
		}
	}
	if reached != 2 {
		t.Errorf("reached %d times", reached)
	}
}
