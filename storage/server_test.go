package storage_test

import (
	"bytes"
	"context"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/labstack/echo/v4"
	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/memory"
	"github.com/athensctl/athensctl/storage/storagetest"
)

// form is a multipart form with the boundary "b" of names and contents.
func form(parts ...string) []byte {
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	w.SetBoundary("b")
	for i := 0; i < len(parts); i += 2 {
		p, _ := w.CreateFormFile(parts[i], parts[i])
		io.WriteString(p, parts[i+1])
	}
	w.Close()
	return b.Bytes()
}

// save posts a form to a server over the store.
func save(t *testing.T, store storage.Store, tempDir string, body []byte, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	e := echo.New()
	e.HTTPErrorHandler = goproxy.ErrorHandler
	e.Any("/*", (&storage.Server{Store: store, TempDir: tempDir, MaxBodyBytes: 32 << 20}).Handler())
	req := httptest.NewRequest(http.MethodPost, "/example.com/m/@v/v1.0.0.save", bytes.NewReader(body))
	req.Header.Set("Content-Type", `multipart/form-data; boundary=b`)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	e.ServeHTTP(w, req)
	return w
}

// The files of a version fit each other, in whatever order and forms they come.
func TestSaveInParts(t *testing.T) {
	v := storagetest.New("example.com/m", "v1.0.0", "")
	info, mod, zip := form("mod.info", string(v.Info)), form("mod.mod", string(v.Mod)), form("mod.zip", string(v.Zip))
	other := form("mod.mod", "module example.com/m\n\nrequire example.com/evil v1.0.0\n")
	for name, saves := range map[string][]struct {
		form   []byte
		status int
	}{
		"the zip, another go.mod, the .info": {{zip, 200}, {other, 409}, {info, 200}},
		"another go.mod, the zip":            {{other, 200}, {zip, 409}, {info, 200}},
		"one by one":                         {{info, 200}, {mod, 200}, {zip, 200}},
		"one by one, backwards":              {{zip, 200}, {mod, 200}, {info, 200}},
	} {
		store := memory.New(0, nil)
		for i, s := range saves {
			if w := save(t, store, t.TempDir(), s.form); w.Code != s.status {
				t.Errorf("%s: save %d: %d %s, want %d", name, i, w.Code, w.Body, s.status)
			}
		}
		list, err := store.List(t.Context(), v.Version.Path)
		if err != nil {
			t.Fatal(err)
		}
		_, err = store.Zip(t.Context(), v.Version)
		if zipKept := err == nil; zipKept != (len(list.Versions) == 1) {
			t.Errorf("%s: zip kept: %t, versions %q", name, zipKept, list.Versions)
		}
		if len(list.Versions) == 0 {
			continue
		}
		b, err := store.Mod(t.Context(), v.Version)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := b.ReadAll(goproxy.MaxModBytes); err != nil || !bytes.Equal(got, v.Mod) {
			t.Errorf("%s: go.mod %q, %v; that in the zip is %q", name, got, err, v.Mod)
		}
	}
}

// busyStore is one that is too busy to keep anything.
type busyStore struct{ *memory.Store }

func (busyStore) Put(context.Context, module.Version, storage.Files) error {
	return goproxy.Busy(7*time.Second, "the database is busy")
}

// Who is to blame for a save that failed is told apart: its sender, or this server.
func TestSaveStatus(t *testing.T) {
	v := storagetest.New("example.com/m", "v1.0.0", "")
	whole := form("mod.info", string(v.Info), "mod.mod", string(v.Mod), "mod.zip", string(v.Zip))
	const h1 = "h1:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
	large := strings.Repeat("a", 16<<20+1)
	kept := memory.New(0, nil)
	for _, tc := range []struct {
		name    string
		store   storage.Store
		tempDir string
		body    []byte
		zipH1   string
		status  int
		says    string
	}{
		{"a .mod that is too large", kept, t.TempDir(), form("mod.mod", large), "", 413, `save example.com/m@v1.0.0: "mod.mod": larger than 16777216 bytes`},
		{"a body that is too large", kept, t.TempDir(), form("mod.zip", large+large), "", 413, "the body is larger than 33554432 bytes"},
		{"no folder for it", kept, filepath.Join(t.TempDir(), "gone"), whole, "", 500, "save"},
		{"a busy database", busyStore{kept}, t.TempDir(), whole, "", 503, "the database is busy"},
		{"a hash that is none", kept, t.TempDir(), whole, "h1:none", 400, `Athensctl-Zip-H1: "h1:none" is not an h1: hash`},
		{"a hash of half its length", kept, t.TempDir(), whole, "h1:47DEQpj8HBSa+/TImW+5JA==", 400, "is not an h1: hash"},
		{"a hash and no go.mod", kept, t.TempDir(), form("mod.zip", string(v.Zip)), h1, 400, "comes with its mod.mod"},
		{"a hash and an empty zip", kept, t.TempDir(), form("mod.mod", string(v.Mod), "mod.zip", ""), h1, 400, "it is empty"},
		{"a hash", memory.New(0, nil), t.TempDir(), whole, h1, 200, ""},
		{"other line ends in the zip", memory.New(0, nil), t.TempDir(), form("mod.mod", strings.ReplaceAll(string(v.Mod), "\n", "\r\n"), "mod.zip", string(v.Zip)), "", 200, ""},
		{"a line more in the zip", kept, t.TempDir(), form("mod.mod", strings.TrimSuffix(string(v.Mod), "\n"), "mod.zip", string(v.Zip)), "", 400, "the go.mod in the zip is not the .mod file"},
	} {
		var header []string
		if tc.zipH1 != "" {
			header = []string{"Athensctl-Zip-H1", tc.zipH1}
		}
		w := save(t, tc.store, tc.tempDir, tc.body, header...)
		if w.Code != tc.status || !strings.Contains(w.Body.String(), tc.says) {
			t.Errorf("%s: %d %s; want %d and %q", tc.name, w.Code, w.Body, tc.status, tc.says)
		}
		if retry := w.Header().Get("Retry-After"); (retry == "7") != (tc.status == 503) {
			t.Errorf("%s: Retry-After %q", tc.name, retry)
		}
	}
	if page, err := kept.Catalog(t.Context(), "", 10); err != nil || len(page.Versions) > 0 {
		t.Errorf("kept of saves that failed: %v, %v", page.Versions, err)
	}
}

// FuzzSave: whatever is posted, the answer is 200 or names what was wrong, and what
// was kept is what a reader may get: whole, checked files.
func FuzzSave(f *testing.F) {
	v := storagetest.New("example.com/m", "v1.0.0", "")
	whole := form("mod.info", string(v.Info), "mod.mod", string(v.Mod), "mod.zip", string(v.Zip))
	for _, seed := range [][]byte{
		whole, whole[:len(whole)/2], form(), form("mod.mod", string(v.Mod)), form("mod.zip", string(v.Zip)), form("mod.zip", "no zip"),
		form("mod.info", `{"Version":"v1.0.1"}`), form("mod.mod", "module other\n", "mod.zip", string(v.Zip)),
		form("mod.mod", "a", "mod.mod", "b"), form("../mod.mod", "a"), []byte("--b\r\n\r\n--b--"), nil,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		store := memory.New(0, nil)
		w := save(t, store, t.TempDir(), body)
		m := module.Version{Path: "example.com/m", Version: "v1.0.0"}
		kept := 0
		if info, err := store.Resolve(t.Context(), m.Path, m.Version); err == nil {
			kept++
			if info.Version != m.Version {
				t.Errorf("kept .info %s", info.JSON())
			}
		}
		var mod []byte
		if b, err := store.Mod(t.Context(), m); err == nil {
			kept++
			if mod, err = b.ReadAll(goproxy.MaxModBytes); err != nil || goproxy.CheckMod(m, mod) != nil {
				t.Errorf("kept .mod %q: %v", mod, err)
			}
		}
		if b, err := store.Zip(t.Context(), m); err == nil {
			kept++
			got, _ := io.ReadAll(b)
			b.Close()
			if !bytes.Equal(got, v.Zip) && !validZip(t, m, got, mod) {
				t.Errorf("kept a zip that is none")
			}
		}
		switch {
		case w.Code == 200 && kept == 0:
			t.Error("200, and nothing was kept")
		case w.Code == 200 || w.Code == 413:
		case w.Code != 400 || !strings.Contains(w.Body.String(), "save example.com/m@v1.0.0: "):
			t.Errorf("%d %s", w.Code, w.Body)
		case kept > 0:
			t.Errorf("%d files were kept of a save that was refused: %s", kept, w.Body)
		}
	})
}

func validZip(t *testing.T, m module.Version, zip, mod []byte) bool {
	t.Helper()
	name := filepath.Join(t.TempDir(), "zip")
	if err := os.WriteFile(name, zip, 0o600); err != nil {
		t.Fatal(err)
	}
	_, zipMod, err := storage.CheckZip(m, name)
	return err == nil && (mod == nil || storage.SameMod(zipMod, mod))
}

// A page of more entries than any server gives takes no memory for them.
func TestClientManyEntries(t *testing.T) {
	page := `{"modules":[` + strings.Repeat("{},", 5_000_000) + `{}]}`
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, page) }))
	defer srv.Close()
	base, _ := url.Parse(srv.URL)
	c := &storage.Client{Client: goproxy.Client{Base: base, HTTP: srv.Client()}}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := c.Catalog(t.Context(), "", 1000)
	runtime.ReadMemStats(&after)
	if err == nil || !strings.Contains(err.Error(), "more than 10000 entries") {
		t.Errorf("%v", err)
	}
	if n := (after.TotalAlloc - before.TotalAlloc) >> 20; n > 100 {
		t.Errorf("%d MiB were allocated", n)
	}
}

// Of an entry of a feed with a name that no module has, the time is left.
func TestClientLongEntry(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for _, path := range []string{"example.com/" + strings.Repeat("x", 30_000), "example.com/m"} {
			io.WriteString(w, `{"Path":"`+path+`","Version":"v1.0.0","Timestamp":"2024-01-02T03:04:05Z"}`+"\n")
		}
	}))
	defer srv.Close()
	base, _ := url.Parse(srv.URL)
	c := &storage.Client{Client: goproxy.Client{Base: base, HTTP: srv.Client()}}
	e, err := c.Index(t.Context(), time.Time{}, 10)
	if err != nil || len(e) != 2 || e[0].Path != "" || e[0].Timestamp.IsZero() || e[1].Path != "example.com/m" {
		t.Errorf("%.300v, %v", e, err)
	}
}

// What upstream has written is not kept whole in each job.
func TestLastErrBounded(t *testing.T) {
	var j storage.Job
	j.Failed(goproxy.Errorf(502, "x%s", strings.Repeat("é", 2000)))
	if n := len(j.LastErr); n > 700 || n < 500 || !utf8.ValidString(j.LastErr) || j.LastStatus != 502 {
		t.Errorf("%d %d bytes: %q", j.LastStatus, n, j.LastErr)
	}
}

// A server that does not end its page is given up.
func TestClientEndlessPage(t *testing.T) {
	entry := `{"module":"example.com/m","version":"v1.0.0"},`
	line := `{"Path":"example.com/m","Version":"v1.0.0","Timestamp":"2024-01-02T03:04:05Z"}` + "\n"
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text := strings.Repeat(line, 1000)
		if r.URL.Path == "/catalog" {
			io.WriteString(w, `{"modules":[`)
			text = strings.Repeat(entry, 1000)
		}
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, text); err != nil {
				return
			}
		}
	}))
	defer srv.Close()
	base, _ := url.Parse(srv.URL)
	c := &storage.Client{Client: goproxy.Client{Base: base, HTTP: srv.Client()}}
	if _, err := c.Catalog(t.Context(), "", 10); err == nil || !strings.Contains(err.Error(), "catalog: ") {
		t.Errorf("catalog: %v", err)
	}
	if _, err := c.Index(t.Context(), time.Time{}, 10); err == nil || !strings.Contains(err.Error(), "index: ") {
		t.Errorf("index: %v", err)
	}
}
