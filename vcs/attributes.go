package vcs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/athensctl/athensctl/vcs/git"
)

// attributes are the .gitattributes files of a tree. The go command archives with
// the attributes in effect, but for export-ignore and export-subst, which it turns
// off, and with line ends of one LF: what remains to be done is "eol=crlf".
// Source: https://git-scm.com/docs/gitattributes; cmd/go, codehost.gitRepo.ReadZip;
// https://github.com/git/git/blob/v2.39.5/attr.c for what the documentation leaves open.
type attributes struct {
	rules  map[string][]rule    // by the folder of the file, "." for the root
	macros map[string][]setting // the root's alone, and binary
	memory int64                // bytes that were taken for them
}

// rule is one line: what it is about and what it says, in the line's order.
type rule struct {
	pattern  *pattern
	settings []setting
}

// setting is what a line says of one attribute: "set", "unset" and "unspecified" are
// names of no value that can be given.
type setting struct{ name, value string }

const (
	isSet         = "\x00set"
	isUnset       = "\x00unset"
	isUnspecified = "\x00unspecified" // "!name": what other lines say does not count
)

const (
	maxAttributesBytes = 2 << 20 // of all files
	maxAttributesLine  = 2048    // git ignores lines that are longer
	// attributeBytes is about how much memory each byte of a file takes, whatever is in it
	// (TestAttributesMemory).
	attributeBytes = 50
)

// blank is what stands between the words of a line.
const blank = " \t\r\n"

var (
	// errGitsOwn: with such a name anywhere in a tree, git archives nothing of it.
	errGitsOwn        = errors.New("git keeps this name for itself")
	errManyAttributes = fmt.Errorf("more than %d bytes of .gitattributes", maxAttributesBytes)
)

// isGitsOwn reports whether git refuses to have a name in a tree: one with an element that
// is ".git", or a link that is ".gitmodules", in any case, and as Windows may take them.
// Source: https://github.com/git/git/blob/v2.39.5/read-cache.c, verify_path, and path.c,
// is_ntfs_dotgit.
func isGitsOwn(name string, link bool) bool {
	for element := range strings.FieldsFuncSeq(name, func(r rune) bool { return r == '/' || r == '\\' }) {
		element, _, _ = strings.Cut(element, ":")
		switch strings.ToLower(strings.TrimRight(element, " .")) {
		case ".git", "git~1":
			return true
		case ".gitmodules", "gitmod~1", "gitmod~2", "gitmod~3", "gitmod~4":
			if link {
				return true
			}
		}
	}
	return false
}

// readAttributes reads those of a whole tree; who has read them gives their memory back. A
// name in it that is git's own is errGitsOwn, more than is accepted errManyAttributes.
func readAttributes(o *git.Objects, tree string) (*attributes, error) {
	a := &attributes{rules: map[string][]rule{}, macros: map[string][]setting{
		"binary": {{"diff", isUnset}, {"merge", isUnset}, {"text", isUnset}},
	}}
	left := int64(maxAttributesBytes)
	err := o.Walk(tree, func(name string, e git.Entry) error {
		if isGitsOwn(name, e.IsLink()) {
			return fmt.Errorf("%.200q: %w", name, errGitsOwn)
		}
		if path.Base(name) != ".gitattributes" || !e.IsFile() && !e.IsLink() { // of a link, where it leads is read
			return nil
		}
		size, err := o.Size(e.Hash)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if left -= size; left < 0 {
			return errManyAttributes
		}
		if err := o.TakeMemory(attributeBytes * size); err != nil {
			return err
		}
		a.memory += attributeBytes * size
		b, err := o.ReadBlob(e.Hash, size)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		a.read(path.Dir(name), b)
		return nil
	})
	return a, err
}

// read reads the file of one folder. Lines that git ignores are ignored.
func (a *attributes) read(folder string, text []byte) {
	text, _, _ = bytes.Cut(text, []byte{0})
	for line := range strings.SplitSeq(string(text), "\n") {
		line = strings.TrimLeft(line, blank)
		if line == "" || line[0] == '#' || len(line) >= maxAttributesLine {
			continue
		}
		name, rest, quoted := unquote(line)
		if !quoted {
			end := strings.IndexAny(line, blank)
			if end < 0 {
				continue // it says nothing
			}
			name, rest = line[:end], line[end:]
		}
		settings, ok := parseSettings(rest)
		if !ok {
			continue
		}
		if macro, is := strings.CutPrefix(name, "[attr]"); is && macro != "" {
			if folder == "." && validAttribute(macro) {
				a.macros[macro] = settings
			}
			continue
		}
		if strings.HasPrefix(name, "!") || name == "" {
			continue // git ignores negative patterns
		}
		a.rules[folder] = append(a.rules[folder], rule{parsePattern(name), settings})
	}
}

// parseSettings reads the words behind a pattern: name, -name, !name, name=value. A
// name that can't be makes the whole line void.
func parseSettings(text string) (list []setting, ok bool) {
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(blank, r) }) {
		name, value, hasValue := strings.Cut(word, "=")
		s := setting{name, isSet}
		switch {
		case name != "" && name[0] == '-':
			s = setting{name[1:], isUnset}
		case name != "" && name[0] == '!':
			s = setting{name[1:], isUnspecified}
		case hasValue:
			s.value = value
		}
		if !validAttribute(s.name) {
			return nil, false
		}
		list = append(list, s)
	}
	return list, true
}

func validAttribute(name string) bool {
	for i := range len(name) {
		switch c := name[i]; {
		case c == '-' && i > 0, c == '.', c == '_', '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		default:
			return false
		}
	}
	return name != ""
}

// unquote reads a pattern in double quotes, as C writes it.
func unquote(line string) (name, rest string, ok bool) {
	if line[0] != '"' {
		return "", "", false
	}
	var b []byte
	for i := 1; i < len(line); i++ {
		switch c := line[i]; c {
		case '"':
			return string(b), line[i+1:], true
		case '\\':
			if i++; i == len(line) {
				return "", "", false
			}
			switch c := line[i]; c {
			case '\\', '"':
				b = append(b, c)
			case '0', '1', '2', '3':
				if i+2 >= len(line) || !octal(line[i+1]) || !octal(line[i+2]) {
					return "", "", false
				}
				b = append(b, (c-'0')<<6|(line[i+1]-'0')<<3|(line[i+2]-'0'))
				i += 2
			default:
				at := strings.IndexByte("abfnrtv", c)
				if at < 0 {
					return "", "", false
				}
				b = append(b, "\a\b\f\n\r\t\v"[at])
			}
		default:
			b = append(b, c)
		}
	}
	return "", "", false
}

func octal(c byte) bool { return '0' <= c && c <= '7' }

// of are the attributes of a file. The nearest folder's lines go before those of the
// ones above, later lines before earlier ones, later words before earlier ones.
func (a *attributes) of(name string) map[string]string {
	got := map[string]string{}
	var fill func([]setting)
	fill = func(settings []setting) {
		for i := len(settings) - 1; i >= 0; i-- {
			s := settings[i]
			if _, decided := got[s.name]; decided {
				continue
			}
			got[s.name] = s.value
			if s.value == isSet {
				fill(a.macros[s.name])
			}
		}
	}
	for folder := path.Dir(name); ; folder = path.Dir(folder) {
		below := name
		if folder != "." {
			below = name[len(folder)+1:]
		}
		rules := a.rules[folder]
		for i := len(rules) - 1; i >= 0; i-- {
			if rules[i].pattern.match(below) {
				fill(rules[i].settings)
			}
		}
		if folder == "." {
			return got
		}
	}
}

// conversion is what has to be done to a file's content; nil: nothing. An attribute
// whose effect cannot be reproduced is an error.
// Source: https://github.com/git/git/blob/v2.39.5/convert.c, convert_attrs.
func (a *attributes) conversion(name string) (func(io.Reader) io.Reader, error) {
	if len(a.rules) == 0 {
		return nil, nil
	}
	got := a.of(name)
	switch e := got["working-tree-encoding"]; {
	case e == "" || e == isUnspecified || e == isUnset || strings.EqualFold(e, "utf-8") || strings.EqualFold(e, "utf8"):
	case e == isSet:
		return nil, fmt.Errorf("%s has the git attribute working-tree-encoding without a value, which is an error to git", name)
	default:
		return nil, fmt.Errorf("%s has the git attribute working-tree-encoding=%.40s, which is not supported", name, e)
	}
	if got["ident"] == isSet {
		return nil, fmt.Errorf("%s has the git attribute ident, which is not supported", name)
	}
	kind := func(attribute string) string {
		switch v := got[attribute]; v {
		case isSet, isUnset, "input", "auto":
			return v
		}
		return ""
	}
	text := kind("text")
	if text == "" {
		text = kind("crlf") // its old name
	}
	switch {
	case got["eol"] != "crlf" || text == isUnset:
		return nil, nil
	case text == "auto":
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
