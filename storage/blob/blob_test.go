package blob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// service answers for one blob as Blob Storage does, as far as Put and Get ask it.
type service struct {
	mu     sync.Mutex
	blob   []byte   // nil: not there
	gets   []string // the ranges that were asked for
	cut    int      // of so many answers with content half is sent
	sent   int64    // bytes of content
	blocks map[string][]byte
	// commit is called before a list of blocks is committed, with its number from 1.
	commit func(n int)
	n      int
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	refuse := func(status int, code string) {
		w.Header().Set("x-ms-error-code", code)
		w.WriteHeader(status)
	}
	switch comp := r.URL.Query().Get("comp"); {
	case r.Method == http.MethodHead && s.blob == nil:
		refuse(404, "BlobNotFound")
	case r.Method == http.MethodHead:
		w.Header().Set("Content-Length", strconv.Itoa(len(s.blob)))
		w.Header().Set("ETag", `"1"`)
	case r.Method == http.MethodGet && s.blob == nil:
		refuse(404, "BlobNotFound")
	case r.Method == http.MethodGet:
		asked := r.Header.Get("x-ms-range")
		s.gets = append(s.gets, asked)
		var from, to int
		if n, err := fmt.Sscanf(asked, "bytes=%d-%d", &from, &to); n != 2 || err != nil {
			refuse(400, "InvalidHeaderValue")
			return
		} else if from >= len(s.blob) {
			refuse(416, "InvalidRange")
			return
		}
		part := s.blob[from:min(to+1, len(s.blob))]
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, from+len(part)-1, len(s.blob)))
		w.Header().Set("Content-Length", strconv.Itoa(len(part)))
		w.Header().Set("ETag", `"1"`)
		w.WriteHeader(http.StatusPartialContent)
		if s.cut > 0 {
			s.cut--
			w.Write(part[:len(part)/2])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		n, _ := w.Write(part)
		s.sent += int64(n)
	case comp == "block":
		s.blocks[r.URL.Query().Get("blockid")] = body
		w.WriteHeader(http.StatusCreated)
	case comp == "blocklist":
		if s.n++; s.commit != nil {
			s.commit(s.n)
		}
		if len(s.blocks) == 0 { // another commit has dropped them
			refuse(400, "InvalidBlockList")
			return
		} else if s.blob != nil && r.Header.Get("If-Match") != `"1"` {
			refuse(409, "BlobAlreadyExists")
			return
		}
		s.blob = nil
		for _, b := range s.blocks {
			s.blob = append(s.blob, b...)
		}
		w.WriteHeader(http.StatusCreated)
	default:
		refuse(400, "UnsupportedHttpVerb")
	}
}

// The blocks of a blob that wait to be committed are dropped when others of it are. What
// is there then is what was put; what is not there is put once more.
func TestBlocksDropped(t *testing.T) {
	content := bytes.Repeat([]byte("x"), oneRequest+1)
	for _, tt := range []struct {
		name   string
		commit func(s *service, n int)
		status int
		tries  int
	}{
		{"nobody else", func(*service, int) {}, 200, 1},
		{"another was first", func(s *service, n int) { s.blob, s.blocks = content, map[string][]byte{} }, 200, 1},
		{"another was first, and is removed", func(s *service, n int) {
			if n < 3 {
				s.blocks = map[string][]byte{}
			}
		}, 200, 3},
		{"always", func(s *service, n int) { s.blocks = map[string][]byte{} }, 500, 3},
		{"another, of another size", func(s *service, n int) {
			if n == 1 {
				s.blob, s.blocks = content[1:], map[string][]byte{}
			}
		}, 200, 2},
		{"another, of another size, always", func(s *service, n int) { s.blob, s.blocks = content[1:], map[string][]byte{} }, 500, 3},
	} {
		s := &service{blocks: map[string][]byte{}}
		s.commit = func(n int) { tt.commit(s, n) }
		srv := httptest.NewServer(s)
		c, err := Account{Container: "c", Connection: fmt.Sprintf("DefaultEndpointsProtocol=http;AccountName=a;AccountKey=a2V5;BlobEndpoint=%s/a;", srv.URL)}.client(usual)
		if err != nil {
			t.Fatal(err)
		}
		err = (&Store{c}).Put(context.Background(), "name", bytes.NewReader(content), int64(len(content)))
		if got := goproxy.Status(err); got != tt.status || s.n != tt.tries {
			t.Errorf("%s: %d after %d tries, want %d after %d: %v", tt.name, got, s.n, tt.status, tt.tries, err)
		}
		if tt.status == 200 && !bytes.Equal(s.blob, content) {
			t.Errorf("%s: %d bytes are kept, want %d", tt.name, len(s.blob), len(content))
		}
		srv.Close()
	}
}

// storeOf is a Store that asks h.
func storeOf(t *testing.T, h http.Handler, p patience) *Store {
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	c, err := Account{Container: "c", Connection: fmt.Sprintf("DefaultEndpointsProtocol=http;AccountName=a;AccountKey=a2V5;BlobEndpoint=%s/a;", srv.URL)}.client(p)
	if err != nil {
		t.Fatal(err)
	}
	return &Store{c}
}

// A zip is asked for once for each window, in order, whatever http.ServeContent looks for
// before; one that is cut is gone on with where it was; and who leaves has cut a window.
func TestGets(t *testing.T) {
	content := make([]byte, 2*window+5)
	rand.NewChaCha8([32]byte{2}).Read(content)
	for _, tt := range []struct {
		name, asks string
		size, cut  int
		gets       []string
	}{
		{name: "small", size: 1000, gets: []string{"bytes=0-999"}},
		{name: "a window", size: window, gets: []string{"bytes=0-8388607"}},
		{name: "large", size: len(content), gets: []string{"bytes=0-8388607", "bytes=8388608-16777215", "bytes=16777216-16777220"}},
		{name: "cut", size: 1000, cut: 1, gets: []string{"bytes=0-999", "bytes=500-999"}},
		{name: "a range at the end", size: len(content), asks: "bytes=16777216-", gets: []string{"bytes=0-8388607", "bytes=16777216-16777220"}},
		{name: "a range at the start", size: len(content), asks: "bytes=0-99", gets: []string{"bytes=0-8388607"}},
	} {
		s := &service{blob: content[:tt.size], cut: tt.cut}
		store := storeOf(t, s, usual)
		r, err := store.Get(context.Background(), "name", int64(tt.size))
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		w := httptest.NewRecorder()
		w.Header().Set("Content-Type", "application/zip") // or its beginning is looked at
		req := httptest.NewRequest("GET", "/", nil)
		want := content[:tt.size]
		if tt.asks != "" {
			req.Header.Set("Range", tt.asks)
			if want = want[:100]; tt.asks != "bytes=0-99" {
				want = content[2*window:]
			}
		}
		http.ServeContent(w, req, "", time.Time{}, r)
		r.Close()
		if !bytes.Equal(w.Body.Bytes(), want) {
			t.Errorf("%s: %d bytes, want %d", tt.name, w.Body.Len(), len(want))
		}
		s.mu.Lock()
		if !slices.Equal(s.gets, tt.gets) {
			t.Errorf("%s: asked for %q, want %q", tt.name, s.gets, tt.gets)
		}
		s.mu.Unlock()
	}
}

// A blob that is gone, or is not of its size, is lost; it is not Blob Storage's failure.
func TestLost(t *testing.T) {
	s := &service{}
	store := storeOf(t, s, usual)
	for _, have := range []int{-1, 0, 10, 101} {
		if s.blob = nil; have >= 0 {
			s.blob = make([]byte, have)
		}
		if _, err := store.Get(context.Background(), "name", 100); !errors.Is(err, storage.ErrLost) || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%d bytes of 100: %v", have, err)
		}
	}
}

// What Blob Storage asks to wait for is waited for, within the patience and the deadline; then
// it is 503 with what was told. An attempt that has no answer does not take all of the time.
func TestBusy(t *testing.T) {
	short := patience{whole: 2 * time.Second, attempt: 500 * time.Millisecond, idle: 300 * time.Millisecond}
	hang := func(r *http.Request) { <-r.Context().Done() }
	for _, tt := range []struct {
		name     string
		answer   func(n int64, w http.ResponseWriter, r *http.Request) // of the nth request; true: it has answered
		deadline time.Duration
		status   int
		after    time.Duration // at least
		most     time.Duration // it takes
		tries    int64         // at least
	}{
		{"429 that asks for too long", func(n int64, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "17")
			w.WriteHeader(429)
		}, time.Minute, 503, 17 * time.Second, time.Second, 1},
		{"503 for ever", func(n int64, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("x-ms-error-code", "ServerBusy")
			w.WriteHeader(503)
		}, time.Minute, 503, time.Second, 3 * time.Second, 3},
		{"503 longer than who asks waits", func(n int64, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(503)
		}, 600 * time.Millisecond, 503, time.Second, 700 * time.Millisecond, 1},
		{"no answer", func(n int64, w http.ResponseWriter, r *http.Request) { hang(r) }, time.Minute, 503, time.Second, 3 * time.Second, 3},
		{"no answer to who waits for less", func(n int64, w http.ResponseWriter, r *http.Request) { hang(r) }, 300 * time.Millisecond, 504, 0, time.Second, 1},
		{"once 503, once no answer", func(n int64, w http.ResponseWriter, r *http.Request) {
			switch n {
			case 1:
				w.WriteHeader(503)
			case 2:
				hang(r)
			default:
				w.Header().Set("Content-Range", "bytes 0-2/3")
				w.WriteHeader(206)
				w.Write([]byte("abc"))
			}
		}, time.Minute, 200, 0, 2 * time.Second, 3},
		{"content that does not come on", func(n int64, w http.ResponseWriter, r *http.Request) {
			if n > 1 && r.Header.Get("x-ms-range") != "bytes=1-2" {
				w.WriteHeader(400)
				return
			}
			w.Header().Set("Content-Range", "bytes "+strings.TrimPrefix(r.Header.Get("x-ms-range"), "bytes=")+"/3")
			w.Header().Set("Content-Length", map[bool]string{true: "3", false: "2"}[n == 1])
			w.WriteHeader(206)
			if n == 1 {
				w.Write([]byte("a"))
				w.(http.Flusher).Flush()
				hang(r)
			}
			w.Write([]byte("bc"))
		}, time.Minute, 200, 0, 2 * time.Second, 2},
		{"refused", func(n int64, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("x-ms-error-code", "AuthenticationFailed")
			w.WriteHeader(403)
		}, time.Minute, 500, 0, time.Second, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var n atomic.Int64
			store := storeOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { tt.answer(n.Add(1), w, r) }), short)
			ctx, cancel := context.WithTimeout(context.Background(), tt.deadline)
			defer cancel()
			began := time.Now()
			r, err := store.Get(ctx, "name", 3)
			if err == nil {
				var b []byte
				if b, err = io.ReadAll(r); err == nil && string(b) != "abc" {
					t.Errorf("read %q", b)
				}
				r.Close()
			}
			took := time.Since(began)
			var e *goproxy.Error
			errors.As(err, &e)
			if goproxy.Status(err) != tt.status || tt.after > 0 && (e == nil || e.RetryAfter < tt.after) {
				t.Errorf("%d %v, want %d with Retry-After of %v", goproxy.Status(err), err, tt.status, tt.after)
			}
			if took > tt.most || n.Load() < tt.tries {
				t.Errorf("it took %v and %d tries, want %v at most and %d at least", took, n.Load(), tt.most, tt.tries)
			}
		})
	}
}

// A token goes to https alone, and to this machine.
func TestTokenInClear(t *testing.T) {
	for endpoint, refused := range map[string]bool{"http://a.blob.example.com": true, "http://127.0.0.1.example.com": true, "http://127.0.0.1:1": false, "https://a.blob.example.com": false} {
		if _, err := (Account{Endpoint: endpoint, Container: "c"}).client(usual); (err != nil) != refused || refused && !strings.Contains(err.Error(), "in clear") {
			t.Errorf("%s: %v", endpoint, err)
		}
	}
}
