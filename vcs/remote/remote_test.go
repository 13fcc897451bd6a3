package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/athensctl/athensctl/goproxy"
)

func TestPublic(t *testing.T) {
	for _, a := range []string{
		"127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "0.1.2.3",
		"255.255.255.255", "224.0.0.1", "240.0.0.1", "198.18.0.1", "192.0.2.1", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1",
		"ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::1", "2001:db8::1", "100::1",
	} {
		if public(netip.MustParseAddr(a)) {
			t.Errorf("%s counts as public", a)
		}
	}
	for _, a := range []string{"8.8.8.8", "140.82.112.3", "172.32.0.1", "2606:50c0:8000::1", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"} {
		if !public(netip.MustParseAddr(a)) {
			t.Errorf("%s does not count as public", a)
		}
	}
}

func newRemote(t *testing.T, o Options) *Remote {
	t.Helper()
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func get(r *Remote, u string) (*http.Response, error) {
	req, err := http.NewRequest(http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	resp, err := r.HTTP().Do(req)
	if err == nil {
		resp.Body.Close()
	}
	return resp, err
}

// What is not on the internet is not reached: not by its address, not by a name that
// has it, not by a redirect; unless the operator named it.
func TestGuard(t *testing.T) {
	inside := 0
	secret := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { inside++ }))
	t.Cleanup(secret.Close)
	_, port, _ := net.SplitHostPort(secret.Listener.Addr().String())
	redirects := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ok":
		case "/loop":
			http.Redirect(w, r, "/loop", http.StatusFound)
		case "/user":
			http.Redirect(w, r, strings.Replace(secret.URL, "://", "://user@", 1), http.StatusFound)
		default:
			http.Redirect(w, r, secret.URL, http.StatusFound)
		}
	}))
	t.Cleanup(redirects.Close)

	forbidden := func(what string, r *Remote, u string, want string) {
		t.Helper()
		_, err := get(r, u)
		var e *goproxy.Error
		if !errors.As(err, &e) || e.Status != http.StatusForbidden || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want a 403 with %q", what, err, want)
		}
	}
	plain := newRemote(t, Options{})
	forbidden("loopback", plain, "https://127.0.0.1:"+port, "vcs-allow-host")
	forbidden("a name of loopback", plain, "https://localhost:"+port, "vcs-allow-host")
	forbidden("loopback in IPv6", plain, "https://[::ffff:127.0.0.1]:"+port, "vcs-allow-host")
	forbidden("http", plain, "http://example.org", "only https")
	forbidden("another scheme", plain, "ftp://example.org", "only https")
	// The operator named one host; it sends elsewhere.
	named := newRemote(t, Options{InsteadOf: []string{"https://git.example.org/=" + redirects.URL + "/"}})
	if _, err := get(named, redirects.URL+"/ok"); err != nil {
		t.Errorf("a host that the operator named: %v", err)
	}
	forbidden("a redirect of such a host", named, redirects.URL+"/away", "only https")
	if _, err := get(named, redirects.URL+"/loop"); goproxy.Status(err) != http.StatusBadGateway {
		t.Errorf("endless redirects: %v", err)
	}
	forbidden("a user in a redirect", named, redirects.URL+"/user", "user")
	if inside > 0 {
		t.Errorf("%d requests got inside", inside)
	}
	allowed := newRemote(t, Options{AllowHosts: []string{"127.0.0.*"}})
	_, err := get(allowed, "https://127.0.0.1:"+port)
	if err == nil || goproxy.Status(err) == http.StatusForbidden { // it does not speak TLS: it was reached
		t.Errorf("an allowed host: %v", err)
	}
}

func TestOptions(t *testing.T) {
	for want, o := range map[string]Options{
		"vcs-instead-of: \"nothing\"":        {InsteadOf: []string{"nothing"}},
		"vcs-instead-of":                     {InsteadOf: []string{"https://a/=git://b/"}},
		"https://…@b/":                       {InsteadOf: []string{"https://a/=ftp://u:s3cret@b/"}},
		"vcs-allow-host: \"[\"":              {AllowHosts: []string{"["}},
		"vcs-token: entry 2: it is not HOST": {Tokens: []string{"a=b", "s3cret"}},
		"vcs-token: entry 1: it is not":      {Tokens: []string{"https://a=s3cret"}},
	} {
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%+v: %v, want %q", o, err, want)
		}
	}
}

func TestCredentials(t *testing.T) {
	r := newRemote(t, Options{
		Tokens:    []string{"git.example.org=one", "git.example.org/team=two", "git.example.org/team/x=me:three"},
		Netrc:     "machine a.example.org login u password p\nmachine b.example.org\nlogin v\npassword q\nmacdef init\nmachine no login no password no\n\nmachine git.example.org login no password no\ndefault login no password no",
		InsteadOf: []string{"https://old/=http://plain.example.org/"},
	})
	for u, want := range map[string]string{
		"https://git.example.org/a": "x-access-token:one", "https://git.example.org/team": "x-access-token:two", "https://git.example.org/team/y": "x-access-token:two",
		"https://git.example.org/teams/y": "x-access-token:one", "https://git.example.org/team/x/info/refs": "me:three", "https://git.example.org:8443/a": "x-access-token:one",
		"https://a.example.org/x": "u:p", "https://b.example.org/": "v:q", "https://no/": "", "https://c.example.org/": "", "https://git.example.org.evil.example/": "",
		"http://git.example.org/a": "", "https://other@git.example.org/a": "",
	} {
		parsed, _ := url.Parse(u)
		got := ""
		if c := r.credential(parsed); c != nil {
			got = c.user + ":" + c.secret
		}
		if got != want {
			t.Errorf("%s: %q, want %q", u, got, want)
		}
	}
	for from, want := range map[string]string{"https://old/x": "http://plain.example.org/x", "https://older/x": "https://older/x"} {
		if got := r.Rewrite(from); got != want {
			t.Errorf("%s: %s", from, got)
		}
	}
}

// A secret goes to its host, and not along with a redirect.
func TestSecretStays(t *testing.T) {
	var got []string
	other := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = append(got, "other "+r.Header.Get("Authorization"))
	}))
	t.Cleanup(other.Close)
	first := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = append(got, "first "+r.Header.Get("Authorization"))
		http.Redirect(w, r, "https://example.com/", http.StatusFound)
	}))
	t.Cleanup(first.Close)
	r := newRemote(t, Options{Tokens: []string{"127.0.0.1=s3cret"}, AllowHosts: []string{"*"}})
	// The certificates are httptest's, for 127.0.0.1 and example.com.
	transport := first.Client().Transport.(*http.Transport).Clone()
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if strings.HasPrefix(address, "example.com:") {
			address = other.Listener.Addr().String()
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	r.HTTP().Transport = r.withCredentials(transport)
	if _, err := get(r, first.URL); err != nil {
		t.Error(err)
	}
	if len(got) != 2 || !strings.HasPrefix(got[0], "first Basic") || got[1] != "other " {
		t.Errorf("what the hosts were sent: %q", got)
	}
}

func TestDiscover(t *testing.T) {
	pages := map[string]string{
		"mod.example.org/a":       `<meta name="go-import" content="mod.example.org/a git https://git.example.org/a">`,
		"mod.example.org/a/b":     `<meta name="go-import" content="mod.example.org/a git https://git.example.org/a">`,
		"mod.example.org/lie":     `<meta name="go-import" content="mod.example.org git https://evil.example.org/x">`,
		"mod.example.org/":        `nothing`,
		"mod.example.org/two":     `<meta name="go-import" content="mod.example.org/two git https://a.example.org/a"><meta name="go-import" content="mod.example.org/two git https://b.example.org/a">`,
		"mod.example.org/proxy":   `<meta name="go-import" content="mod.example.org/proxy git https://a.example.org/a"><meta name="go-import" content="mod.example.org/proxy mod https://proxy.example.org">`,
		"mod.example.org/hg":      `<meta name="go-import" content="mod.example.org/hg hg https://a.example.org/a">`,
		"mod.example.org/body":    `<body><meta name="go-import" content="mod.example.org/body git https://a.example.org/a">`,
		"mod.example.org/other":   `<meta name="go-import" content="mod.example.org/else git https://a.example.org/a">`,
		"mod.example.org/sub":     `<META NAME="go-import" CONTENT="mod.example.org/sub git https://a.example.org/a lib/go">`,
		"mod.example.org/updir":   `<meta name="go-import" content="mod.example.org/updir git https://a.example.org/a ../x">`,
		"mod.example.org/scheme":  `<meta name="go-import" content="mod.example.org/scheme git file:///etc/passwd">`,
		"mod.example.org/long":    `<meta name="go-import" content="mod.example.org/long git https://a.example.org/` + strings.Repeat("a", maxTagBytes) + `">`,
		"mod.example.org/charset": `<?xml version="1.0" encoding="koi8-r"?><meta name="go-import" content="x">`,
	}
	asked := map[string]int{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked[r.Host+r.URL.Path]++
		if p, ok := pages[r.Host+r.URL.Path]; ok {
			fmt.Fprint(w, "<html><head>"+p)
			return
		}
		if strings.HasSuffix(r.URL.Path, "/broken") {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		http.NotFound(w, r)
	}))
	t.Cleanup(srv.Close)
	r := newRemote(t, Options{Insecure: "*", Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, srv.Listener.Addr().String())
	}})
	for path, want := range map[string]string{
		"github.com/a/b/c/v2":       "github.com/a/b git https://github.com/a/b ",
		"bitbucket.org/a/b":         "bitbucket.org/a/b git https://bitbucket.org/a/b ",
		"git.example.org/x/y.git/z": "git.example.org/x/y.git git https://git.example.org/x/y ",
		"mod.example.org/a":         "mod.example.org/a git https://git.example.org/a ",
		"mod.example.org/a/b":       "mod.example.org/a git https://git.example.org/a ",
		"mod.example.org/sub":       "mod.example.org/sub git https://a.example.org/a lib/go",
		"mod.example.org/proxy":     "mod.example.org/proxy mod https://proxy.example.org ",
		"github.com/a/b.git":        "404", "github.com/a/b.git/c": "404", "bitbucket.org/a/b.hg/c": "404", "github.com/a/b.gitx/c": "github.com/a/b.gitx git https://github.com/a/b.gitx ",
		"github.com/a": "404", "nodot/x": "400", "mod.example.org/none": "404", "mod.example.org/body": "404", "mod.example.org/other": "404",
		"mod.example.org/lie": "404", "mod.example.org/two": "502", "mod.example.org/hg": "501", "git.example.org/x.hg": "501", "mod.example.org/broken": "502",
		"mod.example.org/updir": "502", "mod.example.org/scheme": "502", "mod.example.org/charset": "502", "mod.example.org/long": "404",
		"chiselapp.com/user/a/repository/b": "501", "Bad Path": "400",
	} {
		repo, err := r.Discover(t.Context(), path)
		got := fmt.Sprint(goproxy.Status(err))
		if err == nil {
			got = fmt.Sprintf("%s %s %s %s", repo.Root, repo.VCS, repo.URL, repo.SubDir)
		}
		if got != want {
			t.Errorf("%s: %s (%v), want %s", path, got, err, want)
		}
	}
	before := asked["mod.example.org/a"]
	for range 5 {
		r.Discover(t.Context(), "mod.example.org/a")
	}
	if n := asked["mod.example.org/a"] - before; n != 0 {
		t.Errorf("what was found was asked for again %d times", n)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	<-ctx.Done()
	if _, err := r.Discover(ctx, "mod.example.org/late"); err == nil {
		t.Error("a request whose time is over was answered")
	}
}

// dialed counts the connections that are open.
type dialed struct {
	net.Conn
	close func()
}

func (d *dialed) Close() error {
	d.close()
	return d.Conn.Close()
}

// However many hosts are asked, only so many connections are kept.
func TestIdleConnections(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") }))
	t.Cleanup(srv.Close)
	var open atomic.Int64
	r := newRemote(t, Options{Insecure: "*", Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, srv.Listener.Addr().String())
		if err != nil {
			return nil, err
		}
		open.Add(1)
		return &dialed{c, sync.OnceFunc(func() { open.Add(-1) })}, nil
	}})
	ctx := (&Repo{Insecure: true}).Context(t.Context())
	for i := range maxIdle + 200 {
		req, err := http.NewRequestWithContext(ctx, "GET", fmt.Sprintf("http://h%d.example.org/", i), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := r.HTTP().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	for end := time.Now().Add(30 * time.Second); open.Load() > maxIdle; time.Sleep(time.Millisecond) { // the last are on their way
		if time.Now().After(end) {
			t.Fatalf("%d connections are open", open.Load())
		}
	}
}

func FuzzGoImport(f *testing.F) {
	f.Add(`<html><head><meta name="go-import" content="a git https://b"></head>`)
	f.Add(`<?xml encoding="x"?><meta name=go-import content=a>`)
	f.Fuzz(func(t *testing.T, page string) {
		tags, _ := parseGoImports(strings.NewReader(page))
		for _, g := range tags {
			if g.Prefix == "" || g.VCS == "" || g.URL == "" {
				t.Errorf("%+v", g)
			}
		}
	})
}

func FuzzNetrc(f *testing.F) {
	f.Add("machine a login b password c")
	f.Add("macdef x\n\ndefault")
	f.Fuzz(func(t *testing.T, text string) {
		for _, c := range parseNetrc(text) {
			if c.prefix == "" || c.user == "" || c.secret == "" {
				t.Errorf("%+v", c)
			}
		}
	})
}

// A host that takes a request and does not begin to answer is given up.
func TestHostDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRemote(t, Options{
			InsteadOf: []string{"https://git.example/=http://mirror.example/"},
			Dial: func(context.Context, string, string) (net.Conn, error) {
				here, there := net.Pipe()
				go io.Copy(io.Discard, there)
				return here, nil
			},
		})
		began := time.Now()
		// As vcs.Source makes it of a go-import with "mod".
		c := &goproxy.Client{Base: &url.URL{Scheme: "http", Host: "mirror.example"}, HTTP: r.HTTP(), IdleTimeout: 30 * time.Second}
		if _, err := c.List(t.Context(), "git.example/m"); goproxy.Status(err) != 504 || time.Since(began) != headerTimeout {
			t.Errorf("after %v: %d %v", time.Since(began), goproxy.Status(err), err)
		}
	})
}
