package goproxy

import (
	"hash/maphash"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

// asked remembers what the paths mean that were asked for lately, and the headers of
// their files: clients ask for the same ones over and over, and checking a path costs more than
// finding what is kept for it. It is bounded: a path has one place, by its hash, and takes
// it from the path that had it.
type asked struct {
	seed   maphash.Seed
	places [1024]atomic.Pointer[askedPath]
}

// askedPath is one path, and the headers that its last answer had, made once. Nothing
// writes to them.
type askedPath struct {
	Request
	urlPath string
	stamp   atomic.Pointer[stamp]
	checked atomic.Pointer[checked]
}

// stamp is the headers of a file that never changes.
type stamp struct {
	sizeBytes      int64
	unix           int64
	etag, modified []string
}

// checked is the header of what changes.
type checked struct {
	at    time.Time
	value []string
}

// maxAskedBytes is the longest path that is remembered.
const maxAskedBytes = 256

func newAsked() *asked { return &asked{seed: maphash.MakeSeed()} }

// parse is ParseRequest, remembered.
func (a *asked) parse(urlPath string) (*askedPath, error) {
	place := &a.places[maphash.String(a.seed, urlPath)%uint64(len(a.places))]
	if p := place.Load(); p != nil && p.urlPath == urlPath {
		return p, nil
	}
	urlPath = strings.Clone(urlPath) // it is a piece of the request line, which may be long
	req, err := ParseRequest(urlPath)
	if err != nil {
		return nil, err
	}
	p := &askedPath{Request: req, urlPath: urlPath}
	if len(urlPath) <= maxAskedBytes {
		place.Store(p)
	}
	return p, nil
}

// stampOf is the headers of a file of this size that was kept at that time.
func (p *askedPath) stampOf(sizeBytes int64, modTime time.Time) *stamp {
	if s := p.stamp.Load(); s != nil && s.sizeBytes == sizeBytes && s.unix == modTime.Unix() {
		return s
	}
	s := &stamp{
		sizeBytes: sizeBytes, unix: modTime.Unix(),
		etag: []string{ETag(sizeBytes, modTime)}, modified: []string{modTime.UTC().Format(http.TimeFormat)},
	}
	p.stamp.Store(s)
	return s
}

// checkedOf is the value of HeaderChecked.
func (p *askedPath) checkedOf(at time.Time) []string {
	if c := p.checked.Load(); c != nil && c.at.Equal(at) {
		return c.value
	}
	c := &checked{at, []string{at.UTC().Format(time.RFC3339Nano)}}
	p.checked.Store(c)
	return c.value
}
