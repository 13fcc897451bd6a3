package cosmosfake

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// site is a fake with a container c of database d.
type site struct {
	t   *testing.T
	s   *Server
	url string
	now time.Time
}

func newSite(t *testing.T) *site {
	f := &site{t: t, now: time.Now()}
	f.s = &Server{Now: func() time.Time { return f.now }}
	srv := httptest.NewServer(f.s)
	t.Cleanup(srv.Close)
	f.url = srv.URL
	f.want(201, "POST", "/dbs", "", nil, `{"id":"d"}`)
	f.want(201, "POST", "/dbs/d/colls", "", nil, `{"id":"c","partitionKey":{"paths":["/pk"]},"defaultTtl":-1,"indexingPolicy":{"includedPaths":[{"path":"/pk/?"},{"path":"/n/?"}],"excludedPaths":[{"path":"/*"}]}}`)
	return f
}

func (f *site) do(method, path, pk string, header map[string]string, body string) (int, string, http.Header) {
	f.t.Helper()
	req, err := http.NewRequest(method, f.url+path, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	if pk != "" {
		req.Header.Set("x-ms-documentdb-partitionkey", fmt.Sprintf("[%q]", pk))
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	b.ReadFrom(resp.Body)
	return resp.StatusCode, b.String(), resp.Header
}

func (f *site) want(status int, method, path, pk string, header map[string]string, body string) (string, http.Header) {
	f.t.Helper()
	got, text, h := f.do(method, path, pk, header, body)
	if got != status {
		f.t.Errorf("%s %s %.80s: %d %s, want %d", method, path, body, got, text, status)
	}
	return text, h
}

const docs = "/dbs/d/colls/c/docs"

var upsert = map[string]string{"x-ms-documentdb-is-upsert": "true"}

// Items: each method's answers, ids and partition keys that the service refuses, and
// that a partition knows nothing of another.
func TestItems(t *testing.T) {
	f := newSite(t)
	_, h := f.want(201, "POST", docs, "p", nil, `{"id":"a","pk":"p"}`)
	f.want(409, "POST", docs, "p", nil, `{"id":"a","pk":"p"}`)
	f.want(200, "POST", docs, "p", upsert, `{"id":"a","pk":"p","n":1}`)
	f.want(201, "POST", docs, "q", nil, `{"id":"a","pk":"q"}`)
	f.want(412, "PUT", docs+"/a", "p", map[string]string{"If-Match": h.Get("etag")}, `{"id":"a","pk":"p","n":2}`)
	text, h := f.want(200, "GET", docs+"/a", "p", nil, "")
	var item map[string]any
	if err := json.Unmarshal([]byte(text), &item); err != nil || item["n"] != 1.0 || item["_etag"] != h.Get("etag") {
		t.Errorf("read: %s, ETag %s", text, h.Get("etag"))
	}
	f.want(200, "PUT", docs+"/a", "p", map[string]string{"If-Match": h.Get("etag")}, `{"id":"a","pk":"p","n":2}`)
	f.want(204, "DELETE", docs+"/a", "p", nil, "")
	f.want(404, "DELETE", docs+"/a", "p", nil, "")
	f.want(404, "GET", docs+"/a", "p", nil, "")
	f.want(404, "PUT", docs+"/a", "p", nil, `{"id":"a","pk":"p"}`)
	f.want(200, "GET", docs+"/a", "q", nil, "")

	for _, id := range []string{"", "a/b", `a\\b`, "a?b", "a#b", strings.Repeat("x", 1024)} {
		f.want(400, "POST", docs, "p", nil, fmt.Sprintf(`{"id":"%s","pk":"p"}`, id))
	}
	f.want(201, "POST", docs, "p", nil, fmt.Sprintf(`{"id":"%s","pk":"p"}`, strings.Repeat("x", 1023)))
	f.want(400, "POST", docs, "p", nil, `{"id":"b","pk":"q"}`)
	f.want(400, "POST", docs, "", nil, `{"id":"b","pk":"p"}`)
	f.want(400, "POST", docs, strings.Repeat("k", 2049), nil, `{"id":"b","pk":"p"}`)
	f.want(413, "POST", docs, "p", nil, fmt.Sprintf(`{"id":"b","pk":"p","x":"%s"}`, strings.Repeat("x", 2<<20)))
	f.want(405, "PATCH", docs+"/a", "q", nil, `{}`)
	f.want(404, "GET", "/dbs/d/colls/none/docs/a", "p", nil, "")
	f.want(404, "GET", "/dbs/none/colls/c/docs/a", "p", nil, "")
}

// An item goes when its time has come, by the fake's clock.
func TestTTL(t *testing.T) {
	f := newSite(t)
	f.want(201, "POST", docs, "p", nil, `{"id":"short","pk":"p","ttl":60}`)
	f.want(201, "POST", docs, "p", nil, `{"id":"long","pk":"p"}`)
	f.now = f.now.Add(59 * time.Second)
	f.want(200, "GET", docs+"/short", "p", nil, "")
	f.now = f.now.Add(2 * time.Second)
	f.want(404, "GET", docs+"/short", "p", nil, "")
	f.want(200, "GET", docs+"/long", "p", nil, "")
	f.want(201, "POST", docs, "p", nil, `{"id":"short","pk":"p"}`)
}

// A batch is done whole or not at all, in one partition, within its limits.
func TestBatch(t *testing.T) {
	f := newSite(t)
	batch := map[string]string{"x-ms-cosmos-is-batch-request": "true"}
	op := func(kind, id, rest string) string {
		return fmt.Sprintf(`{"operationType":%q,"id":%q%s}`, kind, id, rest)
	}
	item := func(id, pk string) string { return fmt.Sprintf(`,"resourceBody":{"id":%q,"pk":%q}`, id, pk) }
	f.want(200, "POST", docs, "p", batch, "["+op("Create", "", item("a", "p"))+","+op("Create", "", item("b", "p"))+"]")
	text, _ := f.want(207, "POST", docs, "p", batch, "["+op("Create", "", item("c", "p"))+","+op("Create", "", item("a", "p"))+","+op("Delete", "b", "")+"]")
	for _, want := range []string{`"statusCode":409`, `"statusCode":424`} {
		if !strings.Contains(text, want) {
			t.Errorf("a batch that fails: %s, want %s in it", text, want)
		}
	}
	f.want(404, "GET", docs+"/c", "p", nil, "")
	f.want(200, "GET", docs+"/b", "p", nil, "")
	f.want(207, "POST", docs, "p", batch, "["+op("Create", "", item("d", "q"))+"]")
	f.want(207, "POST", docs, "p", batch, "["+op("Replace", "a", `,"ifMatch":"\"old\""`+item("a", "p"))+"]")
	f.want(400, "POST", docs, "p", batch, "["+strings.Repeat(op("Upsert", "", item("a", "p"))+",", 100)+op("Upsert", "", item("a", "p"))+"]")
	f.want(200, "POST", docs, "p", batch, "["+strings.Repeat(op("Upsert", "", item("a", "p"))+",", 99)+op("Upsert", "", item("a", "p"))+"]")
	f.want(400, "POST", docs, "p", batch, "[]")
}

// Queries: one partition or all, pages, and what is not indexed.
func TestQueries(t *testing.T) {
	f := newSite(t)
	for i := range 25 {
		f.want(201, "POST", docs, "p", nil, fmt.Sprintf(`{"id":"i%02d","pk":"p","n":%d}`, i, i))
	}
	f.want(201, "POST", docs, "q", nil, `{"id":"other","pk":"q","n":3}`)
	query := func(pk, text, token string, page int) (items int, next string) {
		t.Helper()
		header := map[string]string{"Content-Type": "application/query+json", "x-ms-documentdb-isquery": "True", "x-ms-max-item-count": fmt.Sprint(page), "x-ms-continuation": token}
		if pk == "" {
			header["x-ms-documentdb-query-enablecrosspartition"] = "True"
		}
		body, h := f.want(200, "POST", docs, pk, header, fmt.Sprintf(`{"query":%q,"parameters":[{"name":"@pk","value":%q},{"name":"@n","value":3}]}`, text, pk))
		var page1 struct{ Documents []json.RawMessage }
		if err := json.Unmarshal([]byte(body), &page1); err != nil {
			t.Fatal(err)
		}
		return len(page1.Documents), h.Get("x-ms-continuation")
	}
	if n, _ := query("p", "SELECT * FROM c WHERE c.pk = @pk AND c.n >= @n", "", 100); n != 22 {
		t.Errorf("%d items", n)
	}
	if n, _ := query("", "SELECT * FROM c WHERE c.n = @n", "", 100); n != 2 {
		t.Errorf("over all partitions: %d items", n)
	}
	total, pages, token := 0, 0, ""
	for {
		n, next := query("p", "SELECT * FROM c WHERE c.pk = @pk", token, 10)
		total, pages, token = total+n, pages+1, next
		if token == "" {
			break
		}
	}
	if total != 25 || pages != 3 {
		t.Errorf("%d items on %d pages", total, pages)
	}
	header := map[string]string{"Content-Type": "application/query+json"}
	f.want(400, "POST", docs, "p", header, `{"query":"SELECT * FROM c WHERE c.pk = @pk AND c.x = 1","parameters":[{"name":"@pk","value":"p"}]}`)
}

// Signatures, faults, and throughput of a serverless account.
func TestRefusals(t *testing.T) {
	f := newSite(t)
	f.s.SetFault(func(c Call) *Fault {
		switch {
		case c.Op == "read item" && c.PK == "p":
			return &Fault{Status: 429, RetryAfter: 7 * time.Millisecond}
		case c.Op == "create item":
			return &Fault{Status: 500, After: true}
		}
		return nil
	})
	f.want(500, "POST", docs, "q", nil, `{"id":"a","pk":"q"}`)
	f.want(200, "GET", docs+"/a", "q", nil, "") // it was done
	if _, h := f.want(429, "GET", docs+"/a", "p", nil, ""); h.Get("x-ms-retry-after-ms") != "7" {
		t.Errorf("429 says %s", h.Get("x-ms-retry-after-ms"))
	}
	f.s.SetFault(func(Call) *Fault { return &Fault{Drop: true} })
	if resp, err := http.Get(f.url + docs); err == nil {
		resp.Body.Close()
		t.Error("a request that is dropped has an answer")
	}
	f.s.SetFault(nil)
	if calls := f.s.Calls(); len(calls) == 0 || len(f.s.Calls()) != 0 {
		t.Errorf("the log has %d calls, and then more", len(calls))
	}
	f.s.Serverless = true
	f.want(400, "POST", "/dbs", "", map[string]string{"x-ms-offer-throughput": "400"}, `{"id":"e"}`)
	f.s.Key = "c2VjcmV0"
	f.want(403, "GET", docs+"/a", "q", nil, "")
	f.want(401, "GET", docs+"/a", "q", map[string]string{"x-ms-date": time.Now().UTC().Format(http.TimeFormat), "Authorization": "type%3dmaster%26ver%3d1.0%26sig%3dbm8%3d"}, "")
	f.want(403, "GET", docs+"/a", "q", map[string]string{"x-ms-date": time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat)}, "")
}

// A 404 of what an item would be in says so (substatus 1003), and one of the item does not.
func TestOwnerAbsent(t *testing.T) {
	f := newSite(t)
	for path, want := range map[string]string{docs + "/a": "", "/dbs/d/colls/other": "", "/dbs/d/colls/other/docs/a": "1003", "/dbs/other/colls/c": "1003"} {
		if _, h := f.want(404, "GET", path, "p", nil, ""); h.Get("x-ms-substatus") != want {
			t.Errorf("%s: substatus %q, want %q", path, h.Get("x-ms-substatus"), want)
		}
	}
	f.want(204, "DELETE", "/dbs/d/colls/c", "", nil, "")
	if _, h := f.want(404, "POST", docs, "p", nil, `{"id":"a","pk":"p"}`); h.Get("x-ms-substatus") != "1003" {
		t.Errorf("a create in a container that was deleted: substatus %q", h.Get("x-ms-substatus"))
	}
}
