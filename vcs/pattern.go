package vcs

import "strings"

// pattern is what a line of .gitattributes is about, as git's wildmatch takes it: bytes,
// not letters. Matching takes time in proportion to the pattern times the name, whatever
// the pattern is.
// Source: https://github.com/git/git/blob/v2.39.5/wildmatch.c, and match_pathname and
// parse_path_pattern in dir.c.
type pattern struct {
	base   bool // the name's last element alone is looked at
	never  bool
	tokens []token
}

type token struct {
	kind  tokenKind
	bytes byteSet // of one
}

type tokenKind int

const (
	one  tokenKind = iota // one byte of the set
	run                   // any bytes but "/"
	all                   // any bytes
	skip                  // the next two tokens (all, "/") may be left out
)

// byteSet is a set of bytes.
type byteSet [4]uint64

func (s *byteSet) add(c byte)      { s[c>>6] |= 1 << (c & 63) }
func (s *byteSet) has(c byte) bool { return s[c>>6]&(1<<(c&63)) != 0 }

func parsePattern(text string) *pattern {
	p := &pattern{}
	if strings.HasSuffix(text, "/") {
		p.never = true // it is for folders, and they have no attributes
		return p
	}
	p.base = !strings.Contains(text, "/")
	text = strings.TrimPrefix(text, "/")
	literal := func(c byte) {
		t := token{}
		t.bytes.add(c)
		p.tokens = append(p.tokens, t)
	}
	special := false // there was one: git compares what is before the first by itself
	for i := 0; i < len(text); i++ {
		switch c := text[i]; c {
		case '*':
			stars := 1
			for i+1 < len(text) && text[i+1] == '*' {
				stars++
				i++
			}
			begin := i + 1 - stars
			afterSlash := begin == 0 || text[begin-1] == '/' || !special
			rest := text[i+1:]
			switch {
			case p.base: // "/" is not in the name
				p.tokens = append(p.tokens, token{kind: all})
			case stars > 1 && afterSlash && strings.HasPrefix(rest, "/"):
				p.tokens = append(p.tokens, token{kind: skip}, token{kind: all})
			case stars > 1 && afterSlash && (rest == "" || strings.HasPrefix(rest, `\/`)):
				p.tokens = append(p.tokens, token{kind: all})
			default:
				p.tokens = append(p.tokens, token{kind: run})
			}
			special = true
		case '?':
			t := token{}
			for c := range 256 {
				if c != '/' || p.base {
					t.bytes.add(byte(c))
				}
			}
			p.tokens, special = append(p.tokens, t), true
		case '\\':
			special = true
			if i++; i == len(text) {
				p.never = true
				return p
			}
			literal(text[i])
		case '[':
			special = true
			set, end, ok := parseBrackets(text, i)
			if !ok {
				p.never = true
				return p
			}
			if !p.base {
				set['/'>>6] &^= 1 << ('/' & 63)
			}
			p.tokens, i = append(p.tokens, token{bytes: set}), end
		default:
			literal(c)
		}
	}
	return p
}

// parseBrackets reads [...] at i: ranges, classes such as [:alpha:], ! or ^ for what is
// not in it. end is where its "]" is.
func parseBrackets(text string, i int) (set byteSet, end int, ok bool) {
	at := func(i int) byte { // 0: the end
		if i < len(text) {
			return text[i]
		}
		return 0
	}
	i++
	negated := at(i) == '!' || at(i) == '^'
	if negated {
		i++
	}
	before := byte(0) // what a range begins with
	for first := true; first || at(i) != ']'; first = false {
		c := at(i)
		switch {
		case c == 0:
			return set, 0, false
		case c == '\\':
			i++
			if c = at(i); c == 0 {
				return set, 0, false
			}
			set.add(c)
		case c == '-' && before != 0 && at(i+1) != 0 && at(i+1) != ']':
			i++
			if c = at(i); c == '\\' {
				i++
				if c = at(i); c == 0 {
					return set, 0, false
				}
			}
			for b := int(before); b <= int(c); b++ {
				set.add(byte(b))
			}
			c = 0
		case c == '[' && at(i+1) == ':':
			close := strings.IndexByte(text[i+2:], ']')
			if close < 0 {
				return set, 0, false
			}
			name := text[i+2 : i+2+close]
			if !strings.HasSuffix(name, ":") { // not a class: a set that has "[" in it
				set.add(c)
				break
			}
			in := classes[strings.TrimSuffix(name, ":")]
			if in == nil {
				return set, 0, false
			}
			for b := range 128 {
				if in(byte(b)) {
					set.add(byte(b))
				}
			}
			i += 2 + close
			c = 0
		default:
			set.add(c)
		}
		before = c
		i++
	}
	if negated {
		for w := range set {
			set[w] = ^set[w]
		}
	}
	return set, i, true
}

var classes = map[string]func(byte) bool{
	"alnum": func(c byte) bool { return isAlpha(c) || isDigit(c) }, "alpha": isAlpha, "blank": func(c byte) bool { return c == ' ' || c == '\t' },
	"cntrl": func(c byte) bool { return c < ' ' || c == 0x7f }, "digit": isDigit, "graph": isGraph, "lower": isLower, "upper": isUpper,
	"print": func(c byte) bool { return c >= ' ' && c < 0x7f }, "punct": func(c byte) bool { return isGraph(c) && !isAlpha(c) && !isDigit(c) },
	"space": func(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }, "xdigit": func(c byte) bool { return isDigit(c) || c|0x20 >= 'a' && c|0x20 <= 'f' },
}

func isLower(c byte) bool { return 'a' <= c && c <= 'z' }
func isUpper(c byte) bool { return 'A' <= c && c <= 'Z' }
func isAlpha(c byte) bool { return isLower(c) || isUpper(c) }
func isDigit(c byte) bool { return '0' <= c && c <= '9' }
func isGraph(c byte) bool { return c > ' ' && c < 0x7f }

// match reports whether the pattern is about a name below its folder.
func (p *pattern) match(name string) bool {
	if p.never {
		return false
	}
	if p.base {
		name = name[strings.LastIndexByte(name, '/')+1:]
	}
	// Most patterns begin or end with what the name must have there.
	n := len(p.tokens)
	for i := 0; i < n && p.tokens[i].kind == one; i++ {
		if i == len(name) || !p.tokens[i].bytes.has(name[i]) {
			return false
		}
	}
	for i := 1; i <= n && p.tokens[n-i].kind == one; i++ {
		if n-i >= 2 && p.tokens[n-i-2].kind == skip { // this "/" may be left out
			break
		}
		if i > len(name) || !p.tokens[n-i].bytes.has(name[len(name)-i]) {
			return false
		}
	}
	// The places in the pattern that the name so far leads to.
	now, next := make([]bool, n+1), make([]bool, n+1)
	var enter func(states []bool, i int)
	enter = func(states []bool, i int) {
		if states[i] {
			return
		}
		states[i] = true
		if i == n || p.tokens[i].kind == one {
			return
		}
		enter(states, i+1)
		if p.tokens[i].kind == skip {
			enter(states, i+3)
		}
	}
	enter(now, 0)
	for i := range len(name) {
		clear(next)
		some := false
		for s := range n {
			if !now[s] {
				continue
			}
			switch t := &p.tokens[s]; {
			case t.kind == one && t.bytes.has(name[i]):
				enter(next, s+1)
			case t.kind == all, t.kind == run && name[i] != '/':
				enter(next, s)
			default:
				continue
			}
			some = true
		}
		if !some {
			return false
		}
		now, next = next, now
	}
	return now[n]
}
