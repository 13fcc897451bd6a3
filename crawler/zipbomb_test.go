package crawler

import (
	"context"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage/memory"
)

// An upstream's zip that is too large, says so or not, or is not as large as it says, is an
// error that says why; nothing of it is kept, and it takes no memory.
func TestZipTooLarge(t *testing.T) {
	for _, tc := range []struct {
		name   string
		size   int64 // that it says; -1: it does not
		real   int64
		reads  int64 // at most
		status int
		want   string
		once   bool // it is not tried again before freshness is over
	}{
		{"says so", goproxy.MaxZipBytes + 1, 1 << 40, 0, 502, "zip of 524288001 bytes; at most 524288000 are accepted", true},
		{"has no end", -1, 1 << 40, goproxy.MaxZipBytes + 1<<20, 502, "zip without an end; at most 524288000 are accepted", true},
		{"is shorter than it says", 1 << 20, 1 << 10, 1 << 10, 502, "cut after 1024 of 1048576 bytes", false},
		{"is no zip", 1 << 20, 1 << 20, 1 << 20, 502, "not a zip file", false},
	} {
		if tc.size < 0 && testing.Short() {
			continue // 500 MB to disk
		}
		asked, read := 0, int64(0)
		o := options(bodies(func() *goproxy.Blob {
			asked++
			body := io.LimitReader(readerFunc(func(p []byte) (int, error) {
				read += int64(len(p))
				clear(p)
				return len(p), nil
			}), tc.real)
			return &goproxy.Blob{ReadCloser: io.NopCloser(body), SizeBytes: tc.size}
		}))
		s := memory.New(0, nil)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		inBubble(t, s, o, func(t *testing.T, c *Crawler) {
			m := module.Version{Path: "example.com/m", Version: "v1.0.0"}
			for range 2 {
				_, err := c.Zip(t.Context(), m)
				if goproxy.Status(err) != tc.status || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), m.String()) {
					t.Errorf("%s: %d %v, want %q", tc.name, goproxy.Status(err), err, tc.want)
				}
				if !tc.once {
					break
				}
			}
			if tc.once && asked != 1 || read > tc.reads+64<<10 {
				t.Errorf("%s: asked %d times, %d bytes were read", tc.name, asked, read)
			}
			if b, err := s.Zip(t.Context(), m); err == nil {
				b.Close()
				t.Errorf("%s: it is kept", tc.name)
			}
			if n := c.inflight.bytes(); n != 0 {
				t.Errorf("%s: %d bytes are in flight still", tc.name, n)
			}
			time.Sleep(time.Second)
		})
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 {
			t.Errorf("%s: %d MB were allocated", tc.name, n>>20)
		}
	}
}

// bodies is an upstream of zips.
type bodies func() *goproxy.Blob

func (b bodies) List(context.Context, string) (*goproxy.VersionList, error) {
	return nil, goproxy.NotFound("list")
}

func (b bodies) Resolve(context.Context, string, string) (*goproxy.Info, error) {
	return nil, goproxy.Errorf(http.StatusBadGateway, "nothing but zips")
}

func (b bodies) Mod(context.Context, module.Version) (*goproxy.Blob, error) {
	return nil, goproxy.NotFound("mod")
}

func (b bodies) Zip(context.Context, module.Version) (*goproxy.Blob, error) { return b(), nil }
