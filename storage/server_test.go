package storage_test

import (
	"bytes"
	"io"
	"mime/multipart"
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

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/memory"
	"github.com/athensctl/athensctl/storage/storagetest"
)

// FuzzSave: whatever is posted, the answer is 200 or names what was wrong, and what
// was kept is what a reader may get: whole, checked files.
func FuzzSave(f *testing.F) {
	v := storagetest.New("example.com/m", "v1.0.0", "")
	form := func(parts ...string) []byte {
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
		e := echo.New()
		e.HTTPErrorHandler = goproxy.ErrorHandler
		e.Any("/*", (&storage.Server{Store: store, Ledger: store, TempDir: t.TempDir(), MaxBodyBytes: 1 << 20}).Handler())
		req := httptest.NewRequest(http.MethodPost, "/example.com/m/@v/v1.0.0.save", bytes.NewReader(body))
		req.Header.Set("Content-Type", `multipart/form-data; boundary=b`)
		w := httptest.NewRecorder()
		e.ServeHTTP(w, req)
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
	_, zipMod, err := goproxy.CheckZip(m, name)
	return err == nil && (mod == nil || bytes.Equal(zipMod, mod))
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
