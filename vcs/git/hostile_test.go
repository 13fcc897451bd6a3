package git

import (
	"bytes"
	"compress/zlib"
	"context"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/athensctl/athensctl/goproxy"
)

const someHash = "0123456789abcdef0123456789abcdef01234567"

func pkt(s string) string { return fmt.Sprintf("%04x%s", len(s)+4, s) }

const v2 = "000eversion 2\n" + "0013agent=git/2.39\n" + "000cls-refs\n" + "0012fetch=shallow\n" + "0000"

// host answers the first request with the advertisement, the second with answer.
type host struct {
	advertisement func(w io.Writer)
	answer        func(w io.Writer)
}

func (h host) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet {
		w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
		h.advertisement(w)
		return
	}
	h.answer(w)
}

func text(s string) func(io.Writer) { return func(w io.Writer) { io.WriteString(w, s) } }

// endless writes s until the client leaves.
func endless(before, s string) func(io.Writer) {
	return func(w io.Writer) {
		io.WriteString(w, before)
		block := strings.Repeat(s, 1+(32<<10)/len(s))
		for {
			if _, err := io.WriteString(w, block); err != nil {
				return
			}
		}
	}
}

// object is one object of a pack: its declared type and size, what stands before its
// content, and the content.
type object struct {
	kind int
	size uint64
	base []byte
	body []byte
}

func pack(count uint32, objects ...object) []byte {
	var b bytes.Buffer
	b.WriteString("PACK")
	binary.Write(&b, binary.BigEndian, uint32(2))
	binary.Write(&b, binary.BigEndian, count)
	z := zlib.NewWriter(&b)
	for _, o := range objects {
		c := byte(o.kind<<4) | byte(o.size&15)
		for n := o.size >> 4; ; n >>= 7 {
			if n == 0 {
				b.WriteByte(c)
				break
			}
			b.WriteByte(c | 0x80)
			c = byte(n & 0x7f)
		}
		b.Write(o.base)
		z.Reset(&b)
		z.Write(o.body)
		z.Close()
	}
	sum := sha1.Sum(b.Bytes())
	b.Write(sum[:])
	return b.Bytes()
}

// sendPack is an answer to fetch.
func sendPack(p []byte) func(io.Writer) {
	return func(w io.Writer) {
		io.WriteString(w, pkt("packfile\n"))
		for len(p) > 0 {
			n := min(len(p), 60000)
			io.WriteString(w, pkt("\x01"+string(p[:n])))
			p = p[n:]
		}
		io.WriteString(w, "0000")
	}
}

const (
	commitType, blobType, ofsDelta, refDelta = 1, 3, 6, 7
)

const treeType = 2

// hashed is the hash of an object that is no delta.
func hashed(kind int, body []byte) []byte {
	sum := sha1.Sum(fmt.Appendf(nil, "%s %d\x00%s", objectType(kind), len(body), body))
	return sum[:]
}

// commitOf is a pack of some objects and of a commit of the tree, with the commit's hash.
func commitOf(tree []byte, objects ...object) (p []byte, hash string) {
	body := fmt.Appendf(nil, "tree %x\nauthor a <a@a> 1 +0000\ncommitter a <a@a> 1 +0000\n\nx\n", tree)
	objects = append(objects, object{kind: commitType, size: uint64(len(body)), body: body})
	return pack(uint32(len(objects)), objects...), fmt.Sprintf("%x", hashed(commitType, body))
}

// nested is trees in trees, each with the one before it under each of the names.
func nested(depth int, names ...string) (p []byte, hash string) {
	var objects []object
	add := func(kind int, body []byte) []byte {
		objects = append(objects, object{kind: kind, size: uint64(len(body)), body: body})
		return hashed(kind, body)
	}
	inner, mode := add(blobType, []byte("x")), "100644"
	for range depth {
		var tree []byte
		for _, name := range names {
			tree = append(fmt.Appendf(tree, "%s %s\x00", mode, name), inner...)
		}
		inner, mode = add(treeType, tree), "40000"
	}
	return commitOf(inner, objects...)
}

// chain is a delta on a delta on a delta, each right behind its base.
func chain(length int) []byte {
	objects := []object{{kind: blobType, size: 4, body: []byte("base")}}
	for i := range length {
		o := object{kind: ofsDelta, size: 4, body: []byte{4, 4, 0x90, 4}}
		if i < 2 { // the others are like the second
			o.base = []byte{byte(len(pack(0, objects[i])) - 32)} // without the header of a pack, and its hash
		} else {
			o.base = objects[2].base
		}
		objects = append(objects, o)
	}
	return pack(uint32(len(objects)), objects...)
}

// drip writes a byte now and then, until the client leaves.
func drip(before string, every time.Duration) func(io.Writer) {
	return func(w io.Writer) {
		io.WriteString(w, before)
		for {
			if _, err := io.WriteString(w, "0"); err != nil {
				return
			}
			w.(http.Flusher).Flush()
			time.Sleep(every)
		}
	}
}

func varint(n uint64) []byte { return binary.AppendUvarint(nil, n) }

// A hostile server costs bounded memory and time, and a clear error.
func TestHostile(t *testing.T) {
	ok := text(v2)
	zeros := make([]byte, 8<<20)
	limits := Limits{
		RefBytes: 1 << 20, PackBytes: 2 << 20, Objects: 5000, ObjectBytes: 4 << 20, Refs: 4000, DeltaBytes: 2 << 20, TotalBytes: 6 << 20, TreeDepth: 20, Idle: 30 * time.Second,
	}
	fetch := func(c *Client, u *url.URL) error {
		o, err := c.Fetch(t.Context(), u, Want{Hashes: []string{someHash}, Depth: 1})
		if err != nil {
			return err
		}
		defer o.Close()
		_, err = o.Commit(someHash)
		return err
	}
	refs := func(c *Client, u *url.URL) error { _, err := c.Refs(t.Context(), u, "refs/"); return err }
	walk := func(hash string) func(*Client, *url.URL) error {
		return func(c *Client, u *url.URL) error {
			o, err := c.Fetch(t.Context(), u, Want{Hashes: []string{hash}, Depth: 1})
			if err != nil {
				return err
			}
			defer o.Close()
			commit, err := o.Commit(hash)
			if err != nil {
				return err
			}
			if err := o.Walk(commit.Tree, func(string, Entry) error { return nil }); err != nil {
				return goproxy.Errorf(http.StatusBadGateway, "%s: %w", Name(u), err) // as package vcs does
			}
			return nil
		}
	}
	deepTrees, deep := nested(30, "d")
	manyTrees, many := nested(18, "a", "b", "c", "d") // 4^18 files in 20 objects
	for _, tc := range []struct {
		name string
		host host
		do   func(*Client, *url.URL) error
		want string
	}{
		{"endless advertisement", host{endless(v2[:len(v2)-4], pkt("cap\n")), nil}, refs, "too large"},
		{"many capabilities", host{func(w io.Writer) {
			io.WriteString(w, v2[:len(v2)-4])
			for i := range 2000 {
				io.WriteString(w, pkt(fmt.Sprintf("cap%d\n", i)))
			}
		}, nil}, refs, "more than 1000 capabilities"},
		{"many refs", host{ok, func(w io.Writer) {
			for i := range 5000 {
				io.WriteString(w, pkt(fmt.Sprintf("%040x refs/tags/%d\n", i, i)))
			}
		}}, refs, "more than 4000 refs"},
		{"a delta of a large object", host{ok, sendPack(pack(2, object{kind: blobType, size: 3 << 20, body: zeros[:3<<20]},
			object{kind: refDelta, size: 10, base: hashed(blobType, zeros[:3<<20]), body: append(append(varint(3<<20), 1), 1, 'x', 0, 0, 0, 0)[:10]}))}, fetch, "between objects of 3145728 and 1 bytes"},
		{"endless refs", host{ok, endless("", pkt(someHash+" refs/heads/"+strings.Repeat("x", 1000)+"\n"))}, refs, "too large"},
		{"endless old refs", host{endless(pkt(someHash+" refs/heads/x\x00caps\n"), pkt(someHash+" refs/heads/"+strings.Repeat("x", 1000)+"\n")), nil}, refs, "too large"},
		{"not pkt-lines", host{ok, text("<html>hello</html>")}, refs, "not the length of a packet"},
		{"a lying length", host{ok, text("00ff" + someHash)}, refs, "cut"},
		{"a length above the largest", host{ok, text("fff5" + someHash)}, refs, "a packet of 65525 bytes"},
		{"length 3", host{ok, text("0003")}, refs, "a packet of 3 bytes"},
		{"cut", host{ok, text("00")}, refs, "cut"},
		{"no hash", host{ok, text(pkt("zzz refs/heads/x\n") + "0000")}, refs, "is not a ref"},
		{"ERR", host{ok, text(pkt("ERR go away\x1b[31m\n"))}, refs, "the server says: go away"},
		{"nothing comes", host{ok, func(w io.Writer) { w.(http.Flusher).Flush(); time.Sleep(time.Second) }}, refs, "no byte for 300ms"},
		{"redirects without end", host{}, refs, "redirects"},
		{"no pack", host{ok, text("0000")}, fetch, "no pack"},
		{"band 3", host{ok, text(pkt("packfile\n") + pkt("\x03not allowed\n"))}, fetch, "the server says: not allowed"},
		{"band 7", host{ok, text(pkt("packfile\n") + pkt("\x07x"))}, fetch, "band 7"},
		{"endless progress", host{ok, endless(pkt("packfile\n"), pkt("\x02working\n"))}, fetch, "too large"},
		{"endless pack", host{ok, endless(pkt("packfile\n"), pkt("\x01"+strings.Repeat("x", 1000)))}, fetch, "too large"},
		{"not a pack", host{ok, sendPack([]byte("hello, this is not one at all"))}, fetch, "pack:"},
		{"an empty pack", host{ok, sendPack(pack(0))}, fetch, someHash},
		{"too many objects", host{ok, sendPack(pack(4_000_000_000))}, fetch, "at most 5000"},
		{"fewer objects than said", host{ok, sendPack(pack(5, object{kind: blobType, size: 1, body: []byte("x")}))}, fetch, "pack:"},
		{"a bomb that says its size", host{ok, sendPack(pack(1, object{kind: blobType, size: uint64(len(zeros)), body: zeros}))}, fetch, "8388608 bytes"},
		{"a bomb that lies", host{ok, sendPack(pack(1, object{kind: blobType, size: 10, body: zeros}))}, fetch, "pack:"},
		{"a size that is not reached", host{ok, sendPack(pack(1, object{kind: blobType, size: 1000, body: []byte("x")}))}, fetch, "pack:"},
		{"many objects that are too much", host{ok, sendPack(pack(3, object{kind: blobType, size: 3 << 20, body: zeros[:3<<20]}, object{kind: blobType, size: 3 << 20, body: zeros[:3<<20]}, object{kind: blobType, size: 3 << 20, body: zeros[:3<<20]}))}, fetch, "more than 6291456 bytes"},
		{"a delta bomb", host{ok, sendPack(pack(2, object{kind: blobType, size: 4, body: []byte("base")},
			object{kind: ofsDelta, size: 6, base: []byte{14}, body: append(append(varint(4), varint(1<<40)...), 0x90)[:6]}))}, fetch, "pack:"},
		{"a delta on itself", host{ok, sendPack(pack(1, object{kind: ofsDelta, size: 2, base: []byte{0}, body: []byte{0, 0}}))}, fetch, "pack:"},
		{"a delta on what is not there", host{ok, sendPack(pack(1, object{kind: refDelta, size: 2, base: make([]byte, 20), body: []byte{0, 0}}))}, fetch, "pack:"},
		{"a delta beyond its base", host{ok, sendPack(pack(2, object{kind: blobType, size: 4, body: []byte("base")},
			object{kind: ofsDelta, size: 5, base: []byte{13}, body: []byte{4, 100, 0x90, 100, 0}}))}, fetch, "pack:"},
		{"two deltas, each on the other", host{ok, sendPack(pack(2, object{kind: refDelta, size: 2, base: bytes.Repeat([]byte{1}, 20), body: []byte{0, 0}},
			object{kind: refDelta, size: 2, base: bytes.Repeat([]byte{2}, 20), body: []byte{0, 0}}))}, fetch, "a delta whose base is not there"},
		{"a delta on one that comes later", host{ok, sendPack(pack(2, object{kind: ofsDelta, size: 2, base: []byte{0x7f}, body: []byte{0, 0}}, object{kind: blobType, size: 1, body: []byte("x")}))}, fetch, "a delta whose base is not before it"},
		{"a type that there is not", host{ok, sendPack(pack(1, object{kind: 5, size: 1, body: []byte("x")}))}, fetch, "an object of type 5"},
		{"a size without end", host{ok, sendPack(append(pack(1)[:12], bytes.Repeat([]byte{0xff}, 100)...))}, fetch, "too many digits"},
		{"too many deltas on each other", host{ok, sendPack(chain(4500))}, fetch, "more than 4095 deltas"},
		{"folders in folders", host{ok, sendPack(deepTrees)}, walk(deep), "nested more than 20 deep"},
		{"the same folders again and again", host{ok, sendPack(manyTrees)}, walk(many), "more than 5000 files and folders"},
		{"bytes that drip, of refs", host{ok, drip("00ff", 50*time.Millisecond)}, refs, "too slow"},
		{"bytes that drip, of a pack", host{ok, drip(pkt("packfile\n")+"fff0\x01PACK", 50*time.Millisecond)}, fetch, "too slow"},
		{"bytes that drip, of what a server can do", host{drip("00ff", 50*time.Millisecond), nil}, refs, "too slow"},
		{"a commit that is none", host{ok, sendPack(pack(1, object{kind: blobType, size: 1, body: []byte("x")}))}, fetch, someHash},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var handler http.Handler = tc.host
			if tc.host.answer == nil && tc.host.advertisement == nil { // it sends us round and round
				handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path+"x", http.StatusFound) })
			}
			srv := httptest.NewServer(handler)
			t.Cleanup(srv.Close)
			u, _ := url.Parse(strings.Replace(srv.URL, "http://", "http://user:s3cret@", 1) + "/repo")
			dir := t.TempDir()
			limits := limits
			if strings.Contains(tc.want, "no byte for 300ms") {
				limits.Idle = 300 * time.Millisecond
			}
			if tc.want == "too slow" {
				limits.Slow = time.Second
			}
			c := &Client{HTTP: srv.Client(), TempDir: dir, Limits: limits}
			runtime.GC()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			err := tc.do(c, u)
			took := time.Since(start)
			runtime.ReadMemStats(&after)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			} else if strings.Contains(err.Error(), "s3cret") || !errors.Is(err, fs.ErrNotExist) && !strings.Contains(err.Error(), "/repo") {
				t.Errorf("error %v: it does not name the repository, or its password", err)
			} else if s := goproxy.Status(err); s != http.StatusBadGateway && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("status %d", s)
			}
			if took > 30*time.Second {
				t.Errorf("it took %v", took)
			}
			if grew := after.TotalAlloc - before.TotalAlloc; grew > 96<<20 {
				t.Errorf("%d MB were allocated", grew>>20)
			}
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("files are left: %v", left)
			}
		})
	}
}

func TestStatuses(t *testing.T) {
	reset := fmt.Sprint(time.Now().Add(20 * time.Minute).Unix())
	for _, tc := range []struct {
		status, want int
		after        time.Duration
		header       map[string]string
	}{
		{404, 404, 0, nil}, {410, 404, 0, nil}, {401, 404, 0, nil}, {500, 502, 0, nil}, {302, 502, 0, nil},
		{429, 503, 7 * time.Second, map[string]string{"Retry-After": "7"}}, {503, 503, 7 * time.Second, map[string]string{"Retry-After": "7"}},
		{429, 503, 10 * time.Second, nil}, {503, 503, time.Hour, map[string]string{"Retry-After": "90000"}},
		// A 403 is a repository that one may not read, but for hosts that say so of a limit.
		{403, 404, 0, nil}, {403, 404, 0, map[string]string{"X-RateLimit-Remaining": "12"}},
		{403, 503, 7 * time.Second, map[string]string{"Retry-After": "7"}},
		{403, 503, 20 * time.Minute, map[string]string{"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset}},
		{403, 503, 10 * time.Second, map[string]string{"X-RateLimit-Remaining": "0"}},
		{401, 404, 0, map[string]string{"Retry-After": "7"}},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for name, value := range tc.header {
				w.Header().Set(name, value)
			}
			w.WriteHeader(tc.status)
		}))
		u, _ := url.Parse(srv.URL + "/repo")
		_, err := (&Client{HTTP: srv.Client()}).Refs(t.Context(), u)
		var e *goproxy.Error
		if !errors.As(err, &e) || e.Status != tc.want || (e.RetryAfter-tc.after).Abs() > 5*time.Second || tc.after > 0 && e.RetryAfter == 0 {
			t.Errorf("%d %v: %v (%+v)", tc.status, tc.header, err, e)
		}
		srv.Close()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	u, _ := url.Parse("http://127.0.0.1:1/repo")
	if _, err := (&Client{HTTP: http.DefaultClient}).Refs(ctx, u); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := (&Client{HTTP: http.DefaultClient}).Refs(t.Context(), &url.URL{Scheme: "ext", Host: "x"}); goproxy.Status(err) != 501 {
		t.Errorf("another scheme: %v", err)
	}
}

func FuzzRefs(f *testing.F) {
	f.Add([]byte(pkt(someHash+" refs/heads/x symref-target:y peeled:"+someHash+"\n") + "0000"))
	f.Add([]byte("0004"))
	f.Add([]byte(v2))
	f.Fuzz(func(t *testing.T, b []byte) {
		refs, err := readRefs(&reader{r: bytes.NewReader(b), left: 1 << 20}, &refCounter{most: 1000})
		for _, r := range refs {
			if !isHash(r.Hash) || r.Name == "" || r.Peeled != "" && !isHash(r.Peeled) || err != nil {
				t.Errorf("%+v, %v", r, err)
			}
		}
		s := &service{c: &Client{}, caps: map[string]string{}}
		if err := s.readAdvertisement(&reader{r: bytes.NewReader(b), left: 1 << 20}); err == nil {
			for _, r := range s.refs {
				if !isHash(r.Hash) {
					t.Errorf("%+v", r)
				}
			}
		}
	})
}

func FuzzPack(f *testing.F) {
	f.Add(pack(1, object{kind: blobType, size: 1, body: []byte("x")}))
	f.Add(pack(2, object{kind: blobType, size: 4, body: []byte("base")}, object{kind: ofsDelta, size: 5, base: []byte{13}, body: []byte{4, 4, 0x90, 4, 0}}))
	f.Add(pack(1, object{kind: commitType, size: 4, body: []byte("tree")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := os.CreateTemp(t.TempDir(), "pack-")
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		file.Write(b)
		o, err := index(t.Context(), file, Limits{ObjectBytes: 1 << 20, TotalBytes: 4 << 20, Objects: 1000}.orDefault(), nil)
		if err != nil {
			return
		}
		defer o.Close()
		o.Commit(someHash)
		o.Find(someHash, "x")
	})
}
