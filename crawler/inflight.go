package crawler

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/fleet"
)

// inflight bounds the bytes of zips that are being fetched to disk. As with a gate's places
// nobody gets all of them: a host gets more only while it has fewer than are free then, and
// what is ahead of demand half of that. Nobody waits for bytes in a line, with a connection
// open: who gets none comes again. A zip that is alone may be as large as it likes, so that
// a bound below the largest zip stops nothing for ever.
type inflight struct {
	most int64

	mu    sync.Mutex
	taken int64
	hosts map[string]int64
}

func newInflight(most int64) *inflight {
	return &inflight{most: most, hosts: map[string]int64{}}
}

func (f *inflight) bytes() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.taken
}

// memoryBytes bounds the bytes of lists and go.mod files that are held in memory while they are
// fetched, checked and kept. A list takes some times its own (listFactor), in strings and
// as JSON. Those of all workers, as they usually are, are a few MB.
const (
	memoryBytes = 64 << 20
	listFactor  = 8
)

// hold takes n bytes of memory for what is fetched; an error where there are none.
func (p *part) hold(ctx context.Context, n int64) error {
	if p.grow(n) {
		return nil
	}
	return held(ctx, "memory", lineFull, "%s: too many bytes of lists and go.mod files are being fetched", p.host)
}

// roomEvery is how often it is looked whether there is room.
const roomEvery = time.Second

// part is what one zip has of the bytes; one goroutine's.
type part struct {
	f     *inflight
	host  string
	ahead bool
	bytes int64
}

func (f *inflight) part(ctx context.Context, host string) *part {
	return &part{f: f, host: host, ahead: fleet.CallOf(ctx).Background}
}

// grow takes n bytes more, and reports whether they were free.
func (p *part) grow(n int64) bool {
	f := p.f
	f.mu.Lock()
	defer f.mu.Unlock()
	want := f.hosts[p.host] + n
	if p.ahead {
		want *= 2
	}
	if f.taken > p.bytes && want > f.most-f.taken {
		return false
	}
	p.bytes += n
	f.taken += n
	f.hosts[p.host] += n
	return true
}

// release gives them back.
func (p *part) release() {
	f := p.f
	f.mu.Lock()
	defer f.mu.Unlock()
	f.taken -= p.bytes
	if f.hosts[p.host] -= p.bytes; f.hosts[p.host] <= 0 {
		delete(f.hosts, p.host)
	}
	p.bytes = 0
}

// reader takes the bytes that it reads, where nobody said how many they are going to be.
func (p *part) reader(ctx context.Context, r io.Reader) io.Reader {
	return readFunc(func(b []byte) (int, error) {
		n, err := r.Read(b)
		if !p.grow(int64(n)) {
			return 0, p.full(ctx)
		}
		return n, err
	})
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(b []byte) (int, error) { return f(b) }

// full is the error of who got none: the job goes back to the queue.
func (p *part) full(ctx context.Context) error {
	return held(ctx, "bytes", lineFull, "%s: too many bytes of zips are being fetched (setting inflight-max-bytes)", p.host)
}

// take takes the bytes of a zip, as far as it is said how many they are. One whose content
// is here already, which costs no connection and would have to be made again, waits for
// them.
func (p *part) take(ctx context.Context, b *goproxy.Blob) error {
	_, here := b.ReadCloser.(io.Seeker)
	for !p.grow(max(0, b.SizeBytes)) {
		if !here || !sleep(ctx, roomEvery) {
			return p.full(ctx)
		}
	}
	return nil
}
