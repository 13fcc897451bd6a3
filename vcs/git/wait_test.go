package git

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/athensctl/athensctl/goproxy"
)

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// The time in which a request waits its turn, before it is sent, is not the host's; and
// what ends one that a host does not answer says that it is the host's.
func TestTimeIsTheHosts(t *testing.T) {
	hangs := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/hangs") {
			<-hangs
			return
		}
		host{text(v2), text(pkt(someHash+" refs/tags/v1.0.0\n") + "0000")}.ServeHTTP(w, r)
	}))
	defer srv.Close()
	defer close(hangs)
	const idle = 200 * time.Millisecond
	var cause error
	c := &Client{TempDir: t.TempDir(), Limits: Limits{Idle: idle}, HTTP: &http.Client{Transport: roundTripper(func(req *http.Request) (*http.Response, error) {
		select { // others are before it
		case <-time.After(3 * idle):
		case <-req.Context().Done():
			return nil, req.Context().Err()
		}
		resp, err := srv.Client().Transport.RoundTrip(req)
		if err != nil {
			cause = context.Cause(req.Context())
		}
		return resp, err
	})}}
	u, _ := url.Parse(srv.URL + "/repo")
	if refs, err := c.Refs(t.Context(), u); err != nil || len(refs) != 1 {
		t.Errorf("after a wait: %v, %v", refs, err)
	}
	u, _ = url.Parse(srv.URL + "/hangs")
	_, err := c.Refs(t.Context(), u)
	if goproxy.Status(err) != http.StatusBadGateway || !strings.Contains(err.Error(), "no byte for 200ms") {
		t.Errorf("a host that hangs: %d %v", goproxy.Status(err), err)
	}
	if !errors.Is(cause, os.ErrDeadlineExceeded) {
		t.Errorf("what bounds hosts is told %v", cause)
	}
}
