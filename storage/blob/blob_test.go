package blob

import (
	"bytes"
	"context"
	"encoding/xml"
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
	writes int // how often the blob was written
	// commit is called before a blob or its list of blocks is written, with its number from 1.
	commit func(n int)
	n      int
}

// etag is of the blob that is there.
func (s *service) etag() string { return fmt.Sprintf("%q", strconv.Itoa(s.writes+1)) }

// keep overwrites what is there.
func (s *service) keep(blob []byte) {
	s.blob, s.blocks, s.writes = blob, map[string][]byte{}, s.writes+1
}

// may reports whether a write's conditions are met, and refuses one whose are not. Without
// a condition what is there is overwritten. Source: "Specifying conditional headers for Blob
// service operations", and the error codes of Put Blob and Put Block List.
func (s *service) may(r *http.Request, refuse func(int, string)) bool {
	switch match, none := r.Header.Get("If-Match"), r.Header.Get("If-None-Match"); {
	case none == "*" && s.blob != nil:
		refuse(409, "BlobAlreadyExists")
	case match != "" && (s.blob == nil || match != s.etag()), none != "" && none != "*":
		refuse(412, "ConditionNotMet")
	default:
		return true
	}
	return false
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
		w.Header().Set("ETag", s.etag())
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
		w.Header().Set("ETag", s.etag())
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
		} else if !s.may(r, refuse) {
			return
		}
		var list struct{ Latest []string }
		if err := xml.Unmarshal(body, &list); err != nil {
			refuse(400, "InvalidXmlDocument")
			return
		}
		var blob []byte
		for _, id := range list.Latest {
			b, ok := s.blocks[id]
			if !ok {
				refuse(400, "InvalidBlockList")
				return
			}
			blob = append(blob, b...)
		}
		s.keep(blob)
		w.WriteHeader(http.StatusCreated)
	case r.Method == http.MethodPut && comp == "":
		if s.n++; s.commit != nil {
			s.commit(s.n)
		}
		if !s.may(r, refuse) {
			return
		}
		s.keep(body)
		w.WriteHeader(http.StatusCreated)
	default:
		refuse(400, "UnsupportedHttpVerb")
	}
}

// What a name has already is never written over by what another puts, in one request or in
// blocks; nor when a look finds another size, and the right one comes before the next try.
// The blocks of a blob that wait to be committed are dropped when others of it are. What
// is there then is what was put; what is not there is put once more.
func TestPutOnce(t *testing.T) {
	for _, size := range []int{1000, oneRequest + 1} {
		content := bytes.Repeat([]byte("x"), size)
		kept := bytes.Repeat([]byte("k"), size) // of the same name, and so the same: other bytes show whose they are
		inBlocks := size > oneRequest
		for _, tt := range []struct {
			name   string
			commit func(s *service, n int)
			want   []byte // nil: it fails
			tries  int
			skip   bool
		}{
			{name: "nobody else", want: content, tries: 1},
			{name: "another was first", commit: func(s *service, n int) { s.keep(kept) }, want: kept, tries: 1},
			{name: "another was first, and is removed", commit: func(s *service, n int) {
				if n < 3 {
					s.blocks = map[string][]byte{}
				}
			}, want: content, tries: 3, skip: !inBlocks},
			{name: "always", commit: func(s *service, n int) { s.blocks = map[string][]byte{} }, tries: 3, skip: !inBlocks},
			{name: "another, of another size", commit: func(s *service, n int) {
				if n == 1 {
					s.keep(content[1:])
				}
			}, want: content, tries: 2},
			{name: "another, of another size, and then the right one", commit: func(s *service, n int) {
				if n == 1 {
					s.keep(content[1:])
				} else {
					waiting := s.blocks
					s.keep(kept)
					s.blocks = waiting // they would be written if they might
				}
			}, want: kept, tries: 2},
			{name: "another is removed, and the next was first", commit: func(s *service, n int) {
				if n == 1 {
					s.blocks = map[string][]byte{}
				} else {
					waiting := s.blocks
					s.keep(kept)
					s.blocks = waiting
				}
			}, want: kept, tries: 2, skip: !inBlocks},
			{name: "another, of another size, always", commit: func(s *service, n int) { s.keep(content[1:]) }, tries: 3},
		} {
			if tt.skip {
				continue
			}
			s := &service{blocks: map[string][]byte{}}
			s.commit = func(n int) {
				if tt.commit != nil {
					tt.commit(s, n)
				}
			}
			err := storeOf(t, s, usual).Put(context.Background(), "name", bytes.NewReader(content), int64(size))
			status := 200
			if tt.want == nil {
				status = 500
			}
			if got := goproxy.Status(err); got != status || s.n != tt.tries {
				t.Errorf("%s, %d bytes: %d after %d tries, want %d after %d: %v", tt.name, size, got, s.n, status, tt.tries, err)
			}
			if tt.want != nil && !bytes.Equal(s.blob, tt.want) {
				t.Errorf("%s, %d bytes: %d bytes of %.1q are kept, want %.1q", tt.name, size, len(s.blob), s.blob, tt.want)
			}
		}
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
	short := patience{whole: 6 * time.Second, attempt: 500 * time.Millisecond, idle: 300 * time.Millisecond}
	hang := func(r *http.Request) { <-r.Context().Done() }
	for _, tt := range []struct {
		name     string
		answer   func(n int64, w http.ResponseWriter, r *http.Request) // of the nth request; true: it has answered
		deadline time.Duration
		status   int
		after    time.Duration // at least
		tries    int64         // at least; -1: one, and no more
	}{
		{"429 that asks for too long", func(n int64, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "17")
			w.WriteHeader(429)
		}, time.Minute, 503, 17 * time.Second, -1},
		{"503 for ever", func(n int64, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("x-ms-error-code", "ServerBusy")
			w.WriteHeader(503)
		}, time.Minute, 503, time.Second, 3},
		{"503 longer than who asks waits", func(n int64, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "5")
			w.WriteHeader(503)
		}, 4 * time.Second, 503, 5 * time.Second, 1},
		{"no answer", func(n int64, w http.ResponseWriter, r *http.Request) { hang(r) }, time.Minute, 503, time.Second, 3},
		{"no answer to who waits for less", func(n int64, w http.ResponseWriter, r *http.Request) { hang(r) }, 300 * time.Millisecond, 504, 0, 1},
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
		}, time.Minute, 200, 0, 3},
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
		}, time.Minute, 200, 0, 2},
		{"refused", func(n int64, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("x-ms-error-code", "AuthenticationFailed")
			w.WriteHeader(403)
		}, time.Minute, 500, 0, -1},
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
			if n := n.Load(); n < tt.tries || tt.tries < 0 && n != -tt.tries {
				t.Errorf("%d tries, want %d", n, tt.tries)
			}
			// The patience is 6 s, and none of these waits for its deadline of a minute.
			if took > 30*time.Second {
				t.Errorf("it took %v", took)
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
