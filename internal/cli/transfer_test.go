package cli

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/athensctl/athensctl/internal/transfer"
	"github.com/athensctl/athensctl/storage/storagetest"
)

// An Athens, or what it has as external storage, is a catalog of pages, behind a user and password, and
// files: nothing else is asked of it. Source: https://docs.gomods.io/configuration/storage/, "External storage".
func TestImportAthens(t *testing.T) {
	kept := []storagetest.Version{
		storagetest.New("example.com/a", "v1.0.0", ""), storagetest.New("example.com/B", "v1.2.3-Pre", ""),
		storagetest.New("example.com/c", "v0.0.0-20260102030405-0123456789ab", ""),
	}
	files := map[string][]byte{}
	for i, escaped := range []string{"/example.com/a/@v/v1.0.0", "/example.com/!b/@v/v1.2.3-!pre", "/example.com/c/@v/v0.0.0-20260102030405-0123456789ab"} {
		files[escaped+".info"], files[escaped+".mod"], files[escaped+".zip"] = kept[i].Info, kept[i].Mod, kept[i].Zip
	}
	athens := server(t, func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		body, known := files[r.URL.Path]
		switch {
		case user != "u" || password != "p":
			w.WriteHeader(http.StatusUnauthorized)
		case known:
			w.Write(body)
		case r.URL.Path != "/catalog":
			t.Errorf("%s %s is not of Athens", r.Method, r.URL)
			http.NotFound(w, r)
		case r.URL.Query().Get("token") == "":
			fmt.Fprintf(w, `{"modules":[{"module":"example.com/a","version":"v1.0.0"},{"module":"example.com/B","version":"v1.2.3-Pre"}],"next":"example.com/B|v1.2.3-Pre"}`)
		case r.URL.Query().Get("token") == "example.com/B|v1.2.3-Pre":
			fmt.Fprintf(w, `{"modules":[{"module":"example.com/c","version":"v0.0.0-20260102030405-0123456789ab"}],"next":""}`)
		default:
			t.Errorf("the token %q was not given", r.URL.Query().Get("token"))
		}
	})
	dir := t.TempDir()
	for _, want := range []string{"3 versions, 0 were there already, 0 failed", "0 versions, 3 were there already, 0 failed"} {
		var out, errs bytes.Buffer
		status := Main([]string{"import", strings.Replace(athens, "://", "://u:p@", 1), "--data-dir", dir, "--sumdb=off"}, nil, &out, &errs)
		if status != 0 || !strings.Contains(out.String(), want) {
			t.Fatalf("import: %d: %s%s, want %q", status, out.String(), errs.String(), want)
		}
	}
	for name, want := range files {
		if got, err := os.ReadFile(filepath.Join(dir, "modules", filepath.FromSlash(name))); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(want), err)
		}
	}
	var out, errs bytes.Buffer
	if status := Main([]string{"import", athens, "--data-dir", t.TempDir()}, nil, &out, &errs); status == 0 || !strings.Contains(errs.String(), "401") {
		t.Errorf("import without the password: %d %s", status, errs.String())
	}
}

// Progress is a bar on a terminal, and elsewhere a line every ten seconds.
func TestBar(t *testing.T) {
	r := new(transfer.Result)
	r.Done.Store(3)
	r.Skipped.Store(4)
	r.Failed.Store(1)
	r.Bytes.Store(2_500_000)
	var w bytes.Buffer
	b := newBar(&w)
	b.show(r, 20)
	if w.Len() > 0 {
		t.Errorf("at once: %q", w.String())
	}
	for count, want := range map[int]string{20: "8 of 20 versions, 2.5 MB of zips\n", -1: "8 versions, 2.5 MB of zips\n"} {
		w.Reset()
		b.last = time.Now().Add(-time.Minute)
		b.show(r, count)
		b.show(r, count) // not again
		if b.clear(); w.String() != want {
			t.Errorf("of %d: %q, want %q", count, w.String(), want)
		}
	}
	w.Reset()
	b = &bar{w: &w, tty: true}
	b.show(r, 20)
	if got := w.String(); !strings.Contains(got, "versions") || !strings.Contains(got, "8/20") || !strings.Contains(got, "40%") {
		t.Errorf("a terminal shows %q", got)
	}
	w.Reset()
	if b.clear(); !strings.HasPrefix(w.String(), "\r") || strings.Contains(w.String(), "versions") {
		t.Errorf("and then is left with %q", w.String())
	}
}
