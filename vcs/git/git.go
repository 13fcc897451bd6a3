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

	"github.com/athensctl/athensctl/goproxy"
)

// Limits bound what a server may send. A zero field is DefaultLimits' one.
type Limits struct {
	RefBytes    int64         // of an answer with refs
	Refs        int           // in it
	PackBytes   int64         // of a pack, as it is sent
	Objects     int           // in a pack
	ObjectBytes int64         // of one object, inflated
	DeltaBytes  int64         // of a delta, of what it is made for and of what it makes, which are held in memory
	TotalBytes  int64         // of all objects and deltas, inflated
	TreeDepth   int           // of folders in folders
	Idle        time.Duration // between two bytes of an answer
	Slow        time.Duration // an answer that takes longer must bring 1 KiB a second
}

// DefaultLimits leave room for any repository whose modules fit in a module zip
// (500 MiB), and for the commits of a very large one: Linux has 1.4 million of them.
var DefaultLimits = Limits{
	RefBytes: 32 << 20, Refs: 200_000, PackBytes: 2 << 30, Objects: 2_000_000, ObjectBytes: 500 << 20, DeltaBytes: 48 << 20, TotalBytes: 16 << 30,
	TreeDepth: 256, Idle: 30 * time.Second, Slow: 2 * time.Minute,
}

// alone are the limits for objects without history: one commit with its files.
func (l Limits) alone() Limits {
	l.PackBytes = min(l.PackBytes, 1<<30)
	l.Objects = min(l.Objects, 1_000_000)
	l.TotalBytes = min(l.TotalBytes, 4<<30)
	return l
}

func (l Limits) orDefault() Limits {
	d := DefaultLimits
	if l.RefBytes > 0 {
		d.RefBytes = l.RefBytes
	}
	if l.Refs > 0 {
		d.Refs = l.Refs
	}
	if l.DeltaBytes > 0 {
		d.DeltaBytes = l.DeltaBytes
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
	// Heavy bounds the packs that are indexed at once, Memory the bytes of their indexes and
	// of refs that are read, Deltas those of objects that are made of deltas, Disk those of
	// packs; nil: no bound. Past Memory and Disk an answer is a 503.
	Heavy, Memory, Deltas, Disk *Budget
	// Evict closes something that was fetched and that nobody needs just now; false: there
	// is nothing. It may be nil.
	Evict func() bool
	// Refused is told of each answer for which a budget, "memory" or "disk", had no room. It
	// may be nil.
	Refused func(budget string)
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
