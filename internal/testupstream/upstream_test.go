package testupstream_test

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/dirhash"
	modzip "golang.org/x/mod/zip"

	. "github.com/athensctl/athensctl/internal/testupstream"
)

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func readLine(t *testing.T, r io.Reader) string {
	t.Helper()
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := io.ReadFull(r, b); err != nil {
			t.Fatal(err)
		}
		if b[0] == '\n' {
			return string(line)
		}
		line = append(line, b[0])
	}
}

func evilZip(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, name := range []string{"example.com/m@v1.0.0/go.mod", "../../evil"} {
		w, err := z.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, GoMod("example.com/m", "1.20"))
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestProtocol(t *testing.T) {
	u := Start(t,
		Module{Path: "example.com/m", Version: "v1.0.0"},
		Module{Path: "example.com/m", Version: "v1.10.0"},
		Module{Path: "example.com/m", Version: "v1.2.0", Files: map[string]string{"a.go": "package a\n"}},
		Module{Path: "example.com/m", Version: "v1.11.0-rc.1"},
		Module{Path: "example.com/m", Version: "v1.12.0", Unlisted: true},
		Module{Path: "example.com/m", Version: "v1.10.1-0.20240203040506-abcdefabcdef"},
		Module{Path: "example.com/pre", Version: "v0.1.0-RC1"},
		Module{Path: "example.com/B", Version: "v1.0.0"})
	u.SetQuery("example.com/m", "main", "v1.10.1-0.20240203040506-abcdefabcdef")
	u.SetList("example.com/B", "v9.9.9", "rubbish")
	for _, tc := range []struct {
		path   string
		status int
		want   string
	}{
		{"/example.com/m/@v/list", 200, "v1.0.0\nv1.2.0\nv1.10.0\nv1.11.0-rc.1\n"},
		{"/example.com/m/@latest", 200, `{"Version":"v1.10.0","Time":"2024-01-02T03:04:05Z"}`},
		{"/example.com/pre/@latest", 200, `{"Version":"v0.1.0-RC1","Time":"2024-01-02T03:04:05Z"}`},
		{"/example.com/pre/@v/v0.1.0-!r!c1.info", 200, `{"Version":"v0.1.0-RC1","Time":"2024-01-02T03:04:05Z"}`},
		{"/example.com/m/@v/main.info", 200, `{"Version":"v1.10.1-0.20240203040506-abcdefabcdef","Time":"2024-02-03T04:05:06Z"}`},
		{"/example.com/m/@v/v1.2.0.mod", 200, "module example.com/m\n"},
		{"/example.com/!b/@v/list", 200, "v9.9.9\nrubbish\n"},
		{"/example.com/m/@v/v1.3.0.info", 404, "not found: example.com/m@v1.3.0: unknown revision: file does not exist\n"},
		{"/example.com/b/@v/list", 404, "not found: module example.com/b: file does not exist\n"},
		{"/example.com/B/@v/list", 404, "not found: \"/example.com/B/@v/list\": file does not exist\n"},
		{"/example.com/m/@v/v1.0.0.exe", 404, "not found: \"/example.com/m/@v/v1.0.0.exe\": file does not exist\n"},
		{"/", 404, "not found: \"/\": file does not exist\n"},
		{"/sumdb/other.test/supported", 404, "not found: checksum database \"other.test\": file does not exist\n"},
		{"/sumdb/" + u.SumDBName() + "/supported", 200, ""},
		{"/sumdb/" + u.SumDBName() + "/tile/8/0/001", 404, "not found: no such tile\n"},
	} {
		status, body := get(t, u.URL()+tc.path)
		if status != tc.status || body != tc.want {
			t.Errorf("%s: %d %q, want %d %q", tc.path, status, body, tc.status, tc.want)
		}
	}
	u.SetLatestOff(true)
	if status, _ := get(t, u.URL()+"/example.com/m/@latest"); status != 404 {
		t.Errorf("@latest switched off: %d", status)
	}
	u.Remove("example.com/m", "v1.0.0")
	if status, _ := get(t, u.URL()+"/example.com/m/@v/v1.0.0.mod"); status != 404 {
		t.Errorf("removed: %d", status)
	}
	if got := u.Requests(Latest, "example.com/m"); got != 2 {
		t.Errorf("%d latest requests, want 2", got)
	}
	if log := u.Log(); log[0].Kind != List || log[0].Path != "example.com/m" || log[0].Status != 200 || log[0].Bytes != 35 {
		t.Errorf("log[0] = %+v", log[0])
	}
	for _, bad := range []Module{
		{Path: "nodot", Version: "v1.0.0"}, {Path: "example.com/m", Version: "v2.0.0"},
		{Path: "example.com/m", Version: "v1.0.0", Files: map[string]string{"a": "", "A": ""}},
	} {
		if u.Add(bad) == nil {
			t.Errorf("Add(%v) accepted", bad)
		}
	}
}

func TestListETag(t *testing.T) {
	u := Start(t, Module{Path: "example.com/m", Version: "v1.0.0"})
	resp, err := http.Get(u.URL() + "/example.com/m/@v/list")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	req, _ := http.NewRequest("GET", resp.Request.URL.String(), nil)
	req.Header.Set("If-None-Match", resp.Header.Get("ETag"))
	if resp, err = http.DefaultClient.Do(req); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 304 {
		t.Errorf("status %d, want 304", resp.StatusCode)
	}
}

func TestSyntheticZip(t *testing.T) {
	const size = 3 << 20
	m := module.Version{Path: "example.com/big", Version: "v1.0.0"}
	var sums [3]string
	for i, seed := range []uint64{7, 7, 8} {
		u := Start(t, Module{Path: m.Path, Version: m.Version, ZipBytes: size, Seed: seed})
		var wg sync.WaitGroup
		for range 8 { // made once
			wg.Go(func() { get(t, u.URL()+"/example.com/big/@v/v1.0.0.zip") })
		}
		wg.Wait()
		resp, err := http.Get(u.URL() + "/example.com/big/@v/v1.0.0.zip")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || len(body) != size || resp.ContentLength != size {
			t.Fatalf("%d bytes, Content-Length %d, %v", len(body), resp.ContentLength, err)
		}
		sum := sha256.Sum256(body)
		sums[i] = string(sum[:])
		file := filepath.Join(t.TempDir(), "x.zip")
		if err := os.WriteFile(file, body, 0o666); err != nil {
			t.Fatal(err)
		}
		if _, err := modzip.CheckZip(m, file); err != nil {
			t.Error(err)
		}
		h1, err := dirhash.HashZip(file, dirhash.Hash1)
		if err != nil {
			t.Fatal(err)
		}
		lines, err := sumdb.NewClient(&sumOps{u: u}).Lookup(m.Path, m.Version)
		if err != nil || len(lines) != 1 || lines[0] != m.Path+" "+m.Version+" "+h1 {
			t.Errorf("lookup: %q, %v, want %s", lines, err, h1)
		}
	}
	if sums[0] != sums[1] || sums[0] == sums[2] {
		t.Error("content does not follow the seed")
	}
}

// sumOps is the least that a sumdb.Client needs.
type sumOps struct {
	u      *Upstream
	latest []byte
}

func (o *sumOps) ReadRemote(path string) ([]byte, error) {
	resp, err := http.Get(o.u.SumDBURL() + path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		return nil, errors.New(resp.Status)
	}
	return io.ReadAll(resp.Body)
}

func (o *sumOps) ReadConfig(file string) ([]byte, error) {
	if file == "key" {
		return []byte(o.u.VerifierKey()), nil
	}
	return o.latest, nil
}

func (o *sumOps) WriteConfig(_ string, _, latest []byte) error { o.latest = latest; return nil }
func (o *sumOps) ReadCache(string) ([]byte, error)             { return nil, errors.New("none") }
func (o *sumOps) WriteCache(string, []byte)                    {}
func (o *sumOps) Log(string)                                   {}
func (o *sumOps) SecurityError(msg string)                     { panic(msg) }

func TestFaults(t *testing.T) {
	const zipPath = "/example.com/m/@v/v1.0.0.zip"
	for _, tc := range []struct {
		name    string
		fault   Fault
		status  int // 0: no answer
		header  string
		length  int64 // Content-Length; -1: none
		read    int   // -1: all
		readErr error
	}{
		{name: "none", status: 200, length: 4000, read: 4000},
		{name: "500", fault: Fault{Status: 500}, status: 500, length: -2, read: -1},
		{name: "410", fault: Fault{Status: 410}, status: 410, length: -2, read: -1},
		{name: "429", fault: Fault{Status: 429, RetryAfter: 1500 * time.Millisecond}, status: 429, header: "Retry-After: 2", length: -2, read: -1},
		{name: "redirect", fault: Fault{Redirect: "http://x.test/y"}, status: 302, header: "Location: http://x.test/y" + zipPath, length: 0, read: 0},
		{name: "no length", fault: Fault{NoLength: true}, status: 200, length: -1, read: 4000},
		{name: "cut", fault: Fault{Body: BodyCut, BodyBytes: 100}, status: 200, length: 4000, read: 100, readErr: io.ErrUnexpectedEOF},
		{name: "cut at once", fault: Fault{Body: BodyCut}, status: 200, length: 4000, read: 0, readErr: io.ErrUnexpectedEOF},
		{name: "cut, no length", fault: Fault{Body: BodyCut, BodyBytes: 100, NoLength: true}, status: 200, length: -1, read: 100, readErr: io.ErrUnexpectedEOF},
		{name: "not cut", fault: Fault{Body: BodyCut, BodyBytes: 4000}, status: 200, length: 4000, read: 4000},
		{name: "end", fault: Fault{Body: BodyEnd, BodyBytes: 100}, status: 200, length: -1, read: 100},
		{name: "content", fault: Fault{Content: []byte("x")}, status: 200, length: 1, read: 1},
		{name: "hang in body", fault: Fault{Body: BodyHang, BodyBytes: 100}, status: 200, length: 4000, read: 100, readErr: context.DeadlineExceeded},
		{name: "hang", fault: Fault{Hang: true}},
		{name: "latency", fault: Fault{Latency: 48 * time.Hour}},
		{name: "until", fault: Fault{Until: make(chan struct{})}},
		{name: "drop", fault: Fault{Drop: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // the deadline of a day takes no time
				u, err := NewUpstream()
				if err != nil {
					t.Fatal(err)
				}
				defer u.Close()
				if err := u.Add(Module{Path: "example.com/m", Version: "v1.0.0", ZipBytes: 4000}); err != nil {
					t.Fatal(err)
				}
				u.Fault(Match{}, Fault{Status: 500})
				u.Fault(Match{Kind: Zip, Path: "example.com/m"}, tc.fault)
				u.Fault(Match{Kind: Mod}, Fault{Status: 500})
				if tc.fault.Until != nil {
					tc.fault.Until = make(chan struct{}) // of the bubble
					u.Fault(Match{Kind: Zip}, tc.fault)
				}
				tr := &http.Transport{DialContext: u.Dial, DisableCompression: true}
				defer tr.CloseIdleConnections()
				ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
				defer cancel()
				req, _ := http.NewRequestWithContext(ctx, "GET", "http://up.test"+zipPath, nil)
				resp, err := tr.RoundTrip(req)
				if tc.status == 0 {
					if err == nil {
						t.Fatalf("answer %s", resp.Status)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				if resp.StatusCode != tc.status || tc.length != -2 && resp.ContentLength != tc.length {
					t.Errorf("status %d, length %d; want %d, %d", resp.StatusCode, resp.ContentLength, tc.status, tc.length)
				}
				if k, v, _ := strings.Cut(tc.header, ": "); resp.Header.Get(k) != v {
					t.Errorf("%s: %q, want %q", k, resp.Header.Get(k), v)
				}
				b, err := io.ReadAll(resp.Body)
				if tc.read >= 0 && len(b) != tc.read || !errors.Is(err, tc.readErr) {
					t.Errorf("%d bytes, %v; want %d, %v", len(b), err, tc.read, tc.readErr)
				}
			})
		})
	}
}

func TestFaultTimesAndRemove(t *testing.T) {
	u := Start(t, Module{Path: "example.com/m", Version: "v1.0.0"})
	url := u.URL() + "/example.com/m/@v/list"
	u.Fault(Match{}, Fault{Status: 500, Times: 2})
	for i, want := range []int{500, 500, 200} {
		if got, _ := get(t, url); got != want {
			t.Errorf("request %d: %d, want %d", i, got, want)
		}
	}
	remove := u.Fault(Match{Version: "v1.0.0"}, Fault{Status: 403})
	if got, _ := get(t, url); got != 200 {
		t.Errorf("other version: %d", got)
	}
	if got, _ := get(t, u.URL()+"/example.com/m/@v/v1.0.0.info"); got != 403 {
		t.Errorf("fault of a version: %d", got)
	}
	remove()
	remove()
	if got, _ := get(t, u.URL()+"/example.com/m/@v/v1.0.0.info"); got != 200 {
		t.Errorf("removed: %d", got)
	}
}

func TestConcurrency(t *testing.T) {
	u := Start(t, Module{Path: "example.com/m", Version: "v1.0.0"})
	open := make(chan struct{})
	u.Fault(Match{Kind: Zip}, Fault{Until: open})
	const n = 20
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			if status, _ := get(t, u.URL()+"/example.com/m/@v/v1.0.0.zip"); status != 200 {
				t.Errorf("status %d", status)
			}
		})
		wg.Go(func() {
			u.Fault(Match{Kind: Mod}, Fault{Latency: time.Millisecond})()
			u.SetSum("example.com/m", "v1.0.0", SumRight)
			u.Counts()
			u.Log()
		})
	}
	if !u.Wait(Zip, "example.com/m@v1.0.0", n, 10*time.Second) {
		t.Error("the requests did not come")
	}
	close(open)
	wg.Wait()
	if got := u.MaxConcurrent(Zip); got != n {
		t.Errorf("MaxConcurrent = %d, want %d", got, n)
	}
	if u.Wait(Zip, "", n+1, time.Millisecond) {
		t.Error("Wait for a request that did not come")
	}
}

func TestStopAndListenAgain(t *testing.T) {
	u := Start(t, Module{Path: "example.com/m", Version: "v1.0.0"})
	url := u.URL()
	u.Stop()
	if _, err := http.Get(url + "/example.com/m/@v/list"); err == nil {
		t.Error("answered when stopped")
	}
	if err := u.Listen(strings.TrimPrefix(url, "http://")); err != nil {
		t.Fatal(err)
	}
	if status, _ := get(t, url+"/example.com/m/@v/list"); status != 200 {
		t.Errorf("status %d", status)
	}
}
