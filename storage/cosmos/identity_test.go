package cosmos

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/athensctl/athensctl/internal/cosmosfake"
	"github.com/athensctl/athensctl/internal/testazure"
	"github.com/athensctl/athensctl/storage/storagetest"
)

// The identity of a managed identity's endpoint reads and writes; what it may not do is
// said, and so is that there is none.
func TestManagedIdentity(t *testing.T) {
	ctx := context.Background()
	const token = "the-token"
	f, a := fake(t)
	f.Token = token
	dir := t.TempDir()
	open(t, a, dir, Options{}) // makes the database, with the key
	name, _ := databases.Load(dir)
	a.Database, a.Key = name.(string), ""
	var mu sync.Mutex // the SDK asks beside who calls it
	var asked []string
	known := false
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, r.Header.Get("X-IDENTITY-HEADER")+" "+r.URL.Query().Get("resource"))
		w.Header().Set("Content-Type", "application/json")
		if !known {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"error":"invalid_request","error_description":"Identity not found"}`)
			return
		}
		fmt.Fprintf(w, `{"access_token":%q,"expires_on":"4102444800","resource":"x","token_type":"Bearer"}`, token)
	}))
	defer endpoint.Close()
	// Nothing else of the environment is one.
	for _, key := range []string{"AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_TOKEN_CREDENTIALS"} {
		t.Setenv(key, "") // it comes back afterwards
		os.Unsetenv(key)
	}
	// The process remembers the tokens that an identity got: this is a new one.
	t.Setenv("AZURE_CLIENT_ID", rand.Text())
	t.Setenv("PATH", t.TempDir())
	t.Setenv("IDENTITY_ENDPOINT", endpoint.URL)
	t.Setenv("IDENTITY_HEADER", "secret")
	// All ways to get an identity that were tried are named, each with what it says.
	_, err := Open(ctx, a, Options{})
	for _, want := range []string{"EnvironmentCredential", "WorkloadIdentityCredential", "ManagedIdentityCredential", "Identity not found"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no identity: %v, want %s in it", err, want)
		}
	}
	if err != nil && strings.Contains(err.Error(), "\n") {
		t.Errorf("more than a line: %q", err)
	}
	mu.Lock()
	known = true
	mu.Unlock()
	s, err := Open(ctx, a, Options{})
	if err != nil {
		t.Fatal(err)
	}
	v := storagetest.New("example.com/m", "v1.0.0", "")
	if err := s.Put(ctx, v.Version, v.Files()); err != nil {
		t.Fatal(err)
	}
	wantAgree(t, s, v, "with an identity")
	mu.Lock()
	if len(asked) == 0 || !strings.HasPrefix(asked[0], "secret http") {
		t.Errorf("the endpoint was asked %q", asked)
	}
	mu.Unlock()
	if err := Init(ctx, a, Throughput{}, func(string) {}); err == nil || !strings.Contains(err.Error(), "an identity can't make databases") {
		t.Errorf("init with an identity: %v", err)
	}
	// The service says so too, whatever Init does.
	if _, err := s.modules.Delete(ctx, nil); err == nil || !strings.Contains(whyRefused(err.Error()), "databases and containers are made with a key") {
		t.Errorf("an identity removed a container: %v", err)
	}
	other := httptest.NewServer(&cosmosfake.Server{Key: testazure.CosmosKey, Token: "another"})
	defer other.Close()
	a.Endpoint = other.URL
	if _, err := Open(ctx, a, Options{}); err == nil || !strings.Contains(err.Error(), "Cosmos DB Built-in Data Contributor") {
		t.Errorf("without the role: %v", err)
	}
}

// Throughput is asked for when the database is made, and then left as it is; a serverless
// account takes none.
func TestInitThroughput(t *testing.T) {
	ctx := context.Background()
	for _, tt := range []struct {
		t           Throughput
		offer, said string
	}{
		{Throughput{}, "", ": made, serverless"},
		{Throughput{Manual: 400}, "400", ": made, with 400 units a second"},
		{Throughput{AutoscaleMax: 4000}, `{"maxThroughput":4000}`, ": made, with autoscale up to 4000 units a second"},
	} {
		f := &cosmosfake.Server{Key: testazure.CosmosKey}
		srv := httptest.NewServer(f)
		defer srv.Close()
		a := Account{Endpoint: srv.URL, Key: testazure.CosmosKey, Database: "db"}
		for _, want := range []string{tt.said, ": was there"} {
			if want == ": was there" && tt.offer != "" {
				want += ", with the throughput left as it is"
			}
			f.Calls()
			var said []string
			if err := Init(ctx, a, tt.t, func(s string) { said = append(said, s) }); err != nil {
				t.Fatal(err)
			}
			if len(said) != 3 || said[0] != "database db"+want || !strings.HasPrefix(want, said[1][len("container modules"):]) {
				t.Errorf("%+v: said %q, want %q", tt.t, said, want)
			}
			for _, c := range f.Calls() {
				if c.Op == "create database" && c.Offer != tt.offer || c.Op == "create container" && c.Offer != "" {
					t.Errorf("%+v: %s asks for %q, want %q", tt.t, c.Op, c.Offer, tt.offer)
				}
			}
		}
	}
	f := &cosmosfake.Server{Key: testazure.CosmosKey, Serverless: true}
	srv := httptest.NewServer(f)
	defer srv.Close()
	err := Init(ctx, Account{Endpoint: srv.URL, Key: testazure.CosmosKey, Database: "db"}, Throughput{Manual: 400}, func(string) {})
	if err == nil || !strings.Contains(err.Error(), "a serverless account takes no throughput") {
		t.Errorf("throughput of a serverless account: %v", err)
	}
	if slices.ContainsFunc(f.Calls(), func(c cosmosfake.Call) bool { return c.Op == "create container" }) {
		t.Error("it went on")
	}
}
