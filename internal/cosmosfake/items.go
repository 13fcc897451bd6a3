package cosmosfake

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// operationOf is one operation on an item, of a request or of a batch.
type operationOf struct {
	kind, id, ifMatch string
	body              []byte
}

// one does an operation.
func (s *Server) one(c *container, op operationOf, pk string) (a answer, err error) {
	now := s.now()
	part := c.parts[pk]
	id := op.id
	var doc map[string]any
	if op.kind == "create" || op.kind == "upsert" || op.kind == "replace" {
		if len(op.body) > maxItemBytes {
			return a, fail(http.StatusRequestEntityTooLarge, "an item of %d bytes", len(op.body))
		}
		if err := json.Unmarshal(op.body, &doc); err != nil {
			return a, fail(400, "not an object: %v", err)
		}
		inside, _ := doc["id"].(string)
		if id == "" {
			id = inside
		}
		if inside != id || id == "" || len(id) > maxIDBytes || strings.ContainsAny(id, `/\?#`) {
			return a, fail(400, "the id %q is not allowed", inside)
		}
		if got, _ := doc[c.pkPath].(string); got != pk {
			return a, fail(400, "the item's partition key is %q, the request's %q", got, pk)
		}
	}
	have := part[id]
	if have != nil && !have.expires.IsZero() && !have.expires.After(now) {
		delete(part, id)
		have = nil
	}
	switch {
	case op.kind == "create" && have != nil:
		return a, fail(409, "the item exists")
	case (op.kind == "read" || op.kind == "replace" || op.kind == "delete") && have == nil:
		return a, fail(404, "no such item")
	case op.ifMatch != "" && (have == nil || have.etag != op.ifMatch):
		return a, fail(412, "the ETag does not match")
	}
	switch op.kind {
	case "read":
		return answer{status: 200, units: readUnits(len(have.raw)), body: json.RawMessage(have.raw), header: map[string]string{"etag": have.etag}}, nil
	case "delete":
		delete(part, id)
		return answer{status: 204, units: writeUnits(have)}, nil
	case "create", "upsert", "replace":
	default:
		return a, fail(405, "%s is not known here", op.kind)
	}
	s.stamp++
	it := &item{doc: doc, etag: fmt.Sprintf(`"%08x-0000"`, s.stamp)}
	doc["_etag"], doc["_ts"], doc["_rid"], doc["_self"] = it.etag, now.Unix(), "rid", "self"
	if it.raw, err = json.Marshal(doc); err != nil {
		return a, err
	}
	ttl := c.ttl
	if v, ok := doc["ttl"].(float64); ok && c.ttl != 0 {
		ttl = int(v)
	}
	if ttl > 0 {
		it.expires = now.Add(time.Duration(ttl) * time.Second)
	}
	if part == nil {
		part = map[string]*item{}
		c.parts[pk] = part
	}
	part[id] = it
	a = answer{status: 201, units: writeUnits(it) + indexUnits(c, doc), header: map[string]string{"etag": it.etag}}
	if op.kind == "replace" || op.kind == "upsert" && have != nil {
		a.status = 200
		a.units += 0.6 // the old one leaves the index
	}
	return a, nil
}

// batch does all operations or none.
func (s *Server) batch(c *container, pk string, body []byte) (a answer, err error) {
	var ops []struct {
		OperationType string
		ID            string
		IfMatch       string
		ResourceBody  json.RawMessage
	}
	if err := json.Unmarshal(body, &ops); err != nil {
		return a, fail(400, "not a batch: %v", err)
	}
	if len(ops) > maxBatchOps || len(ops) == 0 {
		return a, fail(400, "%d operations in a batch", len(ops))
	}
	if len(body) > maxBatchBytes {
		return a, fail(http.StatusRequestEntityTooLarge, "a batch of %d bytes", len(body))
	}
	before := map[string]*item{}
	for id, it := range c.parts[pk] {
		before[id] = it
	}
	results := make([]map[string]any, len(ops))
	failed := -1
	for i, op := range ops {
		one, err := s.one(c, operationOf{strings.ToLower(op.OperationType), op.ID, op.IfMatch, op.ResourceBody}, pk)
		if err != nil {
			f, ok := err.(*failure)
			if !ok {
				return a, err
			}
			failed = i
			results[i] = map[string]any{"statusCode": f.status, "requestCharge": 1}
			break
		}
		a.units += one.units
		results[i] = map[string]any{"statusCode": one.status, "requestCharge": one.units, "eTag": one.header["etag"]}
	}
	a.status = 200
	if failed >= 0 {
		c.parts[pk] = before
		a.status = http.StatusMultiStatus
		for i := range results {
			if i != failed {
				results[i] = map[string]any{"statusCode": http.StatusFailedDependency, "requestCharge": 0}
			}
		}
	}
	a.body = results
	return a, nil
}
