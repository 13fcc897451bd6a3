package cosmosfake

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/data/azcosmos"
)

const testKey = "C2y6yDjf5/R+ob0N8A7Cgv30VRDJIWEHLM+4QDU5DE2nQ9nDuVTqobD4b8mGGyPMbIZnqyMsEcaGQy67XIw/Jw=="

var ctx = context.Background()

// clock is a fake one.
type clock struct{ atomic.Int64 }

func (c *clock) now() time.Time { return time.Unix(c.Load(), 0) }

type fixture struct {
	*Server
	t      *testing.T
	url    string
	clock  *clock
	client *azcosmos.Client
	db     *azcosmos.DatabaseClient
	c      *azcosmos.ContainerClient
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// status is that of an error: 0 for none.
func status(t *testing.T, err error) int {
	t.Helper()
	if err == nil {
		return 0
	}
	re, ok := errors.AsType[*azcore.ResponseError](err)
	if !ok {
		t.Fatalf("not an answer: %v", err)
	}
	return re.StatusCode
}

func want(t *testing.T, err error, code int, message ...string) {
	t.Helper()
	if got := status(t, err); got != code {
		t.Fatalf("status %d, want %d: %v", got, code, err)
	}
	for _, m := range message {
		if !strings.Contains(err.Error(), m) {
			t.Errorf("%q is not in %v", m, err)
		}
	}
}

func options() *azcosmos.ClientOptions {
	o := &azcosmos.ClientOptions{EnableContentResponseOnWrite: true}
	o.Retry = policy.RetryOptions{MaxRetries: 2, RetryDelay: time.Millisecond, MaxRetryDelay: 2 * time.Millisecond}
	return o
}

// start starts a fake with a container: /pk, TTL on, and a composite index.
func start(t *testing.T, o Options) *fixture {
	f := &fixture{t: t, clock: &clock{}}
	f.clock.Store(1_700_000_000)
	o.Now = f.clock.now
	f.Server = New(o)
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	f.url = srv.URL
	f.client = must(azcosmos.NewClientWithKey(srv.URL, must(azcosmos.NewKeyCredential(testKey))(t), options()))(t)
	must(f.client.CreateDatabase(ctx, azcosmos.DatabaseProperties{ID: "db"}, nil))(t)
	f.db = must(f.client.NewDatabase("db"))(t)
	f.c = f.container("c", -1, &azcosmos.IndexingPolicy{Automatic: true, IndexingMode: azcosmos.IndexingModeConsistent,
		IncludedPaths:    []azcosmos.IncludedPath{{Path: "/n/?"}, {Path: "/s/?"}, {Path: "/in/*"}, {Path: "/tags/[]/?"}},
		ExcludedPaths:    []azcosmos.ExcludedPath{{Path: "/*"}, {Path: "/in/out/?"}},
		CompositeIndexes: [][]azcosmos.CompositeIndex{{{Path: "/n", Order: azcosmos.CompositeIndexAscending}, {Path: "/s", Order: azcosmos.CompositeIndexDescending}}}})
	return f
}

func (f *fixture) container(id string, ttl int32, p *azcosmos.IndexingPolicy) *azcosmos.ContainerClient {
	f.t.Helper()
	props := azcosmos.ContainerProperties{ID: id, PartitionKeyDefinition: azcosmos.PartitionKeyDefinition{Paths: []string{"/pk"}}, IndexingPolicy: p}
	if ttl != 0 {
		props.DefaultTimeToLive = &ttl
	}
	must(f.db.CreateContainer(ctx, props, nil))(f.t)
	return must(f.db.NewContainer(id))(f.t)
}

func pk(s string) azcosmos.PartitionKey { return azcosmos.NewPartitionKeyString(s) }

func doc(pairs ...any) []byte {
	m := map[string]any{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i].(string)] = pairs[i+1]
	}
	b, _ := json.Marshal(m)
	return b
}

func (f *fixture) create(pairs ...any) azcosmos.ItemResponse {
	f.t.Helper()
	b := doc(pairs...)
	var d struct{ PK string }
	json.Unmarshal(b, &d)
	return must(f.c.CreateItem(ctx, pk(d.PK), b, nil))(f.t)
}

func (f *fixture) read(p, id string) map[string]any {
	f.t.Helper()
	r := must(f.c.ReadItem(ctx, pk(p), id, nil))(f.t)
	var m map[string]any
	if err := json.Unmarshal(r.Value, &m); err != nil {
		f.t.Fatal(err)
	}
	return m
}

func (f *fixture) exists(p, id string) bool {
	f.t.Helper()
	_, err := f.c.ReadItem(ctx, pk(p), id, nil)
	if err != nil {
		want(f.t, err, 404)
	}
	return err == nil
}

// raw makes a request without the SDK, with no signature.
func (f *fixture) raw(method, path, body string, header ...string) (*http.Response, string) {
	f.t.Helper()
	r, _ := http.NewRequest(method, f.url+path, strings.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp := must(http.DefaultClient.Do(r))(f.t)
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp, string(b)
}

func TestAccountAndAuth(t *testing.T) {
	f := start(t, Options{Key: testKey, AllowAAD: true})
	// The SDK's account read came first, with this host as the only location.
	if l := f.Log(); !slices.ContainsFunc(l, func(c Call) bool { return c.Operation == "read account" && c.Status == 200 }) {
		t.Errorf("no account read in %+v", l)
	}
	for name, header := range map[string][]string{
		"absent":  nil,
		"wrong":   {"Authorization", "type%3Dmaster%26ver%3D1.0%26sig%3DAAAA", "x-ms-date", time.Now().UTC().Format(http.TimeFormat)},
		"undated": {"Authorization", "type%3Dmaster%26ver%3D1.0%26sig%3DAAAA"},
	} {
		resp, body := f.raw("GET", "/dbs/db", "", header...)
		if resp.StatusCode != 401 || !strings.Contains(body, `"code":"Unauthorized"`) || !strings.Contains(body, `"message":`) || resp.Header.Get("x-ms-activity-id") == "" || resp.Header.Get("x-ms-request-charge") == "" {
			t.Errorf("%s: %d %s %v", name, resp.StatusCode, body, resp.Header)
		}
	}
	resp, _ := f.raw("GET", "/dbs/db", "", "Authorization", "type%3Dmaster%26ver%3D1.0%26sig%3DAAAA", "x-ms-date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
	if resp.StatusCode != 403 {
		t.Errorf("an old date: %d", resp.StatusCode)
	}
	other := must(azcosmos.NewClientWithKey(f.url, must(azcosmos.NewKeyCredential("AAAA"))(t), options()))(t)
	_, err := must(other.NewContainer("db", "c"))(t).ReadItem(ctx, pk("p"), "i", nil)
	if err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("another key: %v", err)
	}

	aad := must(azcosmos.NewClient(f.url, entraToken{}, options()))(t)
	c := must(aad.NewContainer("db", "c"))(t)
	must(c.CreateItem(ctx, pk("p"), doc("id", "a b+%é", "pk", "p"), nil))(t)
	must(c.ReadItem(ctx, pk("p"), "a b+%é", nil))(t)
	must(f.c.ReadItem(ctx, pk("p"), "a b+%é", nil))(t) // signed, with what has to be escaped
	_, err = aad.CreateDatabase(ctx, azcosmos.DatabaseProperties{ID: "x"}, nil)
	want(t, err, 403, "control plane")
	g := start(t, Options{Key: testKey})
	aad = must(azcosmos.NewClient(g.url, entraToken{}, options()))(t)
	if _, err = must(aad.NewContainer("db", "c"))(t).ReadItem(ctx, pk("p"), "i", nil); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("a token that is not allowed: %v", err)
	}
}

type entraToken struct{}

func (entraToken) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: "eyJ.e30.x", ExpiresOn: time.Now().Add(time.Hour)}, nil
}

func TestDatabasesAndContainers(t *testing.T) {
	f := start(t, Options{Key: testKey})
	_, err := f.client.CreateDatabase(ctx, azcosmos.DatabaseProperties{ID: "db"}, nil)
	want(t, err, 409)
	for _, id := range []string{"a/b", `a\\b`, "a?", "a#", strings.Repeat("x", 256)} {
		_, err = f.client.CreateDatabase(ctx, azcosmos.DatabaseProperties{ID: id}, nil)
		want(t, err, 400, "id")
	}
	must(f.client.CreateDatabase(ctx, azcosmos.DatabaseProperties{ID: "two"}, nil))(t)
	page := must(f.client.NewQueryDatabasesPager("SELECT * FROM c", &azcosmos.QueryDatabasesOptions{}).NextPage(ctx))(t)
	if len(page.Databases) != 2 || page.Databases[0].ID != "db" || page.Databases[0].ResourceID == "" {
		t.Errorf("%+v", page.Databases)
	}
	two := must(f.client.NewDatabase("two"))(t)
	must(two.Read(ctx, nil))(t)
	must(two.Delete(ctx, nil))(t)
	_, err = two.Read(ctx, nil)
	want(t, err, 404)
	_, err = two.CreateContainer(ctx, azcosmos.ContainerProperties{ID: "c", PartitionKeyDefinition: azcosmos.PartitionKeyDefinition{Paths: []string{"/pk"}}}, nil)
	want(t, err, 404)

	_, err = f.db.CreateContainer(ctx, azcosmos.ContainerProperties{ID: "c", PartitionKeyDefinition: azcosmos.PartitionKeyDefinition{Paths: []string{"/pk"}}}, nil)
	want(t, err, 409)
	_, err = f.db.CreateContainer(ctx, azcosmos.ContainerProperties{ID: "d"}, nil)
	want(t, err, 400, "partition key path")
	_, err = f.db.CreateContainer(ctx, azcosmos.ContainerProperties{ID: "d", PartitionKeyDefinition: azcosmos.PartitionKeyDefinition{Paths: []string{"/pk"}}, IndexingPolicy: &azcosmos.IndexingPolicy{IncludedPaths: []azcosmos.IncludedPath{{Path: "/a/?"}}}}, nil)
	want(t, err, 400, "mandatory")
	r := must(f.c.Read(ctx, nil))(t)
	if p := r.ContainerProperties; p.ID != "c" || *p.DefaultTimeToLive != -1 || p.ResourceID == "" || p.ETag == nil || p.SelfLink == "" || len(p.IndexingPolicy.IncludedPaths) != 4 {
		t.Errorf("%+v", p)
	}
	d := f.container("d", 0, nil)
	all := must(f.db.NewQueryContainersPager("SELECT * FROM c WHERE c.id = 'd'", nil).NextPage(ctx))(t)
	if len(all.Containers) != 1 || all.Containers[0].ID != "d" {
		t.Errorf("%+v", all.Containers)
	}
	p := *all.Containers[0].IndexingPolicy
	if len(p.IncludedPaths) != 1 || p.IncludedPaths[0].Path != "/*" {
		t.Errorf("the default policy: %+v", p)
	}
	_, err = d.Replace(ctx, azcosmos.ContainerProperties{ID: "d", PartitionKeyDefinition: azcosmos.PartitionKeyDefinition{Paths: []string{"/other"}}}, nil)
	want(t, err, 400)
	seconds := int32(5)
	must(d.Replace(ctx, azcosmos.ContainerProperties{ID: "d", PartitionKeyDefinition: azcosmos.PartitionKeyDefinition{Paths: []string{"/pk"}}, DefaultTimeToLive: &seconds}, nil))(t)
	must(d.Delete(ctx, nil))(t)
	_, err = d.ReadItem(ctx, pk("p"), "x", nil)
	want(t, err, 404)
}

func TestThroughput(t *testing.T) {
	f := start(t, Options{Key: testKey})
	manual, auto := azcosmos.NewManualThroughputProperties(500), azcosmos.NewAutoscaleThroughputProperties(4000)
	must(f.client.CreateDatabase(ctx, azcosmos.DatabaseProperties{ID: "m"}, &azcosmos.CreateDatabaseOptions{ThroughputProperties: &manual}))(t)
	m := must(f.client.NewDatabase("m"))(t)
	got := must(m.ReadThroughput(ctx, nil))(t)
	if n, ok := got.ThroughputProperties.ManualThroughput(); !ok || n != 500 || *got.MinThroughput != 400 {
		t.Errorf("%d %v", n, ok)
	}
	got = must(m.ReplaceThroughput(ctx, auto, nil))(t)
	if n, ok := got.ThroughputProperties.AutoscaleMaxThroughput(); !ok || n != 4000 {
		t.Errorf("%d %v", n, ok)
	}
	got = must(f.c.ReadThroughput(ctx, nil))(t) // a container alone has the least there is
	if n, _ := got.ThroughputProperties.ManualThroughput(); n != 400 {
		t.Errorf("%d", n)
	}
	_, err := f.db.ReadThroughput(ctx, nil)
	want(t, err, 404)
	bad := azcosmos.NewManualThroughputProperties(450)
	_, err = f.client.CreateDatabase(ctx, azcosmos.DatabaseProperties{ID: "bad"}, &azcosmos.CreateDatabaseOptions{ThroughputProperties: &bad})
	want(t, err, 400, "increments")

	s := start(t, Options{Key: testKey, Serverless: true})
	_, err = s.client.CreateDatabase(ctx, azcosmos.DatabaseProperties{ID: "m"}, &azcosmos.CreateDatabaseOptions{ThroughputProperties: &manual})
	want(t, err, 400, "serverless")
	_, err = s.db.CreateContainer(ctx, azcosmos.ContainerProperties{ID: "m", PartitionKeyDefinition: azcosmos.PartitionKeyDefinition{Paths: []string{"/pk"}}}, &azcosmos.CreateContainerOptions{ThroughputProperties: &auto})
	want(t, err, 400, "serverless")
	_, err = s.c.ReadThroughput(ctx, nil)
	want(t, err, 400, "serverless")
}

func TestItems(t *testing.T) {
	f := start(t, Options{Key: testKey})
	first := f.create("id", "i", "pk", "p", "n", 1, "html", "<&>", "big", int64(1)<<60+1)
	if first.RawResponse.StatusCode != 201 || first.ETag == "" || first.SessionToken == nil || first.ActivityID == "" {
		t.Errorf("%+v", first)
	}
	got := f.read("p", "i")
	for _, name := range []string{"_rid", "_ts", "_self", "_etag"} {
		if got[name] == nil {
			t.Errorf("no %s in %v", name, got)
		}
	}
	if got["_ts"] != 1.7e9 || got["_etag"] != string(first.ETag) || got["html"] != "<&>" {
		t.Errorf("%v", got)
	}
	if got["big"] != float64(int64(1)<<60) {
		t.Errorf("numbers are doubles: %v", got["big"])
	}
	_, err := f.c.CreateItem(ctx, pk("p"), doc("id", "i", "pk", "p"), nil)
	want(t, err, 409)
	f.create("id", "i", "pk", "q") // another partition, another item
	_, err = f.c.ReplaceItem(ctx, pk("p"), "none", doc("id", "none", "pk", "p"), nil)
	want(t, err, 404)
	_, err = f.c.ReplaceItem(ctx, pk("p"), "i", doc("id", "j", "pk", "p"), nil)
	want(t, err, 400)
	_, err = f.c.ReadItem(ctx, pk("p"), "none", nil)
	want(t, err, 404)
	_, err = f.c.DeleteItem(ctx, pk("p"), "none", nil)
	want(t, err, 404)
	up := must(f.c.UpsertItem(ctx, pk("p"), doc("id", "i", "pk", "p", "n", 2), nil))(t)
	if up.RawResponse.StatusCode != 200 || up.ETag == first.ETag || f.read("p", "i")["n"] != 2.0 {
		t.Errorf("%+v", up)
	}
	if up = must(f.c.UpsertItem(ctx, pk("p"), doc("id", "new", "pk", "p"), nil))(t); up.RawResponse.StatusCode != 201 {
		t.Errorf("%d", up.RawResponse.StatusCode)
	}
	if f.read("q", "i")["n"] != nil {
		t.Error("partitions are not apart")
	}

	// ETags.
	stale, tag := &azcosmos.ItemOptions{IfMatchEtag: &first.ETag}, must(f.c.ReadItem(ctx, pk("p"), "i", nil))(t).ETag
	_, err = f.c.ReplaceItem(ctx, pk("p"), "i", doc("id", "i", "pk", "p"), stale)
	want(t, err, 412)
	_, err = f.c.UpsertItem(ctx, pk("p"), doc("id", "i", "pk", "p"), stale)
	want(t, err, 412)
	_, err = f.c.DeleteItem(ctx, pk("p"), "i", stale)
	want(t, err, 412)
	re := must(f.c.ReplaceItem(ctx, pk("p"), "i", doc("id", "i", "pk", "p", "n", 3), &azcosmos.ItemOptions{IfMatchEtag: &tag}))(t)
	if len(re.Value) != 0 {
		t.Error("return=minimal was asked for, and a body came")
	}
	must(f.c.UpsertItem(ctx, pk("p"), doc("id", "only now", "pk", "p"), stale))(t) // the service creates it
	must(f.c.DeleteItem(ctx, pk("p"), "i", &azcosmos.ItemOptions{IfMatchEtag: &re.ETag}))(t)
	if f.exists("p", "i") || !f.exists("q", "i") {
		t.Error("the wrong one was deleted")
	}

	// Partition keys.
	_, err = f.c.CreateItem(ctx, pk("p"), doc("id", "x", "pk", "q"), nil)
	want(t, err, 400, "doesn't match")
	_, err = f.c.CreateItem(ctx, pk("p"), doc("id", "x"), nil)
	want(t, err, 400, "doesn't match")
	_, err = f.c.CreateItem(ctx, azcosmos.NewPartitionKey(), doc("id", "x", "pk", "q"), nil)
	want(t, err, 400, "must be supplied")
	_, err = f.c.CreateItem(ctx, pk(strings.Repeat("p", 2049)), doc("id", "x", "pk", strings.Repeat("p", 2049)), nil)
	want(t, err, 400, "2048")
	must(f.c.CreateItem(ctx, azcosmos.NewPartitionKeyNumber(7), doc("id", "x", "pk", 7), nil))(t)
	must(f.c.CreateItem(ctx, azcosmos.NullPartitionKey, doc("id", "x", "pk", nil), nil))(t)

	// Ids and sizes.
	for _, id := range []string{"", "a/b", `a\b`, "a?b", "a#b", strings.Repeat("i", 1024)} {
		_, err = f.c.CreateItem(ctx, pk("p"), doc("id", id, "pk", "p"), nil)
		want(t, err, 400, "id")
	}
	f.create("id", strings.Repeat("i", 1023), "pk", "p")
	_, err = f.c.CreateItem(ctx, pk("p"), doc("pk", "p"), nil)
	want(t, err, 400, "'id'")
	_, err = f.c.CreateItem(ctx, pk("p"), []byte("[1]"), nil)
	want(t, err, 400)
	room := maxItemBytes - len(doc("id", "big", "pk", "p", "b", ""))
	f.create("id", "big", "pk", "p", "b", strings.Repeat("b", room))
	_, err = f.c.UpsertItem(ctx, pk("p"), doc("id", "big", "pk", "p", "b", strings.Repeat("b", room+1)), nil)
	want(t, err, 413)
}

func TestIfNoneMatch(t *testing.T) {
	f := start(t, Options{})
	tag := f.create("id", "i", "pk", "p").ETag
	resp, body := f.raw("GET", "/dbs/db/colls/c/docs/i", "", "x-ms-documentdb-partitionkey", `["p"]`, "If-None-Match", string(tag))
	if resp.StatusCode != 304 || body != "" || resp.Header.Get("etag") != string(tag) {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
	resp, body = f.raw("GET", "/dbs/db/colls/c/docs/i", "", "x-ms-documentdb-partitionkey", `["p"]`, "If-None-Match", `"other"`)
	if resp.StatusCode != 200 || body == "" {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
	resp, _ = f.raw("POST", "/dbs/db/colls/c/docs", `{"id":"j","pk":"p"}`, "x-ms-documentdb-partitionkey", `["p"]`, "If-None-Match", "*")
	if resp.StatusCode != 400 {
		t.Errorf("on a write: %d", resp.StatusCode)
	}
	for path, code := range map[string]int{"/dbs/db/colls/c/docs": 405, "/nope": 404, "/dbs/db/colls/c/pkranges": 404, "/dbs/db/colls/none/docs/i": 404} {
		if resp, _ = f.raw("GET", path, "", "x-ms-documentdb-partitionkey", `["p"]`); resp.StatusCode != code {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
	}
}

func TestPatch(t *testing.T) {
	f := start(t, Options{Key: testKey})
	f.create("id", "i", "pk", "p", "n", 1, "s", "x", "o", map[string]any{"a": 1}, "list", []int{1, 2})
	do := func(build func(*azcosmos.PatchOperations)) error {
		var p azcosmos.PatchOperations
		build(&p)
		_, err := f.c.PatchItem(ctx, pk("p"), "i", p, nil)
		return err
	}
	if err := do(func(p *azcosmos.PatchOperations) {
		p.SetCondition("from c where c.n = 1 and c.s = 'x'")
		p.AppendAdd("/new", true)
		p.AppendSet("/o/b", "set")
		p.AppendReplace("/s", "y")
		p.AppendRemove("/o/a")
		p.AppendIncrement("/n", 41)
		p.AppendIncrement("/counter", 1)
		p.AppendAdd("/list/-", 3)
		p.AppendAdd("/list/0", 0)
		p.AppendSet("/list/1", 10)
	}); err != nil {
		t.Fatal(err)
	}
	got := f.read("p", "i")
	for _, name := range []string{"_rid", "_ts", "_self", "_etag", "_attachments"} {
		delete(got, name)
	}
	if w := map[string]any{"id": "i", "pk": "p", "n": 42.0, "s": "y", "new": true, "counter": 1.0, "o": map[string]any{"b": "set"}, "list": []any{0.0, 10.0, 2.0, 3.0}}; !reflect.DeepEqual(got, w) {
		t.Errorf("%v, want %v", got, w)
	}
	for name, c := range map[string]struct {
		code  int
		build func(*azcosmos.PatchOperations)
	}{
		"condition": {412, func(p *azcosmos.PatchOperations) { p.SetCondition("from c where c.n = 1"); p.AppendSet("/n", 1) }},
		"remove":    {400, func(p *azcosmos.PatchOperations) { p.AppendSet("/n", 7); p.AppendRemove("/none") }},
		"replace":   {400, func(p *azcosmos.PatchOperations) { p.AppendReplace("/none", 1) }},
		"parent":    {400, func(p *azcosmos.PatchOperations) { p.AppendSet("/none/a", 1) }},
		"incr":      {400, func(p *azcosmos.PatchOperations) { p.AppendIncrement("/s", 1) }},
		"id":        {400, func(p *azcosmos.PatchOperations) { p.AppendSet("/id", "j") }},
		"key":       {400, func(p *azcosmos.PatchOperations) { p.AppendSet("/pk", "q") }},
		"system":    {400, func(p *azcosmos.PatchOperations) { p.AppendSet("/_ts", 1) }},
		"null":      {400, func(p *azcosmos.PatchOperations) { p.AppendSet("/n", nil) }}, // the SDK leaves it out
		"no place":  {400, func(p *azcosmos.PatchOperations) { p.AppendAdd("/list/9", 1) }},
		"operations": {400, func(p *azcosmos.PatchOperations) {
			for range 11 {
				p.AppendSet("/n", 1)
			}
		}},
		"size": {413, func(p *azcosmos.PatchOperations) { p.AppendSet("/b", strings.Repeat("b", maxItemBytes-100)) }},
	} {
		if got := status(t, do(c.build)); got != c.code {
			t.Errorf("%s: %d", name, got)
		}
	}
	if f.read("p", "i")["n"] != 42.0 {
		t.Error("a patch that failed changed something")
	}
	var p azcosmos.PatchOperations
	p.AppendSet("/n", 1)
	_, err := f.c.PatchItem(ctx, pk("p"), "none", p, nil)
	want(t, err, 404)
	old := azcore.ETag("old")
	_, err = f.c.PatchItem(ctx, pk("p"), "i", p, &azcosmos.ItemOptions{IfMatchEtag: &old})
	want(t, err, 412)
}

func TestBatch(t *testing.T) {
	f := start(t, Options{Key: testKey})
	f.create("id", "a", "pk", "p", "n", 1)
	f.create("id", "d", "pk", "p")
	var inc azcosmos.PatchOperations
	inc.AppendIncrement("/n", 1)
	run := func(p string, build func(*azcosmos.TransactionalBatch)) (azcosmos.TransactionalBatchResponse, error) {
		b := f.c.NewTransactionalBatch(pk(p))
		build(&b)
		return f.c.ExecuteTransactionalBatch(ctx, b, nil)
	}
	codes := func(r azcosmos.TransactionalBatchResponse) (list []int32) {
		for _, one := range r.OperationResults {
			list = append(list, one.StatusCode)
		}
		return list
	}
	r := must(run("p", func(b *azcosmos.TransactionalBatch) {
		b.CreateItem(doc("id", "b", "pk", "p"), nil)
		b.UpsertItem(doc("id", "u", "pk", "p"), nil)
		b.ReplaceItem("b", doc("id", "b", "pk", "p", "n", 5), nil)
		b.PatchItem("a", inc, nil)
		b.ReadItem("a", nil)
		b.DeleteItem("d", nil)
	}))(t)
	if !r.Success || !slices.Equal(codes(r), []int32{201, 201, 200, 200, 200, 204}) || !bytes.Contains(r.OperationResults[4].ResourceBody, []byte(`"n":2`)) || r.OperationResults[0].ETag == "" || r.RequestCharge < 20 {
		t.Fatalf("%v %+v", codes(r), r)
	}
	if f.exists("p", "d") || !f.exists("p", "u") {
		t.Error("the batch was not done")
	}
	// A failure: nothing is changed, and err is nil.
	before := f.read("p", "a")
	old := azcore.ETag("old")
	for code, last := range map[int32]func(*azcosmos.TransactionalBatch){
		409: func(b *azcosmos.TransactionalBatch) { b.CreateItem(doc("id", "b", "pk", "p"), nil) },
		404: func(b *azcosmos.TransactionalBatch) { b.ReadItem("none", nil) },
		412: func(b *azcosmos.TransactionalBatch) {
			b.DeleteItem("u", &azcosmos.TransactionalBatchItemOptions{IfMatchETag: &old})
		},
		400: func(b *azcosmos.TransactionalBatch) { b.CreateItem(doc("id", "z", "pk", "other"), nil) }, // one partition
	} {
		r := must(run("p", func(b *azcosmos.TransactionalBatch) {
			b.CreateItem(doc("id", "new", "pk", "p"), nil)
			b.PatchItem("a", inc, nil)
			last(b)
			b.DeleteItem("u", nil)
		}))(t)
		if r.Success || r.RawResponse.StatusCode != 207 || !slices.Equal(codes(r), []int32{424, 424, code, 424}) {
			t.Errorf("%d: %v", code, codes(r))
		}
		if f.exists("p", "new") || !f.exists("p", "u") || !reflect.DeepEqual(f.read("p", "a"), before) {
			t.Errorf("%d: something was changed", code)
		}
	}
	_, err := run("p", func(b *azcosmos.TransactionalBatch) {
		for i := range 101 {
			b.UpsertItem(doc("id", fmt.Sprint("n", i), "pk", "p"), nil)
		}
	})
	want(t, err, 400, "101 operations")
	must(run("many", func(b *azcosmos.TransactionalBatch) {
		for i := range 100 {
			b.CreateItem(doc("id", fmt.Sprint("n", i), "pk", "many"), nil)
		}
	}))(t)
	_, err = run("p", func(b *azcosmos.TransactionalBatch) {
		for i := range 2 {
			b.UpsertItem(doc("id", fmt.Sprint("n", i), "pk", "p", "b", strings.Repeat("b", 1<<20)), nil)
		}
	})
	want(t, err, 413)
	if f.exists("p", "n0") {
		t.Error("a batch that is too large was done")
	}
	r = must(run("fresh", func(b *azcosmos.TransactionalBatch) {
		b.CreateItem(doc("id", "x", "pk", "fresh"), nil)
		b.DeleteItem("none", nil)
	}))(t)
	if r.Success || f.exists("fresh", "x") {
		t.Error("a new partition was not taken back")
	}
}

func TestTTL(t *testing.T) {
	f := start(t, Options{Key: testKey})
	on, off, ten := f.c, f.container("off", 0, nil), f.container("ten", 10, nil)
	at := func(c *azcosmos.ContainerClient, id string) bool { f.c = c; return f.exists("p", id) }
	for _, c := range []*azcosmos.ContainerClient{on, off, ten} {
		f.c = c
		f.create("id", "plain", "pk", "p")
		f.create("id", "five", "pk", "p", "ttl", 5)
		f.create("id", "never", "pk", "p", "ttl", -1)
	}
	f.clock.Add(4)
	if !at(on, "five") || !at(ten, "five") {
		t.Error("expired too early")
	}
	f.clock.Add(1)
	if at(on, "five") || at(ten, "five") || !at(off, "five") || !at(ten, "plain") {
		t.Error("an item's own ttl")
	}
	f.c = on
	if got := f.query(pk("p"), "SELECT VALUE c.id FROM c WHERE c.pk = 'p'", nil); len(got) != 2 {
		t.Errorf("a query sees what has expired: %v", got)
	}
	f.create("id", "five", "pk", "p", "ttl", 5) // free again
	f.clock.Add(4)
	must(f.c.ReplaceItem(ctx, pk("p"), "five", doc("id", "five", "pk", "p", "ttl", 5), nil))(t) // and anew from each write
	f.clock.Add(4)
	if !at(on, "five") || at(ten, "plain") || !at(ten, "never") || !at(on, "plain") {
		t.Error("the container's ttl")
	}
	for _, ttl := range []any{0, -2, 1.5, "5", nil} {
		_, err := on.CreateItem(ctx, pk("p"), doc("id", "bad", "pk", "p", "ttl", ttl), nil)
		want(t, err, 400, "ttl")
	}
}

// query returns all pages' results as JSON.
func (f *fixture) query(p azcosmos.PartitionKey, text string, o *azcosmos.QueryOptions) (all []string) {
	f.t.Helper()
	pager := f.c.NewQueryItemsPager(text, p, o)
	for pager.More() {
		page, err := pager.NextPage(ctx)
		if err != nil {
			f.t.Fatalf("%s: %v", text, err)
		}
		for _, one := range page.Items {
			all = append(all, string(one))
		}
	}
	return all
}

func TestQuery(t *testing.T) {
	f := start(t, Options{Key: testKey})
	f.create("id", "a", "pk", "p", "n", 1, "s", "x'y", "in", map[string]any{"d": true, "out": 1}, "tags", []string{"t"})
	f.create("id", "b", "pk", "p", "n", 2, "s", "xz")
	f.create("id", "c", "pk", "p", "n", 2, "s", "y")
	f.create("id", "d", "pk", "p", "n", "2", "s", nil)
	f.create("id", "e", "pk", "p")
	f.create("id", "other", "pk", "q", "n", 1)
	params := []azcosmos.QueryParameter{{Name: "@pk", Value: "p"}, {Name: "@n", Value: 2}, {Name: "@s", Value: "xz"}, {Name: "@list", Value: []int{1}}, {Name: "@top", Value: 2}}
	for where, ids := range map[string]string{
		"c.pk = @pk":                                "abcde",
		"c.pk = @pk AND c.n = @n":                   "bc",
		"c.pk = 'q'":                                "",
		"c.n != 1":                                  "bc", // other types don't compare
		"c.n < 2":                                   "a",
		"c.n <= 2 AND c.n >= 1.5e0":                 "bc",
		"c.n > -1":                                  "abc",
		"c.n = 1 OR c.n = 2 AND c.s = @s":           "ab",
		"(c.n = 1 OR c.n = 2) AND c.s = @s":         "b",
		"c.n IN (1, '2', @n)":                       "abcd",
		"IS_DEFINED(c.s)":                           "abcd",
		"NOT IS_DEFINED(c.n)":                       "e",
		"NOT c.n = 1":                               "bc",
		"STARTSWITH(c.s, 'x')":                      "ab",
		`c.s = "x'y" OR c.s = 'x\'y'`:               "a",
		"c.s = null":                                "d",
		"c.in.d = true":                             "a",
		`c["in"]["d"] != false AND c.tags[0] = 't'`: "a",
		"c.id >= 'd' and c._ts > 0":                 "de",
		"2 = c.n":                                   "bc",
	} {
		got := f.query(pk("p"), "SELECT VALUE c.id FROM c WHERE "+where, &azcosmos.QueryOptions{QueryParameters: params})
		slices.Sort(got)
		if s := strings.ReplaceAll(strings.Join(got, ""), `"`, ""); s != ids {
			t.Errorf("%s: %q, want %q", where, s, ids)
		}
	}
	for text, result := range map[string]string{
		"SELECT VALUE c.id FROM c ORDER BY c.id DESC":                            `"e" "d" "c" "b" "a"`,
		"select value r.id from root r order by r.n asc":                         `"e" "a" "b" "c" "d"`, // by type: what is not there is first
		"SELECT TOP 2 VALUE c.id FROM c WHERE c.n > 0 ORDER BY c.n, c.s DESC":    `"a" "c"`,
		"SELECT TOP @top VALUE c.id FROM c WHERE c.n > 0 ORDER BY c.n DESC, c.s": `"b" "c"`,
		"SELECT c.id, c.in.d FROM c WHERE c.n = 1":                               `{"d":true,"id":"a"}`,
		"SELECT c.id AS name FROM c WHERE c.n = 1":                               `{"name":"a"}`,
		"SELECT VALUE c.in.d FROM c":                                             `true`,
	} {
		var got []string
		for _, page := range []int32{0, 1, 2, -1} {
			got = f.query(pk("p"), text, &azcosmos.QueryOptions{QueryParameters: params, PageSizeHint: page})
			slices.SortStableFunc(got, func(a, b string) int { // those that are equal in the query come in any order
				if strings.Contains(text, "order by r.n") && (a == `"b"` && b == `"c"` || a == `"c"` && b == `"b"`) {
					return strings.Compare(a, b)
				}
				return 0
			})
			if s := strings.Join(got, " "); s != result {
				t.Errorf("%s by %d: %s, want %s", text, page, s, result)
			}
		}
	}
	if got := f.query(pk("p"), "SELECT * FROM c WHERE c.n = 1", nil); len(got) != 1 || !strings.Contains(got[0], `"_etag"`) {
		t.Errorf("%v", got)
	}

	for text, message := range map[string]string{
		"SELECT DISTINCT c.n FROM c":                       "DISTINCT",
		"SELECT * FROM c WHERE c.s LIKE 'x%'":              "LIKE",
		"SELECT * FROM c WHERE c.n BETWEEN 1 AND 2":        "BETWEEN",
		"SELECT * FROM c OFFSET 1 LIMIT 1":                 "OFFSET",
		"SELECT c.n FROM c GROUP BY c.n":                   "GROUP",
		"SELECT * FROM c JOIN t IN c.tags":                 "JOIN",
		"SELECT VALUE COUNT(1) FROM c":                     "COUNT",
		"SELECT * FROM c WHERE CONTAINS(c.s, 'x')":         "CONTAINS",
		"SELECT * FROM c WHERE c.s != null":                "null",
		"SELECT * FROM c WHERE c.n = @none":                "@none",
		"SELECT * FROM c WHERE c.n IN (@list)":             "@list",
		"SELECT * FROM c WHERE d.n = 1":                    "could not be resolved",
		"SELECT * FROM c WHERE":                            "Syntax error",
		"SELECT * FROM c WHERE c.n = 1 1":                  "Syntax error",
		"SELECT TOP 0 * FROM c":                            "TOP",
		"SELECT * FROM c WHERE c.free = 1":                 "/free is not indexed",
		"SELECT * FROM c WHERE c.in.out = 1":               "/in/out is not indexed",
		"SELECT * FROM c WHERE c.in = 1":                   "/in is not indexed", // /in/* is what is below it
		"SELECT * FROM c WHERE c.n = 1 OR IS_DEFINED(c.z)": "/z is not indexed",
		"SELECT * FROM c ORDER BY c.free":                  "/free",
		"SELECT * FROM c ORDER BY c.n, c.s":                "composite", // neither as it is declared nor its opposite
		"SELECT * FROM c ORDER BY c.n, c.id":               "composite",
	} {
		_, err := f.c.NewQueryItemsPager(text, pk("p"), &azcosmos.QueryOptions{QueryParameters: params}).NextPage(ctx)
		if status(t, err) != 400 || !strings.Contains(err.Error(), message) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestCrossPartition(t *testing.T) {
	f := start(t, Options{Key: testKey})
	for i := range 30 {
		f.create("id", fmt.Sprint("i", i), "pk", fmt.Sprint("p", i%7), "n", i)
	}
	none, no := azcosmos.NewPartitionKey(), false
	pager := f.c.NewQueryItemsPager("SELECT VALUE c.n FROM c WHERE c.n >= 10", none, nil)
	if page := must(pager.NextPage(ctx))(t); len(page.Items) != 0 || page.ContinuationToken == nil {
		t.Errorf("the first page is empty and not the last: %+v", page)
	}
	if got := f.query(none, "SELECT VALUE c.n FROM c WHERE c.n >= 10", &azcosmos.QueryOptions{PageSizeHint: 3}); len(got) != 20 {
		t.Errorf("%v", got)
	}
	_, err := f.c.NewQueryItemsPager("SELECT * FROM c", none, &azcosmos.QueryOptions{EnableCrossPartitionQuery: &no}).NextPage(ctx)
	want(t, err, 400, "Cross partition query is required but disabled")
	for _, text := range []string{"SELECT * FROM c ORDER BY c.n", "SELECT TOP 1 * FROM c", "SELECT VALUE COUNT(1) FROM c", "SELECT VALUE MAX(c.n) FROM c"} {
		_, err = f.c.NewQueryItemsPager(text, none, nil).NextPage(ctx)
		want(t, err, 400)
	}
}

func TestContinuation(t *testing.T) {
	f := start(t, Options{Key: testKey})
	for i := range 10 {
		f.create("id", fmt.Sprint("i", i), "pk", "p", "n", i/2)
	}
	text := "SELECT TOP 8 VALUE c.id FROM c ORDER BY c.n"
	page := must(f.c.NewQueryItemsPager(text, pk("p"), &azcosmos.QueryOptions{PageSizeHint: 4}).NextPage(ctx))(t)
	if len(page.Items) != 4 || page.ContinuationToken == nil {
		t.Fatalf("%+v", page)
	}
	// What is written meanwhile moves nothing: the page goes on behind the last item.
	must(f.c.DeleteItem(ctx, pk("p"), "i0", nil))(t)
	f.create("id", "early", "pk", "p", "n", -1)
	next := f.query(pk("p"), text, &azcosmos.QueryOptions{PageSizeHint: 100, ContinuationToken: page.ContinuationToken})
	slices.Sort(next)
	if !slices.Equal(next, []string{`"i4"`, `"i5"`, `"i6"`, `"i7"`}) {
		t.Errorf("%v", next)
	}
	forged := "A" + (*page.ContinuationToken)[1:]
	if forged == *page.ContinuationToken {
		forged = "B" + forged[1:]
	}
	for name, c := range map[string]struct{ text, pk, token string }{
		"forged": {text, "p", forged}, "another query": {text + " DESC", "p", *page.ContinuationToken},
		"another partition": {text, "q", *page.ContinuationToken}, "no token": {text, "p", "after 4"},
	} {
		_, err := f.c.NewQueryItemsPager(c.text, pk(c.pk), &azcosmos.QueryOptions{ContinuationToken: &c.token}).NextPage(ctx)
		if status(t, err) != 400 {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := f.c.NewQueryItemsPager(text, pk("p"), &azcosmos.QueryOptions{PageSizeHint: -2}).NextPage(ctx)
	want(t, err, 400)
	// A page has at most 4 MB.
	for i := range 3 {
		f.create("id", fmt.Sprint("big", i), "pk", "big", "b", strings.Repeat("b", maxItemBytes-100))
	}
	page = must(f.c.NewQueryItemsPager("SELECT * FROM c", pk("big"), nil).NextPage(ctx))(t)
	if len(page.Items) != 1 && len(page.Items) != 2 || page.ContinuationToken == nil {
		t.Errorf("%d items of 2 MB in a page", len(page.Items))
	}
}

func TestInjectAndLog(t *testing.T) {
	f := start(t, Options{Key: testKey})
	var seen []string
	var left atomic.Int32
	fault := func(n int32, op string, fault Fault) {
		left.Store(n)
		f.Inject(func(r *Request) *Fault {
			seen = append(seen, r.Operation)
			if r.Operation == op && left.Add(-1) >= 0 {
				return &fault
			}
			return nil
		})
	}
	fault(2, "create item", Fault{Status: 429, SubStatus: 3200, RetryAfter: 2 * time.Millisecond})
	f.create("id", "a", "pk", "p") // the SDK tries again
	if !slices.Equal(seen, []string{"create item", "create item", "create item"}) {
		t.Errorf("%v", seen)
	}
	fault(1, "read account", Fault{Status: 429, SubStatus: 3200, RetryAfter: 1500 * time.Millisecond})
	if resp, body := f.raw("GET", "/", ""); resp.StatusCode != 429 || resp.Header.Get("x-ms-retry-after-ms") != "1500" || resp.Header.Get("x-ms-substatus") != "3200" || !strings.Contains(body, "TooManyRequests") {
		t.Errorf("%d %v %s", resp.StatusCode, resp.Header, body)
	}
	fault(9, "create item", Fault{Status: 449})
	_, err := f.c.CreateItem(ctx, pk("p"), doc("id", "b", "pk", "p"), nil)
	want(t, err, 449, "injected")
	if f.exists("p", "b") {
		t.Error("done in spite of the fault")
	}
	fault(1, "create item", Fault{Status: 500, AfterEffect: true})
	_, err = f.c.CreateItem(ctx, pk("p"), doc("id", "b", "pk", "p"), nil)
	want(t, err, 409) // a success that was lost
	fault(1, "upsert item", Fault{Drop: true})
	must(f.c.UpsertItem(ctx, pk("p"), doc("id", "u", "pk", "p"), nil))(t)
	fault(1, "create item", Fault{Drop: true, AfterEffect: true})
	_, err = f.c.CreateItem(ctx, pk("p"), doc("id", "v", "pk", "p"), nil)
	want(t, err, 409)
	fault(1, "read item", Fault{Delay: 30 * time.Millisecond})
	began := time.Now()
	if f.read("p", "v"); time.Since(began) < 30*time.Millisecond {
		t.Error("no delay")
	}
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	fault(1, "read item", Fault{Delay: time.Minute})
	if _, err = f.c.ReadItem(short, pk("p"), "v", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	fault(9, "read item", Fault{Status: 503})
	_, err = f.c.ReadItem(ctx, pk("p"), "v", nil)
	want(t, err, 503)
	f.Inject(nil)
	must(f.c.ReadItem(ctx, pk("p"), "v", nil))(t)
	calls := f.Log()
	last := calls[len(calls)-1]
	if last.Operation != "read item" || last.Database != "db" || last.Container != "c" || last.PartitionKey != "p" || last.ID != "v" || last.Status != 200 || last.Charge != 1 || last.RequestBytes != 0 || last.AnswerBytes < 50 {
		t.Errorf("%+v", last)
	}
	if !slices.ContainsFunc(calls, func(c Call) bool { return c.Status == 429 && c.SubStatus == 3200 }) || !slices.ContainsFunc(calls, func(c Call) bool { return c.Status == 0 && c.Operation == "upsert item" }) {
		t.Errorf("%+v", calls)
	}
}

func TestCharge(t *testing.T) {
	for kb, units := range map[int]float64{0: 1, 1: 1, 64: 4.8, 256: 20, 2048: 292} {
		if got := readCharge(kb << 10); got != units {
			t.Errorf("%d KB: %v", kb, got)
		}
	}
	for n := 1 << 10; n < 3<<20; n += 999 {
		if readCharge(n) > readCharge(n+999) {
			t.Fatalf("%d bytes cost more than a little more", n)
		}
	}
	f := start(t, Options{Key: testKey})
	plain := f.create("id", "a", "pk", "p", "free", 1, "in", map[string]any{"out": 1})
	two := f.create("id", "b", "pk", "p", "n", 1, "in", map[string]any{"x": 1})
	if plain.RequestCharge != 5.8 || two.RequestCharge != 6.2 { // id, pk, _ts, a composite; and two more
		t.Errorf("%v and %v", plain.RequestCharge, two.RequestCharge)
	}
	if r := must(f.c.ReadItem(ctx, pk("p"), "a", nil))(t); r.RequestCharge != 1 {
		t.Errorf("%v", r.RequestCharge)
	}
	page := must(f.c.NewQueryItemsPager("SELECT * FROM c", pk("p"), nil).NextPage(ctx))(t)
	if page.RequestCharge != 3.3 {
		t.Errorf("%v", page.RequestCharge)
	}
}

func TestConcurrency(t *testing.T) {
	f := start(t, Options{Key: testKey})
	f.create("id", "n", "pk", "p", "n", 0)
	var wg sync.WaitGroup
	var created atomic.Int32
	for range 8 {
		wg.Go(func() {
			for i := range 20 {
				if _, err := f.c.CreateItem(ctx, pk("p"), doc("id", fmt.Sprint("once", i), "pk", "p"), nil); err == nil {
					created.Add(1)
				}
				var p azcosmos.PatchOperations
				p.AppendIncrement("/n", 1)
				if _, err := f.c.PatchItem(ctx, pk("p"), "n", p, nil); err != nil {
					t.Error(err)
				}
				if _, err := f.c.NewQueryItemsPager("SELECT * FROM c", pk("p"), nil).NextPage(ctx); err != nil {
					t.Error(err)
				}
				if _, err := f.c.Read(ctx, nil); err != nil {
					t.Error(err)
				}
				f.Log()
			}
		})
	}
	wg.Wait()
	if n := f.read("p", "n")["n"]; n != 160.0 || created.Load() != 20 {
		t.Errorf("%v increments, %d creates", n, created.Load())
	}
}
