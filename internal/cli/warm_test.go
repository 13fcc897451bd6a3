package cli

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage/memory"
	"github.com/athensctl/athensctl/storage/storagetest"
)

// busy fails some times before it answers.
type busy struct {
	goproxy.Source
	errs []error
}

func (b *busy) Mod(ctx context.Context, m module.Version) (*goproxy.Blob, error) {
	if len(b.errs) > 0 {
		err := b.errs[0]
		b.errs = b.errs[1:]
		return nil, err
	}
	return b.Source.Mod(ctx, m)
}

// A server that is busy or still fetching is asked again; what it refuses is not.
func TestWarmWaits(t *testing.T) {
	unreached := goproxy.Errorf(502, "connection refused")
	late, wait, gone := goproxy.Errorf(504, "still being fetched"), goproxy.Busy(7*time.Second, "busy"), goproxy.NotFound("no such version")
	many := make([]error, warmAttempts)
	for i := range many {
		many[i] = wait
	}
	for _, tc := range []struct {
		name  string
		errs  []error
		want  int // status
		after time.Duration
	}{
		{"at once", nil, 200, 0},
		{"later", []error{late, wait}, 200, 8 * time.Second},
		{"reached later", []error{unreached, unreached}, 200, 3 * time.Second},
		{"not reached", []error{unreached, unreached, unreached, unreached}, 502, 7 * time.Second},
		{"refused", []error{gone, late}, 404, 0},
		{"never", many, 503, warmAttempts * 7 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, v := memory.New(0, nil), storagetest.New("example.com/m", "v1.0.0", "")
			if err := s.Put(t.Context(), v.Version, v.Files()); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			n, err := warmOne(t.Context(), &busy{s, tc.errs}, v.Version, seed{zip: true})
			if goproxy.Status(err) != tc.want || time.Since(start) != tc.after || err == nil && n != int64(len(v.Zip)) {
				t.Errorf("%s: %d bytes, %v after %v; want status %d after %v", tc.name, n, err, time.Since(start), tc.want, tc.after)
			}
		})
	}
}
