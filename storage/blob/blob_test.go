package blob

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"

	"github.com/athensctl/athensctl/goproxy"
)

// service answers for one blob as Blob Storage does, as far as Put asks it.
type service struct {
	mu     sync.Mutex
	blob   []byte // nil: not there
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
		} else if s.blob != nil {
			refuse(409, "BlobAlreadyExists")
			return
		}
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
		{"another, of another size", func(s *service, n int) { s.blob, s.blocks = content[1:], map[string][]byte{} }, 500, 1},
	} {
		s := &service{blocks: map[string][]byte{}}
		s.commit = func(n int) { tt.commit(s, n) }
		srv := httptest.NewServer(s)
		c, err := Account{Container: "c", Connection: fmt.Sprintf("DefaultEndpointsProtocol=http;AccountName=a;AccountKey=a2V5;BlobEndpoint=%s/a;", srv.URL)}.client()
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
