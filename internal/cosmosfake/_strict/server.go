package cosmosfake

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
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
	maxItemBytes    = 2 << 20
	maxBatchBytes   = 2 << 20
	maxBatchOps     = 100
	maxPatchOps     = 10
	maxItemID       = 1023 // bytes
	maxResourceID   = 255  // bytes, of a database or container
	maxPartitionKey = 2048 // bytes
	maxPageItems    = 1000
	maxPageBytes    = 4 << 20
	maxRequestBytes = 16 << 20
	maxSkew         = 15 * time.Minute
)

// Options of a Server.
type Options struct {
	Key        string           // base64, the master key; "": requests need no signature
	AllowAAD   bool             // also accept tokens of Microsoft Entra ID, whatever they hold
	Serverless bool             // throughput is refused
	Now        func() time.Time // the clock of _ts and TTL; nil: time.Now
}

// Server is the fake.
type Server struct {
	o      Options
	secret []byte // of continuation tokens

	mu     sync.Mutex // for all below
	hook   func(*Request) *Fault
	calls  []Call
	dbs    map[string]*database
	offers map[string]*offer
	serial uint64 // of ETags, resource ids and session tokens
}

// Request is what a hook of Inject is asked about.
type Request struct {
	Operation    string // as in Call
	Database     string
	Container    string
	PartitionKey string // as in Call
	ID           string // of the item, where the address has it
	Header       http.Header
	Body         []byte
}

// Fault is what happens to a request. With a Delay only, it is done, later.
type Fault struct {
	Status      int
	SubStatus   int
	RetryAfter  time.Duration
	AfterEffect bool // the work is done, and then the fault answered
	Drop        bool // no answer: the connection is closed
	Delay       time.Duration
}

// Call is one request that was answered, or dropped (Status 0).
type Call struct {
	// Operation is a verb and a noun: "create item", "read item", "upsert item",
	// "query items", "batch items", "create container", "read account", …
	Operation    string
	Database     string
	Container    string
	PartitionKey string // a string as it is, anything else as JSON
	ID           string
	Status       int
	SubStatus    int
	Charge       float64
	RequestBytes int
	AnswerBytes  int
}

// New returns a server with no databases.
func New(o Options) *Server {
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Server{o: o, secret: make([]byte, 16), dbs: map[string]*database{}, offers: map[string]*offer{}}
	rand.Read(s.secret)
	return s
}

// Inject has f asked about each request before it is done; nil ends that.
func (s *Server) Inject(f func(*Request) *Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = f
}

// Log returns the requests so far.
func (s *Server) Log() []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// failure is an answer that is an error.
type failure struct {
	status, sub int
	message     string
}

func (f *failure) Error() string { return f.message }

func fail(status int, format string, args ...any) *failure {
	return &failure{status: status, message: fmt.Sprintf(format, args...)}
}

func (f *failure) with(sub int) *failure { f.sub = sub; return f }

var codes = map[int]string{400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 405: "MethodNotAllowed",
	408: "RequestTimeout", 409: "Conflict", 410: "Gone", 412: "PreconditionFailed", 413: "RequestEntityTooLarge", 429: "TooManyRequests",
	449: "RetryWith", 500: "InternalServerError", 503: "ServiceUnavailable"}

// answer is what a request is answered with.
type answer struct {
	status int
	body   any
	header map[string]string
	charge float64
}

// target is what an address names.
type target struct {
	kind string // "", "dbs", "colls", "docs", "offers"
	feed bool   // all of the kind, not one
	link string // the resource that is signed
	ids  []string
}

func (t target) id(i int) string {
	if i < len(t.ids) && t.kind != "offers" {
		return t.ids[i]
	}
	return ""
}

func parseTarget(path string) (t target, err error) {
	if path = strings.Trim(path, "/"); path == "" {
		return t, nil
	}
	parts := strings.Split(path, "/")
	for i := range parts {
		if parts[i], err = url.PathUnescape(parts[i]); err != nil {
			return t, err
		}
		if i%2 == 1 {
			t.ids = append(t.ids, parts[i])
		} else if t.kind = parts[i]; i/2 > 2 || t.kind != []string{"dbs", "colls", "docs"}[i/2] && (t.kind != "offers" || i > 0) || t.kind != "docs" && len(parts) > 2 && parts[0] == "offers" {
			return t, fmt.Errorf("%q is no address that the fake knows", path)
		}
	}
	t.feed = len(parts)%2 == 1
	t.link = strings.Join(parts[:len(parts)/2*2], "/")
	if t.kind == "offers" { // addressed, and signed, by resource id
		t.link = strings.ToLower(strings.Join(t.ids, ""))
	}
	return t, nil
}

func is(r *http.Request, header string) bool { return strings.EqualFold(r.Header.Get(header), "true") }

var nouns = map[string]string{"dbs": "database", "colls": "container", "docs": "item", "offers": "offer"}

func operation(r *http.Request, t target) (verb, noun string) {
	if noun = nouns[t.kind]; t.kind == "" {
		noun = "account"
	}
	if t.feed {
		switch query := strings.HasPrefix(r.Header.Get("Content-Type"), "application/query+json"); {
		case r.Method == http.MethodPost && is(r, "x-ms-cosmos-is-batch-request"):
			return "batch", noun + "s"
		case r.Method == http.MethodPost && query:
			return "query", noun + "s"
		case r.Method == http.MethodPost && is(r, "x-ms-documentdb-is-upsert"):
			return "upsert", noun
		case r.Method == http.MethodPost:
			return "create", noun
		case r.Method == http.MethodGet:
			return "list", noun + "s"
		}
		return strings.ToLower(r.Method), noun + "s"
	}
	verb, ok := map[string]string{"GET": "read", "PUT": "replace", "DELETE": "delete", "PATCH": "patch"}[r.Method]
	if !ok {
		verb = strings.ToLower(r.Method)
	}
	return verb, noun
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxRequestBytes+1))
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	t, err := parseTarget(r.URL.EscapedPath())
	verb, noun := operation(r, t)
	key, keyErr := parseKey(r.Header)
	call := Call{Operation: verb + " " + noun, Database: t.id(0), Container: t.id(1), ID: t.id(2), PartitionKey: key.String(), RequestBytes: len(body)}
	s.mu.Lock()
	hook := s.hook
	s.mu.Unlock()
	var fault *Fault
	if hook != nil {
		fault = hook(&Request{Operation: call.Operation, Database: call.Database, Container: call.Container, PartitionKey: call.PartitionKey, ID: call.ID, Header: r.Header.Clone(), Body: bytes.Clone(body)})
	}
	if fault == nil {
		fault = &Fault{}
	}
	if fault.Delay > 0 {
		select {
		case <-time.After(fault.Delay):
		case <-r.Context().Done():
		}
	}
	var a answer
	if fault.AfterEffect || fault.Status == 0 && !fault.Drop {
		switch {
		case err != nil:
			err = fail(404, "%v", err)
		case keyErr != nil:
			err = keyErr
		case len(body) > maxRequestBytes:
			err = fail(413, "Request size is too large")
		default:
			if err = s.authorize(r, t, verb); err == nil {
				s.mu.Lock()
				a, err = s.do(r, t, verb, noun, key, body)
				s.mu.Unlock()
			}
		}
	}
	if a.header == nil {
		a.header = map[string]string{}
	}
	if fault.Status != 0 {
		err = fail(fault.Status, "injected").with(fault.SubStatus)
		if fault.RetryAfter > 0 {
			a.header["x-ms-retry-after-ms"] = strconv.FormatInt(fault.RetryAfter.Milliseconds(), 10)
		}
	}
	if err != nil {
		f, ok := errors.AsType[*failure](err)
		if !ok {
			f = fail(500, "%v", err)
		}
		delete(a.header, "etag")
		a.status, a.body = f.status, map[string]string{"code": codes[f.status], "message": f.message}
		if f.status == 404 || f.status == 409 || f.status == 412 {
			a.charge = max(a.charge, errorCharge)
		}
		if call.SubStatus = f.sub; f.sub != 0 {
			a.header["x-ms-substatus"] = strconv.Itoa(f.sub)
		}
	}
	var out []byte
	if a.body != nil {
		out = encode(a.body)
	}
	if call.Status, call.Charge, call.AnswerBytes = a.status, a.charge, len(out); fault.Drop {
		call.Status, call.AnswerBytes = 0, 0
	}
	s.mu.Lock()
	s.calls = append(s.calls, call)
	a.header["x-ms-session-token"] = fmt.Sprintf("0:-1#%d", s.serial)
	s.mu.Unlock()
	if fault.Drop {
		panic(http.ErrAbortHandler)
	}
	activity := make([]byte, 16)
	rand.Read(activity)
	a.header["x-ms-activity-id"] = fmt.Sprintf("%x-%x-%x-%x-%x", activity[:4], activity[4:6], activity[6:8], activity[8:10], activity[10:])
	a.header["x-ms-request-charge"] = strconv.FormatFloat(a.charge, 'f', -1, 64)
	a.header["Content-Type"] = "application/json"
	for k, v := range a.header {
		w.Header().Set(k, v)
	}
	w.WriteHeader(a.status)
	w.Write(out)
}

// encode writes JSON as it is, without escapes for HTML.
func encode(v any) []byte {
	if raw, ok := v.(json.RawMessage); ok {
		return raw
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// authorize checks the signature. The clock for it is the real one.
func (s *Server) authorize(r *http.Request, t target, verb string) error {
	if s.o.Key == "" {
		return nil
	}
	given := r.Header.Get("Authorization")
	if given == "" {
		return fail(401, "Required Header authorization is missing. Ensure a valid Authorization token is passed.")
	}
	if strings.Contains(given, "%") {
		var err error
		if given, err = url.QueryUnescape(given); err != nil {
			return fail(401, "The Authorization header is not URL-encoded well")
		}
	}
	if token, ok := strings.CutPrefix(given, "type=aad&ver=1.0&sig="); ok {
		switch {
		case !s.o.AllowAAD || token == "":
			return fail(401, "Tokens of Microsoft Entra ID are not accepted")
		case t.kind != "docs" && t.kind != "" && verb != "read":
			return fail(403, "Request blocked by Auth: an identity of the data plane can't %s here; databases, containers and throughput are the control plane's", verb).with(5300)
		}
		return nil
	}
	date := r.Header.Get("x-ms-date")
	when, err := http.ParseTime(date)
	if err != nil {
		return fail(401, "The header x-ms-date is missing or is no HTTP date: %q", date)
	}
	if time.Since(when).Abs() > maxSkew {
		return fail(403, "The authorization token is not valid at the current time: its date is %s", date)
	}
	key, err := base64.StdEncoding.DecodeString(s.o.Key)
	if err != nil {
		return err
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s\n%s\n%s\n%s\n\n", strings.ToLower(r.Method), t.kind, t.link, strings.ToLower(date))
	want := "type=master&ver=1.0&sig=" + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	if !hmac.Equal([]byte(given), []byte(want)) {
		return fail(401, "The input authorization token can't serve the request: the signature is not that of this method, resource, date and key")
	}
	return nil
}

type database struct {
	id, rid    string
	meta       map[string]any
	containers map[string]*container
}

type offer struct {
	resource string
	meta     map[string]any
}

// rid makes a resource id below that of parent.
func (s *Server) rid(parent string, bytes int) string {
	s.serial++
	b, _ := base64.StdEncoding.DecodeString(strings.ReplaceAll(parent, "-", "/"))
	b = binary.BigEndian.AppendUint32(b, uint32(s.serial))
	for len(b) < bytes {
		b = append(b, 0)
	}
	return strings.ReplaceAll(base64.StdEncoding.EncodeToString(b), "/", "-")
}

// stamp gives what was written its system properties.
func (s *Server) stamp(meta map[string]any, rid, self string) (etag string) {
	s.serial++
	etag = fmt.Sprintf("\"%08x-0000-0700-0000-%012x\"", s.serial, s.o.Now().Unix())
	meta["_rid"], meta["_self"], meta["_etag"], meta["_ts"] = rid, self, etag, float64(s.o.Now().Unix())
	return etag
}

func described(status int, meta map[string]any) answer {
	return answer{status: status, body: maps.Clone(meta), header: map[string]string{"etag": meta["_etag"].(string)}, charge: 1}
}

// do does one request; s.mu is held.
func (s *Server) do(r *http.Request, t target, verb, noun string, key pkey, body []byte) (a answer, err error) {
	db := s.dbs[t.id(0)]
	var c *container
	if len(t.ids) > 0 && t.kind != "offers" && !(t.kind == "dbs" && t.feed) {
		if db == nil {
			return a, fail(404, "Owner resource does not exist: database %q", t.id(0)).with(1003 * b2i(t.kind != "dbs"))
		}
		if len(t.ids) > 1 {
			if c = db.containers[t.id(1)]; c == nil {
				return a, fail(404, "Owner resource does not exist: container %q", t.id(1)).with(1003 * b2i(t.kind == "docs"))
			}
		}
	}
	switch verb + " " + noun {
	case "read account":
		here := []map[string]string{{"name": "Test Region", "databaseAccountEndpoint": "http" + strings.Repeat("s", b2i(r.TLS != nil)) + "://" + r.Host + "/"}}
		return answer{status: 200, body: map[string]any{"id": "fake", "_rid": r.Host, "writableLocations": here, "readableLocations": here,
			"enableMultipleWriteLocations": false, "userConsistencyPolicy": map[string]string{"defaultConsistencyLevel": "Session"}}}, nil
	case "create database":
		return s.createDatabase(r, body)
	case "read database":
		return described(200, db.meta), nil
	case "delete database":
		delete(s.dbs, db.id)
		s.dropOffers(db.rid)
		for _, c := range db.containers {
			s.dropOffers(c.rid)
		}
		return answer{status: 204, charge: 1}, nil
	case "list databases", "query databases":
		var all []row
		for _, d := range s.dbs {
			all = append(all, metaRow(d.meta))
		}
		return s.metaQuery(r, "Databases", all, body)
	case "create container":
		return s.createContainer(r, db, body)
	case "read container":
		return described(200, c.meta), nil
	case "replace container":
		next, err := parseContainer(body)
		if err != nil {
			return a, err
		}
		if next.id != c.id || !slices.Equal(next.pk, c.pk) {
			return a, fail(400, "The id and the partition key of a container can't be changed")
		}
		s.stamp(next.meta, c.rid, c.meta["_self"].(string))
		c.meta, c.ttl, c.index = next.meta, next.ttl, next.index
		return described(200, c.meta), nil
	case "delete container":
		delete(db.containers, c.id)
		s.dropOffers(c.rid)
		return answer{status: 204, charge: 1}, nil
	case "list containers", "query containers":
		var all []row
		for _, c := range db.containers {
			all = append(all, metaRow(c.meta))
		}
		return s.metaQuery(r, "DocumentCollections", all, body)
	case "query offers":
		var all []row
		for _, o := range s.offers {
			all = append(all, metaRow(o.meta))
		}
		return s.metaQuery(r, "Offers", all, body)
	case "read offer", "replace offer":
		o := s.offers[t.link]
		if o == nil {
			return a, fail(404, "Resource Not Found")
		}
		if verb == "replace" {
			var next struct{ Content json.RawMessage }
			if err := json.Unmarshal(body, &next); err != nil {
				return a, fail(400, "%v", err)
			}
			content, err := parseThroughput(next.Content)
			if err != nil {
				return a, err
			}
			o.meta["content"] = content
			s.stamp(o.meta, t.link, "offers/"+t.link+"/")
		}
		a = described(200, o.meta)
		a.header["x-ms-cosmos-min-throughput"] = "400"
		return a, nil
	case "query items":
		return s.queryItems(r, c, key, body)
	case "batch items":
		return s.batch(r, c, key, body)
	case "create item", "upsert item", "read item", "replace item", "delete item", "patch item":
		return s.one(c, key, op{verb: verb, id: t.id(2), ifMatch: r.Header.Get("If-Match"), ifNoneMatch: r.Header.Get("If-None-Match"),
			minimal: r.Header.Get("Prefer") == "return=minimal", body: body})
	}
	return a, fail(405, "The fake does not %s %s", verb, noun)
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func checkID(id string, limit int) error {
	if id == "" || len(id) > limit || strings.ContainsAny(id, `/\?#`) || strings.HasSuffix(id, " ") {
		return fail(400, "The id %.40q is not allowed: it is 1 to %d bytes, has none of / \\ ? #, and does not end with a space", id, limit)
	}
	return nil
}

func (s *Server) createDatabase(r *http.Request, body []byte) (a answer, err error) {
	var p struct{ ID string }
	if err := json.Unmarshal(body, &p); err != nil {
		return a, fail(400, "The request is no JSON of a database: %v", err)
	}
	if err := checkID(p.ID, maxResourceID); err != nil {
		return a, err
	}
	if s.dbs[p.ID] != nil {
		return a, fail(409, "Resource with specified id, name, or unique index already exists.")
	}
	content, err := s.throughput(r)
	if err != nil {
		return a, err
	}
	db := &database{id: p.ID, rid: s.rid("", 4), containers: map[string]*container{}}
	db.meta = map[string]any{"id": p.ID, "_colls": "colls/", "_users": "users/"}
	s.stamp(db.meta, db.rid, "dbs/"+db.rid+"/")
	s.dbs[p.ID] = db
	s.addOffer(db.rid, db.meta["_self"].(string), content)
	return described(201, db.meta), nil
}

func (s *Server) createContainer(r *http.Request, db *database, body []byte) (a answer, err error) {
	c, err := parseContainer(body)
	if err != nil {
		return a, err
	}
	if db.containers[c.id] != nil {
		return a, fail(409, "Resource with specified id, name, or unique index already exists.")
	}
	content, err := s.throughput(r)
	if err != nil {
		return a, err
	}
	shared := slices.ContainsFunc(slices.Collect(maps.Values(s.offers)), func(o *offer) bool { return o.resource == db.rid })
	if content == nil && !shared && !s.o.Serverless {
		content = map[string]any{"offerThroughput": 400.0}
	}
	c.rid = s.rid(db.rid, 8)
	s.stamp(c.meta, c.rid, fmt.Sprintf("dbs/%s/colls/%s/", db.rid, c.rid))
	db.containers[c.id] = c
	s.addOffer(c.rid, c.meta["_self"].(string), content)
	return described(201, c.meta), nil
}

// throughput returns what the headers of a create ask for; nil: nothing.
func (s *Server) throughput(r *http.Request) (map[string]any, error) {
	manual, auto := r.Header.Get("x-ms-offer-throughput"), r.Header.Get("x-ms-cosmos-offer-autopilot-settings")
	switch {
	case manual == "" && auto == "":
		return nil, nil
	case s.o.Serverless:
		return nil, fail(400, "Reading or replacing offers, or setting throughput, is not supported for serverless accounts.")
	case manual != "" && auto != "":
		return nil, fail(400, "Throughput is manual or autoscale, not both")
	case manual != "":
		return parseThroughput([]byte(`{"offerThroughput":` + manual + `}`))
	}
	return parseThroughput([]byte(`{"offerAutopilotSettings":` + auto + `}`))
}

func parseThroughput(b []byte) (map[string]any, error) {
	var p struct {
		OfferThroughput        *int
		OfferAutopilotSettings *struct{ MaxThroughput int }
	}
	var content map[string]any
	if json.Unmarshal(b, &p) != nil || json.Unmarshal(b, &content) != nil || (p.OfferThroughput == nil) == (p.OfferAutopilotSettings == nil) {
		return nil, fail(400, "Not a throughput: %s", b)
	}
	if n := p.OfferThroughput; n != nil && (*n < 400 || *n%100 != 0) {
		return nil, fail(400, "The offer should have valid throughput values between 400 and 1000000 inclusive in increments of 100, not %d", *n)
	}
	if p := p.OfferAutopilotSettings; p != nil && (p.MaxThroughput < 1000 || p.MaxThroughput%1000 != 0) {
		return nil, fail(400, "Autoscale needs a maximum of 1000 or more, in increments of 1000, not %d", p.MaxThroughput)
	}
	return content, nil
}

func (s *Server) addOffer(resource, link string, content map[string]any) {
	if content == nil {
		return
	}
	s.serial++
	id := fmt.Sprintf("of%04x", s.serial)
	o := &offer{resource: resource, meta: map[string]any{"id": id, "offerVersion": "V2", "offerType": "Invalid", "resource": link, "offerResourceId": resource, "content": content}}
	s.stamp(o.meta, id, "offers/"+id+"/")
	s.offers[id] = o
}

func (s *Server) dropOffers(resource string) {
	maps.DeleteFunc(s.offers, func(_ string, o *offer) bool { return o.resource == resource })
}

func metaRow(meta map[string]any) row { return row{doc: maps.Clone(meta), tie: meta["id"].(string)} }

// metaQuery answers a list of, or a query for, databases, containers or offers.
func (s *Server) metaQuery(r *http.Request, name string, rows []row, body []byte) (a answer, err error) {
	if name == "Offers" && s.o.Serverless {
		return a, fail(400, "Reading or replacing offers is not supported for serverless accounts.")
	}
	if r.Method == http.MethodGet {
		body = []byte(`{"query":"SELECT * FROM c"}`)
	}
	q, err := parseQuery(body)
	if err != nil {
		return a, err
	}
	return s.page(r, q, name, name, rows)
}
