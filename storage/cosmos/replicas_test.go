package cosmos

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/cosmosfake"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/storagetest"
)

// Three replicas with clocks that are hours apart write through pages of seven
// entries, while some writes lose their answers: a follower of any of them sees each
// entry once, in an order that does not change.
func TestReplicas(t *testing.T) {
	ctx := context.Background()
	f, a := fake(t)
	dir := t.TempDir()
	const replicas, writers, each = 3, 2, 12
	var stores []*Store
	for i := range replicas {
		skew := time.Duration(i-1) * 3 * time.Hour
		stores = append(stores, open(t, a, dir, Options{PageSize: 7, Now: func() time.Time { return time.Now().Add(skew) }}))
	}
	var n atomic.Int64
	f.SetFault(func(c cosmosfake.Call) *cosmosfake.Fault {
		write := !strings.HasPrefix(c.Op, "read") && c.Op != "query"
		switch i := n.Add(1); {
		case write && i%5 == 0:
			return &cosmosfake.Fault{Status: 500, After: true}
		case i%7 == 0:
			return &cosmosfake.Fault{Status: 449}
		case i%11 == 0:
			return &cosmosfake.Fault{Drop: true}
		case write && i%13 == 0:
			return &cosmosfake.Fault{Drop: true, After: true}
		case i%17 == 0:
			return &cosmosfake.Fault{Status: 410}
		}
		return nil
	})
	var wg sync.WaitGroup
	for r, s := range stores {
		for w := range writers {
			wg.Go(func() {
				for i := range each {
					v := storagetest.New(fmt.Sprintf("example.com/r%dw%d", r, w), fmt.Sprintf("v1.%d.0", i), "")
					if err := s.Put(ctx, v.Version, v.Files()); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	seen := map[string]int{}
	since := time.Time{}
	for deadline := time.Now().Add(60 * time.Second); len(seen) < replicas*writers*each; {
		if time.Now().After(deadline) {
			t.Fatalf("the follower saw %d of %d", len(seen), replicas*writers*each)
		}
		page, err := stores[len(seen)%replicas].Index(ctx, since, 4)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page {
			seen[e.Path+"@"+e.Version]++
			since = e.Timestamp.Add(time.Microsecond)
		}
	}
	wg.Wait()
	for name, n := range seen {
		if n != 1 {
			t.Errorf("%s was seen %d times", name, n)
		}
	}
	whole, err := stores[0].Index(ctx, time.Time{}, 1000)
	if err != nil || len(whole) != replicas*writers*each {
		t.Errorf("the index has %d entries, want %d: %v", len(whole), replicas*writers*each, err)
	}
	page, err := stores[1].Catalog(ctx, "", 1000)
	if err != nil || len(page.Versions) != replicas*writers*each {
		t.Errorf("the catalog has %d entries: %v", len(page.Versions), err)
	}
}

// A job put in at one replica is claimed at another, waited for at a third, and
// fenced off from who had it before.
func TestQueueOverReplicas(t *testing.T) {
	ctx := context.Background()
	_, acc := fake(t)
	dir := t.TempDir()
	var now atomic.Int64
	now.Store(time.Now().UnixNano())
	clock := func() time.Time { return time.Unix(0, now.Load()) }
	a, b, c := open(t, acc, dir, Options{Now: clock}), open(t, acc, dir, Options{Now: clock}), open(t, acc, dir, Options{Now: clock})
	k := storage.Key{Path: "example.com/m", Query: "v1.0.0", File: storage.FileZip}
	if added, err := a.Enqueue(ctx, storage.Job{Key: k}); !added || err != nil {
		t.Fatal(added, err)
	}
	if added, err := b.Enqueue(ctx, storage.Job{Key: k}); added || err != nil {
		t.Fatalf("the same job at another replica: %v, %v", added, err)
	}
	first, err := c.Claim(ctx, "first", time.Minute)
	if first == nil || err != nil {
		t.Fatalf("claim at another replica: %v, %v", first, err)
	}
	if again, err := a.Claim(ctx, "other", time.Minute); again != nil || err != nil {
		t.Fatalf("claimed twice: %v, %v", again, err)
	}
	waited := make(chan error, 1)
	go func() { waited <- a.Wait(ctx, k) }()
	time.Sleep(300 * time.Millisecond)
	now.Add(int64(2 * time.Minute)) // the first worker is dead
	var second *storage.Job
	for deadline := time.Now().Add(10 * time.Second); second == nil; time.Sleep(50 * time.Millisecond) {
		if second, err = b.Claim(ctx, "second", time.Minute); err != nil || time.Now().After(deadline) {
			t.Fatalf("claim after the lease: %v, %v", second, err)
		}
	}
	if err := c.Done(ctx, first, nil); !errors.Is(err, storage.ErrLeaseLost) {
		t.Errorf("Done of the first: %v", err)
	}
	if err := b.Done(ctx, second, goproxy.NotFound("no such thing")); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-waited:
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("who waited at another replica got %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("who waited at another replica was not told")
	}
	if err := c.Done(ctx, first, nil); !errors.Is(err, storage.ErrLeaseLost) {
		t.Errorf("Done of the first, after the end: %v", err)
	}
	if added, err := c.Enqueue(ctx, storage.Job{Key: k}); !added || err != nil {
		t.Errorf("the job again, after it failed: %v, %v", added, err)
	}
}

// Replicas that find the same jobs do not try for the same one each time: each that loses has
// paid for it, and the others wait.
func TestClaimsDoNotCollide(t *testing.T) {
	ctx := context.Background()
	f, acc := fake(t)
	dir := t.TempDir()
	const jobs, replicas = 90, 3 // one look shows 100
	first := open(t, acc, dir, Options{})
	for i := range jobs {
		k := storage.Key{Path: fmt.Sprintf("example.com/m%d", i), Query: "v1.0.0", File: storage.FileZip}
		if added, err := first.Enqueue(ctx, storage.Job{Key: k, Priority: storage.Ahead}); !added || err != nil {
			t.Fatal(added, err)
		}
	}
	var claimed atomic.Int64
	stores := make([]*Store, replicas)
	for i := range stores {
		stores[i] = open(t, acc, dir, Options{})
	}
	f.Calls()
	var wg sync.WaitGroup
	for i, s := range stores {
		wg.Go(func() {
			for deadline := time.Now().Add(30 * time.Second); claimed.Load() < jobs && time.Now().Before(deadline); {
				j, err := s.Claim(ctx, fmt.Sprint(i), time.Hour)
				if err != nil {
					t.Error(err)
					return
				} else if j != nil {
					claimed.Add(1)
				}
				time.Sleep(pollEvery / 10)
			}
		})
	}
	wg.Wait()
	lost := 0
	for _, c := range f.Calls() {
		if c.Status == http.StatusPreconditionFailed {
			lost++
		}
	}
	t.Logf("%d claims, %d lost", claimed.Load(), lost)
	if claimed.Load() != jobs || lost > jobs*2/3 {
		t.Errorf("%d jobs claimed and %d claims lost, want %d and a few", claimed.Load(), lost, jobs)
	}
}

// What Puts and Deletes leave behind is found by a sweep, and only that.
func TestSweep(t *testing.T) {
	ctx := context.Background()
	f, acc := fake(t)
	var now atomic.Int64
	now.Store(time.Now().UnixNano())
	s := open(t, acc, t.TempDir(), Options{Now: func() time.Time { return time.Unix(0, now.Load()) }})
	chunks := func(v storagetest.Version) (n int) {
		t.Helper()
		src, err := s.source(ctx, strings.NewReader(string(v.Zip)))
		if err != nil {
			t.Fatal(err)
		}
		name, err := zipName(v.Version, src.sha)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.get(ctx, s.modules, "test", chunkPK(name), chunkID(0), new(chunk)); err == nil {
			n = 1
		}
		return n
	}
	failAt := func(op string, prefix string) {
		f.SetFault(func(c cosmosfake.Call) *cosmosfake.Fault {
			if c.Op == op && strings.HasPrefix(c.PK, prefix) {
				return &cosmosfake.Fault{Status: 400}
			}
			return nil
		})
	}
	kept := storagetest.New("example.com/kept", "v1.0.0", "")
	if err := s.Put(ctx, kept.Version, kept.Files()); err != nil {
		t.Fatal(err)
	}
	orphan := storagetest.New("example.com/orphan", "v1.0.0", "")
	failAt("create item", "m/")
	if err := s.Put(ctx, orphan.Version, orphan.Files()); goproxy.Status(err) != 500 {
		t.Fatalf("Put whose item is not written: %v", err)
	}
	unlisted := storagetest.New("example.com/unlisted", "v1.0.0", "")
	failAt("create item", "c/")
	if err := s.Put(ctx, unlisted.Version, unlisted.Files()); goproxy.Status(err) != 500 {
		t.Fatalf("Put whose catalog entry is not written: %v", err)
	}
	deleted := storagetest.New("example.com/deleted", "v1.0.0", "")
	f.SetFault(nil)
	if err := errors.Join(s.Put(ctx, deleted.Version, deleted.Files()), s.Delete(ctx, deleted.Version)); err != nil {
		t.Fatal(err)
	}
	halfDeleted := storagetest.New("example.com/half", "v1.0.0", "")
	if err := s.Put(ctx, halfDeleted.Version, halfDeleted.Files()); err != nil {
		t.Fatal(err)
	}
	failAt("delete item", "m/")
	if err := s.Delete(ctx, halfDeleted.Version); goproxy.Status(err) != 500 {
		t.Fatalf("Delete that is cut: %v", err)
	}
	f.SetFault(nil)
	catalog := func() string {
		t.Helper()
		page, err := s.Catalog(ctx, "", 100)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, m := range page.Versions {
			names = append(names, strings.TrimPrefix(m.Path, "example.com/"))
		}
		return strings.Join(names, " ")
	}
	if got := catalog(); got != "half kept" {
		t.Errorf("catalog before the sweep: %s", got)
	}
	if err := errors.Join(s.Sweep(ctx), s.Finish(ctx)); err != nil { // too early for all
		t.Fatal(err)
	}
	if got := catalog(); got != "half kept" {
		t.Errorf("catalog at once: %s", got)
	}
	now.Add(int64(time.Minute))
	if err := errors.Join(s.Sweep(ctx), s.Finish(ctx)); err != nil {
		t.Fatal(err)
	}
	if got := catalog(); got != "half kept unlisted" {
		t.Errorf("catalog a minute later: %s", got)
	}
	if chunks(orphan) != 1 || chunks(deleted) != 1 {
		t.Error("a sweep took bytes that a Put might be writing")
	}
	now.Add(int64(2 * time.Hour))
	if err := s.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	if got := catalog(); got != "half kept unlisted" {
		t.Errorf("catalog after the sweep: %s", got)
	}
	if chunks(orphan) != 0 || chunks(deleted) != 0 {
		t.Error("bytes that no version has are still there")
	}
	for _, v := range []storagetest.Version{kept, unlisted, halfDeleted} {
		if chunks(v) != 1 {
			t.Errorf("the bytes of %s are gone", v)
		}
	}
	f.Calls()
	if err := s.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	for _, c := range f.Calls() {
		if c.Op != "query" {
			t.Errorf("a second sweep found something to do: %+v", c)
		}
	}
	// A Put of the same bytes while a sweep removes them comes again later.
	failAt("create item", "m/")
	s.Put(ctx, orphan.Version, orphan.Files())
	now.Add(int64(2 * time.Hour))
	failAt("delete item", "z/")
	if err := s.Sweep(ctx); err == nil {
		t.Fatal("the sweep did not fail")
	}
	f.SetFault(nil)
	if err := s.Put(ctx, orphan.Version, orphan.Files()); goproxy.Status(err) != 503 {
		t.Errorf("Put of what is being removed: %v", err)
	}
	now.Add(int64(11 * time.Minute)) // that sweep has died
	if err := s.Put(ctx, orphan.Version, orphan.Files()); err != nil {
		t.Errorf("Put after a sweep that died: %v", err)
	}
}

// What the service refuses is said in words, and without secrets.
func TestRefusals(t *testing.T) {
	ctx := context.Background()
	f, a := fake(t)
	s := open(t, a, t.TempDir(), Options{Patience: 300 * time.Millisecond})
	key := storage.Key{Path: "example.com/m", File: storage.FileList}
	for _, tt := range []struct {
		fault  cosmosfake.Fault
		status int
		want   string
	}{
		{cosmosfake.Fault{Status: 401}, 500, "refused: RESPONSE 401: 401 Unauthorized: look at the key"},
		{cosmosfake.Fault{Status: 403}, 500, "refused: RESPONSE 403: 403 Forbidden: look at the key"},
		{cosmosfake.Fault{Status: 403, Message: "Request originated from IP 192.0.2.1 through public internet. This is blocked by your Cosmos DB account firewall settings."}, 500, "the account's firewall"},
		{cosmosfake.Fault{Status: 403, Substatus: 5301, Message: "Request is blocked because principal [x] does not have required RBAC permissions to perform action [Microsoft.DocumentDB/databaseAccounts/readMetadata] on resource [/]."}, 500, "give it the role Cosmos DB Built-in Data Contributor"},
		{cosmosfake.Fault{Status: 403, Substatus: 5300, Message: "The given request [POST /dbs] cannot be authorized by AAD token in data plane."}, 500, "with a key"},
		{cosmosfake.Fault{Status: 403, Message: "The authorization token is not valid at the current time. Please create another token and retry"}, 500, "the clock"},
		{cosmosfake.Fault{Status: 401, Message: "Local Authorization is disabled. Use an AAD token to authorize all requests."}, 500, "takes no keys"},
		{cosmosfake.Fault{Status: 429, RetryAfter: 3 * time.Second}, 503, "429"},
		{cosmosfake.Fault{Status: 449}, 503, "449"},
		{cosmosfake.Fault{Status: 503}, 503, "503"},
		{cosmosfake.Fault{Status: 400}, 500, "400"},
		{cosmosfake.Fault{Drop: true}, 503, "does not answer"},
	} {
		f.SetFault(func(cosmosfake.Call) *cosmosfake.Fault { return &tt.fault })
		_, err := s.Known(ctx, key)
		if goproxy.Status(err) != tt.status || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %d %v", tt.fault, goproxy.Status(err), err)
		}
		var e *goproxy.Error
		if tt.fault.RetryAfter > 0 && (!errors.As(err, &e) || e.RetryAfter < tt.fault.RetryAfter) {
			t.Errorf("%+v: RetryAfter %v", tt.fault, err)
		}
	}
	f.SetFault(nil)
	// A 429 that says when is waited for.
	var n atomic.Int64
	f.SetFault(func(cosmosfake.Call) *cosmosfake.Fault {
		if n.Add(1) == 1 {
			return &cosmosfake.Fault{Status: 429, RetryAfter: 200 * time.Millisecond}
		}
		return nil
	})
	before := time.Now()
	if _, err := s.Known(ctx, key); !errors.Is(err, fs.ErrNotExist) || time.Since(before) < 200*time.Millisecond {
		t.Errorf("after 429: %v within %v", err, time.Since(before))
	}
	f.SetFault(nil)
	for name, bad := range map[string]struct {
		account Account
		want    string
	}{
		"wrong key":   {Account{Endpoint: a.Endpoint, Key: "d3Jvbmc=", Database: "x"}, "the key is wrong"},
		"no base64":   {Account{Endpoint: a.Endpoint, Key: "%%%", Database: "x"}, "cosmos-key: not base64"},
		"no URL":      {Account{Endpoint: "nowhere", Key: "d3Jvbmc=", Database: "x"}, "cosmos-endpoint"},
		"no database": {Account{Endpoint: a.Endpoint, Key: a.Key, Database: "absent"}, "athensctl storage init"},
	} {
		if _, err := Open(ctx, bad.account, Options{Patience: 5 * time.Second}); err == nil || !strings.Contains(err.Error(), bad.want) || strings.ContainsAny(err.Error(), "\n") || strings.Contains(err.Error(), "d3Jvbmc=") {
			t.Errorf("%s: %v; want one line with %q and no key", name, err, bad.want)
		}
	}
}
