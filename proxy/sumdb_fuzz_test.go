package proxy

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/labstack/echo/v4"
	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage/memory"
)

// FuzzSumDBPath: whatever is asked below /sumdb/, nothing is handed on but what belongs to the
// database of that name, and no lookup of a private module in any spelling.
func FuzzSumDBPath(f *testing.F) {
	const private = "corp.example.com"
	for _, target := range []string{
		"/sumdb/sum.example.com/supported", "/sumdb/sum.example.com/latest", "/sumdb/sum.example.com/lookup/example.com/!m@v1.0.0", "/sumdb/sum.example.com/tile/8/0/000",
		"/sumdb/sum.example.com/lookup/corp.example.com/m@v1.0.0", "/sumdb/sum.example.com/lookup/corp.example.com@v1", "/sumdb/sum.example.com/lookup//corp.example.com/m@v1.0.0",
		"/sumdb/sum.example.com/lookup/./corp.example.com/m@v1.0.0", "/sumdb/sum.example.com/tile/../lookup/corp.example.com/m@v1.0.0", "/sumdb/sum.example.com/tile/%2e%2e/lookup/corp.example.com/m@v1.0.0",
		"/sumdb/sum.example.com//lookup/corp.example.com/m@v1.0.0", "/sumdb/sum.example.com/lookup/corp%2Eexample.com/m@v1.0.0", "/sumdb/sum.example.com/lookup/corp.example.com%2Fm@v1.0.0",
		"/sumdb/sum.example.com/lookup/!corp.example.com/m@v1.0.0", "/sumdb/other.example.com/latest", "/sumdb/../sum.example.com/latest", "/sumdb/", "/sumdb//latest", "/sumdb/sum.example.com", "/sumdb/SUM.example.com/latest",
		"/cached-only/sumdb/sum.example.com/latest", "/sumdb/sum.example.com/tile/", "/sumdb/sum.example.com/tile/8/0/000?x=../lookup/corp.example.com/m@v1", "/sumdb/sum.example.com/lookup/example.com/m@v1.0.0@corp.example.com/m@v1",
	} {
		f.Add(target)
	}
	store := memory.New(0, nil)
	p, err := New(store, store, nil, Options{
		Mode: Fallback, FetchTimeout: time.Minute, FetchTimeoutStatus: 504, MaxWaiting: 20, CacheDir: f.TempDir(), CacheBytes: 1 << 20, MemoryBytes: 1 << 20,
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { p.Close() })
	f.Fuzz(func(t *testing.T, target string) {
		u, err := url.ParseRequestURI(target)
		if err != nil || !strings.HasPrefix(target, "/") || u.Host != "" {
			return
		}
		asked := ""
		e := echo.New()
		e.HTTPErrorHandler = goproxy.ErrorHandler
		e.Any("/*", p.ServeSumDB(&SumDB{
			Name:    "sum.example.com",
			Private: func(path string) bool { return module.MatchPrefixPatterns(private, path) },
			Get: func(_ context.Context, path string) ([]byte, error) {
				asked = path
				return nil, goproxy.NotFound("not there")
			},
		}))
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.URL, r.RequestURI = u, target
		w := httptest.NewRecorder()
		e.ServeHTTP(w, r)
		switch w.Code {
		case 200, 400, 403, 404:
		default:
			t.Errorf("%q: %d %s", target, w.Code, w.Body)
		}
		if asked == "" {
			return
		}
		switch {
		case asked == "/latest":
		case strings.HasPrefix(asked, "/tile/"):
			if !strings.HasPrefix(path.Clean(asked)+"/", "/tile/") {
				t.Errorf("%q asks the database for %q", target, asked)
			}
		default:
			modPath, _, err := lookup(asked)
			if err != nil || module.MatchPrefixPatterns(private, modPath) {
				t.Errorf("%q asks the database for %q: %v", target, asked, err)
			}
		}
		if !strings.HasPrefix(strings.TrimPrefix(u.Path, "/cached-only"), "/sumdb/sum.example.com/") {
			t.Errorf("%q, of another database, is handed on as %q", target, asked)
		}
	})
}
