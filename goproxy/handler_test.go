package goproxy

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/labstack/echo/v4"
	"golang.org/x/mod/module"
)

var kept = time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)

// shelf has example.com/M@v1.0.0, whose zip is a file, memory or a stream, by seek.
type shelf struct {
	zip     string // file
	seek    string
	noFetch bool // the last request said so
}

const zipText = "0123456789abcdefghij"

func (s *shelf) List(ctx context.Context, path string) (*VersionList, error) {
	s.noFetch = NoFetch(ctx)
	switch path {
	case "example.com/M":
		return NewVersionList(path, []string{"v1.0.0"}, kept), nil
	case "example.com/untagged":
		return NewVersionList(path, nil, kept), nil
	case "example.com/stale":
		l := NewVersionList(path, []string{"v1.0.0"}, kept)
		l.Stale = true
		return l, nil
	case "example.com/just-small":
		return NewVersionList(path, []string{"v1.0.0-" + strings.Repeat("a", netHTTPKnowsLength-8)}, kept), nil
	case "example.com/just-large":
		return NewVersionList(path, []string{"v1.0.0-" + strings.Repeat("a", netHTTPKnowsLength-7)}, kept), nil
	case "example.com/busy":
		return nil, Busy(1500*time.Millisecond, "busy")
	case "example.com/fetching":
		e := NotFound("%s: still being fetched", path)
		e.NoStore = true
		return nil, e
	case "example.com/broken":
		return nil, Errorf(http.StatusBadGateway, "upstream broke")
	case "example.com/forbidden":
		return nil, Errorf(http.StatusForbidden, "not allowed")
	case "example.com/gone":
		return nil, Errorf(http.StatusGone, "gone")
	case "example.com/plain":
		return nil, io.ErrUnexpectedEOF
	case "example.com/late":
		return nil, fmt.Errorf("list: %w", context.DeadlineExceeded)
	}
	return nil, NotFound("%s: no such module", path)
}

func (s *shelf) Resolve(ctx context.Context, path, query string) (*Info, error) {
	s.noFetch = NoFetch(ctx)
	if path != "example.com/M" {
		return nil, NotFound("%s: no such module", path)
	}
	info := &Info{Version: "v1.0.0", Time: kept, Raw: []byte(`{"Version":"v1.0.0"}`)}
	if query == "v1.0.0" {
		info.Kept = kept
	} else {
		info.Checked = kept
	}
	return info, nil
}

func (s *shelf) Mod(context.Context, module.Version) (*Blob, error) {
	return NewBlob([]byte("module example.com/M\n"), kept), nil
}

func (s *shelf) Zip(context.Context, module.Version) (*Blob, error) {
	switch s.seek {
	case "memory":
		return NewBlob([]byte(zipText), kept), nil
	case "file":
		f, err := os.Open(s.zip)
		return &Blob{ReadCloser: f, SizeBytes: int64(len(zipText)), ModTime: kept}, err
	}
	return &Blob{ReadCloser: io.NopCloser(io.MultiReader(strings.NewReader(zipText))), SizeBytes: int64(len(zipText)), ModTime: kept}, nil
}

func serveShelf(t *testing.T, s *shelf) *httptest.Server {
	s.zip = filepath.Join(t.TempDir(), "zip")
	if err := os.WriteFile(s.zip, []byte(zipText), 0o644); err != nil {
		t.Fatal(err)
	}
	e := echo.New()
	e.HTTPErrorHandler = ErrorHandler
	e.Any("/*", Handler(s))
	srv := httptest.NewServer(e)
	t.Cleanup(srv.Close)
	return srv
}

// Every answer has its length, whoever sets it.
func TestLength(t *testing.T) {
	srv := serveShelf(t, &shelf{})
	for path, length := range map[string]int{"just-small": 2048, "just-large": 2049} {
		for _, method := range []string{"GET", "HEAD"} {
			_, headers, _ := answer(t, srv, method, "/example.com/"+path+"/@v/list")
			if !strings.Contains(headers, fmt.Sprintf("Content-Length: %d\n", length)) {
				t.Errorf("%s %s: %s", method, path, headers)
			}
		}
	}
}

// answer is what a client sees; headers as "Name: value" lines in a fixed order.
func answer(t *testing.T, srv *httptest.Server, method, path string, header ...string) (status int, headers, body string) {
	t.Helper()
	req, err := http.NewRequest(method, srv.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.TransferEncoding) > 0 {
		t.Errorf("%s %s: transfer encoding %v", method, path, resp.TransferEncoding)
	}
	var lines []string
	for _, name := range []string{"Cache-Control", "Content-Type", "Content-Length", "Content-Range", "Etag", "Last-Modified", "Athensctl-Checked", "Athensctl-Stale", "Retry-After", "Allow"} {
		if v := resp.Header.Get(name); v != "" {
			lines = append(lines, name+": "+v)
		}
	}
	return resp.StatusCode, strings.Join(lines, "\n"), string(b)
}

// The headers of each kind of answer, as docs and CDNs rely on them.
func TestHeaders(t *testing.T) {
	const (
		forever = "Cache-Control: public, max-age=31536000, immutable"
		minute  = "Cache-Control: public, max-age=60"
		never   = "Cache-Control: no-store"
		text    = "Content-Type: text/plain; charset=utf-8"
		since   = "Last-Modified: Fri, 02 Jan 2026 03:04:05 GMT"
		checked = "Athensctl-Checked: 2026-01-02T03:04:05.0000006Z"
		noFetch = "Disable-Module-Fetch"
	)
	etag := func(size int) string { return "Etag: " + ETag(int64(size), kept) }
	lines := func(l ...string) string { return strings.Join(l, "\n") }
	s := &shelf{seek: "file"}
	srv := serveShelf(t, s)
	for _, tc := range []struct {
		path, header string // header: name=value
		status       int
		headers      string
		body         string // "-": not compared
	}{
		{"/example.com/!m/@v/v1.0.0.info", "", 200, lines(forever, "Content-Type: application/json", "Content-Length: 20", etag(20), since), `{"Version":"v1.0.0"}`},
		{"/example.com/%21m/@v/v1.0.0.info", "", 200, lines(forever, "Content-Type: application/json", "Content-Length: 20", etag(20), since), `{"Version":"v1.0.0"}`},
		{"/example.com/!m/@v/v1.0.0.mod", "", 200, lines(forever, text, "Content-Length: 21", etag(21), since), "module example.com/M\n"},
		{"/example.com/!m/@v/v1.0.0.zip", "", 200, lines(forever, "Content-Type: application/zip", "Content-Length: 20", etag(20), since), zipText},
		{"/example.com/!m/@v/list", "", 200, lines(minute, text, "Content-Length: 7", checked), "v1.0.0\n"},
		{"/example.com/untagged/@v/list", "", 200, lines(minute, text, "Content-Length: 0", checked), ""},
		{"/example.com/stale/@v/list", "", 200, lines(minute, text, "Content-Length: 7", checked, "Athensctl-Stale: true"), "v1.0.0\n"},
		{"/example.com/!m/@latest", "", 200, lines(minute, "Content-Type: application/json", "Content-Length: 20", checked), `{"Version":"v1.0.0"}`},
		{"/example.com/!m/@v/main.info", "", 200, lines(minute, "Content-Type: application/json", "Content-Length: 20", checked), `{"Version":"v1.0.0"}`},
		// What changes and was not allowed to be fetched is of no use to others; what never changes is.
		{"/example.com/!m/@v/list", noFetch + "=true", 200, lines(never, text, "Content-Length: 7", checked), "v1.0.0\n"},
		{"/cached-only/example.com/!m/@v/list", "", 200, lines(never, text, "Content-Length: 7", checked), "v1.0.0\n"},
		{"/cached-only/example.com/!m/@v/v1.0.0.mod", "", 200, lines(forever, text, "Content-Length: 21", etag(21), since), "module example.com/M\n"},
		{"/cached-only/example.com/absent/@v/list", "", 404, lines(never, text, "Content-Length: 46"), "-"},
		{"/example.com/absent/@v/list", noFetch + "=true", 404, lines(never, text, "Content-Length: 46"), "-"},
		{"/example.com/absent/@v/list", "", 404, lines(minute, text, "Content-Length: 46"), "not found: example.com/absent: no such module"},
		{"/example.com/gone/@v/list", "", 410, lines(minute, text, "Content-Length: 5"), "gone"},
		{"/example.com/fetching/@v/list", "", 404, lines(never, text, "Content-Length: 53"), "not found: example.com/fetching: still being fetched"},
		{"/example.com/forbidden/@v/list", "", 403, lines(never, text, "Content-Length: 12"), "not allowed"},
		{"/example.com/busy/@v/list", "", 503, lines(never, text, "Content-Length: 5", "Retry-After: 2"), "busy"},
		{"/example.com/broken/@v/list", "", 502, lines(never, text, "Content-Length: 15"), "upstream broke"},
		{"/example.com/plain/@v/list", "", 500, lines(never, text, "Content-Length: 15"), "unexpected EOF"},
		{"/example.com/late/@v/list", "", 504, lines(never, text, "Content-Length: 32"), "list: context deadline exceeded"},
		{"/example.com/M/@v/list", "", 400, "-", "-"},
		// Conditional requests.
		{"/example.com/!m/@v/v1.0.0.info", "If-None-Match=" + ETag(20, kept), 304, lines(forever, etag(20), since), ""},
		{"/example.com/!m/@v/v1.0.0.zip", `If-None-Match="x", W/` + ETag(20, kept), 304, lines(forever, etag(20), since), ""},
		{"/example.com/!m/@v/v1.0.0.mod", "If-None-Match=*", 304, lines(forever, etag(21), since), ""},
		{"/example.com/!m/@v/v1.0.0.mod", `If-None-Match="other"`, 200, "-", "module example.com/M\n"},
		{"/example.com/!m/@v/v1.0.0.mod", "If-Modified-Since=Fri, 02 Jan 2026 03:04:05 GMT", 304, lines(forever, etag(21), since), ""},
		{"/example.com/!m/@v/v1.0.0.mod", "If-Modified-Since=Fri, 02 Jan 2026 03:04:04 GMT", 200, "-", "module example.com/M\n"},
		{"/example.com/!m/@v/v1.0.0.mod", "If-Modified-Since=yesterday", 200, "-", "module example.com/M\n"},
	} {
		var header []string
		if name, value, ok := strings.Cut(tc.header, "="); ok {
			header = []string{name, value}
		}
		status, headers, body := answer(t, srv, "GET", tc.path, header...)
		if status != tc.status || tc.headers != "-" && headers != tc.headers || tc.body != "-" && strings.TrimSuffix(body, "\n") != strings.TrimSuffix(tc.body, "\n") {
			t.Errorf("GET %s %s: %d %q\n%s\nwant %d %q\n%s", tc.path, tc.header, status, body, headers, tc.status, tc.body, tc.headers)
		}
		if want := strings.Contains(tc.path, "cached-only") || strings.Contains(tc.header, noFetch); strings.HasSuffix(tc.path, "/list") && status != 400 && s.noFetch != want {
			t.Errorf("GET %s %s: NoFetch %v, want %v", tc.path, tc.header, s.noFetch, want)
		}
		// HEAD is GET without the body.
		headStatus, headHeaders, headBody := answer(t, srv, "HEAD", tc.path, header...)
		if headStatus != status || headHeaders != headers || headBody != "" {
			t.Errorf("HEAD %s %s: %d %q\n%s\nGET had %d\n%s", tc.path, tc.header, headStatus, headBody, headHeaders, status, headers)
		}
	}
	if status, headers, _ := answer(t, srv, "POST", "/example.com/!m/@v/list"); status != 405 || !strings.Contains(headers, "Allow: GET, HEAD") {
		t.Errorf("POST: %d %s", status, headers)
	}
}

// Ranges are the same of a file, of memory and of a stream.
func TestRanges(t *testing.T) {
	for _, seek := range []string{"file", "memory", "stream"} {
		srv := serveShelf(t, &shelf{seek: seek})
		for _, tc := range []struct {
			spec, ifRange string
			status        int
			contentRange  string
			body          string
		}{
			{"bytes=0-3", "", 206, "bytes 0-3/20", "0123"},
			{"bytes=4-7", "", 206, "bytes 4-7/20", "4567"},
			{"bytes=16-8388607", "", 206, "bytes 16-19/20", "ghij"},
			{"bytes=16-", "", 206, "bytes 16-19/20", "ghij"},
			{"bytes=-4", "", 206, "bytes 16-19/20", "ghij"},
			{"bytes=-400", "", 206, "bytes 0-19/20", zipText},
			{"bytes=19-19", "", 206, "bytes 19-19/20", "j"},
			{"bytes=0-3", ETag(20, kept), 206, "bytes 0-3/20", "0123"},
			{"bytes=0-3", `"other"`, 200, "", zipText},
			{"bytes=0-3", "Fri, 02 Jan 2026 03:04:05 GMT", 206, "bytes 0-3/20", "0123"},
			{"bytes=0-3", "Fri, 02 Jan 2026 03:04:06 GMT", 200, "", zipText},
			{"items=0-3", "", 200, "", zipText}, // RFC 9110, 14.2: a unit that is not known is ignored
			{"bytes=-0", "", 200, "", zipText},
			{"bytes=3-0", "", 0, "", ""},
			{"bytes=x-", "", 0, "", ""},
			{"bytes=20-", "", 416, "bytes */20", ""},
		} {
			header := []string{"Range", tc.spec}
			if tc.ifRange != "" {
				header = append(header, "If-Range", tc.ifRange)
			}
			for _, method := range []string{"GET", "HEAD"} {
				status, headers, body := answer(t, srv, method, "/example.com/!m/@v/v1.0.0.zip", header...)
				contentRange := ""
				for line := range strings.SplitSeq(headers, "\n") {
					if v, ok := strings.CutPrefix(line, "Content-Range: "); ok {
						contentRange = v
					}
				}
				want := tc.body
				if method == "HEAD" {
					want = ""
				}
				switch {
				case tc.status == 0: // no range: refused, or the whole
					if status != 416 && !(status == 200 && contentRange == "") {
						t.Errorf("%s of a %s, %s: %d %s", method, seek, tc.spec, status, contentRange)
					}
				case status != tc.status || contentRange != tc.contentRange || tc.status < 300 && body != want:
					t.Errorf("%s of a %s, %s, If-Range %s: %d, Content-Range %q, %q; want %d, %q, %q", method, seek, tc.spec, tc.ifRange, status, contentRange, body, tc.status, tc.contentRange, want)
				}
				if tc.status == 416 && !strings.Contains(headers, "Cache-Control: no-store") {
					t.Errorf("%s of a %s, %s: a refusal that may be kept: %s", method, seek, tc.spec, headers)
				}
				if tc.status == 206 && !strings.Contains(headers, fmt.Sprintf("Content-Length: %d", len(tc.body))) {
					t.Errorf("%s of a %s, %s: %s", method, seek, tc.spec, headers)
				}
			}
		}
		for _, spec := range []string{"bytes=0-3", "bytes=-4"} { // of nothing
			if status, headers, body := answer(t, srv, "GET", "/example.com/untagged/@v/list", "Range", spec); status != 200 || body != "" || strings.Contains(headers, "Content-Range") {
				t.Errorf("an empty list, %s: %d %q %s", spec, status, body, headers)
			}
		}
	}
}

// cutOff breaks after some bytes.
type cutOff struct {
	shelf
	broken error
}

func (s *cutOff) Zip(context.Context, module.Version) (*Blob, error) {
	return &Blob{ReadCloser: io.NopCloser(io.MultiReader(strings.NewReader(zipText[:10]), failing{s.broken})), SizeBytes: int64(len(zipText)), ModTime: kept}, nil
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// A stream that breaks, or ends early, cuts the connection: no client takes half a
// file for the whole.
func TestCutStream(t *testing.T) {
	for _, broken := range []error{io.ErrUnexpectedEOF, io.EOF} {
		e := echo.New()
		e.HTTPErrorHandler = ErrorHandler
		e.Any("/*", Handler(&cutOff{broken: broken}))
		srv := httptest.NewServer(e)
		resp, err := http.Get(srv.URL + "/example.com/!m/@v/v1.0.0.zip")
		if err == nil {
			var b []byte
			b, err = io.ReadAll(resp.Body)
			resp.Body.Close()
			if err == nil {
				t.Errorf("%v: the client got %q and no error", broken, b)
			}
		}
		srv.Close()
	}
}

// A user in a base URL, which may be a token, is sent, and is in no message.
func TestClientUser(t *testing.T) {
	var auth string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		auth, _, _ = r.BasicAuth()
		w.WriteHeader(http.StatusTeapot)
	}))
	base, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	base.User = url.User("s3cr3t")
	c := &Client{Base: base, HTTP: srv.Client()}
	for _, what := range []string{"status", "no answer"} {
		_, err := c.Mod(t.Context(), module.Version{Path: "example.com/m", Version: "v1.0.0"})
		if err == nil || strings.Contains(err.Error(), "s3cr3t") || auth != "s3cr3t" {
			t.Errorf("%s: sent %q, and said %v", what, auth, err)
		}
		srv.Close()
	}
	// What a path may have is encoded.
	var asked string
	srv = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked = r.URL.Path }))
	defer srv.Close()
	c.Base, err = url.Parse(srv.URL + "/base/")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Resolve(t.Context(), "example.com/m", "a%b#c"); err == nil || asked != "/base/example.com/m/@v/a%b#c.info" {
		t.Errorf("asked for %q: %v", asked, err)
	}
}
