package cosmosfake

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The queries that are known: a few clauses, conditions joined by AND.
var (
	queryForm = regexp.MustCompile(`^SELECT (?:TOP (\d+) )?(\*|VALUE c\.[\w.]+|c\.[\w.]+(?:, c\.[\w.]+)*) FROM c(?: WHERE (.+?))?(?: ORDER BY c\.(\w+)( DESC)?)?$`)
	condForm  = regexp.MustCompile(`^c\.(\w+) (=|<=|>=|<|>) (@\w+|-?\d+)$`)
)

type condition struct {
	property, op string
	value        any
}

// query answers a query of one partition, or of all with what the gateway can do
// for all: filters and projections, no order and no TOP.
func (s *Server) query(c *container, r *http.Request, body []byte) (a answer, err error) {
	var q struct {
		Query      string
		Parameters []struct {
			Name  string
			Value any
		}
	}
	if err := json.Unmarshal(body, &q); err != nil {
		return a, fail(400, "not a query: %v", err)
	}
	m := queryForm.FindStringSubmatch(q.Query)
	if m == nil {
		return a, fail(400, "this fake does not know the query %q", q.Query)
	}
	top, _ := strconv.Atoi(m[1])
	var conditions []condition
	if m[3] != "" {
		for part := range strings.SplitSeq(m[3], " AND ") {
			cm := condForm.FindStringSubmatch(part)
			if cm == nil {
				return a, fail(400, "this fake does not know the condition %q", part)
			}
			cond := condition{property: cm[1], op: cm[2]}
			if strings.HasPrefix(cm[3], "@") {
				i := slices.IndexFunc(q.Parameters, func(p struct {
					Name  string
					Value any
				}) bool {
					return p.Name == cm[3]
				})
				if i < 0 {
					return a, fail(400, "the parameter %s has no value", cm[3])
				}
				cond.value = q.Parameters[i].Value
			} else if cond.value, err = strconv.ParseFloat(cm[3], 64); err != nil {
				return a, fail(400, "%v", err)
			}
			conditions = append(conditions, cond)
		}
	}
	order, desc := m[4], m[5] != ""
	for _, p := range append([]string{order}, properties(conditions)...) {
		if p != "" && p != "id" && !slices.Contains(c.indexed, p) {
			return a, fail(400, "the path /%s is not indexed", p)
		}
	}
	var pk []string
	single := json.Unmarshal([]byte(r.Header.Get("x-ms-documentdb-partitionkey")), &pk) == nil && len(pk) == 1
	if !single {
		if !yes(r, "x-ms-documentdb-query-enablecrosspartition") {
			return a, fail(400, "a query of all partitions has to say so")
		}
		if order != "" || top > 0 {
			return a, fail(400, "the gateway does not order or cut a query of all partitions")
		}
	}
	var found []*item
	now := s.now()
	for key, part := range c.parts {
		if single && key != pk[0] {
			continue
		}
		for id, it := range part {
			if !it.expires.IsZero() && !it.expires.After(now) {
				delete(part, id)
			} else if !slices.ContainsFunc(conditions, func(c condition) bool { return !holds(c, it.doc) }) {
				if _, ok := it.doc[order]; ok || order == "" {
					found = append(found, it)
				}
			}
		}
	}
	slices.SortFunc(found, func(a, b *item) int {
		if order != "" {
			n, _ := compare(a.doc[order], b.doc[order])
			if desc {
				n = -n
			}
			if n != 0 {
				return n
			}
		}
		n, _ := compare(fmt.Sprint(a.doc[c.pkPath], " ", a.doc["id"]), fmt.Sprint(b.doc[c.pkPath], " ", b.doc["id"]))
		return n
	})
	if top > 0 {
		found = found[:min(top, len(found))]
	}
	// The token says behind which of the results to go on; a page ends at its
	// bound, or earlier, as the service is free to do.
	start := 0
	if token := r.Header.Get("x-ms-continuation"); token != "" {
		if start, err = strconv.Atoi(strings.TrimPrefix(token, "after ")); err != nil || start > len(found) {
			return a, fail(400, "the continuation token %q is not one of this query", token)
		}
	}
	size, err := strconv.Atoi(r.Header.Get("x-ms-max-item-count"))
	if err != nil || size <= 0 {
		size = 100
	}
	page := found[start:]
	header := map[string]string{}
	if len(page) > size {
		page = page[:size]
		header["x-ms-continuation"] = fmt.Sprintf("after %d", start+size)
	}
	results := make([]any, 0, len(page))
	for _, it := range page {
		results = append(results, project(m[2], it.doc))
	}
	header["x-ms-item-count"] = strconv.Itoa(len(results))
	return answer{status: 200, units: queryUnits(page), header: header, body: map[string]any{"_rid": "rid", "Documents": results, "_count": len(results)}}, nil
}

func properties(conditions []condition) (list []string) {
	for _, c := range conditions {
		list = append(list, c.property)
	}
	return list
}

// holds: what is not there, or of another type, fulfils nothing.
func holds(c condition, doc map[string]any) bool {
	v, ok := doc[c.property]
	if !ok {
		return false
	}
	n, ok := compare(v, c.value)
	if !ok {
		return false
	}
	switch c.op {
	case "=":
		return n == 0
	case "<":
		return n < 0
	case "<=":
		return n <= 0
	case ">":
		return n > 0
	default:
		return n >= 0
	}
}

func compare(a, b any) (n int, ok bool) {
	switch a := a.(type) {
	case string:
		b, ok := b.(string)
		return strings.Compare(a, b), ok
	case float64:
		b, ok := b.(float64)
		switch {
		case a < b:
			return -1, ok
		case a > b:
			return 1, ok
		}
		return 0, ok
	case bool:
		b, ok := b.(bool)
		if a == b {
			return 0, ok
		}
		return 1, ok
	}
	return 0, false
}

// project returns what the SELECT clause names: a property has its last name.
func project(clause string, doc map[string]any) any {
	if clause == "*" {
		return doc
	}
	get := func(path string) (any, bool) {
		var v any = doc
		for name := range strings.SplitSeq(strings.TrimPrefix(path, "c."), ".") {
			m, ok := v.(map[string]any)
			if !ok {
				return nil, false
			}
			if v, ok = m[name]; !ok {
				return nil, false
			}
		}
		return v, true
	}
	if path, ok := strings.CutPrefix(clause, "VALUE "); ok {
		v, _ := get(path)
		return v
	}
	out := map[string]any{}
	for path := range strings.SplitSeq(clause, ", ") {
		if v, ok := get(path); ok {
			out[path[strings.LastIndex(path, ".")+1:]] = v
		}
	}
	return out
}
