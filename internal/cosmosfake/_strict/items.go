package cosmosfake

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

type container struct {
	id, rid string
	meta    map[string]any
	pk      []string // the path of the partition key
	ttl     *int     // defaultTtl; nil: items don't expire
	index   index
	parts   map[string]map[string]*item // by partition key, as JSON, and id
}

// item is never changed: a write puts another one in its place.
type item struct {
	raw  []byte
	doc  map[string]any
	etag string
	rid  string
}

// pkey is a value of a partition key.
type pkey struct {
	given bool
	key   string // JSON; "{}": the property is not there
	plain string
}

func (k pkey) String() string { return k.plain }

func newKey(v any, defined bool) (k pkey, err error) {
	if !defined {
		return pkey{true, "{}", "{}"}, nil
	}
	switch v := v.(type) {
	case map[string]any, []any:
		return k, fail(400, "A partition key is a string, a number, a boolean or null")
	case string:
		if len(v) > maxPartitionKey {
			return k, fail(400, "A partition key has at most %d bytes, not %d", maxPartitionKey, len(v))
		}
		return pkey{true, string(encode(v)), v}, nil
	}
	b := string(encode(v))
	return pkey{true, b, b}, nil
}

// parseKey reads the header: an array of one value, {} for none.
func parseKey(h http.Header) (k pkey, err error) {
	header := h.Get("x-ms-documentdb-partitionkey")
	if header == "" {
		return k, nil
	}
	var list []any
	if err := json.Unmarshal([]byte(header), &list); err != nil || len(list) != 1 {
		return k, fail(400, "Partition key %.100s is invalid: it is a JSON array of one value", header)
	}
	none, ok := list[0].(map[string]any)
	return newKey(list[0], !(ok && len(none) == 0))
}

func parseContainer(body []byte) (*container, error) {
	var p struct {
		ID           string
		PartitionKey struct {
			Paths []string
			Kind  string
		}
		DefaultTTL     *int `json:"defaultTtl"`
		IndexingPolicy *indexingPolicy
	}
	c := &container{parts: map[string]map[string]*item{}}
	if err := json.Unmarshal(body, &p); err != nil {
		return nil, fail(400, "The request is no JSON of a container: %v", err)
	}
	if err := json.Unmarshal(body, &c.meta); err != nil {
		return nil, fail(400, "%v", err)
	}
	if err := checkID(p.ID, maxResourceID); err != nil {
		return nil, err
	}
	if len(p.PartitionKey.Paths) != 1 || !strings.HasPrefix(p.PartitionKey.Paths[0], "/") || p.PartitionKey.Kind == "MultiHash" {
		return nil, fail(400, "The fake wants one partition key path, as /pk, and not %q", p.PartitionKey.Paths)
	}
	if t := p.DefaultTTL; t != nil && *t != -1 && (*t < 1 || *t > math.MaxInt32) {
		return nil, fail(400, "The input ttl %d is invalid: it is -1 or a positive number of seconds", *t)
	}
	c.id, c.ttl, c.pk = p.ID, p.DefaultTTL, strings.Split(p.PartitionKey.Paths[0][1:], "/")
	for i := range c.pk {
		c.pk[i] = strings.Trim(c.pk[i], `"`)
	}
	if p.IndexingPolicy == nil {
		p.IndexingPolicy = &indexingPolicy{IncludedPaths: []indexPath{{Path: "/*"}}, ExcludedPaths: []indexPath{{Path: `/"_etag"/?`}}}
		c.meta["indexingPolicy"] = map[string]any{"indexingMode": "consistent", "automatic": true,
			"includedPaths": []any{map[string]any{"path": "/*"}}, "excludedPaths": []any{map[string]any{"path": `/"_etag"/?`}}}
	}
	var err error
	c.index, err = newIndex(*p.IndexingPolicy, c.pk)
	return c, err
}

// live returns the item, unless it is not there or has expired.
func (s *Server) live(c *container, key, id string) *item {
	it := c.parts[key][id]
	if it == nil || s.expired(c, it) {
		return nil
	}
	return it
}

// expired: an item's own ttl counts only where the container has one.
func (s *Server) expired(c *container, it *item) bool {
	if c.ttl == nil {
		return false
	}
	ttl := float64(*c.ttl)
	if own, ok := it.doc["ttl"].(float64); ok {
		ttl = own
	}
	return ttl != -1 && float64(s.o.Now().Unix()) >= it.doc["_ts"].(float64)+ttl
}

// op is one operation on an item, of a request or of a batch.
type op struct {
	verb, id, ifMatch, ifNoneMatch string
	minimal                        bool // a write returns no body
	body                           []byte
}

var errNotFound = fail(404, "Entity with the specified id does not exist in the system.")

func (s *Server) one(c *container, key pkey, o op) (a answer, err error) {
	if !key.given {
		return a, fail(400, "PartitionKey value must be supplied for this operation.").with(1001)
	}
	if o.ifNoneMatch != "" && o.verb != "read" {
		return a, fail(400, "The fake takes If-None-Match for reads only")
	}
	var doc map[string]any
	switch o.verb {
	case "create", "upsert", "replace":
		if doc, err = parseItem(c, key, o.body); err != nil {
			return a, err
		}
		if o.id == "" {
			o.id = doc["id"].(string)
		}
	}
	if err := checkID(o.id, maxItemID); err != nil {
		return a, err
	}
	have := s.live(c, key.key, o.id)
	switch {
	case o.verb == "create" && have != nil:
		return a, fail(409, "Resource with specified id, name, or unique index already exists.")
	case o.verb != "create" && o.verb != "upsert" && have == nil:
		return a, errNotFound
	case o.ifMatch != "" && o.ifMatch != "*" && have != nil && o.verb != "read" && have.etag != o.ifMatch:
		return a, fail(412, "Operation cannot be performed because one of the specified precondition is not met.")
	case o.verb == "replace" && doc["id"] != o.id:
		return a, fail(400, "The id %q of the item is not that of the address, %q", doc["id"], o.id)
	}
	switch o.verb {
	case "read":
		a = answer{status: 200, body: json.RawMessage(have.raw), header: map[string]string{"etag": have.etag}, charge: readCharge(len(have.raw))}
		if o.ifNoneMatch != "" && (o.ifNoneMatch == "*" || o.ifNoneMatch == have.etag) {
			a.status, a.body, a.charge = 304, nil, 1
		}
		return a, nil
	case "delete":
		delete(c.parts[key.key], o.id)
		s.serial++
		return answer{status: 204, charge: writeCharge(len(have.raw), c.index.count(have.doc))}, nil
	case "patch":
		if doc, err = patch(c, have, o.body); err != nil {
			return a, err
		}
	}
	it := &item{doc: doc}
	if have != nil {
		it.rid = have.rid
	} else {
		it.rid = s.rid(c.rid, 16)
	}
	it.etag = s.stamp(doc, it.rid, c.meta["_self"].(string)+"docs/"+it.rid+"/")
	doc["_attachments"] = "attachments/"
	it.raw = encode(doc)
	if c.parts[key.key] == nil {
		c.parts[key.key] = map[string]*item{}
	}
	c.parts[key.key][o.id] = it
	a = answer{status: 201, header: map[string]string{"etag": it.etag}}
	properties := c.index.count(doc)
	if have != nil {
		a.status = 200
		properties += c.index.count(have.doc)
	}
	a.charge = writeCharge(len(it.raw), properties)
	if !o.minimal {
		a.body = json.RawMessage(it.raw)
	}
	return a, nil
}

func parseItem(c *container, key pkey, body []byte) (doc map[string]any, err error) {
	if len(body) > maxItemBytes {
		return nil, fail(413, "Request size is too large: an item of %d bytes", len(body))
	}
	if !utf8.Valid(body) {
		return nil, fail(400, "The request is not UTF-8")
	}
	if err := json.Unmarshal(body, &doc); err != nil || doc == nil {
		return nil, fail(400, "The request body is no JSON object: %v", err)
	}
	id, ok := doc["id"].(string)
	if !ok {
		return nil, fail(400, "The input content is invalid because the required property 'id' is missing or is no string")
	}
	if err := checkID(id, maxItemID); err != nil {
		return nil, err
	}
	if err := checkTTL(doc); err != nil {
		return nil, err
	}
	v, defined := lookup(doc, steps(c.pk))
	own, err := newKey(v, defined)
	if err != nil {
		return nil, err
	}
	if own.key != key.key {
		return nil, fail(400, "PartitionKey extracted from document doesn't match the one specified in the header: %.100s and %.100s", own.key, key.key).with(1001)
	}
	return doc, nil
}

func checkTTL(doc map[string]any) error {
	v, ok := doc["ttl"]
	if n, isNumber := v.(float64); ok && (!isNumber || n != math.Trunc(n) || n != -1 && (n < 1 || n > math.MaxInt32)) {
		return fail(400, "The input ttl '%v' is invalid: it is -1 or a positive number of seconds", v)
	}
	return nil
}

// batch does all operations or none.
func (s *Server) batch(r *http.Request, c *container, key pkey, body []byte) (a answer, err error) {
	if !is(r, "x-ms-cosmos-batch-atomic") {
		return a, fail(400, "The fake knows atomic batches only")
	}
	if !key.given {
		return a, fail(400, "PartitionKey value must be supplied for this operation.").with(1001)
	}
	if len(body) > maxBatchBytes {
		return a, fail(413, "Request size is too large: a batch of %d bytes", len(body))
	}
	var ops []struct {
		OperationType, ID, IfMatch, IfNoneMatch string
		ResourceBody                            json.RawMessage
	}
	if err := json.Unmarshal(body, &ops); err != nil {
		return a, fail(400, "The request is no JSON of a batch: %v", err)
	}
	if len(ops) == 0 || len(ops) > maxBatchOps {
		return a, fail(400, "Batch request has %d operations, and 1 to %d are allowed.", len(ops), maxBatchOps)
	}
	type result struct {
		StatusCode    int             `json:"statusCode"`
		SubStatusCode int             `json:"subStatusCode,omitempty"`
		RequestCharge float64         `json:"requestCharge"`
		ETag          string          `json:"eTag,omitempty"`
		ResourceBody  json.RawMessage `json:"resourceBody,omitempty"`
	}
	results := make([]result, len(ops))
	before := maps.Clone(c.parts[key.key])
	a = answer{status: 200}
	for i, one := range ops {
		verb := strings.ToLower(one.OperationType)
		o := op{verb: verb, id: one.ID, ifMatch: one.IfMatch, ifNoneMatch: one.IfNoneMatch, body: one.ResourceBody, minimal: r.Header.Get("Prefer") == "return=minimal"}
		if !slices.Contains([]string{"create", "upsert", "read", "replace", "delete", "patch"}, verb) {
			return answer{}, s.restore(c, key, before, fail(400, "Batch operation %q is not known", one.OperationType))
		}
		if verb == "create" || verb == "upsert" {
			o.id = "" // the body has it
		}
		done, err := s.one(c, key, o)
		if err != nil {
			f := err.(*failure)
			s.restore(c, key, before, nil)
			for j := range results {
				results[j] = result{StatusCode: http.StatusFailedDependency}
			}
			results[i] = result{StatusCode: f.status, SubStatusCode: f.sub, RequestCharge: errorCharge}
			a.status = http.StatusMultiStatus
			a.charge += errorCharge
			break
		}
		results[i] = result{StatusCode: done.status, RequestCharge: done.charge, ETag: done.header["etag"]}
		if done.body != nil {
			results[i].ResourceBody = done.body.(json.RawMessage)
		}
		a.charge = round(a.charge + done.charge)
	}
	a.body = results
	return a, nil
}

func (s *Server) restore(c *container, key pkey, before map[string]*item, err error) error {
	if c.parts[key.key] = before; before == nil {
		delete(c.parts, key.key)
	}
	return err
}

// patch returns the item with the operations done.
func patch(c *container, have *item, body []byte) (doc map[string]any, err error) {
	var p struct {
		Condition  string
		Operations []struct {
			Op, Path string
			Value    json.RawMessage
		}
	}
	if err := json.Unmarshal(body, &p); err != nil {
		return nil, fail(400, "The request is no JSON of a patch: %v", err)
	}
	if len(p.Operations) == 0 || len(p.Operations) > maxPatchOps {
		return nil, fail(400, "A patch has 1 to %d operations, not %d", maxPatchOps, len(p.Operations))
	}
	if p.Condition != "" {
		holds, err := parseCondition(p.Condition)
		if err != nil {
			return nil, err
		}
		if holds(have.doc) != yes {
			return nil, fail(412, "One of the specified pre-condition is not met: the condition of the patch")
		}
	}
	if err := json.Unmarshal(have.raw, &doc); err != nil {
		return nil, err
	}
	for _, o := range p.Operations {
		path := strings.Split(o.Path, "/")
		if len(path) < 2 || path[0] != "" {
			return nil, fail(400, "The path %q of a patch operation is invalid", o.Path)
		}
		path = path[1:]
		for i := range path {
			path[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(path[i])
		}
		if n := min(len(path), len(c.pk)); slices.Contains([]string{"id", "_rid", "_ts", "_etag", "_self", "_attachments"}, path[0]) || slices.Equal(path[:n], c.pk[:n]) {
			return nil, fail(400, "A patch can't change %s: the id, the partition key and the system's properties stay", o.Path)
		}
		var v any
		if o.Op != "remove" && (o.Value == nil || json.Unmarshal(o.Value, &v) != nil) {
			return nil, fail(400, "The patch operation %q of %s needs a value", o.Op, o.Path)
		}
		if _, err := apply(doc, path, o.Op, v); err != nil {
			return nil, fail(400, "For patch operation %q of %s: %v", o.Op, o.Path, err)
		}
	}
	if err := checkTTL(doc); err != nil {
		return nil, err
	}
	if n := len(encode(doc)); n > maxItemBytes {
		return nil, fail(413, "Request size is too large: an item of %d bytes", n)
	}
	return doc, nil
}

// apply does one operation of a patch below node, and returns what takes its place.
func apply(node any, path []string, verb string, v any) (any, error) {
	name, last := path[0], len(path) == 1
	switch node := node.(type) {
	case map[string]any:
		old, there := node[name]
		if !last {
			if !there {
				return nil, fmt.Errorf("%q is not there", name)
			}
			next, err := apply(old, path[1:], verb, v)
			node[name] = next
			return node, err
		}
		if !there && (verb == "replace" || verb == "remove") {
			return nil, fmt.Errorf("%q is not there", name)
		}
		next, err := changed(old, there, verb, v)
		if node[name] = next; verb == "remove" {
			delete(node, name)
		}
		return node, err
	case []any:
		i, err := strconv.Atoi(name)
		if name == "-" && last && verb == "add" {
			i, err = len(node), nil
		}
		if err != nil || i < 0 || i > len(node) || i == len(node) && !(last && (verb == "add" || verb == "set")) {
			return nil, fmt.Errorf("%q is no index of an array of %d", name, len(node))
		}
		if !last {
			node[i], err = apply(node[i], path[1:], verb, v)
			return node, err
		}
		switch {
		case verb == "add" || i == len(node):
			return slices.Insert(node, i, v), nil
		case verb == "remove":
			return slices.Delete(node, i, i+1), nil
		}
		node[i], err = changed(node[i], true, verb, v)
		return node, err
	}
	return nil, fmt.Errorf("%q is below what is no object or array", name)
}

func changed(old any, there bool, verb string, v any) (any, error) {
	switch verb {
	case "add", "set", "replace":
		return v, nil
	case "remove":
		return nil, nil
	case "incr":
		by, ok := v.(float64)
		n, number := old.(float64)
		if !ok || there && !number {
			return nil, fmt.Errorf("only numbers are incremented")
		}
		return n + by, nil
	}
	return nil, fmt.Errorf("the operation is not known")
}
