package vcs

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing/format/gitattributes"

	"github.com/athensctl/athensctl/vcs/git"
)

// attributes are the .gitattributes files of a tree. The go command archives with
// the attributes in effect, but for export-ignore and export-subst, which it turns
// off, and with line ends of one LF: what remains to be done is "eol=crlf".
// Source: https://git-scm.com/docs/gitattributes; cmd/go, codehost.gitRepo.ReadZip.
type attributes struct {
	matcher gitattributes.Matcher // nil: there are none
}

const maxAttributesBytes = 1 << 20

// macro is a line that defines one.
var macro = regexp.MustCompile(`(?m)^[ \t]*\[attr\].*$`)

func readAttributes(o *git.Objects, tree string) (*attributes, error) {
	var all []gitattributes.MatchAttribute
	err := o.Walk(tree, func(name string, e git.Entry) error {
		if path.Base(name) != ".gitattributes" || !e.IsFile() {
			return nil
		}
		b, err := o.ReadBlob(e.Hash, maxAttributesBytes)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		var domain []string
		if dir := path.Dir(name); dir != "." {
			domain = strings.Split(dir, "/")
			b = macro.ReplaceAll(b, nil) // git ignores those that are not at the root
		}
		read, err := gitattributes.ReadAttributes(bytes.NewReader(b), domain, len(domain) == 0)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, read...)
		return nil
	})
	if err != nil || len(all) == 0 {
		return &attributes{}, err
	}
	binary, err := gitattributes.ReadAttributes(strings.NewReader("[attr]binary -diff -merge -text\n"), nil, true)
	if err != nil {
		return nil, err
	}
	// Of git's rules the last wins, of the matcher's the first.
	rules := append(binary, all...)
	slices.Reverse(rules)
	return &attributes{gitattributes.NewMatcher(rules)}, nil
}

// conversion is what has to be done to a file's content; nil: nothing. An attribute
// whose effect cannot be reproduced is an error.
func (a *attributes) conversion(name string) (func(io.Reader) io.Reader, error) {
	if a.matcher == nil {
		return nil, nil
	}
	got, _ := a.matcher.Match(strings.Split(name, "/"), nil)
	if at := got["working-tree-encoding"]; at != nil && at.IsValueSet() && !strings.EqualFold(at.Value(), "utf-8") {
		return nil, fmt.Errorf("%s has the git attribute working-tree-encoding=%s, which is not supported", name, at.Value())
	}
	if at := got["ident"]; at != nil && at.IsSet() {
		return nil, fmt.Errorf("%s has the git attribute ident, which is not supported", name)
	}
	text, eol := got["text"], got["eol"]
	if crlf := got["crlf"]; crlf != nil && (text == nil || text.IsUnspecified()) { // its old name
		text = crlf
	}
	if eol == nil || !eol.IsValueSet() || eol.Value() != "crlf" || text != nil && text.IsUnset() {
		return nil, nil
	}
	if text != nil && text.IsValueSet() && text.Value() == "auto" {
		return autoCRLF, nil
	}
	return toCRLF, nil
}

// toCRLF writes a CR before each LF that has none.
func toCRLF(r io.Reader) io.Reader { return &crlf{r: bufio.NewReader(r)} }

type crlf struct {
	r       *bufio.Reader
	last    byte
	pending bool // an LF, behind the CR that was made for it
}

func (c *crlf) Read(p []byte) (n int, err error) {
	for ; n < len(p); n++ {
		if c.pending {
			p[n], c.pending = '\n', false
			continue
		}
		b, err := c.r.ReadByte()
		if err != nil {
			return n, err
		}
		if b == '\n' && c.last != '\r' {
			p[n], c.pending = '\r', true
		} else {
			p[n] = b
		}
		c.last = b
	}
	return n, nil
}

// autoCRLF is toCRLF for text without any CRLF. It reads the whole file first.
func autoCRLF(r io.Reader) io.Reader {
	b, err := io.ReadAll(io.LimitReader(r, maxAutoBytes+1))
	if err != nil {
		return &failed{err}
	}
	if len(b) > maxAutoBytes {
		return &failed{fmt.Errorf("a file with the git attributes text=auto eol=crlf is larger than %d bytes", maxAutoBytes)}
	}
	if !isText(b) || hasCRLF(b) {
		return bytes.NewReader(b)
	}
	return toCRLF(bytes.NewReader(b))
}

const maxAutoBytes = 64 << 20

type failed struct{ err error }

func (f *failed) Read([]byte) (int, error) { return 0, f.err }
