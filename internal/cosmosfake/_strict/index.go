package cosmosfake

import (
	"slices"
	"strings"
)

type indexPath struct{ Path, Order string }

type indexingPolicy struct {
	IndexingMode                 string
	IncludedPaths, ExcludedPaths []indexPath
	CompositeIndexes             [][]indexPath
}

// index is an indexing policy that can be asked.
type index struct {
	none       bool
	rules      []indexRule
	always     [][]string // indexed, whatever the rules say
	composites [][]orderBy
}

type indexRule struct {
	path    []string
	all     bool // and what is below it ("/*"), not it ("/?")
	include bool
}

func newIndex(p indexingPolicy, pk []string) (x index, err error) {
	x.none = strings.EqualFold(p.IndexingMode, "none")
	x.always = [][]string{{"id"}, {"_ts"}, pk}
	root := false
	for i, path := range slices.Concat(p.IncludedPaths, p.ExcludedPaths) {
		parts := strings.Split(path.Path, "/")
		last := parts[len(parts)-1]
		if len(parts) < 2 || parts[0] != "" || last != "*" && last != "?" || last == "?" && len(parts) == 2 {
			return x, fail(400, "The indexing path %q could not be accepted: it is like /a/? or /a/*", path.Path)
		}
		rule := indexRule{path: unquote(parts[1 : len(parts)-1]), all: last == "*", include: i < len(p.IncludedPaths)}
		root = root || len(rule.path) == 0
		x.rules = append(x.rules, rule)
	}
	if !root && !x.none {
		return x, fail(400, "The special mandatory indexing path \"/\" is not provided in any of the path type sets: /* has to be included or excluded")
	}
	for _, list := range p.CompositeIndexes {
		if len(list) < 2 {
			return x, fail(400, "A composite index has two paths or more")
		}
		var c []orderBy
		for _, path := range list {
			if !strings.HasPrefix(path.Path, "/") || strings.HasSuffix(path.Path, "?") || strings.HasSuffix(path.Path, "*") {
				return x, fail(400, "The path %q of a composite index is invalid: it is like /a", path.Path)
			}
			c = append(c, orderBy{steps(unquote(strings.Split(path.Path[1:], "/"))), strings.EqualFold(path.Order, "descending")})
		}
		x.composites = append(x.composites, c)
	}
	return x, nil
}

func unquote(path []string) []string {
	for i := range path {
		path[i] = strings.Trim(path[i], `"`)
	}
	return path
}

// has: the most precise rule decides.
func (x index) has(path []string) bool {
	if slices.ContainsFunc(x.always, func(p []string) bool { return slices.Equal(p, path) }) {
		return true
	}
	best, include := -1, false
	for _, r := range x.rules {
		precision := 2 * len(r.path)
		if !r.all {
			precision++
		}
		if fits := r.all && len(path) > len(r.path) && slices.Equal(path[:len(r.path)], r.path) || !r.all && slices.Equal(path, r.path); fits && precision > best {
			best, include = precision, r.include
		}
	}
	return include && !x.none
}

// composite: is there an index for this order, or for its opposite?
func (x index) composite(order []orderBy) bool {
	return slices.ContainsFunc(x.composites, func(c []orderBy) bool {
		if len(c) != len(order) {
			return false
		}
		same, opposite := true, true
		for i, o := range order {
			path := slices.Equal(c[i].path, o.path)
			same, opposite = same && path && c[i].desc == o.desc, opposite && path && c[i].desc != o.desc
		}
		return same || opposite
	})
}

// count returns how many properties of an item are indexed.
func (x index) count(doc map[string]any) int {
	n := len(x.composites)
	var walk func(v any, path []string)
	walk = func(v any, path []string) {
		switch v := v.(type) {
		case map[string]any:
			for name, below := range v {
				walk(below, append(slices.Clip(path), name))
			}
		case []any:
			for _, below := range v {
				walk(below, append(slices.Clip(path), "[]"))
			}
		default:
			if x.has(path) {
				n++
			}
		}
	}
	walk(doc, nil)
	return n
}
