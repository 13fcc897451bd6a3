package goproxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
)

func TestParseRequest(t *testing.T) {
	for path, want := range map[string]any{
		"/example.com/m/@v/list":                                   Request{"example.com/m", "", FileList},
		"/example.com/m/@latest":                                   Request{"example.com/m", "latest", FileInfo},
		"/example.com/m/@v/main.info":                              Request{"example.com/m", "main", FileInfo},
		"/github.com/!azure/go-autorest/@v/v1.0.0.mod":             Request{"github.com/Azure/go-autorest", "v1.0.0", FileMod},
		"/example.com/m/v2/@v/v2.0.0.zip":                          Request{"example.com/m/v2", "v2.0.0", FileZip},
		"/example.com/m/@v/v2.0.0+incompatible.zip":                Request{"example.com/m", "v2.0.0+incompatible", FileZip},
		"/gopkg.in/yaml.v2/@v/v2.4.0.mod":                          Request{"gopkg.in/yaml.v2", "v2.4.0", FileMod},
		"/golang.org/toolchain/@v/v0.0.1-go1.26.0.linux-amd64.zip": Request{"golang.org/toolchain", "v0.0.1-go1.26.0.linux-amd64", FileZip},
		"/example.com/m/@v/v1.0.0-!r!c1.info":                      Request{"example.com/m", "v1.0.0-RC1", FileInfo},
		"/example.com/m/@v/v1.0.0-RC1.info":                        Request{"example.com/m", "v1.0.0-RC1", FileInfo},
		"/":                                                        404, "/example.com/m": 404, "/example.com/m/@v/": 404, "/example.com/m/@v/v1.0.0": 404, "/example.com/m/@v/v1.0.0.exe": 404,
		"/example.com/M/@v/list": 400, "/example.com/../@v/list": 400, "/example.com/m/@v/main.zip": 400, "/example.com/m/v2/@v/v1.0.0.mod": 400,
		"/example.com/m/@v/v1.0.mod": 400, "/m/@v/../list.info": 400, "//@v/list": 400, "/example.com/m/@v/-x.info": 400, "/example.com/m\x00/@v/list": 400,
		"/" + strings.Repeat("a/", 2000) + "@v/list": 400, "/example.com/" + strings.Repeat("a", 300) + "/@v/list": 400,
	} {
		got, err := ParseRequest(path)
		if status, ok := want.(int); ok {
			if Status(err) != status {
				t.Errorf("%.80q: %v, %v, want status %d", path, got, err, status)
			}
		} else if err != nil || got != want {
			t.Errorf("%q: %+v, %v", path, got, err)
		}
	}
}

// What is accepted is a path that module.CheckPath accepts, and comes back from URLPath.
func FuzzParseRequest(f *testing.F) {
	for _, s := range []string{
		"/example.com/m/@v/list", "/example.com/m/@latest", "/github.com/!azure/x/@v/v1.0.0.mod", "/x.y/@v/v2.0.0+incompatible.zip", "/e.x/m/@v/a/b.info",
		"/gopkg.in/a.v2/@v/v2.0.0-20200101000000-0123456789ab.info", "/a.b/@v/..info", "/a.b/%2e%2e/@v/list",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		r, err := ParseRequest(path)
		if err != nil {
			if s := Status(err); s != 400 && s != 404 {
				t.Errorf("status %d: %v", s, err)
			}
			return
		}
		if err := module.CheckPath(r.Path); err != nil {
			t.Errorf("accepted %q: %v", path, err)
		}
		if r.File != FileList && (r.Query == "" || r.Query[0] == '-' || strings.Contains(r.Query, "..") && strings.Contains(r.Query, "/")) {
			t.Errorf("accepted query %q", r.Query)
		}
		back, err := r.URLPath()
		if err != nil {
			t.Fatalf("%+v: %v", r, err)
		}
		again, err := ParseRequest(back)
		if err != nil || again != r {
			t.Errorf("%q is %+v, whose path %q is %+v, %v", path, r, back, again, err)
		}
	})
}

func TestVersionList(t *testing.T) {
	for _, tt := range []struct {
		path, given, list, latest string
	}{
		{"example.com/m", "v1.2.0 v1.10.0 v1.9.0 v1.9.0", "v1.2.0 v1.9.0 v1.10.0", "v1.10.0"},
		{"example.com/m", "v1.0.0 v1.1.0-rc.1", "v1.0.0 v1.1.0-rc.1", "v1.0.0"},
		{"example.com/m", "v1.1.0-rc.1 v1.1.0-beta", "v1.1.0-beta v1.1.0-rc.1", "v1.1.0-rc.1"},
		{"example.com/m", "v1.0.0 v2.0.0+incompatible v3.0.0", "v1.0.0 v2.0.0+incompatible", "v1.0.0"},
		{"example.com/m", "v2.0.0+incompatible v3.0.0-pre+incompatible", "v2.0.0+incompatible v3.0.0-pre+incompatible", "v2.0.0+incompatible"},
		{"example.com/m/v2", "v1.0.0 v2.0.0 v2.0.0+meta v2 main", "v2.0.0", "v2.0.0"},
		{"example.com/m", "v0.0.0-20200101000000-0123456789ab v0.0.0-20210101000000-0123456789ab v0.0.0-20190101000000-0123456789ab", "", "v0.0.0-20210101000000-0123456789ab"},
		{"example.com/m", "v1.0.0 v1.0.1-0.20210101000000-0123456789ab", "v1.0.0", "v1.0.0"},
		{"example.com/m", "", "", ""},
	} {
		l := NewVersionList(tt.path, strings.Fields(tt.given), time.Time{})
		if got := strings.Join(l.Versions, " "); got != tt.list || l.LatestVersion() != tt.latest {
			t.Errorf("%s: %s: list %q, latest %q; want %q, %q", tt.path, tt.given, got, l.LatestVersion(), tt.list, tt.latest)
		}
		if got := strings.Fields(string(l.Text())); !reflect.DeepEqual(got, strings.Fields(tt.list)) {
			t.Errorf("text %q", l.Text())
		}
	}
}

func FuzzVersionList(f *testing.F) {
	f.Add("example.com/m", "v1.0.0\nv1.2.0-pre\nv2.0.0+incompatible")
	f.Add("gopkg.in/m.v2", "v2.0.0 2020-01-01T00:00:00Z\nv0.0.0-20200101000000-0123456789ab")
	f.Fuzz(func(t *testing.T, path, lines string) {
		l := NewVersionList(path, strings.Split(lines, "\n"), time.Time{})
		for i, v := range l.Versions {
			if !IsCanonical(path, v) || module.IsPseudoVersion(v) || i > 0 && semver.Compare(l.Versions[i-1], v) > 0 {
				t.Errorf("%q in the list of %q", v, path)
			}
		}
		if v := l.LatestVersion(); v != "" && !IsCanonical(path, v) {
			t.Errorf("latest %q", v)
		}
	})
}

func TestStatus(t *testing.T) {
	for want, err := range map[int]error{
		200: nil, 404: fmt.Errorf("x: %w", fs.ErrNotExist), 504: context.DeadlineExceeded, 499: fmt.Errorf("x: %w", context.Canceled),
		500: errors.New("x"), 503: fmt.Errorf("x: %w", Busy(time.Second, "y")), 410: &Error{Status: 410}, 502: Errorf(502, "x: %w", NotFound("y")),
	} {
		if got := Status(err); got != want {
			t.Errorf("%v: %d, want %d", err, got, want)
		}
	}
	if err := NotFound("x"); !errors.Is(err, fs.ErrNotExist) || err.Error() != "not found: x" || NotFound("%w", err).Error() != "not found: x" {
		t.Errorf("NotFound: %v", err)
	}
}

func FuzzParseInfo(f *testing.F) {
	f.Add("example.com/m", "v1.0.0", []byte(`{"Version":"v1.0.0","Time":"2020-01-01T00:00:00Z"}`))
	f.Add("example.com/m", "main", []byte(`{"Version":"v1.0.0","Origin":{"VCS":"git"}}`))
	f.Fuzz(func(t *testing.T, path, query string, raw []byte) {
		info, err := ParseInfo(path, query, raw)
		if err != nil {
			return
		}
		if !IsCanonical(path, info.Version) || IsCanonical(path, query) && info.Version != query || string(info.JSON()) != string(raw) {
			t.Errorf("%+v", info)
		}
		info.Raw = nil
		if _, err := ParseInfo(path, query, info.JSON()); err != nil {
			t.Errorf("written again: %v", err)
		}
	})
}

func TestETag(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)
	if a, b := ETag(10, at), ETag(10, at.Truncate(time.Second)); a != b || !strings.HasPrefix(a, `"`) || !strings.HasSuffix(a, `"`) {
		t.Errorf("%s, %s", a, b)
	}
	if ETag(10, at) == ETag(11, at) || ETag(10, at) == ETag(10, at.Add(time.Second)) || ETag(10, time.Time{}) != "" {
		t.Error("another file has the same tag")
	}
	if http.StatusOK != Status(nil) {
		t.Error("nil is not 200")
	}
}
