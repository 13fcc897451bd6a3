package testupstream

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"time"

	"golang.org/x/mod/module"
)

// ServeHTTP answers GET and HEAD of the GOPROXY protocol and of /sumdb/.
// Source: https://go.dev/ref/mod#goproxy-protocol.
func (u *Upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	req, parseErr := u.parse(r.URL.Path)
	req.Method, req.URL, req.Header, req.Begin = r.Method, r.RequestURI, r.Header.Clone(), time.Now()
	counted, generation := u.count.begin(req)
	f := u.faultFor(counted)
	a := &answer{ResponseWriter: w, u: u, ctx: r.Context(), fault: f}
	defer func() { u.count.end(counted, generation, a.status, a.bytes) }()
	if !u.wait(r.Context(), f) {
		panic(http.ErrAbortHandler)
	}
	if u.instead(a, r, f) {
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.Error(a, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	if f.Content != nil {
		serve(a, r, "application/octet-stream", f.Content)
		return
	}
	err := parseErr
	if err == nil {
		err = u.serve(a, r, req)
	}
	if err != nil {
		status := http.StatusInternalServerError
		if errors.Is(err, fs.ErrNotExist) {
			status = http.StatusNotFound
		}
		text := err.Error()
		if status == http.StatusNotFound {
			text = "not found: " + text
		}
		http.Error(a, text, status)
	}
}

// parse reads a URL path; what it cannot read does not exist.
func (u *Upstream) parse(urlPath string) (Request, error) {
	rest := strings.TrimPrefix(urlPath, "/")
	if sum, ok := strings.CutPrefix(rest, "sumdb/"); ok {
		return u.sums.parse(sum)
	}
	none := Request{Kind: Other, Path: urlPath}
	noneErr := fmt.Errorf("%q: %w", urlPath, fs.ErrNotExist)
	escaped, file, ok := strings.Cut(rest, "/@v/")
	if !ok {
		if escaped, ok = strings.CutSuffix(rest, "/@latest"); !ok {
			return none, noneErr
		}
		file = "@latest"
	}
	path, err := module.UnescapePath(escaped)
	if err != nil {
		return none, noneErr
	}
	switch file {
	case "list":
		return Request{Kind: List, Path: path}, nil
	case "@latest":
		return Request{Kind: Latest, Path: path, Version: "latest"}, nil
	}
	dot := strings.LastIndexByte(file, '.')
	if dot < 0 {
		return none, noneErr
	}
	version, err := module.UnescapeVersion(file[:dot])
	if err != nil {
		return none, noneErr
	}
	kind := Kind(file[dot+1:])
	if kind != Info && kind != Mod && kind != Zip {
		return none, noneErr
	}
	return Request{Kind: kind, Path: path, Version: version}, nil
}

func (u *Upstream) serve(a *answer, r *http.Request, req Request) error {
	switch req.Kind {
	case SumDB:
		u.sums.serve(a, r)
		return nil
	case List:
		return u.serveList(a, r, req.Path)
	case Latest:
		if u.latestOff.Load() {
			return fmt.Errorf("%s@latest: %w", req.Path, fs.ErrNotExist)
		}
		v, err := u.latest(req.Path)
		if err != nil {
			return err
		}
		req.Version = v
	case Info:
		u.mu.Lock()
		if v, ok := u.queries[module.Version{Path: req.Path, Version: req.Version}]; ok {
			req.Version = v
		}
		u.mu.Unlock()
	}
	v, err := u.find(module.Version{Path: req.Path, Version: req.Version})
	if err != nil {
		return err
	}
	switch req.Kind {
	case Mod:
		b, err := v.mod()
		if err != nil {
			return err
		}
		serve(a, r, "text/plain; charset=UTF-8", b)
	case Zip:
		f, _, err := v.zip()
		if err != nil {
			return err
		}
		defer f.Close()
		a.Header().Set("Content-Type", "application/zip")
		http.ServeContent(a, r, "", time.Time{}, f)
	default:
		b, _, err := v.info()
		if err != nil {
			return err
		}
		if a.fault.Version != "" {
			if b, err = withVersion(b, a.fault.Version); err != nil {
				return err
			}
		}
		serve(a, r, "application/json", b)
	}
	return nil
}

func (u *Upstream) serveList(a *answer, r *http.Request, path string) error {
	u.mu.Lock()
	body, set := u.lists[path]
	u.mu.Unlock()
	if !set {
		listed, _, err := u.versions(path)
		if err != nil {
			return err
		}
		for _, v := range listed {
			body = append(append(body, v...), '\n')
		}
	}
	a.Header().Set("ETag", fmt.Sprintf(`"%x"`, sha256.Sum256(body)))
	serve(a, r, "text/plain; charset=UTF-8", body)
	return nil
}

// serve answers with Content-Length, ranges, and 304 where an ETag is set.
func serve(w http.ResponseWriter, r *http.Request, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	http.ServeContent(w, r, "", time.Time{}, io.ReadSeeker(bytes.NewReader(body)))
}

func withVersion(info []byte, version string) ([]byte, error) {
	var fields map[string]any
	if err := json.Unmarshal(info, &fields); err != nil {
		return nil, err
	}
	fields["Version"] = version
	return json.Marshal(fields)
}
