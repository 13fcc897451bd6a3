package cosmosfake

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// step is a step of a path: a property, or an element of an array.
type step struct {
	name  string
	at    int
	array bool
}

func steps(names []string) []step {
	list := make([]step, len(names))
	for i, n := range names {
		list[i].name = n
	}
	return list
}

// indexed is the path as an indexing policy has it.
func indexed(path []step) []string {
	list := make([]string, len(path))
	for i, st := range path {
		if list[i] = st.name; st.array {
			list[i] = "[]"
		}
	}
	return list
}

func lookup(v any, path []step) (any, bool) {
	for _, st := range path {
		switch node := v.(type) {
		case map[string]any:
			var ok bool
			if v, ok = node[st.name]; !ok || st.array {
				return nil, false
			}
		case []any:
			if !st.array || st.at >= len(node) {
				return nil, false
			}
			v = node[st.at]
		default:
			return nil, false
		}
	}
	return v, true
}

// truth of a condition. What is not defined is not true, nor is its opposite.
type truth int8

const (
	undefined truth = iota
	yes
	no
)

func truthOf(b bool) truth {
	if b {
		return yes
	}
	return no
}

type (
	condition func(doc any) truth
	operand   func(doc any) (v any, defined bool)
	orderBy   struct {
		path []step
		desc bool
	}
	query struct {
		text   string // with its parameters: what a continuation belongs to
		top    int    // -1: all
		value  bool
		fields []field // none: *
		where  condition
		used   [][]step // the paths of the WHERE clause
		order  []orderBy
	}
	field struct {
		name string
		path []step
	}
)

var tokenForm = regexp.MustCompile(`^(?:(\s+)|([A-Za-z_]\w*)|(@\w+)|(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)|('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(<=|>=|!=|<>|[=<>(),.*\[\]{}?:+/|-]))`)

const (
	endToken = iota
	word
	param
	number
	text
	punct
)

type token struct {
	kind int
	text string
}

// parser panics with a *failure, which catch returns.
type parser struct {
	tokens []token
	params map[string]any
	roots  []string // names that paths begin with
	used   [][]step
}

func catch(err *error) {
	if r := recover(); r != nil {
		f, ok := r.(*failure)
		if !ok {
			panic(r)
		}
		*err = f
	}
}

func newParser(s string) *parser {
	p := &parser{}
	for rest := s; rest != ""; {
		m := tokenForm.FindStringSubmatch(rest)
		if m == nil {
			panic(fail(400, "Syntax error near %.20q in %q", rest, s))
		}
		rest = rest[len(m[0]):]
		for kind, part := range m[2:] {
			if part != "" {
				p.tokens = append(p.tokens, token{kind + word, part})
			}
		}
	}
	return p
}

func (p *parser) peek() token {
	if len(p.tokens) == 0 {
		return token{}
	}
	return p.tokens[0]
}

func (p *parser) next() token {
	t := p.peek()
	p.tokens = p.tokens[min(1, len(p.tokens)):]
	return t
}

// take takes the keyword or sign if it is the next.
func (p *parser) take(s string) bool {
	t := p.peek()
	if (t.kind == word || t.kind == punct) && strings.EqualFold(t.text, s) {
		p.next()
		return true
	}
	return false
}

func (p *parser) want(s string) {
	if !p.take(s) {
		panic(p.unexpected(s))
	}
}

func (p *parser) unexpected(wanted string) *failure {
	if t := strings.ToUpper(p.peek().text); p.peek().kind == word && slices.Contains([]string{"DISTINCT", "JOIN", "GROUP", "OFFSET", "LIMIT", "LIKE", "BETWEEN", "HAVING", "EXISTS", "IN", "ARRAY"}, t) {
		return fail(400, "The fake refuses %s: keep to SELECT [TOP n] *, paths or VALUE path FROM c WHERE … ORDER BY …", t)
	}
	return fail(400, "Syntax error: %s is expected, not %q", wanted, p.peek().text)
}

func parseQuery(body []byte) (q *query, err error) {
	defer catch(&err)
	var in struct {
		Query      string
		Parameters []struct {
			Name  string
			Value any
		}
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, fail(400, "The request is no JSON of a query: %v", err)
	}
	p := newParser(in.Query)
	p.params = map[string]any{}
	for _, one := range in.Parameters {
		p.params[one.Name] = one.Value
	}
	q = &query{text: in.Query + string(encode(p.params)), top: -1}
	p.want("SELECT")
	if p.peek().kind == word && strings.EqualFold(p.peek().text, "DISTINCT") {
		panic(p.unexpected(""))
	}
	if p.take("TOP") {
		n, ok := p.literal().(float64)
		if q.top = int(n); !ok || n < 1 || n != float64(q.top) {
			panic(fail(400, "TOP needs a positive integer"))
		}
	}
	if q.value = p.take("VALUE"); q.value {
		q.fields = []field{p.field()}
	} else if !p.take("*") {
		for {
			f := p.field()
			if p.take("AS") {
				f.name = p.next().text
			}
			if slices.ContainsFunc(q.fields, func(o field) bool { return o.name == f.name }) {
				panic(fail(400, "The property %q is selected twice", f.name))
			}
			if q.fields = append(q.fields, f); !p.take(",") {
				break
			}
		}
	}
	p.want("FROM")
	alias := p.alias()
	if q.where = func(any) truth { return yes }; p.take("WHERE") {
		q.where = p.or()
	}
	q.used = p.used
	if p.take("ORDER") {
		p.want("BY")
		for {
			o := orderBy{path: p.path()}
			if !p.take("ASC") {
				o.desc = p.take("DESC")
			}
			if q.order = append(q.order, o); !p.take(",") {
				break
			}
		}
	}
	return q, p.end(alias)
}

// parseCondition parses that of a patch: "FROM c WHERE …".
func parseCondition(s string) (c condition, err error) {
	defer catch(&err)
	p := newParser(s)
	p.want("FROM")
	alias := p.alias()
	p.want("WHERE")
	c = p.or()
	return c, p.end(alias)
}

func (p *parser) alias() string {
	t := p.next()
	if t.kind != word {
		panic(fail(400, "Syntax error: a name is expected after FROM, not %q", t.text))
	}
	if next := strings.ToUpper(p.peek().text); p.peek().kind == word && !slices.Contains([]string{"WHERE", "ORDER", "GROUP", "OFFSET", "JOIN", "IN"}, next) {
		p.take("AS")
		t = p.next()
	}
	return t.text
}

func (p *parser) end(alias string) error {
	if p.peek().kind != endToken {
		return p.unexpected("the end")
	}
	for _, root := range p.roots {
		if root != alias {
			return fail(400, "Identifier '%s' could not be resolved.", root)
		}
	}
	return nil
}

func (p *parser) field() field {
	f := field{path: p.path()}
	if len(f.path) == 0 || f.path[len(f.path)-1].array {
		panic(fail(400, "The fake selects * or properties, as c.a"))
	}
	f.name = f.path[len(f.path)-1].name
	return f
}

func (p *parser) path() (path []step) {
	root := p.next()
	if p.take("(") {
		panic(fail(400, "The fake refuses %s(…) here: it knows IS_DEFINED and STARTSWITH in conditions, and no aggregates", root.text))
	}
	if root.kind != word || slices.Contains([]string{"DISTINCT", "LIKE", "JOIN"}, strings.ToUpper(root.text)) {
		panic(fail(400, "Syntax error: a property is expected, as c.a, not %q", root.text))
	}
	p.roots = append(p.roots, root.text)
	for {
		switch {
		case p.take("."):
			t := p.next()
			if t.kind != word {
				panic(fail(400, "Syntax error: a name is expected after a dot, not %q", t.text))
			}
			path = append(path, step{name: t.text})
		case p.take("["):
			switch v := p.literal().(type) {
			case string:
				path = append(path, step{name: v})
			case float64:
				if v < 0 {
					panic(fail(400, "An index of an array is not negative"))
				}
				path = append(path, step{at: int(v), array: true})
			default:
				panic(fail(400, "Syntax error in brackets"))
			}
			p.want("]")
		default:
			return path
		}
	}
}

func (p *parser) or() condition {
	left := p.and()
	for p.take("OR") {
		l, r := left, p.and()
		left = func(doc any) truth {
			a, b := l(doc), r(doc)
			switch {
			case a == yes || b == yes:
				return yes
			case a == no && b == no:
				return no
			}
			return undefined
		}
	}
	return left
}

func (p *parser) and() condition {
	left := p.unary()
	for p.take("AND") {
		l, r := left, p.unary()
		left = func(doc any) truth {
			a, b := l(doc), r(doc)
			switch {
			case a == no || b == no:
				return no
			case a == yes && b == yes:
				return yes
			}
			return undefined
		}
	}
	return left
}

func (p *parser) unary() condition {
	switch {
	case p.take("NOT"):
		c := p.unary()
		return func(doc any) truth { return []truth{undefined, no, yes}[c(doc)] }
	case p.take("("):
		c := p.or()
		p.want(")")
		return c
	case p.take("IS_DEFINED"):
		p.want("(")
		path := p.used1(p.path())
		p.want(")")
		return func(doc any) truth { _, ok := lookup(doc, path); return truthOf(ok) }
	case p.take("STARTSWITH"):
		p.want("(")
		path := p.used1(p.path())
		p.want(",")
		prefix, ok := p.literal().(string)
		if !ok {
			panic(fail(400, "STARTSWITH needs a string"))
		}
		p.want(")")
		return func(doc any) truth {
			v, _ := lookup(doc, path)
			s, ok := v.(string)
			if !ok {
				return undefined
			}
			return truthOf(strings.HasPrefix(s, prefix))
		}
	}
	left := p.operand()
	if p.take("IN") {
		p.want("(")
		var list []any
		for {
			if list = append(list, p.literal()); !p.take(",") {
				break
			}
		}
		p.want(")")
		return func(doc any) truth {
			v, ok := left(doc)
			if !ok {
				return undefined
			}
			return truthOf(slices.ContainsFunc(list, func(w any) bool { n, same := compare(v, w); return same && n == 0 }))
		}
	}
	sign := p.peek()
	test, ok := map[string]func(int) bool{"=": func(n int) bool { return n == 0 }, "!=": func(n int) bool { return n != 0 }, "<>": func(n int) bool { return n != 0 },
		"<": func(n int) bool { return n < 0 }, "<=": func(n int) bool { return n <= 0 }, ">": func(n int) bool { return n > 0 }, ">=": func(n int) bool { return n >= 0 }}[sign.text]
	if !ok || sign.kind != punct {
		panic(p.unexpected("a comparison"))
	}
	p.next()
	right := p.operand()
	if sign.text != "=" {
		for _, side := range []operand{left, right} {
			if v, ok := side(nil); ok && v == nil {
				panic(fail(400, "The fake refuses %s null: use IS_DEFINED, or = null", sign.text))
			}
		}
	}
	return func(doc any) truth {
		a, ok1 := left(doc)
		b, ok2 := right(doc)
		n, same := compare(a, b)
		if !ok1 || !ok2 || !same {
			return undefined
		}
		return truthOf(test(n))
	}
}

func (p *parser) used1(path []step) []step {
	if len(path) == 0 {
		panic(fail(400, "The fake compares properties, not whole items"))
	}
	p.used = append(p.used, path)
	return path
}

func (p *parser) operand() operand {
	t := p.peek()
	if t.kind == word && !slices.Contains([]string{"true", "false", "null"}, t.text) {
		path := p.used1(p.path())
		return func(doc any) (any, bool) { return lookup(doc, path) }
	}
	v := p.literal()
	return func(any) (any, bool) { return v, true }
}

func (p *parser) literal() any {
	t := p.next()
	switch t.kind {
	case param:
		v, ok := p.params[t.text]
		if !ok {
			panic(fail(400, "The parameter %s has no value", t.text))
		}
		if _, number := rank(v, true); number > 4 {
			panic(fail(400, "The fake takes no array or object, as %s is", t.text))
		}
		return v
	case number:
		n, err := strconv.ParseFloat(t.text, 64)
		if err != nil {
			panic(fail(400, "%v", err))
		}
		return n
	case text:
		s := t.text[1 : len(t.text)-1]
		if t.text[0] == '\'' {
			s = strings.ReplaceAll(strings.ReplaceAll(s, `\'`, `'`), `"`, `\"`)
		}
		var v string
		if err := json.Unmarshal([]byte(`"`+s+`"`), &v); err != nil {
			panic(fail(400, "Syntax error in the string %s", t.text))
		}
		return v
	case word:
		switch t.text {
		case "true":
			return true
		case "false":
			return false
		case "null":
			return nil
		}
	}
	panic(fail(400, "Syntax error: a value is expected, not %q", t.text))
}

// compare compares two values of one type; others don't compare.
func compare(a, b any) (n int, same bool) {
	switch a := a.(type) {
	case nil:
		return 0, b == nil
	case bool:
		b, ok := b.(bool)
		return cmp.Compare(b2i(a), b2i(b)), ok
	case float64:
		b, ok := b.(float64)
		return cmp.Compare(a, b), ok
	case string:
		b, ok := b.(string)
		return strings.Compare(a, b), ok
	}
	return 0, false
}

// rank orders the types for ORDER BY.
func rank(v any, defined bool) (any, int) {
	if !defined {
		return nil, 0
	}
	switch v.(type) {
	case nil:
		return v, 1
	case bool:
		return v, 2
	case float64:
		return v, 3
	case string:
		return v, 4
	case []any:
		return nil, 5
	}
	return nil, 6
}

// row is what a query may find. tie orders what the query does not.
type row struct {
	doc   map[string]any
	bytes int
	tie   string
}

type sortKey struct {
	Rank  int
	Value any
}

// cursor is a place in the results of a query: behind a row, whatever has been
// written since. It is what a continuation token holds.
type cursor struct {
	Query string
	Keys  []sortKey
	Tie   string
	Top   int
}

func (q *query) place(r row) cursor {
	c := cursor{Tie: r.tie}
	for _, o := range q.order {
		v, n := rank(lookup(r.doc, o.path))
		c.Keys = append(c.Keys, sortKey{n, v})
	}
	return c
}

func (q *query) compare(a, b cursor) int {
	for i, o := range q.order {
		n := cmp.Compare(a.Keys[i].Rank, b.Keys[i].Rank)
		if n == 0 {
			n, _ = compare(a.Keys[i].Value, b.Keys[i].Value)
		}
		if o.desc {
			n = -n
		}
		if n != 0 {
			return n
		}
	}
	return strings.Compare(a.Tie, b.Tie)
}

func (q *query) project(doc map[string]any) (any, bool) {
	if q.value {
		return lookup(doc, q.fields[0].path)
	}
	if q.fields == nil {
		return doc, true
	}
	out := map[string]any{}
	for _, f := range q.fields {
		if v, ok := lookup(doc, f.path); ok {
			out[f.name] = v
		}
	}
	return out, true
}

func (s *Server) sign(b []byte) []byte {
	mac := hmac.New(sha256.New, s.secret)
	mac.Write(b)
	return mac.Sum(nil)[:12]
}

func (s *Server) tokenOf(c cursor) string {
	b := encode(c)
	return base64.URLEncoding.EncodeToString(append(s.sign(b), b...))
}

func (s *Server) cursorOf(token, query string) (c cursor, err error) {
	b, err := base64.URLEncoding.DecodeString(token)
	if err != nil || len(b) < 12 || !hmac.Equal(b[:12], s.sign(b[12:])) || json.Unmarshal(b[12:], &c) != nil {
		return c, fail(400, "INVALID continuation token: it is none that was given")
	}
	if c.Query != query {
		return c, fail(400, "INVALID continuation token: it belongs to another query, container or partition key")
	}
	return c, nil
}

// page answers a page of the rows that the query finds.
func (s *Server) page(r *http.Request, q *query, scope, name string, rows []row) (a answer, err error) {
	size := 100
	if h := r.Header.Get("x-ms-max-item-count"); h != "" {
		if size, err = strconv.Atoi(h); err != nil || size < -1 || size == 0 {
			return a, fail(400, "The value %q of x-ms-max-item-count is invalid", h)
		}
	}
	if size < 0 || size > maxPageItems {
		size = maxPageItems
	}
	sum := sha256.Sum256([]byte(q.text + "\x00" + scope))
	hash := base64.URLEncoding.EncodeToString(sum[:9])
	after := cursor{Top: q.top}
	token := r.Header.Get("x-ms-continuation")
	if token != "" {
		if after, err = s.cursorOf(token, hash); err != nil {
			return a, err
		}
	}
	found := slices.DeleteFunc(rows, func(one row) bool {
		return q.where(one.doc) != yes || after.Tie != "" && q.compare(q.place(one), after) <= 0
	})
	slices.SortFunc(found, func(a, b row) int { return q.compare(q.place(a), q.place(b)) })
	if after.Top >= 0 {
		found = found[:min(after.Top, len(found))]
	}
	results, total, loaded, n := []any{}, 0, 0, 0
	if everywhere := strings.HasPrefix(scope, "*"); everywhere && token == "" && len(found) > 0 {
		size = 0 // an empty page, as the service may give at any time
	}
	for _, one := range found {
		v, ok := q.project(one.doc)
		b := len(encode(v))
		if n >= size || n > 0 && total+b > maxPageBytes {
			break
		}
		if n, total, loaded = n+1, total+b, loaded+one.bytes; ok {
			results = append(results, v)
		}
	}
	a = answer{status: 200, charge: pageCharge(loaded), header: map[string]string{"x-ms-item-count": strconv.Itoa(len(results))},
		body: map[string]any{"_rid": "", name: results, "_count": len(results)}}
	if n < len(found) {
		if n > 0 {
			top := after.Top
			after = q.place(found[n-1])
			if after.Top = -1; top >= 0 {
				after.Top = top - n
			}
		}
		after.Query = hash
		a.header["x-ms-continuation"] = s.tokenOf(after)
	}
	return a, nil
}

func (s *Server) queryItems(r *http.Request, c *container, key pkey, body []byte) (a answer, err error) {
	q, err := parseQuery(body)
	if err != nil {
		return a, err
	}
	if !key.given {
		if !is(r, "x-ms-documentdb-query-enablecrosspartition") {
			return a, fail(400, "Cross partition query is required but disabled. Please set x-ms-documentdb-query-enablecrosspartition to true, specify x-ms-documentdb-partitionkey, or revise your query to avoid this exception.")
		}
		if q.top >= 0 || q.order != nil {
			return a, fail(400, "The provided cross partition query can not be directly served by the gateway: TOP, ORDER BY and aggregates need one partition").with(1004)
		}
	}
	for _, path := range q.used {
		if !c.index.has(indexed(path)) {
			return a, fail(400, "The path /%s is not indexed, and the fake does not scan: include it in the indexing policy of %s", strings.Join(indexed(path), "/"), c.id)
		}
	}
	for _, o := range q.order {
		if !c.index.has(indexed(o.path)) {
			return a, fail(400, "The order by query does not have a corresponding index: /%s of %s", strings.Join(indexed(o.path), "/"), c.id)
		}
	}
	if len(q.order) > 2 || len(q.order) == 2 && !c.index.composite(q.order) {
		return a, fail(400, "The order by query does not have a corresponding composite index that it can be served from (the fake knows two properties at most).")
	}
	var rows []row
	for k, part := range c.parts {
		if key.given && k != key.key {
			continue
		}
		for id, it := range part {
			if !s.expired(c, it) {
				rows = append(rows, row{doc: it.doc, bytes: len(it.raw), tie: fmt.Sprintf("%016x%016x%s", hash(k), hash(id), id)})
			}
		}
	}
	scope := c.rid + key.key
	if !key.given {
		scope = "*" + c.rid
	}
	return s.page(r, q, scope, "Documents", rows)
}

func hash(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s))
	return h.Sum64()
}
