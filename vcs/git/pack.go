package git

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/zlib"
	"container/list"
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
func readPack(f *os.File, limits Limits) (*packFile, error) {
	return readPackHolding(f, limits, holdBytes)
}

func readPackHolding(f *os.File, limits Limits, hold int64) (*packFile, error) {
	p := &packFile{f: f, limits: limits, hold: hold, cache: deltaCache{left: cacheBytes}}
	refs, err := p.scan()
	if err == nil {
		err = p.resolve(refs)
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

// scan reads the pack from end to end: where each object is, and the hashes of those
// that are not deltas. It returns the bases of deltas that name them by hash.
func (p *packFile) scan() (refs map[int32][20]byte, err error) {
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
	// An object has 2 bytes and more, so that a count that lies takes no memory.
	p.objects = make([]packed, 0, min(int64(count), size/2))
	refs = map[int32][20]byte{}
	h, z := newHasher(), &inflater{}
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
		start := prefix{}
		into := io.Writer(&start)
		switch o.typ {
		case deltaByOffset:
			at, ok := slices.BinarySearchFunc(p.objects, o.offset-head.back, func(o packed, offset int64) int { return cmp.Compare(o.offset, offset) })
			if !ok {
				return nil, errors.New("a delta whose base is not before it")
			}
			o.base = int32(at)
		case deltaByHash:
			refs[i] = head.ref
		default:
			h.start(o.typ, o.size)
			into = h
		}
		if err := z.copy(into, r, head.size); err != nil {
			return nil, fmt.Errorf("object %d of %d: %w", i+1, count, err)
		}
		if o.typ == deltaByOffset || o.typ == deltaByHash {
			if _, o.size, _, err = deltaSizes(start.b); err != nil {
				return nil, err
			}
			if o.size > p.limits.ObjectBytes {
				return nil, fmt.Errorf("a delta that makes %d bytes; at most %d are accepted", o.size, p.limits.ObjectBytes)
			}
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
	return refs, nil
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

// deltaSizes are the sizes at the start of a delta, of its base and of what it makes, and
// how long they are.
func deltaSizes(delta []byte) (base, target int64, n int, err error) {
	b, n1 := binary.Uvarint(delta)
	if n1 > 0 {
		var n2 int
		var t uint64
		if t, n2 = binary.Uvarint(delta[n1:]); n2 > 0 && b <= 1<<62 {
			return int64(b), int64(min(t, 1<<62)), n1 + n2, nil
		}
	}
	return 0, 0, 0, errors.New("a delta without sizes")
}

// applyDelta makes an object of size bytes from its base.
func applyDelta(base, delta []byte, size int64) ([]byte, error) {
	from, target, n, err := deltaSizes(delta)
	if err != nil {
		return nil, err
	}
	if from != int64(len(base)) || target != size {
		return nil, errors.New("a delta for a base of another size")
	}
	out, delta := make([]byte, 0, size), delta[n:]
	for len(delta) > 0 {
		op := delta[0]
		delta = delta[1:]
		if op == 0 {
			return nil, errors.New("a delta with an instruction that there is not")
		}
		var piece []byte
		if op&0x80 == 0 { // new bytes
			if int(op) > len(delta) {
				return nil, errors.New("a delta that is cut")
			}
			piece, delta = delta[:op], delta[op:]
		} else { // bytes of the base
			var offset, length uint32
			for bit := range 7 {
				if op>>bit&1 == 0 {
					continue
				}
				if len(delta) == 0 {
					return nil, errors.New("a delta that is cut")
				}
				if bit < 4 {
					offset |= uint32(delta[0]) << (8 * bit)
				} else {
					length |= uint32(delta[0]) << (8 * (bit - 4))
				}
				delta = delta[1:]
			}
			if length == 0 {
				length = 1 << 16
			}
			if int64(offset)+int64(length) > int64(len(base)) {
				return nil, errors.New("a delta that goes beyond its base")
			}
			piece = base[offset : int64(offset)+int64(length)]
		}
		if int64(len(out)+len(piece)) > size {
			return nil, fmt.Errorf("a delta that makes more than the %d bytes that it says", size)
		}
		out = append(out, piece...)
	}
	if int64(len(out)) != size {
		return nil, fmt.Errorf("a delta that makes %d of the %d bytes that it says", len(out), size)
	}
	return out, nil
}

// resolve works out the types and hashes of the deltas, each base before what is made of
// it. At any time it holds the objects from which some are still to be made: of a chain,
// the last one.
func (p *packFile) resolve(refs map[int32][20]byte) error {
	deltas := len(refs)
	n := len(p.objects)
	// The deltas of each base: the first, then each one's next. Those with fewer below
	// them come first, so that little is held while the many are made.
	first, next, below := filled(n, noBase), filled(n, noBase), make([]int32, n)
	for i := n - 1; i >= 0; i-- { // a base is before its deltas
		if b := p.objects[i].base; b >= 0 {
			deltas++
			below[b] += below[i] + 1
		}
	}
	if deltas == 0 {
		return nil
	}
	for i := range int32(n) {
		if b := p.objects[i].base; b >= 0 {
			next[i], first[b] = first[b], i
		}
	}
	byRef := map[[20]byte][]int32{}
	for i, h := range refs {
		byRef[h] = append(byRef[h], i)
	}
	of := func(i int32) (children []int32) {
		for c := first[i]; c >= 0; c = next[c] {
			children = append(children, c)
		}
		if len(byRef) > 0 {
			children = append(children, byRef[p.objects[i].hash]...)
			delete(byRef, p.objects[i].hash)
		}
		slices.SortFunc(children, func(a, b int32) int { return cmp.Or(cmp.Compare(below[a], below[b]), cmp.Compare(a, b)) })
		return children
	}
	type frame struct {
		i        int32
		data     []byte // nil: not at hand
		children []int32
	}
	h, z := newHasher(), &inflater{}
	work := int64(0) // bytes made; more than once only where memory is short
	for root := range int32(n) {
		if o := p.objects[root]; o.base != noBase || o.typ == deltaByHash || first[root] < 0 && len(byRef) == 0 {
			continue
		}
		stack := []frame{{i: root, children: of(root)}}
		held := int64(0)
		for len(stack) > 0 {
			if len(stack) > maxDeltaDepth {
				return fmt.Errorf("more than %d deltas on each other", maxDeltaDepth)
			}
			top := &stack[len(stack)-1]
			if len(top.children) == 0 {
				held -= int64(len(top.data))
				stack = stack[:len(stack)-1]
				continue
			}
			child := top.children[0]
			top.children = top.children[1:]
			if top.data == nil {
				var err error
				if top.data, err = p.make(top.i, z, nil); err != nil {
					return err
				}
				held += int64(len(top.data))
				work += int64(len(top.data))
			}
			base := top.data
			if len(top.children) == 0 { // the last one made of it
				held -= int64(len(top.data))
				top.data = nil
			}
			delta, err := p.content(child, z)
			if err != nil {
				return err
			}
			o := &p.objects[child]
			data, err := applyDelta(base, delta, o.size)
			if err != nil {
				return err
			}
			if work += o.size; work > 2*p.limits.TotalBytes {
				return errors.New("its deltas cost too much")
			}
			o.base, o.typ = top.i, p.objects[top.i].typ
			deltas--
			h.start(o.typ, o.size)
			h.Write(data)
			o.hash = h.sum()
			if children := of(child); len(children) > 0 {
				stack = append(stack, frame{child, data, children})
				held += int64(len(data))
			}
			// The ones needed last are made again.
			for i := 0; held > p.hold && i < len(stack)-1; i++ {
				held -= int64(len(stack[i].data))
				stack[i].data = nil
			}
		}
	}
	if deltas > 0 {
		return errors.New("a delta whose base is not there")
	}
	return nil
}

// Source: git's own, OE_DEPTH_BITS in pack-objects.h.
const maxDeltaDepth = 4095

// holdBytes is a pack's hold.
const holdBytes = 8 << 20

func filled(n int, with int32) []int32 {
	s := make([]int32, n)
	for i := range s {
		s[i] = with
	}
	return s
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
		b, err := p.make(i, &inflater{}, &p.cache)
		return io.NopCloser(bytes.NewReader(b)), err
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

// deltaCache keeps the objects that others are made of, those that were used last. It is
// safe for concurrent use; nil keeps nothing.
type deltaCache struct {
	mu   sync.Mutex
	left int64
	all  map[int32]*list.Element
	used list.List // the latest in front
}

type cached struct {
	i    int32
	data []byte
}

// cacheBytes is what a pack keeps while it is read.
const cacheBytes = 4 << 20

func (c *deltaCache) get(i int32) ([]byte, bool) {
	if c == nil {
		return nil, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.all[i]
	if e == nil {
		return nil, false
	}
	c.used.MoveToFront(e)
	return e.Value.(cached).data, true
}

func (c *deltaCache) put(i int32, data []byte) {
	if c == nil || len(data) > cacheBytes/4 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all[i] != nil {
		return
	}
	if c.all == nil {
		c.all = map[int32]*list.Element{}
	}
	c.all[i] = c.used.PushFront(cached{i, data})
	for c.left -= int64(len(data)); c.left < 0; {
		last := c.used.Remove(c.used.Back()).(cached)
		delete(c.all, last.i)
		c.left += int64(len(last.data))
	}
}

func (c *deltaCache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all, c.left = nil, cacheBytes
	c.used.Init()
}
