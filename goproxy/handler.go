package goproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"
	"golang.org/x/mod/module"
)

// Headers that are part of the protocol between the roles and of the public answers.
const (
	// HeaderNoFetch on a request asks to answer from what is kept.
	// Source: the front page of the public Go mirror.
	HeaderNoFetch = "Disable-Module-Fetch"
	// HeaderChecked says when upstream last confirmed a list, a query's
	// answer, or that there is no such thing, in RFC 3339.
	HeaderChecked = "Athensctl-Checked"
	// HeaderStale is "true" on a list or a query's answer that is older than it
	// should be, because upstream did not answer.
	HeaderStale = "Athensctl-Stale"
)

// Values of Cache-Control.
const (
	CacheImmutable = "public, max-age=31536000, immutable"
	CacheBriefly   = "public, max-age=60"
	CacheNever     = "no-store"
)

type noFetch struct{}

// WithNoFetch marks a context: answer from what is kept, never fetch.
func WithNoFetch(ctx context.Context) context.Context {
	return context.WithValue(ctx, noFetch{}, true)
}

// NoFetch reports whether the context is so marked.
func NoFetch(ctx context.Context) bool { return ctx.Value(noFetch{}) != nil }

// Handler answers GET and HEAD requests of the GOPROXY protocol from src. It
// is meant for one catch-all route. Errors are returned, for ErrorHandler.
func Handler(src Source) echo.HandlerFunc {
	paths := newAsked()
	return func(c echo.Context) error {
		r := c.Request()
		if err := CheckURL(r); err != nil {
			return err
		}
		req, err := paths.parse(MarkNoFetch(c))
		if err != nil {
			return err
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			c.Response().Header().Set("Allow", "GET, HEAD")
			return Errorf(http.StatusMethodNotAllowed, "%s is not allowed here: GET and HEAD are", r.Method)
		}
		ctx := c.Request().Context()
		switch req.File {
		case FileList:
			return serveList(ctx, c, src, req)
		case FileInfo:
			return serveInfo(ctx, c, src, req)
		default:
			return serveFile(ctx, c, src, req)
		}
	}
}

// MarkNoFetch returns a request's path without /cached-only, and marks the request's context
// when it has that prefix or the header that means the same.
func MarkNoFetch(c echo.Context) (urlPath string) {
	r := c.Request()
	urlPath, cachedOnly := strings.CutPrefix(r.URL.Path, "/cached-only/")
	if cachedOnly {
		urlPath = "/" + urlPath
	}
	if cachedOnly || strings.EqualFold(r.Header.Get(HeaderNoFetch), "true") {
		c.SetRequest(r.WithContext(WithNoFetch(r.Context())))
	}
	return urlPath
}

// CheckURL refuses encoded slashes, so that a path means the same to
// everything between the client and the handler.
func CheckURL(r *http.Request) error {
	if r.URL.RawPath != "" && strings.Contains(strings.ToLower(r.URL.RawPath), "%2f") {
		return Errorf(http.StatusBadRequest, "bad request: an encoded slash (%%2F) in the path")
	}
	return nil
}

func serveList(ctx context.Context, c echo.Context, src Source, req *askedPath) error {
	list, err := src.List(ctx, req.Path)
	if err != nil {
		return err
	}
	text := list.Text()
	h := c.Response().Header()
	h["Content-Type"] = textPlain
	setChanging(ctx, h, req, list.Checked, list.Stale)
	return writeBytes(c, text, time.Time{})
}

func serveInfo(ctx context.Context, c echo.Context, src Source, req *askedPath) error {
	info, err := src.Resolve(ctx, req.Path, req.Query)
	if err != nil {
		return err
	}
	body := info.JSON()
	h := c.Response().Header()
	h["Content-Type"] = applicationJSON
	if info.Version == req.Query {
		if setImmutable(c, req, int64(len(body)), info.Kept) {
			return nil
		}
	} else {
		setChanging(ctx, h, req, info.Checked, info.Stale)
	}
	return writeBytes(c, body, info.Kept)
}

func serveFile(ctx context.Context, c echo.Context, src Source, req *askedPath) error {
	m := module.Version{Path: req.Path, Version: req.Query}
	contentType, get := textPlain, src.Mod
	if req.File == FileZip {
		contentType, get = applicationZip, src.Zip
	}
	blob, err := get(ctx, m)
	if err != nil {
		return err
	}
	defer blob.Close()
	h := c.Response().Header()
	h["Content-Type"] = contentType
	if setImmutable(c, req, blob.SizeBytes, blob.ModTime) {
		return nil
	}
	if m, ok := blob.ReadCloser.(memory); ok {
		return writeBytes(c, m.content, blob.ModTime)
	}
	return writeBlob(c, blob)
}

// Header values shared by all answers; nothing writes to them.
var (
	textPlain       = []string{"text/plain; charset=utf-8"}
	applicationJSON = []string{"application/json"}
	applicationZip  = []string{"application/zip"}
	immutable       = []string{CacheImmutable}
	briefly         = []string{CacheBriefly}
	acceptRanges    = []string{"bytes"}
)

func setChanging(ctx context.Context, h http.Header, req *askedPath, checked time.Time, stale bool) {
	if NoFetch(ctx) {
		h.Set("Cache-Control", CacheNever)
	} else {
		h["Cache-Control"] = briefly
	}
	if !checked.IsZero() {
		h[HeaderChecked] = req.checkedOf(checked)
	}
	if stale {
		h.Set(HeaderStale, "true")
	}
}

// setImmutable sets the headers of a file that never changes. It answers a
// conditional request itself when the client has the file, and then returns true.
func setImmutable(c echo.Context, req *askedPath, sizeBytes int64, modTime time.Time) (done bool) {
	h := c.Response().Header()
	h["Cache-Control"] = immutable
	if modTime.IsZero() {
		return false
	}
	stamp := req.stampOf(sizeBytes, modTime)
	etag := stamp.etag[0]
	h["Etag"], h["Last-Modified"] = stamp.etag, stamp.modified
	rh := c.Request().Header
	if match := rh.Get("If-None-Match"); match != "" {
		if !matchesETag(match, etag) {
			return false
		}
	} else {
		header := rh.Get("If-Modified-Since")
		if header == "" {
			return false
		}
		since, err := http.ParseTime(header)
		if err != nil || modTime.Truncate(time.Second).After(since) {
			return false
		}
	}
	delete(h, "Content-Type")
	c.Response().WriteHeader(http.StatusNotModified)
	return true
}

// matchesETag compares weakly, as If-None-Match does. Source: RFC 9110, 13.1.2.
func matchesETag(header, etag string) bool {
	for field := range strings.SplitSeq(header, ",") {
		field = strings.TrimSpace(field)
		if field == "*" || strings.TrimPrefix(field, "W/") == etag {
			return true
		}
	}
	return false
}

// netHTTPKnowsLength is how long a body may be for net/http to set its Content-Length,
// which costs less there. Source: https://pkg.go.dev/net/http#ResponseWriter.
const netHTTPKnowsLength = 2 << 10

// writeBytes answers with a body that is in memory.
func writeBytes(c echo.Context, body []byte, modTime time.Time) error {
	res, r := c.Response(), c.Request()
	if r.Header["Range"] != nil {
		return writeBlob(c, NewBlob(body, modTime))
	}
	if r.Method == http.MethodHead || len(body) > netHTTPKnowsLength {
		res.Header()["Content-Length"] = []string{strconv.Itoa(len(body))}
	}
	res.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	res.Write(body) // an error means that the client left: nobody is there to be told
	return nil
}

// writeBlob writes a file or the ranges of it that were asked for.
func writeBlob(c echo.Context, blob *Blob) error {
	res, r := c.Response(), c.Request()
	if rs, ok := blob.ReadCloser.(io.ReadSeeker); ok {
		ServeContent(c, blob.ModTime, rs) // setImmutable has handled some of the conditions
		return nil
	}
	h := res.Header()
	if blob.SizeBytes >= 0 {
		h.Set("Content-Length", strconv.FormatInt(blob.SizeBytes, 10))
	}
	h["Accept-Ranges"] = acceptRanges
	status := http.StatusOK
	var body io.Reader = blob
	if start, length, ok := oneRange(r, h, blob.SizeBytes); ok {
		if length <= 0 {
			h.Set("Content-Range", fmt.Sprintf("bytes */%d", blob.SizeBytes))
			return Errorf(http.StatusRequestedRangeNotSatisfiable, "the file has %d bytes; the range begins at %d", blob.SizeBytes, start)
		}
		if _, err := io.CopyN(io.Discard, blob, start); err != nil {
			return fmt.Errorf("skip to byte %d: %w", start, err)
		}
		h.Set("Content-Length", strconv.FormatInt(length, 10))
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, start+length-1, blob.SizeBytes))
		status, body = http.StatusPartialContent, io.LimitReader(blob, length)
	}
	res.WriteHeader(status)
	if r.Method == http.MethodHead {
		return nil
	}
	n, err := io.Copy(struct{ io.Writer }{res.Writer}, body)
	res.Size = n
	if err == nil && status == http.StatusOK && blob.SizeBytes >= 0 && n != blob.SizeBytes {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		// The status is sent: cut the connection, so that the client sees it.
		panic(http.ErrAbortHandler)
	}
	return nil
}

// ServeContent answers with content, by http.ServeContent: the conditions and ranges of the
// request are heeded, ETag and Content-Type are the caller's. An answer that is an error of
// those is not to be kept, whatever Cache-Control the caller has set. It writes beside echo's
// Response, which hides the io.ReaderFrom that sendfile needs.
func ServeContent(c echo.Context, modTime time.Time, content io.ReadSeeker) {
	res, r := c.Response(), c.Request()
	// A unit that is not known has to be ignored, and of nothing there is no part (RFC 9110,
	// 14.1 and 14.2); http.ServeContent refuses the first, and has a Content-Range of no
	// bytes for the second.
	if spec, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); !ok || strings.TrimSpace(spec) == "-0" || isEmpty(content) {
		r.Header.Del("Range")
	}
	w := &counter{ResponseWriter: res.Writer}
	http.ServeContent(w, r, "", modTime, content)
	res.Status, res.Size, res.Committed = w.status, w.size, true
}

func isEmpty(content io.Seeker) bool {
	size, err := content.Seek(0, io.SeekEnd)
	return err == nil && size == 0
}

// oneRange reads a Range header of a single range for content that cannot seek. The
// length is 0 where none of it is there.
// Any other form is answered with the whole, which RFC 9110 (14.2) allows.
func oneRange(r *http.Request, h http.Header, size int64) (start, length int64, ok bool) {
	spec, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
	if !ok || size <= 0 {
		return 0, 0, false
	}
	if cond := r.Header.Get("If-Range"); cond != "" && cond != h.Get("Etag") && cond != h.Get("Last-Modified") {
		return 0, 0, false
	}
	first, last, ok := strings.Cut(spec, "-")
	if !ok || strings.ContainsAny(spec, ", ") {
		return 0, 0, false
	}
	end := size - 1
	if first == "" {
		n, err := strconv.ParseInt(last, 10, 64)
		if err != nil || n <= 0 {
			return 0, 0, false
		}
		start = max(0, size-n)
	} else {
		var err error
		if start, err = strconv.ParseInt(first, 10, 64); err != nil {
			return 0, 0, false
		}
		if last != "" {
			if end, err = strconv.ParseInt(last, 10, 64); err != nil || end < start {
				return 0, 0, false
			}
		}
		end = min(end, size-1)
	}
	return start, max(0, end-start+1), true
}

// counter counts what ServeContent writes and keeps sendfile.
type counter struct {
	http.ResponseWriter
	status int
	size   int64
}

func (w *counter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	if status >= http.StatusBadRequest { // of a range or a condition: nothing to be kept
		w.Header().Set("Cache-Control", CacheNever)
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *counter) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	w.size += int64(n)
	return n, err
}

func (w *counter) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(w.ResponseWriter, r)
	w.size += n
	return n, err
}

func (w *counter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// ErrorHandler answers a request that failed: the status, the reason as
// text/plain, the caching headers. It is echo's HTTPErrorHandler in every role.
func ErrorHandler(err error, c echo.Context) {
	res := c.Response()
	if res.Committed {
		return
	}
	var he *echo.HTTPError
	if errors.As(err, &he) {
		err = Errorf(he.Code, "%v", he.Message)
	}
	status := Status(err)
	h, r := res.Header(), c.Request()
	cache := CacheNever
	var e *Error
	if read := r.Method == http.MethodGet || r.Method == http.MethodHead; read && (status == http.StatusNotFound || status == http.StatusGone) &&
		!(errors.As(err, &e) && e.NoStore) && !NoFetch(r.Context()) {
		cache = CacheBriefly
	}
	h.Set("Cache-Control", cache)
	h["Content-Type"] = textPlain
	h.Set("X-Content-Type-Options", "nosniff")
	for _, k := range []string{"Etag", "Last-Modified", "Content-Length", "Accept-Ranges", HeaderChecked, HeaderStale} {
		h.Del(k)
	}
	if errors.As(err, &e) && !e.Checked.IsZero() {
		h.Set(HeaderChecked, e.Checked.UTC().Format(time.RFC3339Nano))
	}
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		after := time.Second
		if errors.As(err, &e) && e.RetryAfter > 0 {
			after = e.RetryAfter
		}
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(after.Seconds()))))
	}
	body := err.Error()
	if status == http.StatusNotFound && !strings.HasPrefix(body, "not found: ") {
		body = "not found: " + body
	}
	body += "\n"
	h.Set("Content-Length", strconv.Itoa(len(body)))
	res.WriteHeader(status)
	if r.Method != http.MethodHead {
		io.WriteString(res, body)
	}
}
