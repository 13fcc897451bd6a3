// Package cosmosfake is a fake of Azure Cosmos DB (NoSQL API) over HTTP, for tests:
// databases, containers, items, transactional batches and plain queries, as the
// REST reference has them, and as strict as the service or stricter. What it does
// not know it refuses.
//
// Stricter, on purpose: a query may filter and order by indexed paths only, and an
// item has to hold the partition key that the request names.
//
// Sources: Microsoft's "Azure Cosmos DB: REST API Reference", "Service quotas",
// "Request Units in Azure Cosmos DB" and "Time to Live in Azure Cosmos DB".
package cosmosfake

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Limits of the service.
const (
	maxItemBytes  = 2 << 20
	maxBatchOps   = 100
	maxBatchBytes = 2 << 20
	maxIDBytes    = 1023
	maxPKBytes    = 2048
)

// Server is the fake: an http.Handler. Set its fields before the first request.
type Server struct {
	Key        string // base64; "": signatures are not checked
	Token      string // of an identity that has the data plane's role; "": there is none
	Serverless bool   // throughput is refused
	// Regions are the base URLs of the regions that are written to and read from; nil:
	// the one that is asked.
	Regions func() (write, read []string)
	Now     func() time.Time // nil: time.Now

	mu    sync.Mutex
	fault func(Call) *Fault
	dbs   map[string]map[string]*container
	stamp int64
	calls []Call
}

// Call is one request, as the log has it. A request that is about to be made has
// no Status yet.
type Call struct {
	Host      string // that was asked
	Op        string // "read item", "create item", "upsert item", "replace item", "delete item", "query", "batch", …
	Container string
	PK        string
	Offer     string // throughput that is asked for: "400", or autoscale's {"maxThroughput":4000}
	Status    int
	Units     float64
}

// Fault is what happens in place of an answer.
type Fault struct {
	Status     int           // answered
	Substatus  int           // said with it
	Message    string        // said with it; "": "injected"
	RetryAfter time.Duration // said with it
	After      bool          // the work is done before
	Drop       bool          // no answer: the connection is cut
	Delay      time.Duration // before anything
}

type container struct {
	name    string
	pkPath  string
	ttl     int // seconds; -1: items that say so; 0: off
	indexed []string
	parts   map[string]map[string]*item // by partition key, id
}

type item struct {
	raw     []byte
	doc     map[string]any
	etag    string
	expires time.Time
}

// SetFault sets what is asked before each request and may make it fail; nil: nothing.
func (s *Server) SetFault(f func(Call) *Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// Calls returns and forgets the log.
func (s *Server) Calls() []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := s.calls
	s.calls = nil
	return calls
}

func (s *Server) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

// failure is an answer that is not a success.
type failure struct {
	status    int
	message   string
	substatus int // 0: none is said
}

func (f *failure) Error() string { return f.message }

func fail(status int, format string, args ...any) error {
	return &failure{status: status, message: fmt.Sprintf(format, args...)}
}

// ownerAbsent is a 404 that says nothing of what was asked: what it would be in is not there.
// Source: "HTTP status codes for Azure Cosmos DB" (substatus 1003).
func ownerAbsent(owner string) error {
	return &failure{status: http.StatusNotFound, message: "Owner resource does not exist: no such " + owner, substatus: 1003}
}

// answer is what a request is answered with.
type answer struct {
	status int
	body   any
	header map[string]string
	units  float64
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 8<<20))
	if err != nil {
		return
	}
	segments := strings.Split(strings.Trim(r.URL.EscapedPath(), "/"), "/")
	for i := range segments {
		if segments[i], err = url.PathUnescape(segments[i]); err != nil {
			http.Error(w, "bad path", http.StatusBadRequest)
			return
		}
	}
	call := Call{Host: r.Host, Op: operation(r, segments), Offer: r.Header.Get("x-ms-offer-throughput") + r.Header.Get("x-ms-cosmos-offer-autopilot-settings")}
	if len(segments) >= 4 {
		call.Container = segments[3]
	}
	var pk []string
	if h := r.Header.Get("x-ms-documentdb-partitionkey"); h != "" && json.Unmarshal([]byte(h), &pk) == nil && len(pk) == 1 {
		call.PK = pk[0]
	}
	s.mu.Lock()
	ask := s.fault
	s.mu.Unlock()
	var fault *Fault
	if ask != nil {
		fault = ask(call)
	}
	if fault != nil && fault.Delay > 0 {
		select {
		case <-time.After(fault.Delay):
		case <-r.Context().Done(): // who asked has left
			panic(http.ErrAbortHandler)
		}
	}
	var a answer
	if fault == nil || fault.After || fault.Status == 0 && !fault.Drop {
		a, err = s.answer(r, segments, call, body)
	}
	if fault != nil && fault.Drop {
		panic(http.ErrAbortHandler)
	}
	if fault != nil && fault.Status != 0 {
		a = answer{units: a.units, header: map[string]string{}}
		err = fail(fault.Status, "%s", cmp.Or(fault.Message, "injected"))
		if fault.Substatus != 0 {
			a.header["x-ms-substatus"] = strconv.Itoa(fault.Substatus)
		}
		if fault.RetryAfter > 0 {
			a.header["x-ms-retry-after-ms"] = strconv.FormatInt(fault.RetryAfter.Milliseconds(), 10)
		}
	}
	if err != nil {
		f, ok := err.(*failure)
		if !ok {
			f = &failure{status: http.StatusInternalServerError, message: err.Error()}
		}
		if f.substatus != 0 {
			a.header = map[string]string{"x-ms-substatus": strconv.Itoa(f.substatus)}
		}
		a.status, a.body = f.status, map[string]string{"code": http.StatusText(f.status), "message": f.message}
		a.units = max(a.units, 1)
	}
	call.Status, call.Units = a.status, a.units
	s.mu.Lock()
	s.calls = append(s.calls, call)
	s.mu.Unlock()
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("x-ms-request-charge", strconv.FormatFloat(a.units, 'f', 2, 64))
	h.Set("x-ms-activity-id", "00000000-0000-0000-0000-000000000000")
	h.Set("x-ms-session-token", "0:-1#1")
	for k, v := range a.header {
		h.Set(k, v)
	}
	w.WriteHeader(a.status)
	switch b := a.body.(type) {
	case nil:
	case json.RawMessage:
		w.Write(b)
	default:
		json.NewEncoder(w).Encode(b)
	}
}

func yes(r *http.Request, header string) bool { return strings.EqualFold(r.Header.Get(header), "true") }

func operation(r *http.Request, segments []string) string {
	kind := "account"
	if segments[0] != "" {
		kind = map[string]string{"dbs": "database", "colls": "container", "docs": "item"}[segments[(len(segments)-1)/2*2]]
	}
	switch {
	case yes(r, "x-ms-cosmos-is-batch-request"):
		return "batch"
	case r.Method == http.MethodPost && strings.HasPrefix(r.Header.Get("Content-Type"), "application/query+json"):
		return "query"
	case r.Method == http.MethodPost && yes(r, "x-ms-documentdb-is-upsert"):
		return "upsert " + kind
	}
	return map[string]string{"GET": "read ", "POST": "create ", "PUT": "replace ", "DELETE": "delete ", "PATCH": "patch "}[r.Method] + kind
}

// authorized checks the signature. Source: "Access control on Azure Cosmos DB
// resources".
func (s *Server) authorized(r *http.Request, segments []string, op string) error {
	if s.Key == "" && s.Token == "" {
		return nil
	}
	said, err := url.QueryUnescape(r.Header.Get("Authorization"))
	if err != nil {
		return fail(http.StatusUnauthorized, "%v", err)
	}
	if token, ok := strings.CutPrefix(said, "type=aad&ver=1.0&sig="); ok {
		switch {
		case s.Token == "" || token != s.Token:
			return fail(http.StatusForbidden, "Request blocked by Auth: principal [x] does not have required RBAC permissions to perform action [y]")
		case !strings.HasSuffix(op, " item") && !strings.HasPrefix(op, "read ") && op != "query" && op != "batch":
			return fail(http.StatusForbidden, "Request blocked by Auth: %s cannot be authorized by AAD token in data plane", op)
		}
		return nil
	}
	key, err := base64.StdEncoding.DecodeString(s.Key)
	if err != nil {
		return err
	}
	kind, link := "", ""
	if segments[0] != "" {
		kind = segments[(len(segments)-1)/2*2]
		link = strings.Join(segments[:len(segments)/2*2], "/")
	}
	date := r.Header.Get("x-ms-date")
	when, err := time.Parse(http.TimeFormat, date)
	if err != nil || time.Since(when).Abs() > 15*time.Minute {
		return fail(http.StatusForbidden, "the date %q is not within 15 minutes of now", date)
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s\n%s\n%s\n%s\n\n", strings.ToLower(r.Method), kind, link, strings.ToLower(date))
	want := "type=master&ver=1.0&sig=" + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	if !hmac.Equal([]byte(said), []byte(want)) {
		return fail(http.StatusUnauthorized, "The input authorization token can't serve the request. The wrong key is being used or the expected payload is not built as per the protocol.")
	}
	return nil
}

func (s *Server) answer(r *http.Request, segments []string, call Call, body []byte) (a answer, err error) {
	if err := s.authorized(r, segments, call.Op); err != nil {
		return a, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dbs == nil {
		s.dbs = map[string]map[string]*container{}
	}
	if call.Op == "read account" {
		write, read := []string{"http://" + r.Host}, []string{"http://" + r.Host}
		if s.Regions != nil {
			write, read = s.Regions()
		}
		return answer{status: 200, units: 0, body: map[string]any{"id": "fake", "writableLocations": locations(write), "readableLocations": locations(read), "enableMultipleWriteLocations": false,
			"userConsistencyPolicy": map[string]string{"defaultConsistencyLevel": "Strong"}}}, nil
	}
	var named struct{ ID string }
	if call.Op == "create database" || call.Op == "create container" {
		if err := json.Unmarshal(body, &named); err != nil || named.ID == "" {
			return a, fail(400, "an id is needed")
		}
		if s.Serverless && (r.Header.Get("x-ms-offer-throughput") != "" || r.Header.Get("x-ms-cosmos-offer-autopilot-settings") != "") {
			return a, fail(400, "a serverless account takes no throughput")
		}
	}
	if call.Op == "create database" {
		if s.dbs[named.ID] != nil {
			return a, fail(409, "the database exists")
		}
		s.dbs[named.ID] = map[string]*container{}
		return answer{status: 201, units: 1, body: json.RawMessage(body)}, nil
	}
	if len(segments) < 2 || segments[0] != "dbs" {
		return a, fail(404, "no such path")
	}
	db := s.dbs[segments[1]]
	if db == nil {
		return a, ownerAbsent("database")
	}
	switch call.Op {
	case "read database":
		return answer{status: 200, units: 1, body: map[string]string{"id": segments[1]}}, nil
	case "delete database":
		delete(s.dbs, segments[1])
		return answer{status: 204, units: 1}, nil
	case "delete container":
		if len(segments) != 4 || db[segments[3]] == nil {
			return a, fail(404, "no such container")
		}
		delete(db, segments[3])
		return answer{status: 204, units: 1}, nil
	case "create container":
		c, err := newContainer(body)
		if err != nil {
			return a, err
		}
		if db[c.name] != nil {
			return a, fail(409, "the container exists")
		}
		db[c.name] = c
		return answer{status: 201, units: 1, body: json.RawMessage(body)}, nil
	}
	if len(segments) < 4 {
		return a, fail(405, "%s is not done here", call.Op)
	}
	c := db[segments[3]]
	if c == nil && len(segments) == 4 {
		return a, fail(404, "no such container")
	} else if c == nil {
		return a, ownerAbsent("container")
	}
	if call.Op == "read container" {
		return answer{status: 200, units: 1, body: map[string]string{"id": c.name}}, nil
	}
	if call.Op == "query" {
		return s.query(c, r, body)
	}
	if call.PK == "" || len(call.PK) > maxPKBytes {
		return a, fail(400, "a partition key of 1 to %d bytes is needed", maxPKBytes)
	}
	if call.Op == "batch" {
		return s.batch(c, call.PK, body)
	}
	id := ""
	if len(segments) == 6 {
		id = segments[5]
	}
	return s.one(c, operationOf{kind: strings.TrimSuffix(call.Op, " item"), id: id, ifMatch: r.Header.Get("If-Match"), body: body}, call.PK)
}

// locations names each region by its port.
func locations(urls []string) (list []map[string]string) {
	for _, u := range urls {
		list = append(list, map[string]string{"name": "Region " + u[strings.LastIndexByte(u, ':')+1:], "databaseAccountEndpoint": u + "/"})
	}
	return list
}

func newContainer(body []byte) (*container, error) {
	var p struct {
		ID           string
		PartitionKey struct{ Paths []string }
		DefaultTTL   int `json:"defaultTtl"`
		Indexing     struct {
			IncludedPaths, ExcludedPaths []struct{ Path string }
		} `json:"indexingPolicy"`
	}
	if err := json.Unmarshal(body, &p); err != nil {
		return nil, fail(400, "%v", err)
	}
	if len(p.PartitionKey.Paths) != 1 {
		return nil, fail(400, "one partition key path is needed")
	}
	c := &container{name: p.ID, pkPath: strings.TrimPrefix(p.PartitionKey.Paths[0], "/"), ttl: p.DefaultTTL, parts: map[string]map[string]*item{}}
	for _, path := range p.Indexing.IncludedPaths {
		name, ok := strings.CutSuffix(strings.TrimPrefix(path.Path, "/"), "/?")
		if !ok {
			return nil, fail(400, "index path %q: this fake wants each named, as /name/?", path.Path)
		}
		c.indexed = append(c.indexed, name)
	}
	if !slices.ContainsFunc(p.Indexing.ExcludedPaths, func(e struct{ Path string }) bool { return e.Path == "/*" }) {
		return nil, fail(400, "this fake wants /* excluded from the index")
	}
	return c, nil
}
