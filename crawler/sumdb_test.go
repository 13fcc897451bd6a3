package crawler

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/note"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/fleet"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/memory"
)

// logServer is a checksum database whose log can be exchanged for another one with
// the same key.
type logServer struct {
	*httptest.Server
	signer, verifier string
	log              atomic.Pointer[sumdb.Server]
	instead          atomic.Pointer[http.HandlerFunc]
	lookups          atomic.Int64
}

// record is what a log says of a version: hash is 43 characters of base64.
func record(path, version, hash string) []byte {
	return fmt.Appendf(nil, "%s %s h1:%s=\n%s %s/go.mod h1:%s=\n", path, version, hash, path, version, hash)
}

func newLogServer(t *testing.T) *logServer {
	t.Helper()
	l := &logServer{}
	var err error
	if l.signer, l.verifier, err = note.GenerateKey(rand.Reader, "sum.example.com"); err != nil {
		t.Fatal(err)
	}
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/lookup/") {
			l.lookups.Add(1)
		}
		if h := l.instead.Load(); h != nil {
			(*h)(w, r)
			return
		}
		defer func() {
			if recover() != nil { // x/mod's server, asked for a tile of the other log
				http.NotFound(w, r)
			}
		}()
		l.log.Load().ServeHTTP(w, r)
	}))
	t.Cleanup(l.Close)
	return l
}

// use makes the log one in which every version has this hash.
func (l *logServer) use(hash string) {
	l.log.Store(sumdb.NewServer(sumdb.NewTestServer(l.signer, func(path, vers string) ([]byte, error) {
		if strings.HasSuffix(path, "/unknown") {
			return nil, fs.ErrNotExist
		}
		return record(path, vers, hash), nil
	})))
}

// open is a database as a process that has just started sees it.
func (l *logServer) open(t *testing.T, ledger storage.Ledger) *SumDB {
	t.Helper()
	s, err := NewSumDB(l.verifier+" "+l.URL, l.Client(), []*url.URL{}, ledger, func(path string) bool { return path == "example.com/private" })
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var hashA, hashB = strings.Repeat("A", 43), strings.Repeat("B", 42) + "A"

func TestSumDBStatuses(t *testing.T) {
	ctx := context.Background()
	l := newLogServer(t)
	l.use(hashA)
	s := l.open(t, memory.New(0, nil))
	h1 := func(path string) (string, int, string) {
		h1, err := s.H1(ctx, path, "v1.0.0")
		if err == nil {
			return h1, 200, ""
		}
		return h1, goproxy.Status(err), err.Error()
	}
	answer := func(h http.HandlerFunc) {
		l.instead.Store(&h)
		if h == nil {
			l.instead.Store(nil)
		}
	}
	if got, status, msg := h1("example.com/Upper"); got != "h1:"+hashA+"=" {
		t.Errorf("%q, %d %s", got, status, msg)
	}
	if got, status, _ := h1("example.com/private"); got != "" || status != 200 || l.lookups.Load() != 1 {
		t.Errorf("a private path: %q, %d, %d lookups in all", got, status, l.lookups.Load())
	}
	if _, status, msg := h1("example.com/unknown"); status != 403 || !strings.Contains(msg, "setting private") {
		t.Errorf("unknown: %d %s", status, msg)
	}
	if _, status, msg := h1("not a path"); status != 400 {
		t.Errorf("not a path: %d %s", status, msg)
	}
	for name, h := range map[string]http.HandlerFunc{
		"500": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		"429": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(429) },
		"cut": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			w.Write([]byte("1\n"))
		},
		"no record": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "<html>sign in first</html>") },
	} {
		answer(h)
		if _, status, msg := h1("example.com/m"); status != 503 {
			t.Errorf("%s: %d %s", name, status, msg)
		}
	}
	// None of that is remembered.
	answer(nil)
	if got, status, msg := h1("example.com/m"); got != "h1:"+hashA+"=" {
		t.Errorf("after the failures: %q, %d %s", got, status, msg)
	}
}

// The history is one for the whole fleet: another process finds the tree head in
// the ledger, and refuses a log that does not contain it.
func TestSumDBFork(t *testing.T) {
	ctx := context.Background()
	l := newLogServer(t)
	l.use(hashA)
	ledger := memory.New(0, nil)
	first := l.open(t, ledger)
	var heads [2]string
	for i := range heads {
		if _, err := first.H1(ctx, fmt.Sprintf("example.com/m%d", i), "v1.0.0"); err != nil {
			t.Fatal(err)
		}
		head, err := ledger.Load(ctx, "sumdb/sum.example.com/latest")
		if err != nil || !strings.Contains(string(head), fmt.Sprintf("\n%d\n", i+1)) {
			t.Fatalf("tree head after %d records: %v %q", i+1, err, head)
		}
		heads[i] = string(head)
	}
	l.use(hashB)
	for i := range 3 { // longer than the first, else it proves nothing yet
		resp, err := http.Get(fmt.Sprintf("%s/lookup/example.com/grown%d@v1.0.0", l.URL, i))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	_, err := first.H1(ctx, "example.com/other", "v1.0.0")
	if goproxy.Status(err) != http.StatusBadGateway || !strings.Contains(err.Error(), "cannot be trusted") {
		t.Errorf("another history: %d %v", goproxy.Status(err), err)
	}
	// A process that starts now cannot even prove the tree head that it finds.
	for name, s := range map[string]*SumDB{"the same process": first, "another process": l.open(t, ledger)} {
		if h1, err := s.H1(ctx, "example.com/other", "v1.0.0"); err == nil {
			t.Errorf("%s believed %s", name, h1)
		}
	}
	if head, _ := ledger.Load(ctx, "sumdb/sum.example.com/latest"); string(head) != heads[1] {
		t.Errorf("the tree head is now %q", head)
	}
}

func TestSumDBMerged(t *testing.T) {
	l := newLogServer(t)
	l.use(hashA)
	s := l.open(t, memory.New(0, nil))
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			version := "v1.0.0"
			if i%2 == 0 {
				version += "/go.mod"
			}
			if _, err := s.H1(context.Background(), "example.com/m", version); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := l.lookups.Load(); n != 1 {
		t.Errorf("%d lookups of one record", n)
	}
}

func TestNewSumDB(t *testing.T) {
	for setting, want := range map[string]string{
		"":                              "",
		"off":                           "",
		"sum.golang.org":                "sum.golang.org",
		"sum.golang.org https://x.test": "sum.golang.org",
	} {
		s, err := NewSumDB(setting, nil, nil, memory.New(0, nil), nil)
		if err != nil || want == "" && s != nil || want != "" && (s == nil || s.Name != want) || SumDBName(setting) != want {
			t.Errorf("%q: %v, %v", setting, s, err)
		}
	}
	for _, setting := range []string{"sum.example.com", "sum.golang.org ftp://x.test", "sum.golang.org+033de0ae+garbage"} {
		if _, err := NewSumDB(setting, nil, nil, memory.New(0, nil), nil); err == nil || !strings.HasPrefix(err.Error(), "sumdb: ") {
			t.Errorf("%q: %v", setting, err)
		}
	}
}

// inProcess is an HTTP client whose servers are handlers, by host.
func inProcess(hosts map[string]http.HandlerFunc) *http.Client {
	return &http.Client{Transport: roundTripper(func(req *http.Request) (*http.Response, error) {
		h := hosts[req.URL.Host]
		if h == nil {
			return nil, errors.New("no such host")
		}
		w := httptest.NewRecorder()
		h(w, req)
		resp := w.Result()
		resp.Request = req
		return resp, nil
	})}
}

// Who answers for the database is chosen again when it does not for minutes.
func TestSumDBChoosesAgain(t *testing.T) {
	l := newLogServer(t)
	l.use(hashA)
	synctest.Test(t, func(t *testing.T) {
		supported, asked := http.StatusNotFound, 0
		s, err := NewSumDB(l.verifier, inProcess(map[string]http.HandlerFunc{
			"mirror.example": func(w http.ResponseWriter, r *http.Request) {
				path := strings.TrimPrefix(r.URL.Path, "/sumdb/sum.example.com")
				if path == "/supported" {
					asked++
					w.WriteHeader(supported)
					return
				}
				http.StripPrefix("/sumdb/sum.example.com", l.log.Load()).ServeHTTP(w, r)
			},
		}), []*url.URL{{Scheme: "https", Host: "mirror.example"}}, memory.New(0, nil), func(string) bool { return false })
		if err != nil {
			t.Fatal(err)
		}
		get := func() int {
			_, err := s.Get(t.Context(), "/latest")
			return goproxy.Status(err)
		}
		if status := get(); status != 503 || asked != 1 {
			t.Errorf("the mirror does not hand it on, and there is no way to the database: %d; the mirror was asked %d times", status, asked)
		}
		supported = http.StatusOK
		for began := time.Now(); get() != 200; time.Sleep(10 * time.Second) {
			if time.Since(began) > 3*time.Minute {
				t.Fatal("not after 3 minutes")
			}
		}
		if asked != 2 {
			t.Errorf("the mirror was asked %d times", asked)
		}
		// What the database has not got is an answer, however often.
		for range 60 {
			if _, err := s.Get(t.Context(), "/lookup/example.com/unknown@v1.0.0"); goproxy.Status(err) != 404 {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
		}
		if asked != 2 || get() != 200 {
			t.Errorf("the mirror was asked %d times", asked)
		}
	})
}

// A page that something else has put in place of an answer is neither handed on nor
// remembered.
func TestSumDBShape(t *testing.T) {
	l := newLogServer(t)
	l.use(hashA)
	s := l.open(t, memory.New(0, nil))
	if _, err := s.H1(t.Context(), "example.com/m", "v1.0.0"); err != nil {
		t.Fatal(err)
	}
	s = l.open(t, memory.New(0, nil))
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "<html>sign in first</html>") })
	paths := []string{"/latest", "/lookup/example.com/m@v1.0.0", "/tile/8/0/000.p/1", "/tile/8/data/000.p/1"}
	l.instead.Store(&page)
	for _, path := range paths {
		if b, err := s.Get(t.Context(), path); goproxy.Status(err) != 503 {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
	l.instead.Store(nil)
	for _, path := range paths {
		if _, err := s.Get(t.Context(), path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	asked := 0
	page = func(http.ResponseWriter, *http.Request) { asked++ }
	l.instead.Store(&page)
	for _, path := range []string{"/supported", "/favicon.ico", "/tile/8/0/../../latest"} {
		if _, err := s.Get(t.Context(), path); goproxy.Status(err) != 404 || asked != 0 {
			t.Errorf("%s: %v, asked %d times", path, err, asked)
		}
	}
}

// Anybody may ask for tiles of records, which are larger than those of hashes: what is
// remembered of them is bounded in bytes.
func TestSumDBRemembersBytes(t *testing.T) {
	s := &SumDB{cache: map[string][]byte{}}
	tile := make([]byte, 100<<10)
	for i := range 2 * maxRemembered {
		s.remember(fmt.Sprintf("/tile/8/data/%03d", i), tile)
	}
	n := 0
	for _, kept := range []map[string][]byte{s.cache, s.older} {
		for _, b := range kept {
			n += len(b)
		}
	}
	if n > 2*maxRememberedBytes || n < maxRememberedBytes {
		t.Errorf("%d bytes are remembered", n)
	}
	if s.remembered(fmt.Sprintf("/tile/8/data/%03d", 2*maxRemembered-1)) == nil {
		t.Error("the last answer is not remembered")
	}
}

// What is asked on behalf of many is not asked as what nobody waits for.
func TestSumDBForMany(t *testing.T) {
	l := newLogServer(t)
	l.use(hashA)
	background := true
	s, err := NewSumDB(l.verifier+" https://sum.example.com", &http.Client{Transport: roundTripper(func(req *http.Request) (*http.Response, error) {
		background = fleet.CallOf(req.Context()).Background
		w := httptest.NewRecorder()
		l.log.Load().ServeHTTP(w, req)
		return w.Result(), nil
	})}, nil, memory.New(0, nil), func(string) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(fleet.WithBackground(t.Context()), "/latest"); err != nil || background {
		t.Errorf("in the background %v: %v", background, err)
	}
}
