package crawler

import (
	"context"
	"slices"
	"sync/atomic"
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
		if err := c.Pushed(t.Context(), "https://example.com/r", "v1.1.0", ""); err != nil || latest() != "v1.1.0" {
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
		err := c.Pushed(t.Context(), "https://example.com/r", "v1.1.0", "")
		l, lerr := c.List(t.Context(), "example.com/r")
		if err != nil || lerr != nil || !slices.Contains(l.Versions, "v1.1.0") || time.Since(began) > 5*time.Second {
			t.Errorf("after %v: %v; %+v, %v", time.Since(began), err, l, lerr)
		}
		failures = 2
		if err := c.Pushed(t.Context(), "https://example.com/r", "", "main"); err != nil || failures != 0 {
			t.Errorf("a branch: %v, %d failures are left", err, failures)
		}
		failures = 1 << 30
		if err := c.Pushed(t.Context(), "https://example.com/r", "v1.1.0", ""); goproxy.Status(err) != 502 {
			t.Errorf("a host that is away: %v", err)
		}
		if jobs, err := s.Jobs(t.Context(), 10); err != nil || !slices.ContainsFunc(jobs, func(j storage.Job) bool { return j.Key.File == storage.FileList }) {
			t.Errorf("the queue goes on with the list: %+v, %v", jobs, err)
		}
	})
}

// What is known stays what it is while the answer that a push outdates can't be had: its
// age, and that the answer is no refusal; and it is fresh for nobody.
func TestPushedKeepsWhatIsKnown(t *testing.T) {
	var down atomic.Bool
	o := options(source{list: func(ctx context.Context, _ string) ([]string, error) {
		if down.Load() {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return []string{"v1.0.0", "v1.1.0"}, nil
	}})
	s := memory.New(0, nil)
	inBubble(t, s, o, func(t *testing.T, c *Crawler) {
		k := storage.Key{Path: "example.com/r", File: storage.FileList}
		before := &storage.Known{Checked: time.Now().Add(-5 * time.Second), Versions: []string{"v1.0.0"}, Validator: "x"}
		if err := s.SetKnown(t.Context(), k, before); err != nil {
			t.Fatal(err)
		}
		down.Store(true)
		push, cancel := context.WithTimeout(t.Context(), 9*time.Second)
		defer cancel()
		if err := c.Pushed(push, "https://example.com/r", "v1.1.0", ""); err == nil {
			t.Error("a push of which nothing was fetched")
		}
		known, err := s.Known(t.Context(), k)
		if err != nil || !known.Checked.Equal(before.Checked) || !slices.Equal(known.Versions, before.Versions) || known.Validator != before.Validator || !known.Outdated {
			t.Errorf("after the push: %+v, %v", known, err)
		}
		down.Store(false)
		time.Sleep(atMost(k.File) + 5*time.Second) // the fetch is given up, and made again
		if known, err := s.Known(t.Context(), k); err != nil || known.Outdated || len(known.Versions) != 2 || time.Since(known.Checked) > 20*time.Second {
			t.Errorf("then: %+v, %v", known, err)
		}
		young := &storage.Known{Checked: time.Now(), Outdated: true, Versions: before.Versions}
		if err := s.SetKnown(t.Context(), k, young); err != nil {
			t.Fatal(err)
		}
		if l, err := c.List(t.Context(), "example.com/r"); err != nil || len(l.Versions) != 2 {
			t.Errorf("who asks the crawler: %+v, %v", l, err)
		}
	})
}
