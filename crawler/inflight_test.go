package crawler

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/fleet"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/memory"
)

func TestInflightShares(t *testing.T) {
	f := newInflight(100)
	part := func(host string, n int64) *part {
		p := f.part(t.Context(), host)
		if !p.grow(n) {
			return nil
		}
		return p
	}
	a := part("a", 50)
	if a == nil || part("a", 1) != nil {
		t.Error("the first host gets half of them")
	}
	b := part("b", 25)
	if b == nil || part("b", 1) != nil || part("c", 12) == nil {
		t.Error("the next half of what is left, and so on")
	}
	ahead := f.part(fleet.WithBackground(t.Context()), "d")
	if ahead.grow(7) || !ahead.grow(6) {
		t.Error("ahead of demand half of that")
	}
	if a.grow(1) {
		t.Error("one that goes on is in nobody's way")
	}
	a.release()
	a.release()
	b.release()
	if n := f.bytes(); n != 18 {
		t.Errorf("%d are taken", n)
	}
	f = newInflight(100)
	large := part("a", 1000)
	if large == nil || !large.grow(1000) || part("b", 1) != nil {
		t.Error("one that is alone has what it needs")
	}
	large.release()
	if f.bytes() != 0 || len(f.hosts) != 0 {
		t.Errorf("what is left: %d, %v", f.taken, f.hosts)
	}
}

// zips is an upstream whose zips' bodies take their time on some hosts.
type zips struct {
	source
	unsaid bool // how large they are
	here   bool // they were made on this machine's disk

	mu    sync.Mutex
	asked map[string]int
}

func (z *zips) Resolve(_ context.Context, path, query string) (*goproxy.Info, error) {
	return goproxy.ParseInfo(path, query, infoOf(query))
}

func (z *zips) Zip(ctx context.Context, m module.Version) (*goproxy.Blob, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.asked[m.Path]++
	content := bytes.NewReader(zipOf(m))
	host, _, _ := strings.Cut(m.Path, "/")
	takes := slowHosts(host)
	size := content.Size()
	if z.unsaid {
		size = -1
	}
	body := &slowBody{Reader: content, ctx: ctx, takes: takes}
	if z.here {
		return &goproxy.Blob{ReadCloser: struct {
			*slowBody
			io.Seeker
		}{body, content}, SizeBytes: size}, nil
	}
	return &goproxy.Blob{ReadCloser: body, SizeBytes: size}, nil
}

// slowBody pauses in the middle of a zip.
type slowBody struct {
	io.Reader
	ctx   context.Context
	takes time.Duration
	n     int
}

func (b *slowBody) Read(p []byte) (int, error) {
	if b.n++; b.n == 2 && !sleep(b.ctx, b.takes) {
		return 0, b.ctx.Err()
	}
	return b.Reader.Read(p[:min(len(p), 100)])
}

func (b *slowBody) Close() error { return nil }

// The large zips of a host that is slow keep no other host's from being fetched, whether
// it says how large they are or not. Who asks that host for one more is told at once to
// come again, and finds it then.
func TestInflightSlowHost(t *testing.T) {
	version := func(host string, i int) module.Version {
		return module.Version{Path: fmt.Sprintf("%s.example/m%02d", host, i), Version: "v1.0.0"}
	}
	size := int64(len(zipOf(version("slow", 1))))
	for _, unsaid := range []bool{false, true} {
		up := &zips{unsaid: unsaid, asked: map[string]int{}}
		o := options(up)
		o.ZipWorkers, o.InflightBytes = 16, 4*size
		if unsaid {
			o.InflightBytes = 1000 // five slow ones have their first 100 bytes, and want more
		}
		s := memory.New(0, nil)
		inBubble(t, s, o, func(t *testing.T, c *Crawler) {
			var wg sync.WaitGroup
			var mu sync.Mutex
			refused := 0
			for i := range 8 {
				wg.Go(func() {
					began := time.Now()
					b, err := c.Zip(t.Context(), version("slow", i))
					if err == nil {
						b.Close()
						return
					}
					mu.Lock()
					defer mu.Unlock()
					if refused++; goproxy.Status(err) != 503 || retryAfter(err) != lineFull || !unsaid && time.Since(began) != 0 || !strings.Contains(err.Error(), "inflight-max-bytes") {
						t.Errorf("%v after %v", err, time.Since(began))
					}
				})
			}
			time.Sleep(time.Second)
			synctest.Wait()
			if refused < 3 || refused > 7 || c.inflight.bytes() == 0 {
				t.Errorf("sizes unsaid: %v: %d of 8 were refused; %d bytes", unsaid, refused, c.inflight.bytes())
			}
			promptly(t, "another host's zip", func() error {
				b, err := c.Zip(t.Context(), version("fast", 1))
				if err == nil {
					b.Close()
				}
				return err
			})
			wg.Wait()
			time.Sleep(10 * time.Minute)
			for i := range 8 {
				b, err := s.Zip(t.Context(), version("slow", i))
				if err != nil {
					t.Errorf("sizes unsaid: %v: %v", unsaid, err)
					continue
				}
				b.Close()
			}
			jobs, err := s.Jobs(t.Context(), 10)
			if err != nil || len(jobs) != 0 || c.inflight.bytes() != 0 {
				t.Errorf("jobs %+v, %v; %d bytes", jobs, err, c.inflight.bytes())
			}
		})
	}
}

// A zip that was made here waits for room, and is not made again.
func TestInflightHere(t *testing.T) {
	up := &zips{here: true, asked: map[string]int{}}
	o := options(up)
	o.InflightBytes = 1
	s := memory.New(0, nil)
	inBubble(t, s, o, func(t *testing.T, c *Crawler) {
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				if err := c.fetched(t.Context(), storage.Key{Path: fmt.Sprintf("slow%d.example/m", i), Query: "v1.0.0", File: storage.FileZip}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	})
	for path, n := range up.asked {
		if n != 1 {
			t.Errorf("%s was made %d times", path, n)
		}
	}
}
