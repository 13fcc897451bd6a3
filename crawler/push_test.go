package crawler

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/memory"
)

// Latest is worked out from the new list, where upstream has no answer for it.
func TestPushedLatest(t *testing.T) {
	versions := []string{"v1.0.0"}
	o := options(source{
		list: func(context.Context, string) ([]string, error) { return versions, nil },
		resolve: func(_ context.Context, path, query string) error {
			if query == goproxy.Latest {
				return goproxy.NotFound("%s@latest", path)
			}
			return nil
		},
	})
	inBubble(t, memory.New(0, nil), o, func(t *testing.T, c *Crawler) {
		latest := func() string {
			info, err := c.Resolve(t.Context(), "example.com/r", goproxy.Latest)
			if err != nil {
				return err.Error()
			}
			return info.Version
		}
		if _, err := c.List(t.Context(), "example.com/r"); err != nil || latest() != "v1.0.0" {
			t.Fatalf("%v, latest is %s", err, latest())
		}
		versions = []string{"v1.0.0", "v1.1.0"}
		if err := c.Pushed(t.Context(), "example.com/r", "v1.1.0", ""); err != nil || latest() != "v1.1.0" {
			t.Errorf("%v, latest is %s", err, latest())
		}
	})
}

// A host that fails when it has just announced a push is asked again.
func TestPushedRetries(t *testing.T) {
	failures := 0
	versions := []string{"v1.0.0"}
	fails := func() error {
		if failures > 0 {
			failures--
			return goproxy.Errorf(502, "it restarts")
		}
		return nil
	}
	o := options(source{
		list:    func(context.Context, string) ([]string, error) { return versions, fails() },
		resolve: func(context.Context, string, string) error { return fails() },
	})
	s := memory.New(0, nil)
	inBubble(t, s, o, func(t *testing.T, c *Crawler) {
		if _, err := c.List(t.Context(), "example.com/r"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Resolve(t.Context(), "example.com/r", "main"); err != nil {
			t.Fatal(err)
		}
		versions, failures = []string{"v1.0.0", "v1.1.0"}, 2
		began := time.Now()
		err := c.Pushed(t.Context(), "example.com/r", "v1.1.0", "")
		l, lerr := c.List(t.Context(), "example.com/r")
		if err != nil || lerr != nil || !slices.Contains(l.Versions, "v1.1.0") || time.Since(began) > 5*time.Second {
			t.Errorf("after %v: %v; %+v, %v", time.Since(began), err, l, lerr)
		}
		failures = 2
		if err := c.Pushed(t.Context(), "example.com/r", "", "main"); err != nil || failures != 0 {
			t.Errorf("a branch: %v, %d failures are left", err, failures)
		}
		failures = 1 << 30
		if err := c.Pushed(t.Context(), "example.com/r", "v1.1.0", ""); goproxy.Status(err) != 502 {
			t.Errorf("a host that is away: %v", err)
		}
		if jobs, err := s.Jobs(t.Context(), 10); err != nil || !slices.ContainsFunc(jobs, func(j storage.Job) bool { return j.Key.File == storage.FileList }) {
			t.Errorf("the queue goes on with the list: %+v, %v", jobs, err)
		}
	})
}
