package goproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/mod/module"
)

// Client is a Source over HTTP: an upstream proxy, or another role. A status
// other than 200 is an *Error with that status and the body as its message.
type Client struct {
	Base *url.URL     // may have a path and userinfo
	HTTP *http.Client // its transport bounds connecting and waiting for headers
	// IdleTimeout is the longest pause while a body is read; 0: no bound.
	IdleTimeout time.Duration
}

var _ Source = (*Client)(nil)

// maxETagBytes bounds what is kept of a server's ETag.
const maxETagBytes = 256

// ErrNotModified is what a source answers that has nothing newer. Source: RFC 9110, 15.4.5.
var ErrNotModified = errors.New("not modified")

type validator struct{}

// WithValidator asks for a list only if it is another than the one with this
// VersionList.Validator, which may be empty. A Source may ignore it.
func WithValidator(ctx context.Context, v string) context.Context {
	return context.WithValue(ctx, validator{}, v)
}

// List returns the versions that the server lists, cleaned by NewVersionList.
// Some servers list pseudo-versions of modules without tags. ErrNotModified: the list is
// the one that the context's validator, one of this server's, came with.
func (c *Client) List(ctx context.Context, path string) (*VersionList, error) {
	resp, err := c.get(ctx, Request{Path: path, File: FileList})
	if Status(err) == http.StatusNotModified {
		return nil, fmt.Errorf("%s: version list: %w", path, ErrNotModified)
	}
	if err != nil {
		return nil, err
	}
	body, err := counted(ctx, blobOf(resp)).ReadAll(MaxListBytes)
	if err != nil {
		return nil, c.broken(path+": version list", err)
	}
	var versions []string
	for line := range bytes.Lines(body) {
		// A line may have the version's time behind the version. What is none takes no memory.
		v := bytes.TrimSpace(line)
		if i := bytes.IndexAny(v, " \t"); i >= 0 {
			v = v[:i]
		}
		if len(v) >= len("v0.0.0") && v[0] == 'v' {
			versions = append(versions, string(v))
		}
	}
	checked, _ := time.Parse(time.RFC3339Nano, resp.Header.Get(HeaderChecked))
	l := NewVersionList(path, versions, checked)
	l.Stale = resp.Header.Get(HeaderStale) == "true"
	if etag := resp.Header.Get("ETag"); etag != "" && len(etag) <= maxETagBytes {
		l.Validator = c.Name() + " " + etag
	}
	return l, nil
}

// Resolve asks for .info, or @latest.
func (c *Client) Resolve(ctx context.Context, path, query string) (*Info, error) {
	resp, err := c.get(ctx, Request{path, query, FileInfo})
	if err != nil {
		return nil, err
	}
	b := blobOf(resp)
	raw, err := b.ReadAll(MaxInfoBytes)
	if err != nil {
		return nil, c.broken(path+"@"+query, err)
	}
	info, err := ParseInfo(path, query, raw)
	if err != nil {
		return nil, Errorf(http.StatusBadGateway, "%s: %w", c.Name(), err)
	}
	if info.Version == query {
		info.Kept = b.ModTime
	} else {
		info.Checked, _ = time.Parse(time.RFC3339Nano, resp.Header.Get(HeaderChecked))
		info.Stale = resp.Header.Get(HeaderStale) == "true"
	}
	return info, nil
}

// Mod asks for .mod.
func (c *Client) Mod(ctx context.Context, m module.Version) (*Blob, error) {
	return c.file(ctx, m, FileMod)
}

// Zip asks for .zip; its content is streamed. SizeBytes is -1 when the server
// does not say it.
func (c *Client) Zip(ctx context.Context, m module.Version) (*Blob, error) {
	return c.file(ctx, m, FileZip)
}

func (c *Client) file(ctx context.Context, m module.Version, file File) (*Blob, error) {
	resp, err := c.get(ctx, Request{m.Path, m.Version, file})
	if err != nil {
		return nil, err
	}
	return blobOf(resp), nil
}

func (c *Client) get(ctx context.Context, req Request) (*http.Response, error) {
	path, err := req.URLPath()
	if err != nil {
		return nil, err
	}
	return c.ask(ctx, path, req.String())
}

// WithoutUser is a URL without its user and password, for messages: a user may be a
// token.
func WithoutUser(u *url.URL) *url.URL {
	bare := *u
	bare.User = nil
	return &bare
}

// Name is the base as messages have it.
func (c *Client) Name() string { return WithoutUser(c.Base).String() }

// NewRequest makes a request for a path below the base, with a leading slash, encoded, and
// perhaps a query. A user and password in the base are sent as Basic authentication; they are not in
// the request's URL, which errors show.
func (c *Client) NewRequest(ctx context.Context, method, path string, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.Name(), "/")+path, body)
	if err == nil && c.Base.User != nil {
		password, _ := c.Base.User.Password()
		req.SetBasicAuth(c.Base.User.Username(), password)
	}
	return req, err
}

// Get asks for a path below the base, with a leading slash, and returns the
// answer when it is a 200, an *Error when it is another status or there is none (502). The
// body must be closed. The context's end, or a pause of IdleTimeout, ends the body.
func (c *Client) Get(ctx context.Context, path string) (*http.Response, error) {
	return c.ask(ctx, path, path)
}

// ask is Get; what names the request in errors.
func (c *Client) ask(ctx context.Context, path, what string) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := c.NewRequest(ctx, http.MethodGet, (&url.URL{Path: path}).EscapedPath(), nil)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	if NoFetch(ctx) {
		req.Header.Set(HeaderNoFetch, "true")
	}
	if v, ok := ctx.Value(validator{}).(string); ok {
		if etag, ok := strings.CutPrefix(v, c.Name()+" "); ok {
			req.Header.Set("If-None-Match", etag)
		}
	}
	// A module zip must arrive as it was stored, and Content-Length must mean it.
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := c.HTTP.Do(req)
	if err != nil {
		cancel(nil)
		return nil, c.broken(what, err)
	}
	body := &body{ReadCloser: resp.Body, what: what, client: c, ctx: ctx, idle: c.IdleTimeout, cancel: cancel}
	if c.IdleTimeout > 0 {
		body.timer = time.AfterFunc(c.IdleTimeout, func() {
			cancel(fmt.Errorf("no byte for %v", c.IdleTimeout))
		})
		body.timer.Stop() // it runs only while a Read waits
	}
	resp.Body = body
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 2<<10))
	e := &Error{Status: resp.StatusCode, Message: c.message(resp, path, text)}
	if resp.StatusCode == http.StatusNotModified && req.Header.Get("If-None-Match") == "" {
		e.Status = http.StatusBadGateway // nothing was asked that this answers
	}
	e.RetryAfter = RetryAfter(resp.Header, time.Now())
	e.Checked, _ = time.Parse(time.RFC3339Nano, resp.Header.Get(HeaderChecked))
	e.NoStore = errors.Is(e, fs.ErrNotExist) && strings.Contains(resp.Header.Get("Cache-Control"), CacheNever)
	return nil, e
}

// message is the body when it is text for people, else the status line.
func (c *Client) message(resp *http.Response, path string, text []byte) string {
	msg := strings.TrimSpace(string(text))
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") || msg == "" {
		msg = fmt.Sprintf("%s%s: %s", c.Name(), path, resp.Status)
	}
	return strings.ToValidUTF8(msg, "\uFFFD")
}

// broken is an error of the network or of a cut body: never "not found".
func (c *Client) broken(what string, err error) error {
	var e *Error
	if errors.As(err, &e) {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return Errorf(http.StatusBadGateway, "%s: %w", what, err)
}

func blobOf(resp *http.Response) *Blob {
	b := &Blob{ReadCloser: resp.Body, SizeBytes: resp.ContentLength}
	if t, err := http.ParseTime(resp.Header.Get("Last-Modified")); err == nil {
		b.ModTime = t
	}
	return b
}

// body ends its request when it is closed, or when a Read gets nothing for idle. What cuts it
// is an error of the server's, as one before the body is.
type body struct {
	io.ReadCloser
	what   string
	client *Client
	ctx    context.Context
	idle   time.Duration
	timer  *time.Timer
	cancel context.CancelCauseFunc
}

func (b *body) Read(p []byte) (int, error) {
	if b.timer != nil {
		b.timer.Reset(b.idle)
	}
	n, err := b.ReadCloser.Read(p)
	if b.timer != nil {
		b.timer.Stop()
	}
	if err != nil && err != io.EOF {
		if cause := context.Cause(b.ctx); cause != nil {
			err = cause
		}
		err = b.client.broken(b.what, err)
	}
	return n, err
}

func (b *body) Close() error {
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}
