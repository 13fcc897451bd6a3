package crawler

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/athensctl/athensctl/goproxy"
)

// Pauses double up to their bound, a quarter more or less so that many who failed together
// do not come together, and are as long as upstream asks for.
func TestPauses(t *testing.T) {
	const s, m, h = time.Second, time.Minute, time.Hour
	fails := errors.New("it fails")
	circuit := func(n int) time.Duration {
		now := time.Now()
		host := &host{most: 3, failures: 3 + n - 1}
		host.failed(now, "it fails")
		return host.until.Sub(now)
	}
	for _, tc := range []struct {
		name  string
		pause func(n int) time.Duration
		want  []time.Duration // without the jitter; the last one for ever
	}{
		{"back-off", func(n int) time.Duration { return backOff(n+1, fails) }, []time.Duration{s, 2 * s, 4 * s, 8 * s, 16 * s, 32 * s, 64 * s, 128 * s, 256 * s, 5 * m}},
		{"parked", func(n int) time.Duration { return parkFor(n, fails) }, []time.Duration{m, 2 * m, 4 * m, 8 * m, 16 * m, 32 * m, 64 * m, 128 * m, 256 * m, 6 * h}},
		{"circuit", circuit, []time.Duration{s, 2 * s, 4 * s, 8 * s, 16 * s, 30 * s}},
	} {
		for n := range 80 {
			want := tc.want[min(n, len(tc.want)-1)]
			var got []time.Duration
			for range 400 {
				got = append(got, tc.pause(n))
			}
			least, most := slices.Min(got), slices.Max(got)
			if least < want*3/4 || most > want*5/4 {
				t.Errorf("%s %d: from %v to %v, want %v and a quarter more or less", tc.name, n, least, most, want)
			}
			if most-least < want/4 { // of a half, in 400 draws
				t.Errorf("%s %d: from %v to %v is no jitter", tc.name, n, least, most)
			}
		}
	}
	asked := goproxy.Busy(20*time.Hour, "later")
	if d := backOff(1, asked); d != 20*h {
		t.Errorf("back-off, where upstream asks for 20 hours: %v", d)
	}
	if d := parkFor(1, asked); d != 20*h {
		t.Errorf("parked, where upstream asks for 20 hours: %v", d)
	}
	if d := parkFor(-3, fails); d < m*3/4 || d > m*5/4 {
		t.Errorf("parked for the first time: %v", d)
	}
	open := &host{most: 3, failures: 1}
	if open.failed(time.Now(), "it fails"); !open.until.IsZero() {
		t.Error("a host is left alone before it has failed often enough")
	}
}
