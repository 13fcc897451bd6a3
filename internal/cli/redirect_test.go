package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/spf13/pflag"

	"github.com/athensctl/athensctl/config"
	"github.com/athensctl/athensctl/goproxy"
)

// What upstream, the checksum database, a feed and a catalog redirect to is not reached
// where it is not on the internet, unless it is allowed.
func TestRedirectsInside(t *testing.T) {
	var reached atomic.Int64
	inside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reached.Add(1)
		fmt.Fprintln(w, "v1.0.0")
	}))
	defer inside.Close()
	outside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, strings.Replace(inside.URL, "127.0.0.1", "localhost", 1)+r.URL.Path, http.StatusFound)
	}))
	defer outside.Close()
	for _, allow := range []string{"", "localhost"} {
		reached.Store(0)
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		config.Flags(flags)
		if err := flags.Parse([]string{"--store=memory", "--data-dir=" + t.TempDir(), "--upstream=" + outside.URL, "--sumdb=sum.golang.org " + outside.URL, "--vcs-allow-host=" + allow,
			"--crawl-index=" + outside.URL, "--crawl-catalog=" + outside.URL, "--vcs-netrc=off"}); err != nil {
			t.Fatal(err)
		}
		cfg, err := config.Load(flags, nil)
		if err != nil {
			t.Fatal(err)
		}
		p := newProcess(cfg, slog.New(slog.NewTextHandler(io.Discard, nil)))
		if err := p.openStore(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.silent = true
		if err := p.addCrawler(); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for _, w := range p.work {
			wg.Go(func() { w(ctx) })
		}
		_, listErr := p.crawler.List(ctx, "example.com/m")
		_, sumErr := p.sumdb.Get(ctx, "/latest")
		stop()
		wg.Wait()
		if err := p.close(); err != nil {
			t.Error(err)
		}
		if allow == "" {
			for what, err := range map[string]error{"a list": listErr, "the checksum database": sumErr} {
				if goproxy.Status(err) < 400 || !strings.Contains(fmt.Sprint(err), "not an address on the internet (setting vcs-allow-host)") {
					t.Errorf("%s: %v", what, err)
				}
			}
			if n := reached.Load(); n != 0 {
				t.Errorf("the host inside was reached %d times", n)
			}
		} else if listErr != nil || reached.Load() == 0 {
			t.Errorf("a host that is allowed: %v, reached %d times", listErr, reached.Load())
		}
	}
}
