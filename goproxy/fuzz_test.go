package goproxy

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"path"
	"strconv"
	"strings"
	"testing"

	"github.com/labstack/echo/v4"
	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"
)

// FuzzRange: whatever Range and If-Range say, a body that cannot seek is answered as
// http.ServeContent answers one that can, or with the whole of it.
func FuzzRange(f *testing.F) {
	for _, spec := range []string{
		"", "bytes=0-4", "bytes=5-", "bytes=-3", "bytes=19-", "bytes=20-", "bytes=25-30", "bytes=0-100", "bytes=-100", "bytes=-0", "bytes=3-2", "bytes=0-0,2-3",
		"bytes= 1-2", "bytes=1 -2", "bytes=--1", "bytes=+1-2", "bytes=-+2", "bytes=9223372036854775807-", "bytes=99999999999999999999-", "bytes=-9223372036854775808",
		"bytes=0x1-2", "items=1-2", "bytes=", "bytes=-", "bytes=1", "Bytes=1-2",
	} {
		f.Add(spec, "", 20)
		f.Add(spec, `"other"`, 20)
	}
	f.Add("bytes=0-4", "", 0)
	f.Add("bytes=-1", `"e"`, 1)
	f.Fuzz(func(t *testing.T, spec, ifRange string, size int) {
		if size < 0 || size > 1000 {
			return
		}
		content := make([]byte, size)
		for i := range content {
			content[i] = byte(i)
		}
		ask := func(blob *Blob) (w *httptest.ResponseRecorder) {
			e := echo.New()
			e.HTTPErrorHandler = ErrorHandler
			e.GET("/", func(c echo.Context) error {
				c.Response().Header().Set("Etag", `"e"`)
				return writeBlob(c, blob)
			})
			w = httptest.NewRecorder()
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			r.Header["Range"], r.Header["If-Range"] = []string{spec}, []string{ifRange}
			e.ServeHTTP(w, r)
			return w
		}
		stream := ask(&Blob{ReadCloser: io.NopCloser(io.MultiReader(bytes.NewReader(content))), SizeBytes: int64(size)})
		seeks := ask(NewBlob(content, kept))
		sent := stream.Body.Bytes()
		length := stream.Header().Get("Content-Length")
		switch stream.Code {
		case 200:
			if !bytes.Equal(sent, content) || length != strconv.Itoa(size) || stream.Header().Get("Content-Range") != "" {
				t.Errorf("%q of %d bytes: 200, %d bytes, length %s", spec, size, len(sent), length)
			}
		case 206:
			if seeks.Code != 206 || !bytes.Equal(sent, seeks.Body.Bytes()) || stream.Header().Get("Content-Range") != seeks.Header().Get("Content-Range") || length != strconv.Itoa(len(sent)) {
				t.Errorf("%q of %d bytes: %s, %d bytes, length %s; ServeContent: %d, %s", spec, size, stream.Header().Get("Content-Range"), len(sent), length, seeks.Code, seeks.Header().Get("Content-Range"))
			}
		case 416:
			if seeks.Code != 416 || stream.Header().Get("Content-Range") != "bytes */"+strconv.Itoa(size) {
				t.Errorf("%q of %d bytes: 416, %s; ServeContent: %d", spec, size, stream.Header().Get("Content-Range"), seeks.Code)
			}
		default:
			t.Errorf("%q of %d bytes: %d", spec, size, stream.Code)
		}
	})
}

// FuzzCheckSumDB: what is taken for a path of a checksum database is one, in its only
// spelling, and an answer that passes is of the kind that the path says.
func FuzzCheckSumDB(f *testing.F) {
	const record = "5\nexample.com/M v1.0.0 h1:x\nexample.com/M v1.0.0/go.mod h1:y\n\nsum.example.com\n10\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n— sum.example.com AAAAAA==\n"
	for _, p := range []string{
		"/latest", "/latest/", "/supported", "/lookup/example.com/!m@v1.0.0", "/lookup/example.com/M@v1.0.0", "/lookup/example.com/m", "/lookup/@", "/lookup/../latest@v1",
		"/tile/8/0/000", "/tile/8/0/x001/234", "/tile/8/0/000.p/3", "/tile/8/data/000", "/tile/8/data/000.p/1", "/tile/8/0/0", "/tile/8/0/../0/000", "/tile/99/0/000", "/tile/8/0/000.p/300",
		"/tile/8//000", "tile/8/0/000", "//latest", "", "/",
	} {
		for _, answer := range []string{"", record, strings.Repeat("x", 96), "1\nexample.com/M v1.0.0 h1:x\n\n", "<html>"} {
			f.Add(p, []byte(answer))
		}
	}
	f.Fuzz(func(t *testing.T, p string, answer []byte) {
		err := CheckSumDB(p, answer, nil)
		if errors.Is(err, fs.ErrNotExist) {
			if Status(err) != 404 {
				t.Errorf("%q: %v", p, err)
			}
			return
		}
		if path.Clean(p) != p || strings.ContainsAny(p, "\\?#%\x00\r\n") {
			t.Errorf("%q is taken for a path: %v", p, err)
		}
		rest, isLookup := strings.CutPrefix(p, "/lookup/")
		switch {
		case p == "/latest":
		case isLookup:
			escPath, escVersion, _ := strings.Cut(rest, "@")
			modPath, err1 := module.UnescapePath(escPath)
			version, err2 := module.UnescapeVersion(escVersion)
			again, err3 := module.EscapePath(modPath)
			if err1 != nil || err2 != nil || err3 != nil || again != escPath {
				t.Errorf("%q is taken for a lookup", p)
			}
			if err == nil && !bytes.Contains(answer, []byte(modPath+" "+version+" ")) {
				t.Errorf("%q: a record of something else passes: %q", p, answer)
			}
		default:
			tile, perr := tlog.ParseTilePath(strings.TrimPrefix(p, "/"))
			if perr != nil || "/"+tile.Path() != p {
				t.Errorf("%q is taken for a tile: %v", p, perr)
			}
			if err == nil && tile.L >= 0 && len(answer) != tile.W*tlog.HashSize {
				t.Errorf("%q: a tile of %d bytes passes", p, len(answer))
			}
		}
	})
}
