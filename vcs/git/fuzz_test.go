package git

import (
	"bytes"
	"crypto/sha1"
	"fmt"
	"io"
	"os"
	"testing"
)

// Packets: no more is read than is allowed, each is as long as it says, and what was read
// is what the same packets written again are.
func FuzzPktLine(f *testing.F) {
	for _, s := range []string{"0000", "0001", "0002", "0003", "0004", "0005a", "000fERR go away", pkt("a\n") + pkt("b") + "0000", "fff0", "FFF1", "zzzz", "00"} {
		f.Add([]byte(s), int64(1000))
	}
	f.Fuzz(func(t *testing.T, b []byte, limit int64) {
		limit = max(0, min(limit, 1<<20))
		src := bytes.NewReader(b)
		r := &reader{r: src, left: limit}
		var again []byte
		for {
			k, body, err := r.next()
			if err != nil {
				break
			}
			if k == data {
				again = fmt.Appendf(again, "%04x%s", len(body)+4, body)
			} else {
				again = fmt.Appendf(again, "%04x", int(k))
			}
		}
		if !bytes.HasPrefix(lower(b), lower(again)) || int64(len(again)) > limit {
			t.Errorf("%q was read as %q, of %d bytes", b, again, limit)
		}
		if read := int64(len(b) - src.Len()); read > limit+4 {
			t.Errorf("%d bytes were read, of %d", read, limit)
		}
	})
}

// lower is b with small letters; the digits of lengths may be either.
func lower(b []byte) []byte {
	b = bytes.Clone(b)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c | 0x20
		}
	}
	return b
}

// Headers of objects in a pack: what is read is what was written, and what cannot be
// written is an error.
func FuzzPackHeader(f *testing.F) {
	f.Add([]byte{0x30})
	f.Add([]byte{0xb5, 0x0a})
	f.Add([]byte{0x62, 0x81, 0x00})
	f.Add(append([]byte{0x72}, make([]byte, 20)...))
	f.Add(bytes.Repeat([]byte{0xff}, 30))
	f.Fuzz(func(t *testing.T, b []byte) {
		src := bytes.NewReader(b)
		h, err := readHeader(src)
		if err != nil {
			return
		}
		if h.size < 0 || h.back < 0 {
			t.Fatalf("%x: %+v", b, h)
		}
		// Written again, it is the same, but for zeros that say nothing.
		c := byte(h.typ<<4) | byte(h.size&15)
		var again []byte
		for n := h.size >> 4; ; n >>= 7 {
			if n == 0 {
				again = append(again, c)
				break
			}
			again, c = append(again, c|0x80), byte(n&0x7f)
		}
		switch h.typ {
		case deltaByOffset:
			digits := []byte{byte(h.back & 0x7f)}
			for n := h.back >> 7; n > 0; n >>= 7 {
				n--
				digits = append([]byte{0x80 | byte(n&0x7f)}, digits...)
			}
			again = append(again, digits...)
		case deltaByHash:
			again = append(again, h.ref[:]...)
		}
		if h2, err := readHeader(bytes.NewReader(again)); err != nil || h2 != h {
			t.Errorf("%x is %+v, written again %x: %+v, %v", b, h, again, h2, err)
		}
		if used := len(b) - src.Len(); used < len(again) {
			t.Errorf("%x is %d bytes long, and was read from %d", again, len(again), used)
		}
	})
}

// Deltas: what is made has the size, and is made of the base and the delta alone.
func FuzzDelta(f *testing.F) {
	f.Add([]byte("0123456789"), []byte{10, 7, 0x91, 2, 4, 3, 'a', 'b', 'c'})
	f.Add([]byte("base"), []byte{4, 4, 0x90, 4})
	f.Add([]byte{}, []byte{0, 1, 1, 'x'})
	f.Fuzz(func(t *testing.T, base, delta []byte) {
		_, size, _, err := deltaSizes(delta)
		if err != nil || size > 1<<20 {
			return
		}
		got, err := applyDelta(base, delta, size)
		if err != nil {
			return
		}
		again, err := applyDelta(bytes.Clone(base), bytes.Clone(delta), size)
		if int64(len(got)) != size || err != nil || !bytes.Equal(got, again) {
			t.Errorf("%d bytes, want %d; again %d, %v", len(got), size, len(again), err)
		}
	})
}

// Packs whose objects are what they say, in any order and with any bases: what is accepted
// is whole, each object with its hash.
func FuzzPackObjects(f *testing.F) {
	f.Add([]byte{3, 4, 'b', 'a', 's', 'e', 6, 4, 4, 4, 0x90, 4})
	f.Add([]byte{3, 4, 'b', 'a', 's', 'e', 7, 4, 4, 4, 0x90, 4, 6, 4, 4, 4, 0x90, 4})
	f.Add([]byte{7, 4, 4, 4, 0x90, 4, 3, 4, 'b', 'a', 's', 'e'})
	f.Fuzz(func(t *testing.T, script []byte) {
		var objects []object
		var sizes []int
		base := hashed(blobType, []byte("base"))
		for len(script) >= 2 && len(objects) < 50 {
			kind, n := int(script[0]%8), min(int(script[1]), len(script)-2)
			o := object{kind: kind, size: uint64(n), body: script[2 : 2+n]}
			switch kind {
			case ofsDelta: // on the one before it
				o.base = []byte{12}
				if len(sizes) > 0 {
					o.base = []byte{byte(sizes[len(sizes)-1] & 0x7f)}
				}
			case refDelta:
				o.base = base
			}
			objects, sizes, script = append(objects, o), append(sizes, len(pack(0, o))-32), script[2+n:]
		}
		file, err := os.CreateTemp(t.TempDir(), "pack-")
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		file.Write(pack(uint32(len(objects)), objects...))
		p, err := readPackHolding(t.Context(), file, Limits{ObjectBytes: 1 << 20, TotalBytes: 4 << 20, Objects: 1000}.orDefault(), nil, 64)
		if err != nil {
			return
		}
		if len(p.objects) != len(objects) {
			t.Fatalf("%d objects of %d", len(p.objects), len(objects))
		}
		for i, o := range p.objects {
			r, err := p.open(int32(i))
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(r)
			r.Close()
			if sum := sha1.Sum(fmt.Appendf(nil, "%s %d\x00%s", o.typ, len(b), b)); err != nil || int64(len(b)) != o.size || sum != o.hash {
				t.Errorf("object %d: %d bytes, want %d; %x, want %x; %v", i, len(b), o.size, sum, o.hash, err)
			}
			if at, ok := p.find(o.hash); !ok || p.objects[at].hash != o.hash {
				t.Errorf("object %d is not found", i)
			}
		}
	})
}
