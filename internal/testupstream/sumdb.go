package testupstream

import (
	"archive/zip"
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/dirhash"
	"golang.org/x/mod/sumdb/note"
)

// Sum is what the checksum database says of a version.
type Sum int

const (
	SumRight    Sum = iota
	SumWrongZip     // the zip's hash is another
	SumWrongMod     // the go.mod's hash is another
	SumUnknown      // 404
)

// sumDB is a checksum database over what an upstream serves. Its log grows by
// a version when that is first looked up, and has then what was served at that
// moment.
type sumDB struct {
	u        *Upstream
	name     string
	verifier string
	server   *sumdb.Server
	away     atomic.Bool

	mu   sync.Mutex
	sums map[module.Version]Sum
}

func newSumDB(u *Upstream) (*sumDB, error) {
	var id [4]byte
	rand.Read(id[:])
	s := &sumDB{u: u, name: "sum-" + hex.EncodeToString(id[:]) + ".test", sums: map[module.Version]Sum{}}
	signer, verifier, err := note.GenerateKey(rand.Reader, s.name)
	if err != nil {
		return nil, err
	}
	s.verifier = verifier
	s.server = sumdb.NewServer(sumdb.NewTestServer(signer, s.gosum))
	return s, nil
}

// SumDBName is the name of the checksum database.
func (u *Upstream) SumDBName() string { return u.sums.name }

// VerifierKey is the public key of the checksum database.
func (u *Upstream) VerifierKey() string { return u.sums.verifier }

// SumDBURL is where the checksum database can be asked directly.
func (u *Upstream) SumDBURL() string { return u.URL() + "/sumdb/" + u.sums.name }

// GOSUMDB is the value for the environment variable: key and URL.
func (u *Upstream) GOSUMDB() string { return u.VerifierKey() + " " + u.SumDBURL() }

// SetSum makes the checksum database wrong about a version, or right again. A
// wrong hash has to be set before the version is first looked up: the database
// never changes a record.
func (u *Upstream) SetSum(path, version string, s Sum) {
	u.sums.mu.Lock()
	defer u.sums.mu.Unlock()
	u.sums.sums[module.Version{Path: path, Version: version}] = s
}

// SetSumDBAway makes everything below /sumdb/ answer 503. To make the proxy not
// offer the database, while it still answers directly, use a Fault for
// Match{Kind: SumDB, Path: "supported"}.
func (u *Upstream) SetSumDBAway(away bool) { u.sums.away.Store(away) }

// parse reads what is behind /sumdb/.
func (s *sumDB) parse(rest string) (Request, error) {
	name, file, _ := strings.Cut(rest, "/")
	req := Request{Kind: SumDB, Path: file}
	if name != s.name {
		req.Path = rest
		return req, fmt.Errorf("checksum database %q: %w", name, fs.ErrNotExist)
	}
	if lookup, ok := strings.CutPrefix(file, "lookup/"); ok {
		path, version, _ := strings.Cut(lookup, "@")
		if p, err := module.UnescapePath(path); err == nil {
			req.Path = p
		}
		if v, err := module.UnescapeVersion(version); err == nil {
			req.Version = v
		}
	}
	return req, nil
}

func (s *sumDB) serve(w http.ResponseWriter, r *http.Request) {
	if s.away.Load() {
		http.Error(w, "checksum database is away", http.StatusServiceUnavailable)
		return
	}
	file := strings.TrimPrefix(r.URL.Path, "/sumdb/"+s.name)
	if file == "/supported" {
		w.WriteHeader(http.StatusOK)
		return
	}
	defer func() {
		switch p := recover(); p {
		case nil:
		case http.ErrAbortHandler:
			panic(p)
		default: // x/mod's test server, asked for a tile that is not there yet
			http.Error(w, "not found: no such tile", http.StatusNotFound)
		}
	}()
	r2 := r.Clone(r.Context())
	r2.URL.Path, r2.URL.RawPath = file, ""
	s.server.ServeHTTP(w, r2)
}

// gosum makes the record of a version: its lines in go.sum.
func (s *sumDB) gosum(path, vers string) ([]byte, error) {
	m := module.Version{Path: path, Version: vers}
	s.mu.Lock()
	sum := s.sums[m]
	s.mu.Unlock()
	if sum == SumUnknown {
		return nil, notExist(m)
	}
	v, err := s.u.find(m)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notExist(m)
	}
	if err != nil {
		return nil, err
	}
	var record bytes.Buffer
	h1, err := zipHash(v)
	switch {
	case err != nil:
		return nil, err
	case sum == SumWrongZip:
		h1 = wrongHash
	}
	if h1 != "" {
		fmt.Fprintf(&record, "%s %s %s\n", path, vers, h1)
	}
	mod, err := v.mod()
	if err != nil {
		return nil, err
	}
	h1, err = dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(mod)), nil
	})
	if err != nil {
		return nil, err
	}
	if sum == SumWrongMod {
		h1 = wrongHash
	}
	fmt.Fprintf(&record, "%s %s/go.mod %s\n", path, vers, h1)
	return record.Bytes(), nil
}

const wrongHash = "h1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="

// notExist is an error that x/mod's server, which does not unwrap, takes for 404.
func notExist(m module.Version) error {
	return &fs.PathError{Op: "lookup", Path: m.String(), Err: fs.ErrNotExist}
}

// zipHash is "" when there is no zip, or none that anybody could hash. It says
// nothing about what x/mod/zip would refuse.
func zipHash(v version) (string, error) {
	f, size, err := v.zip()
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	z, err := zip.NewReader(f, size)
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) {
		return "", nil
	}
	files := map[string]*zip.File{}
	var names []string
	for _, zf := range z.File {
		names = append(names, zf.Name)
		files[zf.Name] = zf
	}
	h1, err := dirhash.Hash1(names, func(name string) (io.ReadCloser, error) { return files[name].Open() })
	if err != nil {
		return "", nil
	}
	return h1, nil
}
