package goproxy

import (
	"fmt"
	"net/http"
	"strings"
	"unicode/utf8"

	"golang.org/x/mod/module"
)

// File is one of the answers that the protocol has for a module.
type File string

// The files of the protocol.
const (
	FileList File = "list" // the tagged versions
	FileInfo File = "info" // what a query stands for: a version and its time
	FileMod  File = "mod"  // go.mod
	FileZip  File = "zip"  // the module's content
)

// Limits of what a path may be, in bytes. The protocol has none; a file system
// has 255 for a name, which must hold a version, ".info" and a temporary suffix.
const (
	maxPathBytes    = 1024
	maxElementBytes = 200
)

// Request is what a URL path asks for.
type Request struct {
	Path  string // module path, unescaped
	Query string // version or query, unescaped; "latest" for @latest; "" for a list
	File  File
}

// ParseRequest reads a URL path that has been percent-decoded once:
// /{module}/@v/list, /{module}/@latest, /{module}/@v/{version}.{info,mod,zip},
// where module and version are case-encoded. The version of a .mod or .zip must
// be canonical for the module path; what .info is asked for may be any query.
// An error has status 404 where the path is none of these forms, and 400 where
// the module path or the version is malformed.
// Source: https://go.dev/ref/mod#goproxy-protocol.
func ParseRequest(urlPath string) (Request, error) {
	if len(urlPath) > 2*maxPathBytes {
		return Request{}, Errorf(http.StatusBadRequest, "bad request: the path has %d bytes; at most %d are accepted", len(urlPath), 2*maxPathBytes)
	}
	rest := strings.TrimPrefix(urlPath, "/")
	if escaped, ok := strings.CutSuffix(rest, "/@latest"); ok {
		path, err := unescapePath(escaped)
		return Request{path, Latest, FileInfo}, err
	}
	escaped, name, ok := strings.Cut(rest, "/@v/")
	if !ok {
		return Request{}, NotFound("%s is not a path of the GOPROXY protocol", quote(urlPath))
	}
	path, err := unescapePath(escaped)
	if err != nil {
		return Request{}, err
	}
	if name == "list" {
		return Request{Path: path, File: FileList}, nil
	}
	dot := strings.LastIndexByte(name, '.')
	if dot < 0 {
		return Request{}, NotFound("%s is not a file of the GOPROXY protocol", quote(name))
	}
	file := File(name[dot+1:])
	switch file {
	case FileInfo, FileMod, FileZip:
	default:
		return Request{}, NotFound("%s is not a file of the GOPROXY protocol", quote(name))
	}
	query, err := unescapeVersion(name[:dot])
	if err != nil {
		return Request{}, err
	}
	if file != FileInfo && !IsCanonical(path, query) {
		return Request{}, Errorf(http.StatusBadRequest, "bad request: %s is not a canonical version of %s", quote(query), path)
	}
	return Request{path, query, file}, nil
}

// URLPath is the inverse of ParseRequest: the case-encoded path, with a leading
// slash. "latest" becomes @latest.
func (r Request) URLPath() (string, error) {
	path, err := module.EscapePath(r.Path)
	if err != nil {
		return "", Errorf(http.StatusBadRequest, "bad request: %w", err)
	}
	switch {
	case r.File == FileList:
		return "/" + path + "/@v/list", nil
	case r.Query == Latest && r.File == FileInfo:
		return "/" + path + "/@latest", nil
	}
	query, err := module.EscapeVersion(r.Query)
	if err != nil {
		return "", Errorf(http.StatusBadRequest, "bad request: %w", err)
	}
	return "/" + path + "/@v/" + query + "." + string(r.File), nil
}

// String names the request as messages do: path@query, and the file of a version.
func (r Request) String() string {
	switch {
	case r.File == FileList:
		return r.Path + ": version list"
	case r.File == FileInfo:
		return r.Path + "@" + r.Query
	default:
		return r.Path + "@" + r.Query + " (" + string(r.File) + ")"
	}
}

func unescapePath(escaped string) (string, error) {
	path, err := escaped, error(nil)
	if isEscaped(escaped) {
		path, err = module.UnescapePath(escaped)
	} else {
		err = module.CheckPath(path) // what UnescapePath does besides
	}
	if err != nil {
		return "", malformed("module path", escaped, err)
	}
	if len(path) > maxPathBytes {
		return "", malformed("module path", escaped, fmt.Errorf("longer than %d bytes", maxPathBytes))
	}
	for elem := range strings.SplitSeq(escaped, "/") {
		if len(elem) > maxElementBytes {
			return "", malformed("module path", escaped, fmt.Errorf("an element is longer than %d bytes", maxElementBytes))
		}
	}
	return path, nil
}

// isEscaped reports whether the escaped form may differ from what it stands for:
// most paths have no upper-case letters.
func isEscaped(s string) bool {
	for i := range len(s) {
		if c := s[i]; c == '!' || 'A' <= c && c <= 'Z' || c >= utf8.RuneSelf {
			return true
		}
	}
	return false
}

// unescapeVersion also accepts a version that was not case-encoded, as the
// Athens external storage client sends it: "v1.0.0-RC1" stands for itself.
func unescapeVersion(escaped string) (string, error) {
	if len(escaped) > maxElementBytes {
		return "", malformed("version", escaped, fmt.Errorf("longer than %d bytes", maxElementBytes))
	}
	version, err := module.UnescapeVersion(escaped)
	if err != nil {
		if _, plain := module.EscapeVersion(escaped); plain != nil {
			return "", malformed("version", escaped, err)
		}
		version = escaped
	}
	if strings.HasPrefix(version, "-") {
		return "", malformed("version", escaped, fmt.Errorf("leading dash"))
	}
	return version, nil
}

func malformed(what, value string, err error) *Error {
	var inv *module.InvalidPathError
	reason := err.Error()
	if e, ok := err.(*module.InvalidPathError); ok {
		inv = e
	}
	if inv != nil {
		reason = inv.Err.Error()
	}
	return Errorf(http.StatusBadRequest, "bad request: malformed %s %s: %s", what, quote(value), reason)
}

// quote makes a piece of a request fit for an answer and a log: printable and short.
func quote(s string) string {
	const most = 120
	if len(s) > most {
		return fmt.Sprintf("%q…", s[:most])
	}
	return fmt.Sprintf("%q", s)
}
