package cosmos

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/athensctl/athensctl/internal/cosmosfake"
	"github.com/athensctl/athensctl/internal/testazure"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/blob"
	"github.com/athensctl/athensctl/storage/storagetest"
)

// fake starts the fake, for one test.
func fake(t *testing.T) (*cosmosfake.Server, Account) {
	f := &cosmosfake.Server{Key: testazure.CosmosKey, Serverless: true}
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	return f, Account{Endpoint: srv.URL, Key: testazure.CosmosKey}
}

func openFake(t *testing.T, dir string, o storagetest.Options) (storage.Store, storage.Ledger) {
	s := open(t, fakeOf(t, dir), dir, Options{Now: o.Now, QueueMax: o.QueueMax, PageSize: 10})
	return s, s
}

// The fake holds all in this process.
func TestFake(t *testing.T) {
	storagetest.Run(t, storagetest.Backend{Open: openFake, InMemory: true})
}

func TestFakeOverHTTP(t *testing.T) {
	storagetest.Run(t, storagetest.Backend{Open: storagetest.OverHTTP(openFake), InMemory: true})
}

// fakeOf is the fake that belongs to dir.
func fakeOf(t *testing.T, dir string) Account {
	a, ok := accounts.Load(dir)
	if !ok {
		_, a = fake(t)
		accounts.Store(dir, a)
	}
	return a.(Account)
}

var accounts sync.Map // of the fake, by folder

func TestMain(m *testing.M) { testazure.Main(m) }

var databases sync.Map // by folder

// open opens the database that belongs to dir.
func open(t *testing.T, a Account, dir string, o Options) *Store {
	t.Helper()
	name, _ := databases.LoadOrStore(dir, fmt.Sprintf("db%d-%d", os.Getpid(), time.Now().UnixNano()))
	a.Database = name.(string)
	ctx := context.Background()
	if err := Init(ctx, a, Throughput{}, func(string) {}); err != nil {
		t.Fatal(err)
	}
	s, err := Open(ctx, a, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// peerDefects mends what the peer is known to do otherwise than the service: each
// is said here, and nowhere else.
type peerDefects struct{}

func (peerDefects) RoundTrip(r *http.Request) (*http.Response, error) {
	batch := r.Header.Get("x-ms-cosmos-is-batch-request") != ""
	if batch {
		// It looks for the partition key in each operation of a batch, where
		// bulk requests have it, and not in the header.
		var ops []map[string]any
		if err := json.NewDecoder(r.Body).Decode(&ops); err != nil {
			return nil, err
		}
		for _, op := range ops {
			op["partitionKey"] = r.Header.Get("x-ms-documentdb-partitionkey")
		}
		b, err := json.Marshal(ops)
		if err != nil {
			return nil, err
		}
		r = r.Clone(r.Context())
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	// The read of an item that is not there is answered with 500 in place of 404.
	if resp.StatusCode == 500 && r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/docs/") {
		resp.StatusCode = 404
	}
	if batch && resp.StatusCode == 200 {
		// A batch of which an operation failed is answered with 200 in place of
		// 207. (That those before it stay done can't be mended here.)
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			return nil, err
		}
		if regexp.MustCompile(`"statusCode":4`).Match(b) {
			resp.StatusCode = 207
		}
		resp.Body = io.NopCloser(bytes.NewReader(b))
	}
	return resp, nil
}

func peerAt(url string) Account {
	return Account{Endpoint: url, Key: testazure.CosmosKey, HTTP: &http.Client{Transport: peerDefects{}}}
}

func TestPeer(t *testing.T) {
	url := testazure.Peer(t)
	storagetest.Run(t, storagetest.Backend{Open: func(t *testing.T, dir string, o storagetest.Options) (storage.Store, storage.Ledger) {
		s := open(t, peerAt(url), dir, Options{Now: o.Now, QueueMax: o.QueueMax, PageSize: 10})
		return s, s
	}})
}

func TestPeerOverHTTP(t *testing.T) {
	url := testazure.Peer(t)
	storagetest.Run(t, storagetest.Backend{Open: storagetest.OverHTTP(func(t *testing.T, dir string, o storagetest.Options) (storage.Store, storage.Ledger) {
		s := open(t, peerAt(url), dir, Options{Now: o.Now, QueueMax: o.QueueMax, PageSize: 10})
		return s, s
	})})
}

// openZips opens the container that belongs to dir.
func openZips(t *testing.T, connection, dir string) Zips {
	t.Helper()
	a := blob.Account{Connection: connection, Container: fmt.Sprintf("c%x", sha256.Sum256([]byte(dir)))[:40]}
	if err := blob.Init(context.Background(), a, func(string) {}); err != nil {
		t.Fatal(err)
	}
	zips, err := blob.Open(context.Background(), a)
	if err != nil {
		t.Fatal(err)
	}
	return zips
}

// With Blob Storage for zips: the fake, so that what is slow is Azurite alone.
func openBlob(connection string) storagetest.Opener {
	return func(t *testing.T, dir string, o storagetest.Options) (storage.Store, storage.Ledger) {
		s := open(t, fakeOf(t, dir), dir, Options{Now: o.Now, QueueMax: o.QueueMax, PageSize: 10, Zips: openZips(t, connection, dir)})
		return s, s
	}
}

func TestBlob(t *testing.T) {
	storagetest.Run(t, storagetest.Backend{Open: openBlob(testazure.Azurite(t))})
}

func TestBlobOverHTTP(t *testing.T) {
	storagetest.Run(t, storagetest.Backend{Open: storagetest.OverHTTP(openBlob(testazure.Azurite(t)))})
}

// Peer and Azurite: neither is of this repository.
func openPeerBlob(t *testing.T) storagetest.Opener {
	url, connection := testazure.Peer(t), testazure.Azurite(t)
	return func(t *testing.T, dir string, o storagetest.Options) (storage.Store, storage.Ledger) {
		s := open(t, peerAt(url), dir, Options{Now: o.Now, QueueMax: o.QueueMax, PageSize: 10, Zips: openZips(t, connection, dir)})
		return s, s
	}
}

func TestPeerBlob(t *testing.T) {
	storagetest.Run(t, storagetest.Backend{Open: openPeerBlob(t)})
}

func TestPeerBlobOverHTTP(t *testing.T) {
	storagetest.Run(t, storagetest.Backend{Open: storagetest.OverHTTP(openPeerBlob(t))})
}

// A real account, where the environment names one.
func TestAccount(t *testing.T) {
	a := Account{Endpoint: os.Getenv("ATHENSCTL_TEST_COSMOS_ENDPOINT"), Key: os.Getenv("ATHENSCTL_TEST_COSMOS_KEY")}
	if a.Endpoint == "" || a.Key == "" {
		t.Skip("ATHENSCTL_TEST_COSMOS_ENDPOINT and ATHENSCTL_TEST_COSMOS_KEY name no account")
	}
	connection := os.Getenv("ATHENSCTL_TEST_BLOB_CONNECTION_STRING")
	storagetest.Run(t, storagetest.Backend{Open: func(t *testing.T, dir string, o storagetest.Options) (storage.Store, storage.Ledger) {
		opts := Options{Now: o.Now, QueueMax: o.QueueMax, PageSize: 10}
		if connection != "" {
			opts.Zips = openZips(t, connection, dir)
		}
		s := open(t, a, dir, opts)
		t.Cleanup(func() {
			name, _ := databases.Load(dir)
			db, err := s.client.NewDatabase(name.(string))
			if err == nil {
				_, err = db.Delete(context.Background(), nil)
			}
			if err != nil && !strings.Contains(err.Error(), "404") {
				t.Error(err)
			}
		})
		return s, s
	}})
}
