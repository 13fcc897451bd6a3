package remote

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/athensctl/athensctl/goproxy"
)

// Named is a client for URLs that the operator wrote, wherever they are: of an upstream
// proxy, a checksum database, a feed. A redirect from there is nothing that the operator
// wrote: to another host it is followed by the rules of HTTP, to addresses on the internet
// and to AllowHosts, not from https to http, and over connections of its own. t is used as
// it is but for its way to dial then; what is asked of each host is bounded by Wrap.
func (r *Remote) Named(t *http.Transport) *http.Client {
	elsewhere := t.Clone()
	elsewhere.DialContext = r.dialRedirected
	wrap := r.o.Wrap
	if wrap == nil {
		wrap = func(next http.RoundTripper) http.RoundTripper { return next }
	}
	named, redirected := wrap(t), wrap(elsewhere)
	return &http.Client{CheckRedirect: r.checkNamedRedirect, Transport: roundTripper(func(req *http.Request) (*http.Response, error) {
		if req.Context().Value(redirectedKey{}) == nil {
			return named.RoundTrip(req)
		}
		// The dialer sees the address; behind a proxy there is none to see.
		if a, err := netip.ParseAddr(strings.Trim(req.URL.Hostname(), "[]")); err == nil && !r.allowHost(req.URL.Host) && !public(a) {
			return nil, forbidden(req.URL.Host, a)
		}
		return redirected.RoundTrip(req)
	})}
}

// checkNamedRedirect marks a request that has ever left the host that the operator named:
// each hop's context is the first one's.
func (r *Remote) checkNamedRedirect(req *http.Request, via []*http.Request) error {
	if err := r.checkRedirect(req, via); err != nil {
		return err
	}
	if req.URL.Scheme != "https" && req.URL.Scheme != "http" {
		return goproxy.Errorf(http.StatusForbidden, "%s: a redirect to %s is not followed", via[len(via)-1].URL.Host, req.URL.Scheme)
	}
	if slices.ContainsFunc(via, func(v *http.Request) bool { return v.URL.Host != req.URL.Host }) {
		*req = *req.WithContext(context.WithValue(req.Context(), redirectedKey{}, true))
	}
	return nil
}

// dialRedirected is dial for a host to which another has sent this one.
func (r *Remote) dialRedirected(ctx context.Context, network, address string) (net.Conn, error) {
	return r.connect(ctx, network, address, r.allowHost(address) || isProxy(address))
}
