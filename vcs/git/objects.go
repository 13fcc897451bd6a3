package git

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
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

	mu     sync.RWMutex // held for reading while the file is opened
	closed bool
}

// index makes the pack in f ready to be read. It takes f over when it succeeds.
func index(f *os.File, limits Limits) (*Objects, error) {
	p, err := readPack(f, limits)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return &Objects{limits: limits, name: f.Name(), size: st.Size(), pack: p}, nil
}

// SizeBytes is the size of the file.
func (o *Objects) SizeBytes() int64 { return o.size }

// Rest frees memory that makes reading faster; for objects that nobody reads just now.
func (o *Objects) Rest() { o.pack.cache.clear() }

// Close removes the file. What was read from it before is good; what is being read is an
// error.
func (o *Objects) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil
	}
	o.closed = true
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
	maxTreeBytes   = 64 << 20
)

// Commit is a commit.
type Commit struct {
	Tree    string
	Parents []string
	Time    time.Time // the committer's, UTC, to the second
}

// ErrNotCommit: a tag may name a file or a folder.
var ErrNotCommit = errors.New("it is not a commit")

// Commit reads a commit. Another object is ErrNotCommit.
func (o *Objects) Commit(hash string) (*Commit, error) {
	if _, obj, err := o.find(hash); err == nil && obj.typ != commitObject {
		return nil, fmt.Errorf("git object %s: %w but a %s", hash, ErrNotCommit, obj.typ)
	}
	b, err := o.small(hash, commitObject, maxCommitBytes)
	if err != nil {
		return nil, err
	}
	c := &Commit{}
	for line := range strings.SplitSeq(string(b), "\n") {
		if line == "" {
			break // the message
		}
		name, value, _ := strings.Cut(line, " ")
		switch name {
		case "tree":
			c.Tree = value
		case "parent":
			c.Parents = append(c.Parents, value)
		case "committer": // name <address> seconds zone
			f := strings.Fields(value[strings.LastIndexByte(value, '>')+1:])
			if len(f) == 0 {
				return nil, fmt.Errorf("git commit %s: %q has no time", hash, printable(line))
			}
			s, err := strconv.ParseInt(f[0], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("git commit %s: %q has no time", hash, printable(line))
			}
			c.Time = time.Unix(s, 0).UTC()
		}
	}
	if !isHash(c.Tree) || c.Time.IsZero() {
		return nil, fmt.Errorf("git commit %s has no tree or no committer", hash)
	}
	return c, nil
}

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

// Tree reads a tree.
func (o *Objects) Tree(hash string) ([]Entry, error) {
	b, err := o.small(hash, treeObject, maxTreeBytes)
	if err != nil {
		return nil, err
	}
	var entries []Entry
	for len(b) > 0 {
		mode, rest, ok1 := bytes.Cut(b, []byte(" "))
		name, rest, ok2 := bytes.Cut(rest, []byte{0})
		if !ok1 || !ok2 || len(rest) < 20 {
			return nil, fmt.Errorf("git tree %s is cut", hash)
		}
		m, err := strconv.ParseUint(string(mode), 8, 32)
		if n := string(name); err != nil || n == "" || n == "." || n == ".." || strings.Contains(n, "/") {
			return nil, fmt.Errorf("git tree %s has an entry %.40q %.100q", hash, mode, name)
		}
		entries = append(entries, Entry{Name: string(name), Mode: uint32(m), Hash: fmt.Sprintf("%x", rest[:20])})
		b = rest[20:]
	}
	return entries, nil
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
		entries, err := o.Tree(e.Hash)
		if err != nil {
			return Entry{}, err
		}
		found := false
		for _, sub := range entries {
			if found = sub.Name == part; found {
				e = sub
				break
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
		entries, err := o.Tree(hash)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if left--; left < 0 {
				return fmt.Errorf("more than %d files and folders", o.limits.Objects)
			}
			name := path.Join(at, e.Name)
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

// Ancestors returns the commits from which others descend, those included, as far
// as the fetch had them: hash to whether it is there.
func (o *Objects) Ancestors(of ...string) (map[string]bool, error) {
	seen := map[string]bool{}
	todo := of
	for len(todo) > 0 {
		h := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[h] {
			continue
		}
		c, err := o.Commit(h)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrNotCommit) {
			continue // beyond a shallow fetch, or a tag of something else
		} else if err != nil {
			return nil, err
		}
		seen[h] = true
		todo = append(todo, c.Parents...)
	}
	return seen, nil
}

// Match returns the hash of the one commit among these that begins with prefix.
// "": there is none. Several are an error.
func Match(commits map[string]bool, prefix string) (string, error) {
	var found string
	for h := range commits {
		if !strings.HasPrefix(h, prefix) {
			continue
		}
		if found != "" {
			return "", fmt.Errorf("%s: ambiguous: it may be %s or %s", prefix, min(found, h), max(found, h))
		}
		found = h
	}
	return found, nil
}
