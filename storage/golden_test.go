package storage_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/memory"
	"github.com/athensctl/athensctl/storage/storagetest"
)

// wire is a storage server as a client sees it that is none of ours.
type wire struct {
	t    *testing.T
	addr string
}

// newWire has a store whose clock goes on by a second at each look, from 2026-01-02T03:04:06Z.
func newWire(t *testing.T) (wire, storage.Store) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	store := memory.New(0, func() time.Time { now = now.Add(time.Second); return now })
	e := echo.New()
	e.HTTPErrorHandler = goproxy.ErrorHandler
	e.Any("/*", (&storage.Server{Store: store, Ledger: store, TempDir: t.TempDir()}).Handler())
	srv := httptest.NewServer(e)
	t.Cleanup(srv.Close)
	return wire{t, srv.Listener.Addr().String()}, store
}

// send writes a request as it stands here, line by line, and returns the answer.
func (w wire) send(lines ...string) (*http.Response, string) {
	w.t.Helper()
	conn, err := net.Dial("tcp", w.addr)
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	io.WriteString(conn, strings.Join(lines, "\r\n"))
	method, _, _ := strings.Cut(lines[0], " ")
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		w.t.Fatalf("%s: %v", lines[0], err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatalf("%s: %v", lines[0], err)
	}
	return resp, string(body)
}

func (w wire) get(target string) (*http.Response, string) {
	w.t.Helper()
	return w.send("GET "+target+" HTTP/1.1", "Host: x", "", "")
}

func (w wire) want(target string, status int, body string) {
	w.t.Helper()
	resp, got := w.get(target)
	if resp.StatusCode != status || got != body {
		w.t.Errorf("GET %s: %d %q, want %d %q", target, resp.StatusCode, got, status, body)
	}
}

// The catalog to the letter.
func TestCatalogGolden(t *testing.T) {
	w, store := newWire(t)
	w.want("/catalog", 200, `{"modules":[]}`+"\n")
	for _, v := range []storagetest.Version{
		storagetest.New("github.com/Azure/m", "v1.0.0-RC1", ""), storagetest.New("example.com/m", "v1.0.0", ""), storagetest.New("example.com/m", "v1.10.0", ""),
	} {
		if err := store.Put(t.Context(), v.Version, v.Files()); err != nil {
			t.Fatal(err)
		}
	}
	const first, second, third = `{"module":"example.com/m","version":"v1.0.0"}`, `{"module":"example.com/m","version":"v1.10.0"}`, `{"module":"github.com/Azure/m","version":"v1.0.0-RC1"}`
	for _, target := range []string{"/catalog", "/catalog?", "/catalog?token=", "/catalog?token=&pagesize=", "/catalog?pagesize=3", "/catalog?pagesize=1000000"} {
		w.want(target, 200, `{"modules":[`+first+","+second+","+third+"]}\n")
	}
	resp, body := w.get("/catalog?pagesize=2")
	var page struct{ Next string }
	if err := json.Unmarshal([]byte(body), &page); err != nil || page.Next == "" || body != `{"modules":[`+first+","+second+`],"next":"`+page.Next+"\"}\n" {
		t.Errorf("a page of two: %s, %v", body, err)
	}
	if got := resp.Header.Get("Content-Type") + ", " + resp.Header.Get("Cache-Control"); got != "application/json, no-store" {
		t.Errorf("headers: %s", got)
	}
	w.want("/catalog?token="+page.Next+"&pagesize=2", 200, `{"modules":[`+third+"]}\n")
	for _, bad := range []string{"pagesize=0", "pagesize=-1", "pagesize=x", "pagesize=1.5", "pagesize=99999999999999999999", "token=%21", "token=no+token"} {
		if resp, body := w.get("/catalog?" + bad); resp.StatusCode != 400 || !strings.HasPrefix(body, "bad request: ") || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") {
			t.Errorf("%s: %d %s", bad, resp.StatusCode, body)
		}
	}
}

// The index to the letter: what a follower of index.golang.org gets.
func TestIndexGolden(t *testing.T) {
	w, store := newWire(t)
	w.want("/index", 200, "")
	for _, version := range []string{"v1.2.0", "v1.0.0", "v1.1.0-RC1"} {
		v := storagetest.New("github.com/Azure/m", version, "")
		if err := store.Put(t.Context(), v.Version, v.Files()); err != nil {
			t.Fatal(err)
		}
	}
	_, whole := w.get("/index")
	lines := strings.SplitAfter(whole, "\n")
	var at []string
	for i, version := range []string{"v1.2.0", "v1.0.0", "v1.1.0-RC1"} {
		var e storage.IndexEntry
		if err := json.Unmarshal([]byte(lines[i]), &e); err != nil {
			t.Fatalf("line %d of %q: %v", i, whole, err)
		}
		at = append(at, e.Timestamp.Format(time.RFC3339Nano))
		if want := fmt.Sprintf(`{"Path":"github.com/Azure/m","Version":%q,"Timestamp":%q}`+"\n", version, at[i]); lines[i] != want || !strings.HasSuffix(at[i], "Z") {
			t.Errorf("line %d: %q, want %q", i, lines[i], want)
		}
	}
	if len(lines) != 4 || lines[3] != "" {
		t.Errorf("index: %q", whole)
	}
	for target, want := range map[string]string{
		"/index?since=":                            whole,
		"/index?since=&limit=":                     whole,
		"/index?limit=1":                           lines[0],
		"/index?since=" + at[0]:                    whole, // inclusive
		"/index?since=" + at[1]:                    lines[1] + lines[2],
		"/index?since=" + at[1] + "&limit=1":       lines[1],
		"/index?since=" + at[2]:                    lines[2],
		"/index?since=2026-01-02T00:00:00%2b01:00": whole,
		"/index?since=2100-01-01T00:00:00Z":        "",
	} {
		w.want(target, 200, want)
	}
	for _, bad := range []string{"limit=0", "limit=-5", "limit=many", "since=yesterday", "since=2026-01-02", "since=1767323045"} {
		if resp, body := w.get("/index?" + bad); resp.StatusCode != 400 || !strings.HasPrefix(body, "bad request: ") {
			t.Errorf("%s: %d %s", bad, resp.StatusCode, body)
		}
	}
}

// Pages have 1000 and 2000 entries where nobody says how many.
func TestPagesGolden(t *testing.T) {
	w, store := newWire(t)
	const n = 2001
	for i := range n {
		v := storagetest.New(fmt.Sprintf("example.com/m%d", i%100), fmt.Sprintf("v1.%d.0", i), "")
		if err := store.Put(t.Context(), v.Version, v.Files()); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]int{}
	var sizes []int
	for token := ""; ; {
		_, body := w.get("/catalog?token=" + token)
		var page struct {
			Modules []struct{ Module, Version string }
			Next    *string
		}
		if err := json.Unmarshal([]byte(body), &page); err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, len(page.Modules))
		for _, m := range page.Modules {
			seen[m.Module+"@"+m.Version]++
		}
		if page.Next == nil {
			break
		}
		if token = *page.Next; token == "" || len(sizes) > 5 {
			t.Fatalf("pages of %v, and an empty token", sizes)
		}
	}
	if fmt.Sprint(sizes) != "[1000 1000 1]" || len(seen) != n {
		t.Errorf("catalog: pages of %v with %d pairs, want [1000 1000 1] with %d", sizes, len(seen), n)
	}
	_, body := w.get("/index")
	if lines := strings.Count(body, "\n"); lines != 2000 {
		t.Errorf("the index has %d lines, want 2000", lines)
	}
}

// Athens' client as it writes: a save streamed without a length, versions that are not
// encoded, paths that are.
func TestAthensGolden(t *testing.T) {
	w, _ := newWire(t)
	v := storagetest.New("github.com/Azure/m", "v1.0.0-RC1", "")
	var form bytes.Buffer
	for _, part := range []struct {
		name    string
		content []byte
	}{{"mod.info", v.Info}, {"mod.mod", v.Mod}, {"mod.zip", v.Zip}} {
		fmt.Fprintf(&form, "--b0undary\r\nContent-Disposition: form-data; name=%q; filename=%[1]q\r\nContent-Type: application/octet-stream\r\n\r\n%s\r\n", part.name, part.content)
	}
	form.WriteString("--b0undary--\r\n")
	var chunks bytes.Buffer
	for part := form.Bytes(); len(part) > 0; {
		n := min(len(part), 100)
		fmt.Fprintf(&chunks, "%x\r\n%s\r\n", n, part[:n])
		part = part[n:]
	}
	chunks.WriteString("0\r\n\r\n")
	save := []string{"POST /github.com/!azure/m/@v/v1.0.0-RC1.save HTTP/1.1", "Host: x", "User-Agent: Go-http-client/1.1", "Transfer-Encoding: chunked",
		"Content-Type: multipart/form-data; boundary=b0undary", "Accept-Encoding: gzip", "", chunks.String()}
	w.want("/github.com/!azure/m/@v/list", 200, "") // unknown: empty
	for range 2 {
		if resp, body := w.send(save...); resp.StatusCode != 200 || body != "" {
			t.Errorf("save: %d %q", resp.StatusCode, body)
		}
	}
	w.want("/github.com/!azure/m/@v/list", 200, "v1.0.0-RC1\n")
	w.want("/github.com/azure/m/@v/list", 200, "")
	for _, version := range []string{"v1.0.0-RC1", "v1.0.0-!r!c1", "v1.0.0-%21r%21c1"} {
		for ext, want := range map[string][]byte{"info": v.Info, "mod": v.Mod, "zip": v.Zip} {
			target := "/github.com/!azure/m/@v/" + version + "." + ext
			w.want(target, 200, string(want))
			for _, method := range []string{"GET", "HEAD"} {
				resp, _ := w.send(method+" "+target+" HTTP/1.1", "Host: x", "", "")
				if resp.StatusCode != 200 || resp.ContentLength != int64(len(want)) {
					t.Errorf("%s %s: %d, length %d, want %d", method, target, resp.StatusCode, resp.ContentLength, len(want))
				}
			}
		}
	}
	if resp, body := w.get("/github.com/!azure/m/@v/v1.0.0-rc1.info"); resp.StatusCode != 404 || !strings.HasPrefix(body, "not found: ") {
		t.Errorf("another case of the version: %d %s", resp.StatusCode, body)
	}
	if resp, _ := w.get("/toolchains/v1"); resp.StatusCode != 404 {
		t.Errorf("toolchains: %d", resp.StatusCode)
	}
	for _, status := range []int{200, 404} {
		resp, body := w.send("DELETE /github.com/!azure/m/@v/v1.0.0-RC1.delete HTTP/1.1", "Host: x", "", "")
		if resp.StatusCode != status || status == 200 && body != "" {
			t.Errorf("delete: %d %q, want %d", resp.StatusCode, body, status)
		}
	}
	w.want("/github.com/!azure/m/@v/list", 200, "")
	w.want("/catalog", 200, `{"modules":[]}`+"\n")
	for _, request := range []string{"POST /catalog", "PUT /index", "DELETE /catalog"} {
		if resp, body := w.send(request+" HTTP/1.1", "Host: x", "Content-Length: 0", "", ""); resp.StatusCode < 400 || resp.StatusCode >= 500 {
			t.Errorf("%s: %d %s", request, resp.StatusCode, body)
		}
	}
}
