package git

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"
)

// Want says what to fetch.
type Want struct {
	Hashes []string // of commits, tag objects, or (with version 2) any object
	Depth  int      // of history; 0: all of it, 1: the commits alone
	// Filter leaves objects out, where the server can ("blob:none": no file
	// contents; "tree:0": commits and tags alone). A server that can't sends them.
	Filter string
	// Alone says that the hashes are of objects without history behind them; so are
	// commits with a Depth of 1.
	Alone bool
}

// ErrNotSent: the server refuses what is wanted. One of version 0 or 1, and Gerrit's over SSH,
// give only what their refs name.
var ErrNotSent = errors.New("the server does not give it")

// Fetch fetches objects. The caller closes them. A server that cannot do less sends all
// history.
func (c *Client) Fetch(ctx context.Context, u *url.URL, w Want) (*Objects, error) {
	s, err := c.open(ctx, u)
	if err != nil {
		return nil, err
	}
	defer s.close()
	if !s.can("shallow") {
		w.Depth = 0
	}
	limits := c.Limits.orDefault()
	if w.Alone || w.Depth == 1 {
		limits = limits.alone()
	}
	var body io.ReadCloser
	if s.version == 2 {
		body, err = s.post(ctx, s.fetchRequest(w))
	} else {
		var req []byte
		if req, err = s.wantRequest(w); err == nil {
			body, err = s.post(ctx, req)
		}
	}
	if err != nil {
		return nil, err
	}
	s.room.close() // the refs have been looked at
	s.refs = nil
	defer body.Close()
	f, err := os.CreateTemp(c.TempDir, "pack-")
	if err != nil {
		return nil, err
	}
	f.Chmod(0o600)
	r := newReader(body, limits.PackBytes, limits)
	pack := c.room(u)
	err = s.skipToPack(r, w)
	if errors.Is(err, errSaid) {
		err = fmt.Errorf("%w: %w", ErrNotSent, err)
	}
	if err == nil {
		_, err = io.Copy(&spool{f: f, room: pack}, &band{r: r})
	}
	body.Close() // the host is not waited for any more, and others may have its place
	var o *Objects
	if err == nil {
		o, err = c.index(ctx, f, limits, pack)
	}
	if err != nil {
		pack.close()
		f.Close()
		os.Remove(f.Name())
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%s: %w", Name(u), ctx.Err())
		}
		return nil, s.wrong("fetch", err)
	}
	return o, nil
}

// room is that of an answer of a repository.
func (c *Client) room(u *url.URL) *room { return &room{c: c, host: u.Host} }

// spool is a file that takes its bytes from the client's.
type spool struct {
	f    *os.File
	room *room
	left int64
}

func (s *spool) Write(b []byte) (int, error) {
	if n := int64(len(b)); n > s.left {
		more := max(n, 1<<20)
		if err := s.room.takeDisk(more); err != nil {
			return 0, err
		}
		s.left += more
	}
	n, err := s.f.Write(b)
	s.left -= int64(n)
	return n, err
}

func (c *Client) index(ctx context.Context, f *os.File, limits Limits, room *room) (*Objects, error) {
	if err := c.Heavy.Acquire(ctx, room.host, 1); err != nil {
		return nil, err
	}
	defer c.Heavy.Release(room.host, 1)
	return index(ctx, f, limits, room)
}

func (s *service) fetchRequest(w Want) []byte {
	req := s.command("fetch")
	req.line("no-progress")
	req.line("ofs-delta")
	for _, h := range w.Hashes {
		req.line("want %s", h)
	}
	if w.Depth > 0 {
		req.line("deepen %d", w.Depth)
	}
	if w.Filter != "" && s.can("filter") {
		req.line("filter %s", w.Filter)
	}
	req.line("done")
	req.flush()
	return req.b
}

// can reports whether the server says that it can do something for a fetch.
func (s *service) can(what string) bool {
	if s.version == 2 {
		return slices.Contains(strings.Fields(s.caps["fetch"]), what)
	}
	_, ok := s.caps[what]
	return ok
}

// wantRequest is the request of versions 0 and 1.
func (s *service) wantRequest(w Want) ([]byte, error) {
	if !s.can("side-band-64k") {
		return nil, broken(s.repo, "the server speaks a protocol that is too old: it cannot side-band-64k")
	}
	var caps []string // none that it does not know: some servers refuse these
	for _, c := range []string{"side-band-64k", "ofs-delta", "no-progress", "filter"} {
		if s.can(c) && (c != "filter" || w.Filter != "") {
			caps = append(caps, c)
		}
	}
	// Of no use to who has nothing yet, but said by git: Azure DevOps refuses those without
	// multi_ack, dulwich those without thin-pack.
	if s.can("thin-pack") {
		caps = append(caps, "thin-pack")
	}
	for _, c := range []string{"multi_ack_detailed", "multi_ack"} {
		if s.can(c) {
			caps = append(caps, c)
			break
		}
	}
	if s.can("agent") {
		caps = append(caps, "agent=git/athensctl")
	}
	any := s.can("allow-reachable-sha1-in-want") || s.can("allow-any-sha1-in-want")
	req := &request{}
	for i, h := range w.Hashes {
		if !any && !slices.ContainsFunc(s.refs, func(r Ref) bool { return r.Hash == h }) {
			return nil, broken(s.repo, "%s: %w: it is not one of its refs", h, ErrNotSent)
		}
		line := "want " + h
		if i == 0 {
			line += " " + strings.Join(caps, " ")
		}
		req.line("%s", line)
	}
	if w.Depth > 0 {
		req.line("deepen %d", w.Depth)
	}
	if w.Filter != "" && s.can("filter") {
		req.line("filter %s", w.Filter)
	}
	req.flush()
	req.line("done")
	return req.b, nil
}

// skipToPack reads what comes before the pack.
func (s *service) skipToPack(r *reader, w Want) error {
	if s.version == 2 {
		for {
			text, k, err := r.line()
			switch {
			case err != nil:
				return err
			case k == flush:
				return errors.New("the answer has no pack")
			case text == "packfile":
				return nil
			}
		}
	}
	for {
		text, k, err := r.line()
		switch {
		case err != nil:
			return err
		case k == flush && w.Depth > 0: // the end of the shallow lines
		case k != data:
			return errors.New("the answer has no pack")
		case strings.HasPrefix(text, "shallow "), strings.HasPrefix(text, "unshallow "):
		case text == "NAK", strings.HasPrefix(text, "ACK "):
			return nil
		default:
			return fmt.Errorf("%q where NAK should be", printable(text[:min(len(text), 100)]))
		}
	}
}

// band is the content of side-band packets: the first band.
type band struct {
	r    *reader
	rest []byte
}

func (b *band) Read(p []byte) (int, error) {
	for len(b.rest) == 0 {
		k, body, err := b.r.next()
		switch {
		case err != nil:
			return 0, err
		case k != data:
			return 0, io.EOF
		case len(body) == 0:
		case body[0] == 1:
			b.rest = body[1:]
		case body[0] == 3:
			return 0, fmt.Errorf("the server says: %s", printable(string(body[1:])))
		case body[0] != 2: // progress
			return 0, fmt.Errorf("band %d", body[0])
		}
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}
