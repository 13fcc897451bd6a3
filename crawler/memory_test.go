package crawler

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/memory"
)

// largeMods is an upstream whose go.mod files are large, and pause before their end.
type largeMods struct {
	source
	size int
}

func (s *largeMods) Mod(context.Context, module.Version) (*goproxy.Blob, error) {
	comment := bytes.Repeat([]byte("x"), 64<<10)
	left := s.size
	const head = "module example.com/m\n//"
	body := io.MultiReader(strings.NewReader(head), readerFunc(func(p []byte) (int, error) {
		if left == 0 {
			time.Sleep(time.Minute)
			return 0, io.EOF
		}
		n := copy(p, comment[:min(left, len(comment))])
		left -= n
		return n, nil
	}))
	return &goproxy.Blob{ReadCloser: io.NopCloser(body), SizeBytes: int64(len(head) + s.size)}, nil
}

// However many hosts send large go.mod files at once, the bytes of them that are held are
// bounded. Who asks for one more is told to come again, and gets it.
func TestModMemory(t *testing.T) {
	s := &largeMods{size: 8 << 20}
	inBubble(t, memory.New(0, nil), options(s), func(t *testing.T, c *Crawler) {
		var wg sync.WaitGroup
		var refused atomic.Int64
		mod := func(i int) error {
			b, err := c.Mod(t.Context(), module.Version{Path: fmt.Sprintf("h%d.example/m", i), Version: "v1.0.0"})
			if err == nil {
				b.Close()
			}
			return err
		}
		for i := range 12 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * time.Millisecond) // each has all that it gets before the next begins
				switch err := mod(i); {
				case goproxy.Status(err) == 503 && strings.Contains(err.Error(), "too many bytes"):
					refused.Add(1)
				case err != nil:
					t.Error(err)
				}
			})
		}
		time.Sleep(time.Second)
		if n := c.memory.bytes(); n > 64<<20 || n < 16<<20 {
			t.Errorf("%d bytes are held at once", n)
		}
		wg.Wait()
		if n := refused.Load(); n == 0 || n == 12 {
			t.Errorf("%d were refused", n)
		}
		time.Sleep(10 * time.Minute)
		for i := range 12 {
			if err := mod(i); err != nil {
				t.Error(err)
			}
		}
		if n := c.memory.bytes(); n != 0 {
			t.Errorf("%d bytes are taken still", n)
		}
	})
}

// notesList is a ledger that says when a list is kept.
type notesList struct {
	*memory.Store
	kept func()
}

func (n *notesList) SetKnown(ctx context.Context, k storage.Key, a *storage.Known) error {
	n.kept()
	return n.Store.SetKnown(ctx, k, a)
}

// The bytes of a list count until it is kept, some times over. One that no role would take is
// refused where it comes from, and not asked for again at once.
func TestListMemory(t *testing.T) {
	body := strings.Repeat("v1.0.0\n", 1000)
	up := &goproxy.Client{Base: &url.URL{Scheme: "https", Host: "up.example"}, HTTP: inProcess(map[string]http.HandlerFunc{
		"up.example": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) },
	})}
	s := &notesList{Store: memory.New(0, nil)}
	inBubble(t, s, options(up), func(t *testing.T, c *Crawler) {
		held := int64(0)
		s.kept = func() { held = c.memory.bytes() }
		if _, err := c.List(t.Context(), "example.com/m"); err != nil || held != listFactor*int64(len(body)) {
			t.Errorf("%d bytes are taken for a list of %d, %v", held, len(body), err)
		}
		if n := c.memory.bytes(); n != 0 {
			t.Errorf("%d bytes are taken still", n)
		}
	})
	asked := 0
	many := source{list: func(context.Context, string) (versions []string, err error) {
		asked++
		for i := range 100_000 {
			versions = append(versions, fmt.Sprintf("v1.0.%d-%s", i, strings.Repeat("x", 10)))
		}
		return versions, nil
	}}
	inBubble(t, memory.New(0, nil), options(many), func(t *testing.T, c *Crawler) {
		for range 2 {
			if _, err := c.List(t.Context(), "example.com/m"); goproxy.Status(err) != 502 || !strings.Contains(err.Error(), "at most 1048576 are accepted") {
				t.Errorf("%v", err)
			}
		}
		if asked != 1 {
			t.Errorf("asked %d times", asked)
		}
	})
}
