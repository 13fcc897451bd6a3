package storage

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime/multipart"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
)

// Client is a Store and a Ledger over HTTP: what a Server serves.
type Client struct {
	goproxy.Client
}

var (
	_ Store  = (*Client)(nil)
	_ Ledger = (*Client)(nil)
)

// Put implements Store; the zip is streamed. Where it is an io.Seeker it can be sent to
// another replica, when the first cannot be reached. A Put that was cut, before its end or
// before the answer, is an error with 503, and is the caller's to make again, with all of the zip.
func (c *Client) Put(ctx context.Context, m module.Version, f Files) error {
	if f.Info == nil && f.Mod == nil && f.Zip == nil {
		return nil
	}
	path, err := goproxy.Request{Path: m.Path, Query: m.Version, File: FileZip}.URLPath()
	if err != nil {
		return err
	}
	form := newForm(f)
	defer func() { form.Close() }() // the last of its readers
	header := http.Header{"Content-Type": {"multipart/form-data; boundary=" + form.boundary}}
	if f.ZipH1 != "" {
		header.Set(headerZipH1, f.ZipH1)
	}
	resp, err := c.do(ctx, http.MethodPost, strings.TrimSuffix(path, ".zip")+".save", header, form)
	if err != nil {
		return fmt.Errorf("put %s: %w", m, err)
	}
	return resp.Body.Close()
}

// headerZipH1 carries Files.ZipH1.
const headerZipH1 = "Athensctl-Zip-H1"

// form is the body of a Put.
type form struct {
	*io.PipeReader
	files    Files
	boundary string
	zip      io.Seeker     // nil: the form can be read once
	start    int64         // of zip
	done     chan struct{} // closed when nothing reads files any more
}

func newForm(f Files) *form {
	b := &form{files: f, boundary: multipart.NewWriter(io.Discard).Boundary()}
	if zip, ok := f.Zip.(io.Seeker); ok {
		var err error
		if b.start, err = zip.Seek(0, io.SeekCurrent); err == nil {
			b.zip = zip
		}
	}
	b.write()
	return b
}

func (b *form) write() {
	r, w := io.Pipe()
	done := make(chan struct{})
	b.PipeReader, b.done = r, done
	go func() {
		defer close(done)
		m := multipart.NewWriter(w)
		err := m.SetBoundary(b.boundary)
		if err == nil {
			err = writeForm(m, b.files)
		}
		w.CloseWithError(err)
	}()
}

// again is for http.Request.GetBody. What reads the body that there was gets nothing more.
func (b *form) again() (io.ReadCloser, error) {
	b.Close()
	<-b.done
	if b.zip != nil {
		if _, err := b.zip.Seek(b.start, io.SeekStart); err != nil {
			return nil, err
		}
	}
	b.write()
	return b.PipeReader, nil
}

func writeForm(form *multipart.Writer, f Files) error {
	for _, part := range []struct {
		name string
		r    io.Reader
	}{{"mod.info", reader(f.Info)}, {"mod.mod", reader(f.Mod)}, {"mod.zip", f.Zip}} {
		if part.r == nil {
			continue
		}
		w, err := form.CreateFormFile(part.name, part.name)
		if err != nil {
			return err
		}
		if _, err := io.Copy(w, part.r); err != nil {
			return err
		}
	}
	return form.Close()
}

func reader(b []byte) io.Reader {
	if b == nil {
		return nil
	}
	return bytes.NewReader(b)
}

// Delete implements Store.
func (c *Client) Delete(ctx context.Context, m module.Version) error {
	path, err := goproxy.Request{Path: m.Path, Query: m.Version, File: FileZip}.URLPath()
	if err != nil {
		return err
	}
	resp, err := c.do(ctx, http.MethodDelete, strings.TrimSuffix(path, ".zip")+".delete", nil, nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// maxPageBytes bounds a page of a catalog, which may be another server's.
const maxPageBytes = 16 << 20

// maxEntryBytes is longer than path and version of any module that can be asked for.
const maxEntryBytes = 2048

// pairs are the entries of a page of a catalog. More than any server gives are refused, before
// they take memory: {} is one.
type pairs []module.Version

// UnmarshalJSON implements json.Unmarshaler.
func (p *pairs) UnmarshalJSON(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	switch t, err := d.Token(); {
	case err != nil || t == nil:
		return err
	case t != json.Delim('['):
		return errors.New("modules is no list")
	}
	for d.More() {
		if len(*p) == maxPage {
			return fmt.Errorf("more than %d entries", maxPage)
		}
		var m struct{ Module, Version string }
		if err := d.Decode(&m); err != nil {
			return err
		}
		if len(m.Module)+len(m.Version) <= maxEntryBytes {
			*p = append(*p, module.Version{Path: m.Module, Version: m.Version})
		}
	}
	return nil
}

// Catalog implements Store.
func (c *Client) Catalog(ctx context.Context, after string, limit int) (Page, error) {
	var page Page
	q := url.Values{"token": {after}, "pagesize": {strconv.Itoa(limit)}}
	resp, err := c.do(ctx, http.MethodGet, "/catalog?"+q.Encode(), nil, nil)
	if err != nil {
		return page, err
	}
	defer resp.Body.Close()
	var answer struct {
		Modules pairs
		Next    string
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxPageBytes)).Decode(&answer); err != nil {
		return page, fmt.Errorf("catalog: %w", err)
	}
	return Page{Versions: answer.Modules, Next: answer.Next}, nil
}

// Index implements Store.
func (c *Client) Index(ctx context.Context, since time.Time, limit int) ([]IndexEntry, error) {
	q := url.Values{"limit": {strconv.Itoa(limit)}}
	if !since.IsZero() {
		q.Set("since", since.UTC().Format(time.RFC3339Nano))
	}
	resp, err := c.do(ctx, http.MethodGet, "/index?"+q.Encode(), nil, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var entries []IndexEntry
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if len(entries) == limit {
			return nil, fmt.Errorf("index: the server sends more than the %d entries asked for", limit)
		}
		var e IndexEntry
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("index: %w", err)
		}
		if len(e.Path)+len(e.Version) > maxEntryBytes {
			e.Path, e.Version = "", "" // its time counts
		}
		entries = append(entries, e)
	}
	return entries, lines.Err()
}

// Deleted implements Store.
func (c *Client) Deleted(ctx context.Context, since time.Time, limit int) ([]IndexEntry, error) {
	a, err := c.call(ctx, "deleted", message{Since: since, Limit: limit})
	return a.Feed, err
}

// ZipH1 implements Store.
func (c *Client) ZipH1(ctx context.Context, m module.Version) (string, error) {
	a, err := c.call(ctx, "zip-h1", message{Key: &Key{Path: m.Path, Query: m.Version, File: FileZip}})
	return a.Name, err
}

// Known implements Ledger.
func (c *Client) Known(ctx context.Context, k Key) (*Known, error) {
	a, err := c.call(ctx, "known", message{Key: &k})
	return a.Known, err
}

// SetKnown implements Ledger.
func (c *Client) SetKnown(ctx context.Context, k Key, known *Known) error {
	_, err := c.call(ctx, "set-known", message{Key: &k, Known: known})
	return err
}

// Enqueue implements Ledger.
func (c *Client) Enqueue(ctx context.Context, j Job) (bool, error) {
	a, err := c.call(ctx, "enqueue", message{Job: &j})
	return a.Yes, err
}

// Start implements Ledger.
func (c *Client) Start(ctx context.Context, j Job, worker string, lease time.Duration) (*Job, error) {
	a, err := c.call(ctx, "start", message{Job: &j, Worker: worker, Time: lease})
	return a.Job, err
}

// Claim implements Ledger.
func (c *Client) Claim(ctx context.Context, worker string, lease time.Duration) (*Job, error) {
	a, err := c.call(ctx, "claim", message{Worker: worker, Time: lease})
	return a.Job, err
}

// Extend implements Ledger.
func (c *Client) Extend(ctx context.Context, j *Job, lease time.Duration) error {
	_, err := c.call(ctx, "extend", message{Job: j, Time: lease})
	return err
}

// Done implements Ledger.
func (c *Client) Done(ctx context.Context, j *Job, err error) error {
	_, err = c.call(ctx, "done", message{Job: j, Cause: CauseOf(err)})
	return err
}

// Retry implements Ledger.
func (c *Client) Retry(ctx context.Context, j *Job, delay time.Duration, err error) error {
	_, err = c.call(ctx, "retry", message{Job: j, Time: delay, Cause: CauseOf(err)})
	return err
}

// Wait implements Ledger. The question is asked again for as long as the job runs.
func (c *Client) Wait(ctx context.Context, k Key) error {
	for {
		a, err := c.call(ctx, "wait", message{Key: &k})
		if err != nil {
			return err
		}
		if !a.Yes {
			return a.Cause.Err()
		}
	}
}

// Queue implements Ledger.
func (c *Client) Queue(ctx context.Context) (QueueStats, error) {
	a, err := c.call(ctx, "queue", message{})
	if err != nil || a.Stats == nil {
		return QueueStats{}, err
	}
	return *a.Stats, nil
}

// Jobs implements Ledger; at most 10,000.
func (c *Client) Jobs(ctx context.Context, limit int) ([]Job, error) {
	a, err := c.call(ctx, "jobs", message{Limit: limit})
	return a.Jobs, err
}

// Drop implements Ledger.
func (c *Client) Drop(ctx context.Context, k Key) error {
	_, err := c.call(ctx, "drop", message{Key: &k})
	return err
}

// Load implements Ledger.
func (c *Client) Load(ctx context.Context, name string) ([]byte, error) {
	a, err := c.call(ctx, "load", message{Name: name})
	return bytesOf(a.New), err
}

// CompareAndSwap implements Ledger.
func (c *Client) CompareAndSwap(ctx context.Context, name string, old, new []byte) error {
	_, err := c.call(ctx, "swap", message{Name: name, Old: pointerTo(old), New: pointerTo(new)})
	return err
}

// Headers of calls. The empty key marks those that change nothing, as net/http knows it:
// they may be asked again, and of another replica.
var (
	changeHeader = http.Header{"Content-Type": {"application/json"}}
	readHeader   = http.Header{"Content-Type": {"application/json"}, "Idempotency-Key": {}}
)

// reads are the calls that change nothing.
var reads = map[string]bool{"deleted": true, "zip-h1": true, "known": true, "wait": true, "queue": true, "jobs": true, "load": true}

func (c *Client) call(ctx context.Context, method string, q message) (a message, err error) {
	body, err := json.Marshal(q)
	if err != nil {
		return a, err
	}
	header := changeHeader
	if reads[method] {
		header = readHeader
	}
	resp, err := c.do(ctx, http.MethodPost, "/internal/ledger/"+method, header, bytes.NewReader(body))
	if goproxy.IsAbsent(err) && strings.Contains(err.Error(), noMethod) {
		// Nothing is said of a module: while versions change, its process is not this one's.
		return a, goproxy.Busy(5*time.Second, "storage is of another version: %s", err)
	}
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return a, fmt.Errorf("storage: %s: %w", method, err)
	}
	return a, nil
}

// do sends a request. What is not 200 is an error; one of this package's own
// is that error again. Storage that can't be reached is 503.
func (c *Client) do(ctx context.Context, method, path string, header http.Header, body io.Reader) (*http.Response, error) {
	req, err := c.NewRequest(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	maps.Copy(req.Header, header)
	if form, ok := body.(*form); ok && (form.zip != nil || form.files.Zip == nil) {
		req.Body, req.GetBody = form.PipeReader, form.again
	}
	resp, err := c.HTTP.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("storage: %w", ctx.Err())
		}
		e := goproxy.Errorf(http.StatusServiceUnavailable, "storage cannot be reached: %w", err)
		e.RetryAfter = 2 * time.Second
		return nil, e
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	msg := strings.TrimSpace(string(text))
	for _, known := range []*goproxy.Error{ErrConflict, ErrLeaseLost, ErrSwapped, ErrQueueFull} {
		if resp.StatusCode == known.Status && strings.Contains(msg, known.Message) {
			return nil, known
		}
	}
	e := &goproxy.Error{Status: resp.StatusCode, Message: msg, RetryAfter: goproxy.RetryAfter(resp.Header, time.Now())}
	if msg == "" {
		e.Err = errors.New(resp.Status)
		e.Message = "storage: " + resp.Status
	}
	return nil, e
}
