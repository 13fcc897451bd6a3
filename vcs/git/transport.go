package git

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/athensctl/athensctl/goproxy"
)

// service is a repository's upload-pack service: what its server said first. It must be
// closed.
type service struct {
	c    *Client
	repo *url.URL // as it was given
	base *url.URL // after redirects
	// Over SSH all goes through one run of git-upload-pack: its input and output.
	in  *io.PipeWriter
	out io.ReadCloser
	// version 2: what the server can do, by name. 1 and 0: the refs, and what the server
	// can do.
	version int
	caps    map[string]string
	refs    []Ref
	room    *room // of the refs
}

// open asks for the service. It knows the refs of a server that does not speak
// version 2.
func (c *Client) open(ctx context.Context, u *url.URL) (*service, error) {
	s := &service{c: c, repo: u, base: u, caps: map[string]string{}, room: c.room(u)}
	var first io.ReadCloser
	var err error
	switch u.Scheme {
	case "https", "http":
		first, err = s.ask(ctx)
	case "ssh":
		first, err = s.run(ctx)
	default:
		err = goproxy.Errorf(http.StatusNotImplemented, "%s: %s is not a way to reach a repository here: https and ssh are", Name(u), u.Scheme)
	}
	if err != nil {
		return nil, err
	}
	if s.in == nil {
		defer first.Close()
	}
	r := newReader(first, c.Limits.orDefault().RefBytes, c.Limits.orDefault())
	if err := s.readAdvertisement(r); err != nil {
		s.close()
		return nil, s.wrong("refs", err)
	}
	if f := s.caps["object-format"]; f != "" && f != "sha1" {
		s.close()
		return nil, goproxy.Errorf(http.StatusNotImplemented, "%s: a repository with %.20s hashes; only sha1 is supported", Name(u), f)
	}
	return s, nil
}

// ask asks an HTTP server for what it says first.
func (s *service) ask(ctx context.Context) (io.ReadCloser, error) {
	ask := s.repo.JoinPath("info/refs")
	ask.RawQuery = "service=git-upload-pack"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, ask.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := s.do(req)
	if err != nil {
		return nil, err
	}
	kind, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	if !strings.EqualFold(strings.TrimSpace(kind), "application/x-git-upload-pack-advertisement") {
		defer resp.Body.Close()
		head := make([]byte, 41)
		if n, _ := io.ReadFull(resp.Body, head); n == len(head) && isHash(string(head[:40])) && head[40] == '\t' {
			// It is there, as a web server without git has it.
			return nil, goproxy.Errorf(http.StatusNotImplemented, "%s: the host speaks only git's dumb protocol, which is not supported: name an upstream proxy that has it (setting upstream)", Name(s.repo))
		}
		return nil, goproxy.NotFound("%s: no git repository is served there: the answer is %.60q", Name(s.repo), kind)
	}
	// git asks where a redirect led for the rest.
	if final, ok := strings.CutSuffix(resp.Request.URL.Path, "/info/refs"); ok {
		base := *resp.Request.URL
		base.Path, base.RawPath, base.RawQuery = final, "", ""
		s.base = &base
	}
	return resp.Body, nil
}

// run starts git-upload-pack over SSH.
func (s *service) run(ctx context.Context) (io.ReadCloser, error) {
	in, out := io.Pipe()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.repo.String(), in)
	if err != nil {
		return nil, err
	}
	resp, err := s.do(req)
	if err != nil {
		return nil, err
	}
	s.in, s.out = out, resp.Body
	return s.out, nil
}

func (s *service) close() {
	s.room.close()
	if s.in != nil {
		s.in.Close()
		s.out.Close()
	}
}

// maxCaps is how many things a server says it can; git's has about 30.
const maxCaps = 1000

func (s *service) readAdvertisement(r *reader) error {
	text, k, err := r.line()
	if err != nil {
		return err
	}
	if k == data && strings.HasPrefix(text, "# service=") {
		if _, k, err = r.line(); err != nil {
			return err
		}
		if k != flush {
			return errors.New("the service's name is not followed by a flush")
		}
		if text, k, err = r.line(); err != nil {
			return err
		}
	}
	if text == "version 2" {
		s.version = 2
		for {
			text, k, err := r.line()
			if err != nil || k != data {
				return err
			}
			name, value, _ := strings.Cut(text, "=")
			if s.caps[name] = value; len(s.caps) > maxCaps {
				return fmt.Errorf("more than %d capabilities", maxCaps)
			}
		}
	}
	// Version 0 or 1: refs, the first with what the server can do behind a NUL.
	if text == "version 1" {
		s.version = 1
		if text, k, err = r.line(); err != nil {
			return err
		}
	}
	counter := s.counter()
	for first := true; k == data; first = false {
		if err := counter.add(text); err != nil {
			return err
		}
		if first {
			var caps string
			text, caps, _ = strings.Cut(text, "\x00")
			for _, c := range strings.Fields(caps) {
				name, value, _ := strings.Cut(c, "=")
				if name == "symref" {
					if from, to, ok := strings.Cut(value, ":"); ok {
						name, value = "symref "+from, to
					}
				}
				s.caps[name] = value
			}
			if f := s.caps["object-format"]; f != "" && f != "sha1" {
				return nil // its hashes are none here
			}
		}
		hash, name, ok := strings.Cut(text, " ")
		switch {
		case strings.HasPrefix(text, "shallow "):
		case !ok || !isHash(hash):
			return fmt.Errorf("%.100q is not a ref", printable(text))
		case name == "capabilities^{}": // an empty repository
		case strings.HasSuffix(name, "^{}"):
			if n := len(s.refs); n > 0 && s.refs[n-1].Name == strings.TrimSuffix(name, "^{}") {
				s.refs[n-1].Peeled = hash
			}
		default:
			s.refs = append(s.refs, Ref{Name: name, Hash: hash, Target: s.caps["symref "+name]})
		}
		if text, k, err = r.line(); err != nil {
			return err
		}
	}
	return nil
}

// post sends a request to the service; the answer's body must be closed. A service over
// SSH takes one.
func (s *service) post(ctx context.Context, body []byte) (io.ReadCloser, error) {
	if s.in != nil {
		// A server that does not read is one that does not answer. The write ends when
		// the service is closed, if not before.
		go s.in.Write(body)
		return io.NopCloser(s.out), nil
	}
	u := s.base.JoinPath("git-upload-pack")
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-git-upload-pack-request")
	req.Header.Set("Accept", "application/x-git-upload-pack-result")
	resp, err := s.do(req)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// do sends a request and returns the answer when it is a 200. A pause in it that
// is too long ends it.
func (s *service) do(req *http.Request) (*http.Response, error) {
	outer := req.Context()
	ctx, cancel := context.WithCancelCause(outer)
	req.Header.Set("Git-Protocol", "version=2")
	// Some hosts answer git alone.
	req.Header.Set("User-Agent", "git/athensctl")
	idle := s.c.Limits.orDefault().Idle
	timer := time.AfterFunc(idle, func() { cancel(fmt.Errorf("no byte for %v: %w", idle, os.ErrDeadlineExceeded)) })
	timer.Stop()
	// It runs from when the transport begins: the time in which others are asked first is
	// not the host's.
	req = req.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GetConn: func(string) { timer.Reset(idle) }}))
	resp, err := s.c.HTTP.Do(req)
	timer.Stop()
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && outer.Err() == nil {
			err = cause
		}
		cancel(nil)
		return nil, s.failed(err)
	}
	resp.Body = &paced{resp.Body, ctx, timer, idle, cancel}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, s.status(resp)
}

func (s *service) failed(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // its text has the URL
	}
	var e *goproxy.Error
	if errors.As(err, &e) { // the transport's own: not allowed, say
		return fmt.Errorf("%s: %w", Name(s.repo), err)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: %w", Name(s.repo), err)
	}
	return broken(s.repo, "%w", err)
}

// wrong is the error for an answer that can't be used; where the transport knows why,
// it is the transport's.
func (s *service) wrong(what string, err error) error {
	var e *goproxy.Error
	if errors.As(err, &e) {
		return fmt.Errorf("%s: %w", Name(s.repo), err)
	}
	return broken(s.repo, what+": %w", err)
}

// status is the error for an answer that is not a 200.
func (s *service) status(resp *http.Response) error {
	what := fmt.Sprintf("%s: the host says %d", Name(s.repo), resp.StatusCode)
	if pause, limited := goproxy.Limited(resp, time.Now()); limited {
		return goproxy.Busy(pause, "%s: it has too much to do", what)
	}
	switch resp.StatusCode {
	case http.StatusNotFound, http.StatusGone:
		return goproxy.NotFound("%s: no such repository, or it is private and no credentials for it are set", what)
	case http.StatusUnauthorized, http.StatusForbidden:
		// Hosts hide private repositories behind these, as well as those that are not there.
		return goproxy.NotFound("%s: no such repository, or the credentials for it are missing or wrong", what)
	}
	return goproxy.Errorf(http.StatusBadGateway, "%s", what)
}

// paced is a body of which each read must bring something within idle.
type paced struct {
	io.ReadCloser
	ctx    context.Context
	timer  *time.Timer
	idle   time.Duration
	cancel context.CancelCauseFunc
}

func (p *paced) Read(b []byte) (int, error) {
	p.timer.Reset(p.idle)
	n, err := p.ReadCloser.Read(b)
	p.timer.Stop()
	if err != nil && err != io.EOF {
		if cause := context.Cause(p.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

func (p *paced) Close() error {
	p.timer.Stop()
	err := p.ReadCloser.Close()
	p.cancel(nil)
	return err
}
