// Package git reads remote repositories over git's smart HTTP protocol, and over SSH, in
// process: their refs, and the objects that one commit needs. Nothing is ever
// written to a repository, and no clone is kept.
//
// What comes from a server is bounded before it is taken: refs, bytes of a pack,
// objects in it, their sizes, the depth of trees, and the pause between two
// bytes. An error names the repository, without a password, and what was wrong.
//
// Sources: https://git-scm.com/docs/protocol-v2,
// https://git-scm.com/docs/http-protocol, https://git-scm.com/docs/pack-protocol.
package git

import (
	"net/http"
	"net/url"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/athensctl/athensctl/goproxy"
)

// Limits bound what a server may send. A zero field is DefaultLimits' one.
type Limits struct {
	RefBytes    int64         // of an answer with refs
	PackBytes   int64         // of a pack, as it is sent
	Objects     int           // in a pack
	ObjectBytes int64         // of one object, inflated
	TotalBytes  int64         // of all objects, inflated
	TreeDepth   int           // of folders in folders
	Idle        time.Duration // between two bytes of an answer
	Slow        time.Duration // an answer that takes longer must bring 1 KiB a second
}

// DefaultLimits leave room for any repository whose modules fit in a module zip
// (500 MiB), and for the history of a very large one.
var DefaultLimits = Limits{
	RefBytes: 64 << 20, PackBytes: 2 << 30, Objects: 20_000_000, ObjectBytes: 500 << 20, TotalBytes: 16 << 30,
	TreeDepth: 256, Idle: 30 * time.Second, Slow: 2 * time.Minute,
}

func (l Limits) orDefault() Limits {
	d := DefaultLimits
	if l.RefBytes > 0 {
		d.RefBytes = l.RefBytes
	}
	if l.PackBytes > 0 {
		d.PackBytes = l.PackBytes
	}
	if l.Objects > 0 {
		d.Objects = l.Objects
	}
	if l.ObjectBytes > 0 {
		d.ObjectBytes = l.ObjectBytes
	}
	if l.TotalBytes > 0 {
		d.TotalBytes = l.TotalBytes
	}
	if l.TreeDepth > 0 {
		d.TreeDepth = l.TreeDepth
	}
	if l.Idle > 0 {
		d.Idle = l.Idle
	}
	if l.Slow > 0 {
		d.Slow = l.Slow
	}
	return d
}

// Client reads repositories. It is safe for concurrent use.
type Client struct {
	// HTTP adds credentials, and decides where one may connect to. A POST to an ssh URL
	// runs git-upload-pack there: the request's body is its input, the answer's body its
	// output, at the same time; the header Git-Protocol becomes GIT_PROTOCOL.
	HTTP    *http.Client
	TempDir string // packs are spooled here; "": the system's
	Limits  Limits
	// Heavy bounds the packs that are indexed at once; nil: no bound.
	Heavy *semaphore.Weighted

	// version0 speaks the protocol of servers that do not know version 2; for tests.
	version0 bool
}

// Ref is one name in a repository.
type Ref struct {
	Name   string // "HEAD", "refs/heads/main", "refs/tags/v1.0.0"
	Hash   string // 40 hexadecimal digits, of a commit or a tag object
	Peeled string // what a tag object points at; "" for other refs
	Target string // of HEAD: the name of the branch; "" when it is not known
}

// Commit is the hash of the commit that the ref names.
func (r Ref) Commit() string {
	if r.Peeled != "" {
		return r.Peeled
	}
	return r.Hash
}

// isHash reports whether s is a whole SHA-1 hash.
func isHash(s string) bool {
	if len(s) != 40 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !('0' <= c && c <= '9' || 'a' <= c && c <= 'f') {
			return false
		}
	}
	return true
}

// broken is an answer that is not what the protocol says: 502.
func broken(u *url.URL, format string, args ...any) error {
	err := goproxy.Errorf(http.StatusBadGateway, format, args...)
	err.Message = Name(u) + ": " + err.Message
	return err
}

// Name is a repository's URL without user and password.
func Name(u *url.URL) string {
	v := *u
	v.User = nil
	return v.String()
}
