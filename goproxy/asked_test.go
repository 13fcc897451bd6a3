package goproxy

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unsafe"
)

// What is remembered is a path and not the request line that it came in, short paths only,
// and what another path means is never answered.
func TestAsked(t *testing.T) {
	a := newAsked()
	line := "/example.com/m/@v/v1.0.0.info?" + strings.Repeat("x", 1<<20)
	urlPath, _, _ := strings.Cut(line, "?")
	p, err := a.parse(urlPath)
	if err != nil || p.Path != "example.com/m" || p.Query != "v1.0.0" {
		t.Fatalf("%+v, %v", p, err)
	}
	for _, kept := range []string{p.urlPath, p.Path, p.Query} {
		at := uintptr(unsafe.Pointer(unsafe.StringData(kept)))
		if start := uintptr(unsafe.Pointer(unsafe.StringData(line))); at >= start && at < start+uintptr(len(line)) {
			t.Errorf("%q keeps its request line", kept)
		}
	}
	if again, _ := a.parse(urlPath); again != p {
		t.Error("not remembered")
	}
	long := "/example.com/" + strings.Repeat("m/", maxAskedBytes/2) + "m/@v/list"
	first, _ := a.parse(long)
	if again, err := a.parse(long); err != nil || again == first {
		t.Errorf("a long path: %v, %v", again, err)
	}
	for i := range 3 * len(a.places) {
		module := fmt.Sprintf("example.com/m%d", i)
		for range 2 {
			if p, err := a.parse("/" + module + "/@v/list"); err != nil || p.Path != module || p.File != FileList {
				t.Fatalf("%s: %+v, %v", module, p, err)
			}
		}
	}
	if p, err := a.parse("/example.com/m/@v/../list"); err == nil {
		t.Errorf("%+v", p)
	}
}

// The headers that are kept are those of the file, and of the look, that is asked about.
func TestAskedHeaders(t *testing.T) {
	p := &askedPath{}
	day := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for range 2 {
		for i := range 3 {
			size, at := int64(i%2), day.Add(time.Duration(i)*time.Second)
			if s := p.stampOf(size, at); s.etag[0] != ETag(size, at) || s.modified[0] != at.Format("Mon, 02 Jan 2006 15:04:05 GMT") {
				t.Errorf("%d: %v %v", i, s.etag, s.modified)
			}
			if got := p.checkedOf(at)[0]; got != at.Format(time.RFC3339Nano) {
				t.Errorf("%d: checked %s", i, got)
			}
		}
	}
}
