package git

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/zlib"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"
	"strconv"
	"sync"

	"github.com/pjbgf/sha1cd"
)

// objectType is what an object is.
// Source: https://git-scm.com/docs/gitformat-pack.
type objectType uint8

const (
	commitObject  objectType = 1
	treeObject    objectType = 2
	blobObject    objectType = 3
	tagObject     objectType = 4
	deltaByOffset objectType = 6
	deltaByHash   objectType = 7
)

func (t objectType) String() string {
	switch t {
	case commitObject:
		return "commit"
	case treeObject:
		return "tree"
	case blobObject:
		return "blob"
	case tagObject:
		return "tag"
	}
	return "delta"
}

// packFile is a pack in a file, and where in it each object is. Objects that are not deltas
// are read as streams, whatever their size; a delta takes its own size, its base's and
// its object's of memory. It is safe for concurrent use.
type packFile struct {
	f       *os.File
	limits  Limits
	room    *room
	hold    int64    // bytes of objects from which others are made that are kept at hand
	objects []packed // in the order of the file
	byHash  []int32  // objects, in the order of their hashes
	cache   deltaCache
	streams sync.Pool // of *stream, to be used again
}

// packed is one object. There may be millions.
type packed struct {
	offset int64 // of its header
	size   int64 // of the object itself, once its deltas are applied
	base   int32 // of a delta: an object; -1: it is none
	typ    objectType
	hash   [20]byte
}

const noBase = -1

// readPack reads the pack in f once for what it is, and once more for its deltas. What it
// says of its objects and their sizes is within the limits and true, or it is an error.
func readPack(ctx context.Context, f *os.File, limits Limits, room *room) (*packFile, error) {
	return readPackHolding(ctx, f, limits, room, holdBytes)
}

func readPackHolding(ctx context.Context, f *os.File, limits Limits, room *room, hold int64) (*packFile, error) {
	p := &packFile{f: f, limits: limits, room: room, hold: hold, cache: deltaCache{room: room}}
	found, err := p.scan(ctx)
	if err == nil {
		err = p.resolve(ctx, found)
	}
	if err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	p.byHash = make([]int32, len(p.objects))
	for i := range p.byHash {
		p.byHash[i] = int32(i)
	}
	slices.SortFunc(p.byHash, func(a, b int32) int { return bytes.Compare(p.objects[a].hash[:], p.objects[b].hash[:]) })
	return p, nil
}

// objectBytes is how much memory each object takes while a pack is read: a packed, its
// place in byHash, and what resolve knows of it. Where it is the delta of another by hash,
// it takes refBytes more.
const (
	objectBytes = 48 + 4 + 12
	refBytes    = 24
)

// minObject is how many bytes of a pack an object has at least: its header, and those of
// zlib around nothing.
const minObject = 1 + 8

// find is the object of a hash; false when it is not there.
func (p *packFile) find(hash [20]byte) (int32, bool) {
	i, ok := slices.BinarySearchFunc(p.byHash, hash, func(i int32, h [20]byte) int { return bytes.Compare(p.objects[i].hash[:], h[:]) })
	if !ok {
		return 0, false
	}
	return p.byHash[i], true
}

// header is what stands before an object's content.
type header struct {
	typ  objectType
	size int64    // of the content: the object, or the delta
	back int64    // of a delta: how far before it its base is
	ref  [20]byte // of a delta: the hash of its base
}

func readHeader(r io.ByteReader) (h header, err error) {
	c, err := r.ReadByte()
	if err != nil {
		return h, err
	}
	h.typ, h.size = objectType(c>>4&7), int64(c&15)
	for shift := 4; c&0x80 != 0; shift += 7 {
		if c, err = r.ReadByte(); err != nil {
			return h, err
		}
		if shift > 56 {
			return h, errors.New("the size of an object has too many digits")
		}
		h.size |= int64(c&0x7f) << shift
	}
	switch h.typ {
	case commitObject, treeObject, blobObject, tagObject:
	case deltaByOffset:
		c, err = r.ReadByte()
		h.back = int64(c & 0x7f)
		for err == nil && c&0x80 != 0 {
			if h.back > 1<<48 {
				return h, errors.New("the base of a delta is too far before it")
			}
			c, err = r.ReadByte()
			h.back = (h.back+1)<<7 | int64(c&0x7f)
		}
	case deltaByHash:
		for i := range h.ref {
			if h.ref[i], err = r.ReadByte(); err != nil {
				break
			}
		}
	default:
		return h, fmt.Errorf("an object of type %d", h.typ)
	}
	return h, err
}

// counter counts what is read through it. zlib reads bytes from it, and not one too many.
type counter struct {
	r *bufio.Reader
	n int64
}

func (c *counter) ReadByte() (byte, error) {
	b, err := c.r.ReadByte()
	if err == nil {
		c.n++
	}
	return b, err
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}

// deltas is what a pack has of them.
type deltas struct {
	byOffset int
	byHash   []deltaRef
	largest  int64 // bytes of a delta, of its object or of an object that may be its base
}

// deltaRef is a delta that names its base by its hash; i is -1 when it is done.
type deltaRef struct {
	base [20]byte
	i    int32
}

// scan reads the pack from end to end: where each object is, and the hashes of those
// that are not deltas.
func (p *packFile) scan(ctx context.Context) (*deltas, error) {
	size, err := p.f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	r := &counter{r: bufio.NewReaderSize(io.NewSectionReader(p.f, 0, size), 256<<10)}
	var head [12]byte
	if _, err := io.ReadFull(r, head[:]); err != nil || string(head[:4]) != "PACK" {
		return nil, errors.New("it does not begin as one")
	}
	if v := binary.BigEndian.Uint32(head[4:]); v != 2 && v != 3 {
		return nil, fmt.Errorf("version %d", v)
	}
	count := binary.BigEndian.Uint32(head[8:])
	if int64(count) > int64(p.limits.Objects) {
		return nil, fmt.Errorf("it says that it has %d objects; at most %d are accepted", count, p.limits.Objects)
	}
	if int64(count) > size/minObject { // so that a count that lies takes no memory
		return nil, fmt.Errorf("it says that it has %d objects, in %d bytes: %w", count, size, io.ErrUnexpectedEOF)
	}
	if err := p.room.takeMemory(int64(count) * objectBytes); err != nil {
		return nil, err
	}
	p.objects = make([]packed, 0, count)
	found := &deltas{}
	h, z := newHasher(), &inflater{ctx: ctx}
	total := int64(0)
	for i := range int32(count) {
		o := packed{offset: r.n, base: noBase}
		head, err := readHeader(r)
		if err != nil {
			return nil, fmt.Errorf("object %d of %d: %w", i+1, count, cut(err))
		}
		o.typ, o.size = head.typ, head.size
		if o.size > p.limits.ObjectBytes {
			return nil, fmt.Errorf("an object of %d bytes; at most %d are accepted", o.size, p.limits.ObjectBytes)
		}
		isDelta := o.typ == deltaByOffset || o.typ == deltaByHash
		if isDelta && head.size > p.limits.DeltaBytes {
			return nil, fmt.Errorf("a delta of %d bytes; at most %d are accepted", head.size, p.limits.DeltaBytes)
		}
		start := prefix{}
		into := io.Writer(&start)
		switch o.typ {
		case deltaByOffset:
			at, ok := slices.BinarySearchFunc(p.objects, o.offset-head.back, func(o packed, offset int64) int { return cmp.Compare(o.offset, offset) })
			if !ok {
				return nil, errors.New("a delta whose base is not before it")
			}
			o.base = int32(at)
			found.byOffset++
		case deltaByHash:
			if len(found.byHash) == cap(found.byHash) { // it grows by half, and is copied
				if err := p.room.takeMemory(int64(len(found.byHash)+1000) * refBytes); err != nil {
					return nil, err
				}
				found.byHash = slices.Grow(found.byHash, len(found.byHash)/2+1000)
			}
			found.byHash = append(found.byHash, deltaRef{head.ref, i})
		default:
			h.start(o.typ, o.size)
			into = h
		}
		if err := z.copy(into, r, head.size); err != nil {
			return nil, fmt.Errorf("object %d of %d: %w", i+1, count, err)
		}
		if isDelta {
			var base int64
			if base, o.size, _, err = deltaSizes(start.b); err != nil {
				return nil, err
			}
			if most := max(base, o.size); most > p.limits.DeltaBytes {
				return nil, fmt.Errorf("a delta between objects of %d and %d bytes; at most %d are accepted", base, o.size, p.limits.DeltaBytes)
			}
			found.largest = max(found.largest, head.size, base, o.size)
			total += head.size
		} else {
			o.hash = h.sum()
		}
		if total += o.size; total > p.limits.TotalBytes {
			return nil, fmt.Errorf("more than %d bytes of objects", p.limits.TotalBytes)
		}
		p.objects = append(p.objects, o)
	}
	if size-r.n < 20 { // the pack's own hash; each object's is what counts
		return nil, fmt.Errorf("it ends behind its objects: %w", io.ErrUnexpectedEOF)
	}
	return found, nil
}

func cut(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// prefix keeps the first bytes of what is written to it.
type prefix struct{ b []byte }

func (p *prefix) Write(b []byte) (int, error) {
	if room := 2*binary.MaxVarintLen64 - len(p.b); room > 0 {
		p.b = append(p.b, b[:min(room, len(b))]...)
	}
	return len(b), nil
}

// hasher computes the hashes of objects, and finds those that were made to collide.
type hasher struct{ hash.Hash }

func newHasher() *hasher { return &hasher{sha1cd.New()} }

func (h *hasher) start(t objectType, size int64) {
	h.Reset()
	b := make([]byte, 0, 32)
	b = append(append(b, t.String()...), ' ')
	h.Write(append(strconv.AppendInt(b, size, 10), 0))
}

func (h *hasher) sum() (sum [20]byte) {
	h.Sum(sum[:0])
	return sum
}

// inflater inflates contents, one after the other.
type inflater struct {
	ctx context.Context // ends it; it may be nil
	z   io.ReadCloser
	buf []byte
}

func (z *inflater) reset(r io.Reader) (err error) {
	if z.z == nil {
		z.z, err = zlib.NewReader(r)
	} else {
		err = z.z.(zlib.Resetter).Reset(r, nil)
	}
	return cut(err)
}

// copy inflates the content that is next in r, which must have the size.
func (z *inflater) copy(to io.Writer, r io.Reader, size int64) error {
	if err := z.reset(r); err != nil {
		return err
	}
	if z.buf == nil {
		z.buf = make([]byte, 32<<10)
	}
	n := int64(0)
	for {
		if z.ctx != nil && z.ctx.Err() != nil {
			return z.ctx.Err()
		}
		some, err := z.z.Read(z.buf)
		if n += int64(some); n > size {
			return fmt.Errorf("it has more than the %d bytes that it says", size)
		}
		if _, e := to.Write(z.buf[:some]); e != nil {
			return e
		}
		if err == io.EOF && n == size {
			return nil
		}
		if err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", n, size, cut(err))
		}
	}
}

// content inflates what is stored of an object: it, or its delta.
func (p *packFile) content(i int32, z *inflater) ([]byte, error) {
	offset := p.objects[i].offset
	r := bufio.NewReader(io.NewSectionReader(p.f, offset, 1<<62-offset))
	head, err := readHeader(r)
	if err != nil {
		return nil, cut(err)
	}
	b := bytes.NewBuffer(make([]byte, 0, head.size))
	err = z.copy(b, r, head.size)
	return b.Bytes(), err
}

// make makes an object in memory. Its base, and that one's, are looked up in the cache.
func (p *packFile) make(i int32, z *inflater, cache *deltaCache) ([]byte, error) {
	var deltas []int32
	var data []byte
	for ; ; i = p.objects[i].base {
		if b, ok := cache.get(i); ok {
			data = b
			break
		}
		if p.objects[i].base == noBase {
			b, err := p.content(i, z)
			if err != nil {
				return nil, err
			}
			data = b
			cache.put(i, data)
			break
		}
		deltas = append(deltas, i)
	}
	for _, i := range slices.Backward(deltas) {
		delta, err := p.content(i, z)
		if err != nil {
			return nil, err
		}
		if data, err = applyDelta(data, delta, p.objects[i].size); err != nil {
			return nil, err
		}
		cache.put(i, data)
	}
	return data, nil
}

// open reads an object.
func (p *packFile) open(i int32) (io.ReadCloser, error) {
	o := p.objects[i]
	if o.base != noBase {
		largest := o.size
		for at := o.base; at != noBase; at = p.objects[at].base {
			largest = max(largest, p.objects[at].size)
		}
		give, err := p.room.made(context.Background(), inMemory*largest)
		if err != nil {
			return nil, err
		}
		b, err := p.make(i, &inflater{}, &p.cache)
		if err != nil {
			give()
			return nil, err
		}
		return &madeObject{bytes.NewReader(b), give}, nil
	}
	s, ok := p.streams.Get().(*stream)
	if !ok {
		s = &stream{p: p, r: bufio.NewReaderSize(nil, 32<<10)}
	}
	s.r.Reset(io.NewSectionReader(p.f, o.offset, 1<<62-o.offset))
	_, err := readHeader(s.r)
	if err == nil {
		err = s.z.reset(s.r)
	}
	if err != nil {
		return nil, cut(err)
	}
	return s, nil
}

// madeObject is an object that was made of deltas.
type madeObject struct {
	*bytes.Reader
	give func()
}

func (m *madeObject) Close() error {
	m.give()
	return nil
}

// stream reads an object that is no delta.
type stream struct {
	p *packFile
	r *bufio.Reader
	z inflater
}

func (s *stream) Read(b []byte) (int, error) {
	if s.p == nil {
		return 0, os.ErrClosed
	}
	return s.z.z.Read(b)
}

func (s *stream) Close() error {
	if s.p != nil {
		s.p.streams.Put(&stream{p: s.p, r: s.r, z: s.z})
		s.p = nil
	}
	return nil
}
