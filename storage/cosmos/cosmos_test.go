package cosmos

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/athensctl/athensctl/internal/cosmosfake"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/storagetest"
)

// fake starts the fake, for one test.
func fake(t *testing.T) (*cosmosfake.Server, Account) {
	f := &cosmosfake.Server{Key: emulatorKey, Serverless: true}
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	return f, Account{Endpoint: srv.URL, Key: emulatorKey}
}

func TestFake(t *testing.T) {
	storagetest.Run(t, storagetest.Backend{Open: func(t *testing.T, dir string, now func() time.Time) (storage.Store, storage.Ledger) {
		a, ok := accounts.Load(dir)
		if !ok {
			_, a = fake(t)
			accounts.Store(dir, a)
		}
		s := open(t, a.(Account), dir, Options{Now: now, PageSize: 10})
		return s, s
	}, InMemory: true}) // the fake holds all in this process
}

var accounts sync.Map // of the fake, by folder

// vercel starts the independent peer, once for all tests, and returns its URL.
var vercel = sync.OnceValues(func() (string, error) {
	bin, err := filepath.Abs("../../test/azure/node_modules/.bin/cosmosdb-server")
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(bin); err != nil {
		return "", err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	ln.Close()
	cmd := exec.Command(bin, "--no-ssl", "--host", "127.0.0.1", "-p", port)
	if err := cmd.Start(); err != nil {
		return "", err
	}
	stop = append(stop, func() { cmd.Process.Kill(); cmd.Wait() })
	url := "http://127.0.0.1:" + port
	for range 200 {
		if resp, err := http.Get(url); err == nil {
			resp.Body.Close()
			return url, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return "", fmt.Errorf("%s does not answer", bin)
})

var stop []func()

func TestMain(m *testing.M) {
	code := m.Run()
	for _, f := range stop {
		f()
	}
	os.Exit(code)
}

const emulatorKey = "C2y6yDjf5/R+ob0N8A7Cgv30VRDJIWEHLM+4QDU5DE2nQ9nDuVTqobD4b8mGGyPMbIZnqyMsEcaGQy67XIw/Jw=="

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

// vercelDefects mends what the peer is known to do otherwise than the service: each
// is said here, and nowhere else.
type vercelDefects struct{}

func (vercelDefects) RoundTrip(r *http.Request) (*http.Response, error) {
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

func TestVercel(t *testing.T) {
	url, err := vercel()
	if err != nil {
		t.Skip(err)
	}
	storagetest.Run(t, storagetest.Backend{Open: func(t *testing.T, dir string, now func() time.Time) (storage.Store, storage.Ledger) {
		s := open(t, Account{Endpoint: url, Key: emulatorKey, HTTP: &http.Client{Transport: vercelDefects{}}}, dir, Options{Now: now, PageSize: 10})
		return s, s
	}})
}
