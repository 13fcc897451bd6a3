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
	req.line("agent=git/athensctl")
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
	refs, err := readRefs(newReader(body, s.c.Limits.orDefault().RefBytes, s.c.Limits.orDefault()))
	if err != nil {
		return nil, s.wrong("refs", err)
	}
	return refs, nil
}

// readRefs reads the answer to ls-refs.
func readRefs(r *reader) ([]Ref, error) {
	var refs []Ref
	for {
		text, k, err := r.line()
		if err != nil {
			return nil, err
		}
		if k != data {
			return refs, nil
		}
		f := strings.Split(text, " ")
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
