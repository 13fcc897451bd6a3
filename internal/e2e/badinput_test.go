//go:build unix

package e2e

import (
	"archive/zip"
	"bufio"
	"bytes"
	"compress/flate"
	enc "encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/internal/testupstream"
	"github.com/athensctl/athensctl/storage/storagetest"
)

// raw sends one request as it is written, and returns status and body.
func raw(t *testing.T, url, method, target, header, body string) (int, string) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\n%s", method, target, header, body)
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	if resp.StatusCode >= 400 && resp.Header.Get("Content-Type") == "application/json" {
		t.Errorf("%s: an error as %s", target, resp.Header.Get("Content-Type"))
	}
	return resp.StatusCode, string(text)
}

// What a proxy answers to requests that are wrong.
func TestBadRequests(t *testing.T) {
	up := testupstream.New(t)
	up.Add("example.com/m", "v1.0.0", 100)
	up.Add("example.com/m/v2", "v2.0.0", 100)
	p := start(t, "--upstream", up.URL, "--data-dir", t.TempDir())
	long := strings.Repeat("a", 4000)
	for _, tc := range []struct {
		method, target string
		status         int
		body           string
	}{
		{"GET", "/example.com/M/@v/list", 400, `malformed module path "example.com/M"`},
		{"GET", "/example.com/!M/@v/list", 400, "malformed module path"},
		{"GET", "/example.com/%21m/@v/list", 404, "example.com/M"},
		{"GET", "/example.com/!/@v/list", 400, "malformed module path"},
		{"GET", "/example.com/!!m/@v/list", 400, "malformed module path"},
		{"GET", "/example.com/!1/@v/list", 400, "malformed module path"},
		{"GET", "/example.com/m/@v/v1.0.0-!r!c1.info", 404, "v1.0.0-RC1"},
		{"GET", "/example.com/m/@v/v1.0.0-!.info", 400, "malformed version"},
		{"GET", "/../etc/passwd", 404, "not a path of the GOPROXY protocol"},
		{"GET", "/../@v/list", 400, "malformed module path"},
		{"GET", "/example.com/../m/@v/list", 400, "malformed module path"},
		{"GET", "/example.com/./m/@v/list", 400, "malformed module path"},
		{"GET", "/example.com//m/@v/list", 400, "malformed module path"},
		{"GET", "//example.com/m/@v/list", 400, "malformed module path"},
		{"GET", "/example.com/%2e%2e/m/@v/list", 400, "malformed module path"},
		{"GET", "/example.com/%2e/@v/list", 400, "malformed module path"},
		{"GET", "/example.com%2Fm/@v/list", 400, "encoded slash"},
		{"GET", "/example.com%2fm/@v/list", 400, "encoded slash"},
		{"GET", "/example.com/m/@v/v1.0.0%2F..%2Fx.info", 400, "encoded slash"},
		{"GET", "/example.com/m%00/@v/list", 400, "malformed module path"},
		{"GET", "/example.com/m/@v/v1%00.info", 400, "malformed version"},
		{"GET", "/example.com/m%0a/@v/list", 400, "malformed module path"},
		{"GET", "/example.com/m%ff/@v/list", 400, "malformed module path"},
		{"GET", "/example.com/m%5c/@v/list", 400, "malformed module path"},
		{"GET", "/example.com/m%20/@v/list", 400, "malformed module path"},
		{"GET", "/example.com/" + long + "/@v/list", 400, "at most 2048"},
		{"GET", "/example.com/" + long[:300] + "/@v/list", 400, "longer than 200"},
		{"GET", "/example.com/m/@v/" + long[:300] + ".info", 400, "longer than 200"},
		{"GET", "/--help/@v/list", 400, "malformed module path"},
		{"GET", "/-x.com/@v/list", 400, "malformed module path"},
		{"GET", "/example.com/m/@v/--help.info", 400, "leading dash"},
		{"GET", "/example.com/m/@v/-.info", 400, "leading dash"},
		{"GET", "/nodot/m/@v/list", 400, "missing dot"},
		{"GET", "/.com/m/@v/list", 400, "malformed module path"},
		{"GET", "/example.com/m./@v/list", 400, "malformed module path"},
		{"GET", "/example.com/con/@v/list", 400, "malformed module path"},
		{"GET", "/example.com/m/v1/@v/list", 400, "malformed module path"},
		{"GET", "/example.com/m/v02/@v/list", 400, "malformed module path"},
		{"GET", "/gopkg.in/x/@v/list", 400, "malformed module path"},
		{"GET", "/@v/list", 404, "not a path"},
		{"GET", "/example.com/m/@v/", 404, "not a file"},
		{"GET", "/example.com/m/@v/v1.0.0", 404, "not a file"},
		{"GET", "/example.com/m/@v/v1.0.0.exe", 404, "not a file"},
		{"GET", "/example.com/m/@v/v1.0.0.zip.sha256", 404, "not a file"},
		{"GET", "/example.com/m/@v/v1.0.mod", 400, "not a canonical version"},
		{"GET", "/example.com/m/@v/v1.zip", 400, "not a canonical version"},
		{"GET", "/example.com/m/@v/1.0.0.mod", 400, "not a canonical version"},
		{"GET", "/example.com/m/@v/v01.0.0.mod", 400, "not a canonical version"},
		{"GET", "/example.com/m/@v/v1.0.0+meta.zip", 400, "not a canonical version"},
		{"GET", "/example.com/m/@v/main.mod", 400, "not a canonical version"},
		{"GET", "/example.com/m/@v/latest.zip", 400, "not a canonical version"},
		{"GET", "/example.com/m/v2/@v/v1.0.0.zip", 400, "not a canonical version"},
		{"GET", "/example.com/m/@v/v2.0.0.zip", 400, "not a canonical version"},
		{"GET", "/example.com/m/@v/v9.9.9.info", 404, "not found"},
		{"GET", "/example.com/m/@v/v1.9.9.mod", 404, "not found: example.com/m@v1.9.9"},
		{"GET", "/example.com/absent/@v/list", 404, "not found: example.com/absent"},
		{"GET", "/example.com/absent/@latest", 404, "not found: example.com/absent"},
		{"GET", "/example.com/m/@v/nobranch.info", 404, "nobranch"},
		{"POST", "/example.com/m/@v/list", 405, "GET and HEAD"},
		{"PUT", "/example.com/m/@v/v1.0.0.zip", 405, "GET and HEAD"},
		{"DELETE", "/example.com/m/@v/v1.0.0.info", 405, "GET and HEAD"},
		{"POST", "/example.com/m/@v/v1.0.0.save", 404, "not a file"},
		{"DELETE", "/example.com/m/@v/v1.0.0.delete", 404, "not a file"},
		{"GET", "/internal/ledger/queue", 404, "not a path"},
		{"POST", "/internal/ledger/claim", 404, "not a path"},
		{"GET", "/catalog", 404, "not a path"},
		{"GET", "/index", 404, "not a path"},
		{"GET", "/sumdb/sum.golang.org/supported", 404, "not proxied here"},
		{"GET", "/sumdb/../supported", 404, "not proxied here"},
		{"GET", "/cached-only/example.com/never/@v/list", 404, "not kept"},
		{"GET", "/cached-only/example.com/m/@v/v1.0.0.zip", 404, "not kept"},
		{"GET", "/favicon.ico", 404, "not a path"},
	} {
		status, body := raw(t, p.url, tc.method, tc.target, "", "")
		if status != tc.status || !strings.Contains(body, tc.body) {
			t.Errorf("%s %.80s: %d %.200q, want %d with %q", tc.method, tc.target, status, body, tc.status, tc.body)
		}
	}
	if status, _ := raw(t, p.url, "GET", "/example.com/m/@v/list", "X-Big: "+strings.Repeat("x", 100<<10)+"\r\n", ""); status != 431 {
		t.Errorf("a header of 100 KB: %d, want 431", status)
	}
	if status, body := raw(t, p.url, "GET", "/example.com/m/@v/v1.0.0.zip", "", ""); status != 200 || len(body) == 0 {
		t.Errorf("after all that: %d", status)
	}
}

// What storage answers to saves that are wrong; nothing of them is kept.
func TestBadSaves(t *testing.T) {
	p := start(t, "--role=storage", "--data-dir", t.TempDir(), "--max-body-bytes=1MiB", "--body-timeout=500ms", "--internal-token", token)
	v := storagetest.New("example.com/m", "v1.0.0", "")
	zipOf := func(files ...[2]string) []byte {
		up := testupstream.New(t)
		m := module.Version{Path: "example.com/m", Version: "v1.0.0"}
		up.AddFiles(m, "", files)
		_, body, _ := get(t, up.URL+"/example.com/m/@v/v1.0.0.zip")
		return []byte(body)
	}
	mod := string(v.Mod)
	part := func(content []byte) [][2]string { return [][2]string{{"mod.zip", string(content)}} }
	form := func(parts ...[2]string) (string, string) {
		var b bytes.Buffer
		w := multipart.NewWriter(&b)
		for _, part := range parts {
			f, _ := w.CreateFormFile(part[0], part[0])
			io.WriteString(f, part[1])
		}
		w.Close()
		return w.FormDataContentType(), b.String()
	}
	for _, tc := range []struct {
		name   string
		parts  [][2]string
		status int
		body   string
	}{
		{"no part", nil, 400, "multipart form"},
		{"another part", [][2]string{{"mod.exe", "x"}}, 400, "not one of"},
		{"the same part twice", [][2]string{{"mod.mod", mod}, {"mod.mod", mod}}, 400, "not one of"},
		{".info that is not JSON", [][2]string{{"mod.info", "x"}}, 400, "not JSON"},
		{".info of another version", [][2]string{{"mod.info", `{"Version":"v1.0.1"}`}}, 400, "names version"},
		{".mod that is not one", [][2]string{{"mod.mod", "<html>"}}, 400, "cannot be parsed"},
		{"no zip", [][2]string{{"mod.zip", "not a zip"}}, 400, "not a zip file"},
		{"a cut zip", [][2]string{{"mod.zip", string(v.Zip[:len(v.Zip)/2])}}, 400, "not a zip file"},
		{"another go.mod in the zip", [][2]string{{"mod.mod", "module example.com/fork\n"}, {"mod.zip", string(v.Zip)}}, 400, "is not the .mod file"},
		{"a wrong prefix", [][2]string{{"mod.zip", string(zipOf([2]string{"/example.com/x@v1.0.0/go.mod", mod}))}}, 400, "prefix"},
		{"another version's prefix", [][2]string{{"mod.zip", string(zipOf([2]string{"/example.com/m@v1.0.1/go.mod", mod}))}}, 400, "prefix"},
		{"..", [][2]string{{"mod.zip", string(zipOf([2]string{"go.mod", mod}, [2]string{"../x", "x"}))}}, 400, "mod.zip"},
		{"an absolute name", [][2]string{{"mod.zip", string(zipOf([2]string{"//etc/passwd", "x"}))}}, 400, "mod.zip"},
		{"a case collision", [][2]string{{"mod.zip", string(zipOf([2]string{"a.go", ""}, [2]string{"A.go", ""}))}}, 400, "case-insensitive"},
		{"a name twice", [][2]string{{"mod.zip", string(zipOf([2]string{"a.go", ""}, [2]string{"a.go", ""}))}}, 400, "multiple entries"},
		{"a bad name", [][2]string{{"mod.zip", string(zipOf([2]string{"a\x00b", ""}))}}, 400, "mod.zip"},
		{"GO.MOD", [][2]string{{"mod.zip", string(zipOf([2]string{"GO.MOD", mod}))}}, 400, "go.mod"},
		{"a bomb that says so", part(bomb(t, 1, 501<<20, 1000)), 400, "too large"},
		{"bombs that are too large together", part(bomb(t, 6, 100<<20, 1000)), 400, "too large"},
		{"a bomb that lies", part(bomb(t, 1, 10, 20<<20)), 400, "not a valid zip"},
		{"a bomb that says more than it has", part(bomb(t, 1, 100<<20, 10)), 400, "mod.zip"},
		{"a go.mod above its limit", part(bombOf(t, "go.mod", 1, 17<<20, 17<<20)), 400, "go.mod"},
		{"a huge directory", part(directoryBomb(t)), 400, "does not end where its end is"},
		{"a body that is too large", [][2]string{{"mod.zip", strings.Repeat("x", 2<<20)}}, 413, "larger than"},
	} {
		contentType, body := form(tc.parts...)
		header := fmt.Sprintf("Authorization: Bearer %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n", token, contentType, len(body))
		if status, text := raw(t, p.url, "POST", "/example.com/m/@v/v1.0.0.save", header, body); status != tc.status || !strings.Contains(text, tc.body) {
			t.Errorf("%s: %d %.300q, want %d with %q", tc.name, status, text, tc.status, tc.body)
		}
	}
	auth := "Authorization: Bearer " + token + "\r\n"
	if status, _ := raw(t, p.url, "GET", "/example.com/m/@v/list", "", ""); status != 401 {
		t.Errorf("no token: %d", status)
	}
	if status, _ := raw(t, p.url, "GET", "/example.com/m/@v/list", "Authorization: Bearer wrong\r\n", ""); status != 401 {
		t.Errorf("a wrong token: %d", status)
	}
	for _, target := range []string{"/healthz", "/readyz"} {
		if status, _ := raw(t, p.url, "GET", target, "", ""); status != 200 {
			t.Errorf("%s without a token: %d", target, status)
		}
	}
	if status, text := raw(t, p.url, "POST", "/example.com/m/@v/v1.0.0.save", auth+"Content-Length: 100\r\nContent-Type: multipart/form-data; boundary=x\r\n", "--x"); status != 400 || !strings.Contains(text, "multipart form") {
		t.Errorf("a body that stops: %d %s, want 400", status, text)
	}
	if status, text := raw(t, p.url, "POST", "/internal/ledger/claim", auth+"Content-Length: 1\r\n", "x"); status != 400 {
		t.Errorf("a question that is not JSON: %d %s", status, text)
	}
	if status, text := raw(t, p.url, "GET", "/catalog", auth, ""); status != 200 || strings.TrimSpace(text) != `{"modules":[]}` {
		t.Errorf("after all that: %d %s", status, text)
	}
	if peak := p.peakMiB(); peak > 96 {
		t.Errorf("peak resident memory %d MiB, above 96", peak)
	}
}

// bomb is a zip of example.com/m@v1.0.0 with so many files that say they have one size, and
// have another, of zeros.
func bomb(t *testing.T, files int, says, has int64) []byte {
	return bombOf(t, "zeros%d.bin", files, says, has)
}

func bombOf(t *testing.T, name string, files int, says, has int64) []byte {
	t.Helper()
	var zeros bytes.Buffer
	d, err := flate.NewWriter(&zeros, flate.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	sum := crc32.NewIEEE()
	io.CopyN(io.MultiWriter(d, sum), zero{}, has)
	d.Close()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := range files {
		file := name
		if strings.Contains(name, "%") {
			file = fmt.Sprintf(name, i)
		}
		w, err := z.CreateRaw(&zip.FileHeader{
			Name: "example.com/m@v1.0.0/" + file, Method: zip.Deflate,
			CRC32: sum.Sum32(), CompressedSize64: uint64(zeros.Len()), UncompressedSize64: uint64(says),
		})
		if err != nil {
			t.Fatal(err)
		}
		w.Write(zeros.Bytes())
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type zero struct{}

func (zero) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// directoryBomb is a zip whose directory has 10,000 files more than its end says.
func directoryBomb(t *testing.T) []byte {
	t.Helper()
	b := bomb(t, 1, 10, 10)
	end := len(b) - 22
	begin := int(enc.LittleEndian.Uint32(b[end+16:]))
	return slices.Concat(b[:begin], bytes.Repeat(b[begin:end], 10_000), b[end:])
}

// What upstream does wrong is never "not found", and nothing of it is kept.
func TestBadUpstream(t *testing.T) {
	up := testupstream.New(t)
	up.Add("example.com/m", "v1.0.0", 100)
	m := module.Version{Path: "example.com/evil", Version: "v1.0.0"}
	up.AddFiles(m, "module example.com/evil\n", [][2]string{{"go.mod", "module example.com/evil\n"}, {"../../x", "x"}})
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "fault", code) }
	}
	cut := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		io.WriteString(w, "v1.0.0\n")
	}
	p := start(t, "--upstream", up.URL, "--data-dir", t.TempDir(), "--job-attempts=1", "--upstream-timeout=1s", "--host-failures=0")
	for name, tc := range map[string]struct {
		fault http.HandlerFunc
		want  int
	}{
		"500": {status(500), 502}, "429": {status(429), 502}, "403": {status(403), 502}, "cut": {cut, 502},
		"gone": {up.Gone, 502}, "slow": {func(http.ResponseWriter, *http.Request) { time.Sleep(2 * time.Second) }, 502},
		"404": {status(404), 404}, "410": {status(410), 404},
	} {
		up.SetFault(tc.fault)
		for _, file := range []string{"@v/list", "@latest", "@v/v1.0.0.info", "@v/v1.0.0.mod", "@v/v1.0.0.zip"} {
			if got, body, _ := get(t, p.url+"/example.com/x"+name+"/"+file); got != tc.want {
				t.Errorf("upstream %s, %s: %d %s, want %d", name, file, got, body, tc.want)
			}
		}
	}
	up.SetFault(nil)
	if got, body, _ := get(t, p.url+"/example.com/evil/@v/v1.0.0.zip"); got != 502 || !strings.Contains(body, "refused") {
		t.Errorf("an evil zip: %d %s", got, body)
	}
	if got, _, _ := get(t, p.url+"/cached-only/example.com/evil/@v/v1.0.0.zip"); got != 404 {
		t.Errorf("an evil zip was kept: %d", got)
	}
}
