//go:build unix

package e2e

import (
	"archive/zip"
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/athensctl/athensctl/internal/testgit"
)

// tunnel is an HTTP proxy that wants a password, and for which every host is one server.
type tunnel struct {
	*httptest.Server
	mu    sync.Mutex
	hosts map[string]int // CONNECTs
}

func newTunnel(t *testing.T, to, user, password string) *tunnel {
	p := &tunnel{hosts: map[string]int{}}
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect || r.Header.Get("Proxy-Authorization") != want {
			w.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		p.mu.Lock()
		p.hosts[r.Host]++
		p.mu.Unlock()
		there, err := net.Dial("tcp", to)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer there.Close()
		here, buffered, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer here.Close()
		io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
		go io.Copy(there, buffered)
		io.Copy(here, there)
	}))
	t.Cleanup(p.Close)
	return p
}

// A private git host as companies have it: https with a CA of its own, behind a proxy
// that wants a password, for who has a token or a netrc file. The module comes as from
// anywhere; and no secret is in an answer, a log or a metric, whatever goes wrong.
func TestPrivateHost(t *testing.T) {
	const secret, proxySecret = "s3cret-of-the-host", "s3cret-of-the-proxy"
	root := t.TempDir()
	host := testgit.New(t, root)
	testgit.Script(t, root, "repo team/lib; gomod go.mod example.com/team/lib.git; src a.go; commit; tag v1.0.0; repo team/hidden; src a.go; commit; tag v1.0.0\n")
	back, err := url.Parse(host.URL)
	if err != nil {
		t.Fatal(err)
	}
	front := httputil.NewSingleHostReverseProxy(back)
	var mu sync.Mutex
	users := map[string]int{}
	site := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		mu.Lock()
		users[user]++
		mu.Unlock()
		switch {
		case strings.Contains(r.URL.Path, "/page"):
			fmt.Fprint(w, `<meta name="go-import" content="example.com/page git https://me:`+secret+`@example.com/team/lib">`)
		case password != secret:
			w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			w.WriteHeader(http.StatusUnauthorized)
		case strings.Contains(r.URL.Path, "/hidden"):
			w.WriteHeader(http.StatusForbidden)
		case strings.Contains(r.URL.Path, "/broken"):
			w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
			io.WriteString(w, "001fERR "+secret+"\n")
		default:
			front.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(site.Close)
	proxy := newTunnel(t, site.Listener.Addr().String(), "out", proxySecret)
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	ca := write("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: site.Certificate().Raw})))
	netrc := write("netrc", "machine example.com login reader password "+secret+"\n")
	env := []string{"SSL_CERT_FILE=" + ca, "SSL_CERT_DIR=" + dir, "HTTPS_PROXY=http://out:" + proxySecret + "@" + proxy.Listener.Addr().String(), "NO_PROXY="}
	run := func(args, more []string) *process {
		t.Helper()
		p := prepare(t, append([]string{"--upstream=direct", "--private=*", "--log-level=debug", "--data-dir", t.TempDir()}, args...)...)
		p.env = append(append(p.env, env...), more...)
		p.start()
		return p
	}
	const file = "/example.com/team/lib.git/@v/v1.0.0."
	var first string
	for _, tc := range []struct {
		name, user string
		args, env  []string
		status     int
	}{
		{"netrc", "reader", []string{"--vcs-netrc=" + netrc}, nil, 200},
		{"token", "x-access-token", []string{"--vcs-netrc=off"}, []string{"ATHENSCTL_VCS_TOKENS=example.com/team=" + secret}, 200},
		{"user and token", "me", []string{"--vcs-netrc=off"}, []string{"ATHENSCTL_VCS_TOKENS=example.com/team=me:" + secret + ",example.com=no:wrong"}, 200},
		{"a wrong token", "x-access-token", []string{"--vcs-netrc=off"}, []string{"ATHENSCTL_VCS_TOKENS=example.com=wrong-" + secret}, 404},
		{"none", "", []string{"--vcs-netrc=off"}, nil, 404},
		{"no CA", "", []string{"--vcs-netrc=" + netrc}, []string{"SSL_CERT_FILE=" + write("none.pem", ""), "SSL_CERT_DIR=/nowhere"}, 502},
		{"a proxy that refuses", "", []string{"--vcs-netrc=" + netrc}, []string{"HTTPS_PROXY=http://out:wrong-" + proxySecret + "@" + proxy.Listener.Addr().String()}, 502},
		{"no proxy", "", []string{"--vcs-netrc=" + netrc}, []string{"HTTPS_PROXY=http://out:" + proxySecret + "@127.0.0.1:1"}, 502},
	} {
		t.Run(tc.name, func(t *testing.T) {
			clear(users)
			p := run(tc.args, tc.env)
			said := ""
			for _, ext := range []string{"info", "mod", "zip"} {
				status, body, _ := get(t, p.url+file+ext)
				if status != tc.status {
					t.Errorf("%s: %d %.300s", ext, status, body)
				}
				said += body
				if ext != "zip" || status != 200 {
					continue
				}
				z, err := zip.NewReader(bytes.NewReader([]byte(body)), int64(len(body)))
				if err != nil || len(z.File) != 2 {
					t.Errorf("%v", err)
				}
				if first == "" {
					first = body
				}
				if body != first {
					t.Error("the zip is another")
				}
			}
			for _, path := range []string{"/example.com/team/lib.git/@v/list", "/example.com/team/hidden.git/@v/list", "/example.com/team/broken.git/@v/list", "/example.com/none/@v/list", "/example.com/page/@v/list", "/metrics"} {
				status, body, _ := get(t, p.url+path)
				if path == "/metrics" && (status != 200 || !strings.Contains(body, "athensctl_")) {
					t.Errorf("metrics: %d", status)
				}
				// What a host itself says to everybody is no secret of ours.
				if !strings.Contains(path, "broken") {
					said += body
				}
			}
			p.terminate()
			log := strings.ReplaceAll(p.log.String(), "the server says: "+secret, "")
			for _, text := range []string{said, log} {
				for _, s := range []string{secret, proxySecret, base64.StdEncoding.EncodeToString([]byte(tc.user + ":" + secret))} {
					if i := strings.Index(text, s); i >= 0 {
						t.Errorf("%q is in: %q", s, text[max(0, i-200):min(len(text), i+100)])
					}
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if tc.status != 502 && users[tc.user] == 0 || tc.status == 502 && len(users) > 0 {
				t.Errorf("who came: %v", users)
			}
		})
	}
	proxy.mu.Lock()
	defer proxy.mu.Unlock()
	if proxy.hosts["example.com:443"] == 0 {
		t.Errorf("the proxy was asked for %v", proxy.hosts)
	}
}
