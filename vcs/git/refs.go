package git

import (
	"context"
	"fmt"
	"net/url"
	"strings"
)

// Refs lists the refs whose names begin with one of the prefixes; none: all. An
// empty repository has none.
func (c *Client) Refs(ctx context.Context, u *url.URL, prefixes ...string) ([]Ref, error) {
	s, err := c.open(ctx, u)
	if err != nil {
		return nil, err
	}
	defer s.close()
	if s.version == 2 {
		if s.refs, err = s.lsRefs(ctx, prefixes); err != nil {
			return nil, err
		}
	}
	if len(prefixes) == 0 {
		return s.refs, nil
	}
	var refs []Ref // a prefix is a hint to the server
	for _, r := range s.refs {
		for _, p := range prefixes {
			if strings.HasPrefix(r.Name, p) {
				refs = append(refs, r)
				break
			}
		}
	}
	return refs, nil
}

func (s *service) command(name string) *request {
	req := &request{}
	req.line("command=%s", name)
	if _, ok := s.caps["agent"]; ok { // a server refuses what it does not know
		req.line("agent=git/athensctl")
	}
	if s.caps["object-format"] != "" {
		req.line("object-format=sha1")
	}
	req.delim()
	return req
}

func (s *service) lsRefs(ctx context.Context, prefixes []string) ([]Ref, error) {
	req := s.command("ls-refs")
	req.line("peel")
	req.line("symrefs")
	for _, p := range prefixes {
		req.line("ref-prefix %s", p)
	}
	req.flush()
	body, err := s.post(ctx, req.b)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	refs, err := readRefs(newReader(body, s.c.Limits.orDefault().RefBytes, s.c.Limits.orDefault()), s.counter())
	if err != nil {
		return nil, s.wrong("refs", err)
	}
	return refs, nil
}

// refCounter counts the refs of an answer, and takes the memory for them.
type refCounter struct {
	most, n int
	room    *room
	left    int64
}

func (s *service) counter() *refCounter {
	return &refCounter{most: s.c.Limits.orDefault().Refs, room: s.room}
}

// RefBytes is about how much memory a ref takes beside the bytes of its line, in a list and
// in maps by its name.
const RefBytes = 250

func (c *refCounter) add(line string) error {
	if c.n++; c.n > c.most {
		return fmt.Errorf("more than %d refs", c.most)
	}
	if c.left -= int64(len(line)) + RefBytes; c.left < 0 {
		more := max(256<<10, -c.left)
		if err := c.room.takeMemory(more); err != nil {
			return err
		}
		c.left += more
	}
	return nil
}

// readRefs reads the answer to ls-refs.
func readRefs(r *reader, counter *refCounter) ([]Ref, error) {
	var refs []Ref
	for {
		text, k, err := r.line()
		if err != nil {
			return nil, err
		}
		if k != data {
			return refs, nil
		}
		if err := counter.add(text); err != nil {
			return nil, err
		}
		f := strings.Split(text, " ")
		if f[0] == "unborn" { // HEAD, of a branch that is not there; nobody asked for it
			continue
		}
		if len(f) < 2 || !isHash(f[0]) || f[1] == "" {
			return nil, fmt.Errorf("%q is not a ref", printable(text[:min(len(text), 100)]))
		}
		ref := Ref{Name: f[1], Hash: f[0]}
		for _, attr := range f[2:] {
			if v, ok := strings.CutPrefix(attr, "peeled:"); ok && isHash(v) {
				ref.Peeled = v
			} else if v, ok := strings.CutPrefix(attr, "symref-target:"); ok {
				ref.Target = v
			}
		}
		refs = append(refs, ref)
	}
}
