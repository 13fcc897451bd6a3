// Package remote says where a module's repository is, and reaches hosts on the
// internet on behalf of whoever asks for a module: with the operator's
// credentials, and never anything that is not on the internet.
package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
)

// Options of a Remote. The zero value reaches public hosts over https.
type Options struct {
	// InsteadOf are "FROM=TO", as git's url.TO.insteadOf=FROM: a URL that begins
	// with FROM begins with TO instead; the longest FROM wins. The host of TO may
	// be anywhere, and http: the operator named it. TO may be ssh://user@host/… and
	// user@host:…; such a rule is for repositories alone, not for pages.
	InsteadOf []string
	// AllowHosts are patterns (path.Match) of hosts that may have private addresses.
	AllowHosts []string
	// Insecure are patterns of module paths, in GOPRIVATE syntax, that may be
	// reached over http.
	Insecure string
	// Tokens are "PREFIX=SECRET" or "PREFIX=USER:SECRET", PREFIX a host or the
	// beginning of host/path. The longest wins, before Netrc.
	Tokens []string
	Netrc  string // the content of a netrc file
	// SSHKeys are "FILE" or "PREFIX=FILE": private keys. Those with the longest
	// prefix of host/path are offered, in their order; without one SSH is refused.
	SSHKeys       []string
	SSHPassphrase string // of keys that are encrypted
	// KnownHosts names the file of the hosts that SSH may reach; "": none is known.
	// Keys and known hosts are read once, by New.
	KnownHosts string
	// Wrap bounds what is asked of each host; nil: nothing does.
	Wrap func(http.RoundTripper) http.RoundTripper
	// Dial is for tests; nil dials.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Remote reaches hosts. It is safe for concurrent use.
type Remote struct {
	o         Options
	insteadOf []rule // the longest From first
	creds     []credential
	trusted   map[string]bool // hosts that the operator named; ssh://host:port
	plain     map[string]bool // of these, those that were named with http
	ssh       *sshTransport
	http      *http.Client
	found     cache
}

// rule is one of InsteadOf.
type rule struct {
	from, to string
	url      *url.URL // to
}

const (
	maxRedirects = 10
	dialTimeout  = 10 * time.Second
	// headerTimeout is how long a host may take to begin its answer; a git server sends
	// something every 5 s while it makes a pack (uploadpack.keepAlive).
	headerTimeout = time.Minute
)

// New checks the options. An error names what is wrong, and no secret.
func New(o Options) (*Remote, error) {
	r := &Remote{o: o, trusted: map[string]bool{}, plain: map[string]bool{}}
	for _, text := range o.InsteadOf {
		from, to, ok := strings.Cut(text, "=")
		u, err := parseRepo(to)
		if !ok || from == "" || err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" && u.Scheme != "ssh" {
			return nil, fmt.Errorf("vcs-instead-of: %q is not FROM=TO with a URL of https, http or ssh, or user@host:path, as TO", redact(text))
		}
		r.insteadOf = append(r.insteadOf, rule{from, to, u})
		if u.Scheme == "ssh" {
			r.trusted["ssh://"+address(u)] = true
		} else {
			r.trusted[u.Host] = true
			r.plain[u.Host] = r.plain[u.Host] || u.Scheme == "http"
		}
	}
	slices.SortStableFunc(r.insteadOf, func(a, b rule) int { return len(b.from) - len(a.from) })
	for _, p := range o.AllowHosts {
		if _, err := path.Match(p, "host"); err != nil || p == "" {
			return nil, fmt.Errorf("vcs-allow-host: %q is not a pattern of hosts", p)
		}
	}
	for p := range strings.SplitSeq(o.Insecure, ",") {
		if _, err := path.Match(p, "x"); err != nil {
			return nil, fmt.Errorf("vcs-insecure: %q is not a pattern of module paths", p)
		}
	}
	for i, t := range o.Tokens {
		c, err := parseToken(t)
		if err != nil {
			return nil, fmt.Errorf("vcs-token: entry %d: %w", i+1, err)
		}
		r.creds = append(r.creds, c)
	}
	slices.SortStableFunc(r.creds, func(a, b credential) int { return len(b.prefix) - len(a.prefix) })
	r.creds = append(r.creds, parseNetrc(o.Netrc)...)
	var err error
	if r.ssh, err = newSSH(r, o); err != nil {
		return nil, err
	}
	r.http = &http.Client{Transport: r.transport(), CheckRedirect: r.checkRedirect}
	return r, nil
}

// redact takes user and password out of what may be a URL.
func redact(s string) string {
	if i := strings.Index(s, "://"); i >= 0 {
		if j := strings.IndexByte(s[i:], '@'); j >= 0 {
			return s[:i+3] + "…" + s[i+j:]
		}
	}
	return s
}

// HTTP is the client that all of a host's protocols go over. It connects to public
// addresses, and to hosts that the operator named; it follows redirects by the same
// rules; it adds the credentials that are set for a URL. A POST to the ssh URL of a
// repository runs git-upload-pack there: the request's body is its input, the answer's
// its output.
func (r *Remote) HTTP() *http.Client { return r.http }

// Rewrite applies InsteadOf to the URL of a repository.
func (r *Remote) Rewrite(rawURL string) string { return r.rewrite(rawURL, false) }

// rewrite with web leaves out the rules whose TO is no place for pages.
func (r *Remote) rewrite(rawURL string, web bool) string {
	for _, rule := range r.insteadOf {
		if rest, ok := strings.CutPrefix(rawURL, rule.from); ok && !(web && rule.url.Scheme == "ssh") {
			return rule.to + rest
		}
	}
	return rawURL
}

// Module is the URL of a repository, as its host names it on the web, as its module
// path: Rewrite, undone.
func (r *Remote) Module(rawURL string) string {
	_, bare, _ := strings.Cut(rawURL, "://")
	for _, rule := range r.insteadOf {
		rest, ok := strings.CutPrefix(rawURL, rule.to)
		if rule.url.Scheme == "ssh" { // the web has another scheme there, and another port
			rest, ok = strings.CutPrefix(bare, rule.url.Hostname()+webPath(rule.url))
		}
		if ok {
			_, bare, _ = strings.Cut(rule.from+rest, "://")
			break
		}
	}
	return bare
}

func (r *Remote) insecure(modulePath string) bool {
	return module.MatchPrefixPatterns(r.o.Insecure, modulePath)
}

// openKey says that a request may be made over http: the module is insecure.
type openKey struct{}

// Context is one in which what belongs to the repository may be asked for: over http too,
// where its module may be.
func (repo *Repo) Context(ctx context.Context) context.Context {
	if !repo.Insecure {
		return ctx
	}
	return context.WithValue(ctx, openKey{}, true)
}

// maxIdle is how many connections are kept open for another request, to all hosts: each takes
// some 40 KB, and the names of a stranger's hosts have no end.
const maxIdle = 256

// transport has two: a connection to a host at any address, which the operator named, is
// none for whoever a stranger sent there.
func (r *Remote) transport() http.RoundTripper {
	newTransport := func(free bool) *http.Transport {
		return &http.Transport{
			Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 8, MaxIdleConns: maxIdle, IdleConnTimeout: 90 * time.Second,
			TLSHandshakeTimeout: dialTimeout, MaxResponseHeaderBytes: 64 << 10, ResponseHeaderTimeout: headerTimeout,
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				// The address is looked at after the name was resolved: a name that resolves to
				// another one the second time is no way around it.
				return r.connect(ctx, network, address, free || isProxy(address))
			},
		}
	}
	free, guarded := newTransport(true), newTransport(false)
	bounded := http.RoundTripper(roundTripper(func(req *http.Request) (*http.Response, error) {
		switch {
		case req.URL.Scheme == "ssh":
			return r.ssh.RoundTrip(req)
		case r.free(req):
			return free.RoundTrip(req)
		}
		return guarded.RoundTrip(req)
	}))
	if r.o.Wrap != nil {
		bounded = r.o.Wrap(bounded)
	}
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		host := req.URL.Host
		if req.URL.Scheme == "ssh" { // which looks at addresses itself
			return bounded.RoundTrip(req)
		}
		switch {
		case req.URL.Scheme == "https":
		case req.URL.Scheme == "http" && (r.plain[host] || req.Context().Value(openKey{}) != nil):
		default:
			return nil, goproxy.Errorf(http.StatusForbidden, "%s://%s: only https is allowed (setting vcs-insecure)", req.URL.Scheme, host)
		}
		// The dialer sees the address; behind a proxy there is none to see.
		if a, err := netip.ParseAddr(strings.Trim(req.URL.Hostname(), "[]")); err == nil && !r.free(req) && !public(a) {
			return nil, forbidden(host, a)
		}
		return r.withCredentials(bounded).RoundTrip(req)
	})
}

// free reports whether a request may go to any address: the operator allows its host, or
// named it, and no other host sent it there.
func (r *Remote) free(req *http.Request) bool {
	return r.allowHost(req.URL.Host) || r.trusted[req.URL.Host] && req.Context().Value(redirectedKey{}) == nil
}

// withCredentials adds to a request what is set for its URL.
func (r *Remote) withCredentials(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		if c := r.credential(req.URL); c != nil && req.Header.Get("Authorization") == "" {
			req = req.Clone(req.Context())
			req.SetBasicAuth(c.user, c.secret)
		}
		return next.RoundTrip(req)
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func (r *Remote) checkRedirect(req *http.Request, via []*http.Request) error {
	last := via[len(via)-1].URL
	switch {
	case len(via) >= maxRedirects:
		return goproxy.Errorf(http.StatusBadGateway, "%s: more than %d redirects", via[0].URL.Host, maxRedirects)
	case last.Scheme == "https" && req.URL.Scheme != "https", req.URL.Scheme == "ssh":
		return goproxy.Errorf(http.StatusForbidden, "%s: a redirect from %s to %s is not followed", last.Host, last.Scheme, req.URL.Scheme)
	case req.URL.User != nil:
		return goproxy.Errorf(http.StatusForbidden, "%s: a redirect to a URL with a user in it is not followed", last.Host)
	}
	// What was allowed for one host is not for another.
	if slices.ContainsFunc(via, func(v *http.Request) bool { return v.URL.Host != req.URL.Host }) {
		*req = *req.WithContext(context.WithValue(req.Context(), redirectedKey{}, true))
	}
	return nil
}

// redirectedKey marks a request that a host sent elsewhere: that the operator
// named the first host says nothing of this one.
type redirectedKey struct{}

// allowHost reports whether AllowHosts has a host, with or without its port.
func (r *Remote) allowHost(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	return slices.ContainsFunc(r.o.AllowHosts, func(p string) bool {
		m1, _ := path.Match(p, host)
		m2, _ := path.Match(p, name)
		return m1 || m2
	})
}

// connect connects to an address that must be on the internet unless it is free.
func (r *Remote) connect(ctx context.Context, network, address string, free bool) (net.Conn, error) {
	if r.o.Dial != nil {
		return r.o.Dial(ctx, network, address)
	}
	d := net.Dialer{Timeout: dialTimeout}
	if !free {
		d.ControlContext = func(_ context.Context, _, resolved string, _ syscall.RawConn) error {
			ap, err := netip.ParseAddrPort(resolved)
			if err != nil {
				return err
			}
			if !public(ap.Addr()) {
				name, _, _ := net.SplitHostPort(address)
				return forbidden(name, ap.Addr())
			}
			return nil
		}
	}
	conn, err := d.DialContext(ctx, network, address)
	var e *goproxy.Error
	if errors.As(err, &e) {
		return nil, e
	}
	return conn, err
}

// isProxy reports whether the address is that of the proxy that the environment
// names: the operator's choice.
func isProxy(address string) bool {
	for _, scheme := range []string{"https", "http"} {
		u, err := http.ProxyFromEnvironment(&http.Request{URL: &url.URL{Scheme: scheme, Host: "example.org"}})
		if err != nil || u == nil {
			continue
		}
		port := u.Port()
		if port == "" {
			port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
		}
		if net.JoinHostPort(u.Hostname(), port) == address {
			return true
		}
	}
	return false
}

func forbidden(host string, a netip.Addr) error {
	return goproxy.Errorf(http.StatusForbidden, "%s: %s is not an address on the internet (setting vcs-allow-host)", host, a)
}

// notPublic are the blocks that netip.Addr's own methods do not tell.
// Source: https://www.iana.org/assignments/iana-ipv4-special-registry and
// iana-ipv6-special-registry.
var notPublic = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("64:ff9b:1::/48"), netip.MustParsePrefix("100::/64"), netip.MustParsePrefix("2001::/23"),
	netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("fec0::/10"), netip.MustParsePrefix("5f00::/16"),
}

// public reports whether an address is one on the internet.
func public(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if b := a.As16(); a.Is6() {
		// An IPv4 address in an IPv6 one: NAT64, 6to4, and the old compatible form.
		switch {
		case netip.MustParsePrefix("64:ff9b::/96").Contains(a), netip.MustParsePrefix("::/96").Contains(a):
			a = netip.AddrFrom4([4]byte(b[12:16]))
		case netip.MustParsePrefix("2002::/16").Contains(a):
			a = netip.AddrFrom4([4]byte(b[2:6]))
		}
	}
	if !a.IsValid() || !a.IsGlobalUnicast() || a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() {
		return false
	}
	return !slices.ContainsFunc(notPublic, func(p netip.Prefix) bool { return p.Contains(a) })
}
