package crawler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sync/singleflight"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// knownSumDBs are the verifier keys that the go command has built in.
// Source: cmd/go/internal/modfetch/key.go.
var knownSumDBs = map[string]string{
	"sum.golang.org": "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8",
}

// How long a question to a checksum database may take, and when to come again
// after it did not answer.
const (
	sumDBTimeout = 20 * time.Second
	retrySumDB   = 5 * time.Second
)

// SumDB is a checksum database: it hands on its answers, and verifies hashes by
// them. The tree head that was last seen is in the ledger, so that the whole
// fleet sees one history.
type SumDB struct {
	Name    string
	key     string
	direct  *goproxy.Client   // the database itself
	proxies []*goproxy.Client // upstream proxies, which may hand it on
	known   note.Verifiers
	ledger  storage.Ledger
	private func(path string) bool

	flights singleflight.Group
	mu      sync.Mutex
	client  *goproxy.Client   // the one that answers; nil: not known
	failing time.Time         // since when it does not; zero: it does
	cache   map[string][]byte // answers that never change, by path
	cached  int               // bytes of it
	older   map[string][]byte // what cache was before it was full
	verify  *verifier         // remembers every answer, and every failure: replaced in time
}

var _ Verifier = (*SumDB)(nil)

// NewSumDB reads a setting in GOSUMDB syntax: "name", "name+hash+key", either
// with a URL behind it. "off" is nil. private says which module paths are never
// looked up. Without a URL the database is asked through the first of the
// upstream proxies that hands it on, and else itself, as the go command does.
// Source: https://go.dev/ref/mod#checksum-database.
func NewSumDB(setting string, client *http.Client, upstream []*url.URL, ledger storage.Ledger, private func(path string) bool) (*SumDB, error) {
	f := strings.Fields(setting)
	if len(f) == 0 || f[0] == "off" {
		return nil, nil
	}
	key := f[0]
	if known, ok := knownSumDBs[key]; ok {
		key = known
	}
	verifier, err := note.NewVerifier(key)
	if err != nil {
		return nil, fmt.Errorf("sumdb: %q is neither a known database nor a verifier key: %w", f[0], err)
	}
	base := "https://" + verifier.Name()
	if len(f) > 1 {
		base = f[1]
	}
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" {
		return nil, fmt.Errorf("sumdb: %q is not an http or https URL", base)
	}
	s := &SumDB{
		Name: verifier.Name(), key: key, known: note.VerifierList(verifier), ledger: bounded{ledger}, private: private, cache: map[string][]byte{},
		direct: &goproxy.Client{Base: u, HTTP: client},
	}
	if len(f) > 1 {
		upstream = nil // nobody else is asked
	}
	for _, u := range upstream {
		s.proxies = append(s.proxies, &goproxy.Client{Base: u.JoinPath("sumdb", s.Name), HTTP: client})
	}
	return s, nil
}

// maxLookups is how many answers a sumdb.Client may remember; about 1 KB each.
const maxLookups = 5000

// verifier is a client that verifies answers by the tree head in the ledger.
type verifier struct {
	*sumdb.Client
	s       *SumDB
	lookups int
	// forged says how the database has contradicted itself; the client's error,
	// which is text only, does not tell that from a failure.
	forged atomic.Pointer[string]
}

// verifier is the one to look up with. The next one starts from the tree head
// in the ledger, so that the history stays one.
func (s *SumDB) verifier() *verifier {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.verify == nil || s.verify.lookups >= maxLookups {
		s.verify = &verifier{s: s}
		s.verify.Client = sumdb.NewClient(clientOps{s.verify})
	}
	s.verify.lookups++
	return s.verify
}

// drop sees to it that a failure of c, and an answer that may have caused it,
// are not remembered.
func (s *SumDB) drop(c *verifier) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.verify == c {
		s.verify, s.cache, s.cached, s.older = nil, map[string][]byte{}, 0, nil
	}
}

// Get returns the answer for a path of the database's protocol (/latest,
// /lookup/…, /tile/…), if it has the shape of one (goproxy.CheckSumDB). Requests for one
// path share one question, and lookups and tiles are remembered: a client asks for
// those that verifying needed.
func (s *SumDB) Get(ctx context.Context, path string) ([]byte, error) {
	if b := s.remembered(path); b != nil {
		return b, nil
	}
	if err := goproxy.CheckSumDB(path, nil, nil); errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	v, err, _ := s.flights.Do(path, func() (any, error) {
		if b := s.remembered(path); b != nil {
			return b, nil // a question that ended since it was looked up above
		}
		ctx, cancel := context.WithTimeout(forMany(ctx), sumDBTimeout)
		defer cancel()
		b, err := s.ask(ctx, path)
		var e *goproxy.Error
		if errors.As(err, &e) && e.Status < 500 && e.Status != http.StatusTooManyRequests {
			s.ended(nil)
			return nil, err
		}
		s.ended(err)
		if err != nil {
			return nil, goproxy.Busy(retrySumDB, "checksum database %s: %s cannot be had: %w", s.Name, path, err)
		}
		if path != "/latest" {
			s.remember(path, b)
		}
		return b, nil
	})
	if err != nil {
		return nil, err
	}
	return v.([]byte), nil
}

func (s *SumDB) ask(ctx context.Context, path string) ([]byte, error) {
	client, err := s.choose(ctx)
	if err != nil {
		return nil, err
	}
	resp, err := client.Get(ctx, path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, goproxy.MaxSumDBBytes))
	if err == nil {
		err = goproxy.CheckSumDB(path, b, s.known)
	}
	return b, err
}

// maxRemembered and maxRememberedBytes bound the answers that are remembered, twice. A tile
// of hashes has 8 KB; one of records, which anybody may ask for, some 50, and up to 1 MiB.
const (
	maxRemembered      = 1000
	maxRememberedBytes = 12 << 20
)

func (s *SumDB) remembered(path string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.cache[path]; b != nil {
		return b
	}
	return s.older[path]
}

func (s *SumDB) remember(path string, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.cache) >= maxRemembered || s.cached+len(b) > maxRememberedBytes {
		s.cache, s.cached, s.older = map[string][]byte{}, 0, s.cache
	}
	s.cached += len(b) - len(s.cache[path])
	s.cache[path] = b
}

// choose finds who answers for the database.
func (s *SumDB) choose(ctx context.Context) (*goproxy.Client, error) {
	s.mu.Lock()
	c := s.client
	s.mu.Unlock()
	if c != nil {
		return c, nil
	}
	for _, c := range s.proxies {
		resp, err := c.Get(ctx, "/supported")
		if err == nil {
			resp.Body.Close()
			return s.chosen(c), nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err // not known: ask again next time
		}
	}
	return s.chosen(s.direct), nil
}

func (s *SumDB) chosen(c *goproxy.Client) *goproxy.Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.client, s.failing = c, time.Time{}
	return c
}

// chooseAgain: after so long without an answer, another may be the one to ask: a proxy
// that was being restarted when it was asked whether it hands the database on.
const chooseAgain = 2 * time.Minute

// ended notes how a question ended.
func (s *SumDB) ended(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch now := time.Now(); {
	case err == nil:
		s.failing = time.Time{}
	case s.failing.IsZero():
		s.failing = now
	case now.Sub(s.failing) >= chooseAgain:
		s.client, s.failing = nil, time.Time{}
	}
}

// H1 implements Verifier. A version that the database does not know is 403 and
// names the setting private; a database out of reach is 503; one that cannot be
// trusted is 502.
func (s *SumDB) H1(ctx context.Context, path, version string) (string, error) {
	if s.private(path) {
		return "", nil
	}
	what := path + "@" + version
	record, err := lookupPath(path, version)
	if err != nil {
		return "", goproxy.Errorf(http.StatusBadRequest, "%s: %w", what, err)
	}
	// Asked for here first, since Lookup, which finds the answer remembered, gives
	// errors as text only.
	_, err = s.Get(ctx, record)
	var e *goproxy.Error
	switch {
	case errors.As(err, &e) && e.Is(fs.ErrNotExist):
		return "", goproxy.Errorf(http.StatusForbidden, "%s: checksum database %s knows no such version; if the module is private, name it in the setting private: %w", what, s.Name, err)
	case err != nil:
		return "", goproxy.Busy(retrySumDB, "%s: not verified: %w", what, err)
	}
	client := s.verifier()
	lines, err := client.Lookup(path, version)
	if err != nil {
		s.drop(client)
	}
	forged := client.forged.Load()
	switch {
	case err != nil && forged != nil:
		return "", goproxy.Errorf(http.StatusBadGateway, "%s: checksum database %s cannot be trusted: %s", what, s.Name, *forged)
	case err != nil:
		return "", goproxy.Busy(retrySumDB, "%s: not verified: %w", what, err)
	}
	for _, line := range lines {
		if h1, ok := strings.CutPrefix(line, path+" "+version+" "); ok && strings.HasPrefix(h1, "h1:") {
			return h1, nil
		}
	}
	return "", goproxy.Errorf(http.StatusBadGateway, "%s: checksum database %s has no h1: hash, but %q", what, s.Name, lines)
}

// lookupPath is where the database has the record of a version, which holds the
// hashes of its zip and of its go.mod.
func lookupPath(path, version string) (string, error) {
	escPath, err := module.EscapePath(path)
	if err != nil {
		return "", err
	}
	escVersion, err := module.EscapeVersion(strings.TrimSuffix(version, "/go.mod"))
	return "/lookup/" + escPath + "@" + escVersion, err
}

// clientOps is what sumdb.Client needs of the world.
type clientOps struct{ *verifier }

func (o clientOps) ReadRemote(path string) ([]byte, error) {
	return o.s.Get(context.Background(), path)
}

func (o clientOps) ReadConfig(file string) ([]byte, error) {
	if file == "key" {
		return []byte(o.s.key), nil
	}
	b, err := o.s.ledger.Load(context.Background(), "sumdb/"+file)
	if b == nil {
		b = []byte{}
	}
	return b, err
}

func (o clientOps) WriteConfig(file string, old, new []byte) error {
	if len(old) == 0 {
		old = nil
	}
	err := o.s.ledger.CompareAndSwap(context.Background(), "sumdb/"+file, old, new)
	if errors.Is(err, storage.ErrSwapped) {
		return sumdb.ErrWriteConflict
	}
	return err
}

func (o clientOps) ReadCache(string) ([]byte, error) { return nil, fs.ErrNotExist } // Get has one
func (o clientOps) WriteCache(string, []byte)        {}
func (o clientOps) Log(string)                       {}
func (o clientOps) SecurityError(msg string)         { o.forged.Store(&msg) }

// SumDBName is the name of the database that a setting in GOSUMDB syntax means;
// "" with off.
func SumDBName(setting string) string {
	f := strings.Fields(setting)
	if len(f) == 0 || f[0] == "off" {
		return ""
	}
	name, _, _ := strings.Cut(f[0], "+")
	return name
}
