package git

import (
	"bytes"
	"cmp"
	"container/list"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
)

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

// inMemory is how many objects of a delta's size are in memory while it is applied: the
// base, the delta, and what it makes.
const inMemory = 3

// MadeBytes is how much of Client.Deltas one object may take.
func MadeBytes(l Limits) int64 { return inMemory * l.DeltaBytes }

// resolve works out the types and hashes of the deltas, each base before what is made of
// it. At any time it holds the objects from which some are still to be made: of a chain,
// the last one.
func (p *packFile) resolve(ctx context.Context, found *deltas) error {
	left := found.byOffset + len(found.byHash)
	if left == 0 {
		return nil
	}
	give, err := p.room.made(ctx, inMemory*found.largest)
	if err != nil {
		return err
	}
	defer give()
	n := len(p.objects)
	// The deltas of each base: the first, then each one's next. Those with fewer below
	// them come first, so that little is held while the many are made.
	first, next, below := filled(n, noBase), filled(n, noBase), make([]int32, n)
	for i := n - 1; i >= 0; i-- { // a base is before its deltas
		if b := p.objects[i].base; b >= 0 {
			below[b] += below[i] + 1
		}
	}
	for i := range int32(n) {
		if b := p.objects[i].base; b >= 0 {
			next[i], first[b] = first[b], i
		}
	}
	refs := found.byHash
	slices.SortFunc(refs, func(a, b deltaRef) int { return bytes.Compare(a.base[:], b.base[:]) })
	of := func(i int32) (children []int32) {
		for c := first[i]; c >= 0; c = next[c] {
			children = append(children, c)
		}
		hash := p.objects[i].hash
		at, ok := slices.BinarySearchFunc(refs, hash, func(r deltaRef, h [20]byte) int { return bytes.Compare(r.base[:], h[:]) })
		for ; ok && at < len(refs) && refs[at].base == hash; at++ {
			if refs[at].i >= 0 { // another object may have the same hash
				children = append(children, refs[at].i)
				refs[at].i = -1
			}
		}
		slices.SortFunc(children, func(a, b int32) int { return cmp.Or(cmp.Compare(below[a], below[b]), cmp.Compare(a, b)) })
		return children
	}
	type frame struct {
		i        int32
		data     []byte // nil: not at hand
		children []int32
	}
	h, z := newHasher(), &inflater{ctx: ctx}
	work := int64(0) // bytes made; more than once only where memory is short
	for root := range int32(n) {
		if o := p.objects[root]; o.base != noBase || o.typ == deltaByHash || first[root] < 0 && len(refs) == 0 {
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
			if size := p.objects[top.i].size; size > p.limits.DeltaBytes {
				return fmt.Errorf("a delta of an object of %d bytes; at most %d are accepted", size, p.limits.DeltaBytes)
			}
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
			left--
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
	if left > 0 {
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

// deltaCache keeps the objects that others are made of, those that were used last. It is
// safe for concurrent use; nil keeps nothing.
type deltaCache struct {
	room *room
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
		if c.room.takeMemory(cacheBytes) != nil {
			return // it is slower without
		}
		c.all, c.left = map[int32]*list.Element{}, cacheBytes
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
	if c.all != nil {
		c.room.giveMemory(cacheBytes)
	}
	c.all = nil
	c.used.Init()
}
