package git

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/athensctl/athensctl/goproxy"
)

// Objects is what a fetch brought: a pack in a temporary file, and where in it
// each object is. It is safe for concurrent use. An object that is not in it is
// fs.ErrNotExist.
type Objects struct {
	limits Limits
	name   string
	size   int64
	pack   *packFile
	room   *room

	mu     sync.RWMutex // held for reading while the file is opened
	closed bool
}

// index makes the pack in f ready to be read. It takes f over when it succeeds.
func index(ctx context.Context, f *os.File, limits Limits, room *room) (*Objects, error) {
	p, err := readPack(ctx, f, limits, room)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return &Objects{limits: limits, name: f.Name(), size: st.Size(), pack: p, room: room}, nil
}

// SizeBytes is the size of the file.
func (o *Objects) SizeBytes() int64 { return o.size }

// Rest frees memory that makes reading faster; for objects that nobody reads just now.
func (o *Objects) Rest() { o.pack.cache.clear() }

// TakeMemory takes bytes of Client.Memory for what is made of the objects, or says that
// they are used up; GiveMemory and Close give them back.
func (o *Objects) TakeMemory(n int64) error { return o.room.takeMemory(n) }

// GiveMemory gives back what TakeMemory took.
func (o *Objects) GiveMemory(n int64) { o.room.giveMemory(n) }

// Close removes the file. What was read from it before is good; what is being read is an
// error.
func (o *Objects) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil
	}
	o.closed = true
	o.pack.cache.clear()
	o.room.close()
	return errors.Join(o.pack.f.Close(), os.Remove(o.name))
}

// find is the object of a hash.
func (o *Objects) find(hash string) (int32, packed, error) {
	raw, err := hex.DecodeString(hash)
	if err != nil || len(raw) != 20 {
		return 0, packed{}, fmt.Errorf("%.50q is not a git object's hash", hash)
	}
	i, ok := o.pack.find([20]byte(raw))
	if !ok {
		return 0, packed{}, goproxy.NotFound("git object %s", hash)
	}
	return i, o.pack.objects[i], nil
}

// small reads an object that must be of the type and below the size.
func (o *Objects) small(hash string, t objectType, limit int64) ([]byte, error) {
	i, obj, err := o.find(hash)
	if err != nil {
		return nil, err
	}
	if obj.typ != t {
		return nil, fmt.Errorf("git object %s is a %s, not a %s", hash, obj.typ, t)
	}
	if obj.size > limit {
		return nil, fmt.Errorf("git object %s has %d bytes; at most %d are accepted", hash, obj.size, limit)
	}
	r, err := o.open(i)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// open reads an object.
func (o *Objects) open(i int32) (io.ReadCloser, error) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if o.closed {
		return nil, fs.ErrClosed
	}
	return o.pack.open(i)
}

const (
	maxCommitBytes = 1 << 20
	maxTreeBytes   = 16 << 20
	largeTree      = 64 << 10
	maxPathBytes   = 4096 // as Linux has it (PATH_MAX)
)

// Commit is a commit.
type Commit struct {
	Tree    string
	Parents []string
	// Time is the committer's, UTC, to the second; zero: there is none that git takes for
	// one, or that an .info file can have.
	Time time.Time
}

// ErrNotCommit: a tag may name a file or a folder.
var ErrNotCommit = errors.New("it is not a commit")

// Commit reads a commit. Another object is ErrNotCommit.
// Source: https://github.com/git/git/blob/v2.39.5/commit.c, parse_commit_buffer, and
// pretty.c, parse_commit_header.
func (o *Objects) Commit(hash string) (*Commit, error) {
	if _, obj, err := o.find(hash); err == nil && obj.typ != commitObject {
		return nil, fmt.Errorf("git object %s: %w but a %s", hash, ErrNotCommit, obj.typ)
	}
	b, err := o.small(hash, commitObject, maxCommitBytes)
	if err != nil {
		return nil, err
	}
	// Of a message nothing is kept.
	b, _, _ = bytes.Cut(b, []byte("\n\n"))
	first, rest, _ := strings.Cut(string(b), "\n")
	c := &Commit{}
	var ok bool
	if c.Tree, ok = strings.CutPrefix(first, "tree "); !ok || !isHash(c.Tree) {
		return nil, fmt.Errorf("git commit %s has no tree", hash)
	}
	parents := true // they are before all else
	for line := range strings.SplitSeq(rest, "\n") {
		name, value, _ := strings.Cut(line, " ")
		if parents = parents && name == "parent"; parents {
			c.Parents = append(c.Parents, value)
		} else if name == "committer" { // name <address> seconds zone
			c.Time = committerTime(value)
		}
	}
	return c, nil
}

// committerTime is the time of a committer, which git takes for one only with a zone behind
// it.
// Source: https://github.com/git/git/blob/v2.39.5/ident.c, split_ident_line.
func committerTime(committer string) (none time.Time) {
	_, address, ok := strings.Cut(committer, "<")
	if !ok || !strings.Contains(address, ">") {
		return none
	}
	const space, digits = " \t\n\r", "0123456789"
	rest := strings.TrimLeft(address[strings.LastIndexByte(address, '>')+1:], space)
	zone := strings.TrimLeft(rest, digits)
	seconds, err := strconv.ParseInt(rest[:len(rest)-len(zone)], 10, 64)
	if zone = strings.TrimLeft(zone, space); err != nil || len(zone) < 2 || zone[0] != '+' && zone[0] != '-' || strings.IndexByte(digits, zone[1]) < 0 {
		return none
	}
	if seconds > year9999 {
		return none
	}
	return time.Unix(seconds, 0).UTC()
}

const year9999 = 253402300799 // its last second

// Entry is one name in a tree.
type Entry struct {
	Name string
	Mode uint32 // of git: 0o100644, 0o100755, 0o120000 (a symbolic link), 0o40000 (a tree), 0o160000 (a submodule)
	Hash string
}

// IsTree, IsFile and IsLink say what an entry is.
func (e Entry) IsTree() bool { return e.Mode == 0o40000 }
func (e Entry) IsFile() bool { return e.Mode&0o170000 == 0o100000 }
func (e Entry) IsLink() bool { return e.Mode == 0o120000 }

// tree reads a tree: its entries, one after the other.
func (o *Objects) tree(hash string) (iter.Seq2[Entry, error], error) {
	b, err := o.small(hash, treeObject, maxTreeBytes)
	return func(yield func(Entry, error) bool) {
		for b := b; len(b) > 0; {
			mode, rest, ok1 := bytes.Cut(b, []byte(" "))
			name, rest, ok2 := bytes.Cut(rest, []byte{0})
			if !ok1 || !ok2 || len(rest) < 20 {
				yield(Entry{}, fmt.Errorf("git tree %s is cut", hash))
				return
			}
			m, err := strconv.ParseUint(string(mode), 8, 32)
			if n := string(name); err != nil || n == "" || n == "." || n == ".." || strings.Contains(n, "/") {
				yield(Entry{}, fmt.Errorf("git tree %s has an entry %.40q %.100q", hash, mode, name))
				return
			}
			if !yield(Entry{Name: string(name), Mode: uint32(m), Hash: hex.EncodeToString(rest[:20])}, nil) {
				return
			}
			b = rest[20:]
		}
	}, err
}

// Find returns the entry of a path below a tree, fs.ErrNotExist when it is not
// there. "" is the tree itself.
func (o *Objects) Find(tree, name string) (Entry, error) {
	e := Entry{Mode: 0o40000, Hash: tree}
	if name == "" {
		return e, nil
	}
	for part := range strings.SplitSeq(name, "/") {
		if !e.IsTree() {
			return Entry{}, goproxy.NotFound("%s", name)
		}
		entries, err := o.tree(e.Hash)
		if err != nil {
			return Entry{}, err
		}
		found := false
		for sub, err := range entries {
			if err != nil {
				return Entry{}, err
			}
			if sub.Name == part && !found {
				e, found = sub, true
			}
		}
		if !found {
			return Entry{}, goproxy.NotFound("%s", name)
		}
	}
	return e, nil
}

// Walk calls f for everything below a tree that is not a tree itself, with its
// path, in the order of the trees.
func (o *Objects) Walk(tree string, f func(name string, e Entry) error) error {
	left := o.limits.Objects
	var walk func(hash, at string, depth int) error
	walk = func(hash, at string, depth int) error {
		if depth > o.limits.TreeDepth {
			return fmt.Errorf("%.200s: folders are nested more than %d deep", at, o.limits.TreeDepth)
		}
		if _, obj, err := o.find(hash); err == nil && obj.size > largeTree && obj.size <= maxTreeBytes {
			// It is held while those below it are read.
			if err := o.room.takeMemory(2 * obj.size); err != nil {
				return err
			}
			defer o.room.giveMemory(2 * obj.size)
		}
		entries, err := o.tree(hash)
		if err != nil {
			return err
		}
		for e, err := range entries {
			if err != nil {
				return err
			}
			if left--; left < 0 {
				return fmt.Errorf("more than %d files and folders", o.limits.Objects)
			}
			name := path.Join(at, e.Name)
			if len(name) > maxPathBytes {
				return fmt.Errorf("%.200s…: a path of %d bytes; at most %d are accepted", name, len(name), maxPathBytes)
			}
			if e.IsTree() {
				err = walk(e.Hash, name, depth+1)
			} else {
				err = f(name, e)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	return walk(tree, "", 0)
}

// Blob opens the content of a file and says its size. It cannot be read after Close.
func (o *Objects) Blob(hash string) (io.ReadCloser, int64, error) {
	i, size, err := o.blob(hash)
	if err != nil {
		return nil, 0, err
	}
	r, err := o.open(i)
	return r, size, err
}

// Size is how many bytes a file has.
func (o *Objects) Size(hash string) (int64, error) {
	_, size, err := o.blob(hash)
	return size, err
}

func (o *Objects) blob(hash string) (int32, int64, error) {
	i, obj, err := o.find(hash)
	if err == nil && obj.typ != blobObject {
		err = fmt.Errorf("git object %s is a %s, not a blob", hash, obj.typ)
	}
	return i, obj.size, err
}

// ReadBlob reads the content of a small file.
func (o *Objects) ReadBlob(hash string, limit int64) ([]byte, error) {
	r, size, err := o.Blob(hash)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > limit {
		return nil, fmt.Errorf("git object %s has %d bytes; at most %d are accepted", hash, size, limit)
	}
	return io.ReadAll(io.LimitReader(r, limit))
}

// Commits are some commits of a fetch. They are good after Close.
type Commits struct {
	pack *packFile
	in   []uint64 // bits, by the place in pack.objects
}

// Has reports whether a commit is among them.
func (c *Commits) Has(hash string) bool {
	raw, err := hex.DecodeString(hash)
	if err != nil || len(raw) != 20 {
		return false
	}
	i, ok := c.pack.find([20]byte(raw))
	return ok && c.has(i)
}

func (c *Commits) has(i int32) bool { return c.in[i/64]>>(i%64)&1 != 0 }

// add reports whether it was not there before.
func (c *Commits) add(i int32) bool {
	had := c.has(i)
	c.in[i/64] |= 1 << (i % 64)
	return !had
}

// Ancestors returns the commits from which others descend, those included, as far
// as the fetch had them.
func (o *Objects) Ancestors(ctx context.Context, of ...string) (*Commits, error) {
	seen := &Commits{pack: o.pack, in: make([]uint64, (len(o.pack.objects)+63)/64)}
	var todo []int32 // each object once: one that is there twice is found at one place
	add := func(hash string) error {
		i, obj, err := o.find(hash)
		switch {
		case errors.Is(err, fs.ErrNotExist), err == nil && obj.typ != commitObject:
			return nil // beyond a shallow fetch, or a tag of something else
		case err == nil && seen.add(i):
			todo = append(todo, i)
		}
		return err
	}
	for _, h := range of {
		if err := add(h); err != nil {
			return nil, err
		}
	}
	for len(todo) > 0 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h := hex.EncodeToString(o.pack.objects[todo[len(todo)-1]].hash[:])
		todo = todo[:len(todo)-1]
		c, err := o.Commit(h)
		if err != nil {
			return nil, err
		}
		for _, p := range c.Parents {
			if err := add(p); err != nil {
				return nil, err
			}
		}
	}
	return seen, nil
}

// Match returns the hash of the one commit among these that begins with prefix.
// "": there is none. Several are an error.
func (c *Commits) Match(prefix string) (string, error) {
	var found string
	for i, obj := range c.pack.objects {
		if !c.has(int32(i)) {
			continue
		}
		h := hex.EncodeToString(obj.hash[:])
		if !strings.HasPrefix(h, prefix) || h == found {
			continue
		}
		if found != "" {
			return "", fmt.Errorf("%s: ambiguous: it may be %s or %s", prefix, min(found, h), max(found, h))
		}
		found = h
	}
	return found, nil
}
