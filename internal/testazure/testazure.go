// Package testazure starts the servers that stand in for Azure in tests: those that
// others wrote, from test/azure (npm). `make tools` installs them.
package testazure

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"
)

// Keys that the servers know; they are public.
const (
	// CosmosKey is that of Microsoft's own emulator. The peer does not check it.
	CosmosKey   = "C2y6yDjf5/R+ob0N8A7Cgv30VRDJIWEHLM+4QDU5DE2nQ9nDuVTqobD4b8mGGyPMbIZnqyMsEcaGQy67XIw/Jw=="
	blobAccount = "devstoreaccount1"
	blobKey     = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

var (
	mu      sync.Mutex
	running []*exec.Cmd
)

// Main runs the tests of a package, ends the servers, and cleans up. It is for TestMain.
func Main(m *testing.M, cleanUp ...func()) {
	code := m.Run()
	for _, f := range cleanUp {
		f()
	}
	mu.Lock()
	defer mu.Unlock()
	for _, cmd := range running {
		cmd.Process.Kill()
		cmd.Wait()
	}
	os.Exit(code)
}

// freePort is a port that no other test gets, while a server begins that takes a second for it: it
// is below those that the system gives to whoever asks for any (Linux: from 32768).
func freePort() (port string, err error) {
	for range 100 {
		port = strconv.Itoa(12_000 + rand.IntN(20_000))
		var ln net.Listener
		if ln, err = net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			return port, ln.Close()
		}
	}
	return "", err
}

// start starts a server of test/azure on a free port of loopback.
func start(name string, args func(port string) []string) (string, error) {
	_, here, _, _ := runtime.Caller(0)
	bin := filepath.Join(filepath.Dir(here), "../../test/azure/node_modules/.bin", name)
	if _, err := os.Stat(bin); err != nil {
		return "", fmt.Errorf("%s is not installed (make tools): %w", name, err)
	}
	port, err := freePort()
	if err != nil {
		return "", err
	}
	cmd := exec.Command(bin, args(port)...)
	cmd.Dir = os.TempDir()
	if err := cmd.Start(); err != nil {
		return "", err
	}
	mu.Lock()
	running = append(running, cmd)
	mu.Unlock()
	url := "http://127.0.0.1:" + port
	for range 600 {
		if resp, err := http.Get(url); err == nil {
			resp.Body.Close()
			return url, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return "", fmt.Errorf("%s does not answer within a minute", name)
}

var peer = sync.OnceValues(func() (string, error) {
	return start("cosmosdb-server", func(port string) []string { return []string{"--no-ssl", "--host", "127.0.0.1", "-p", port} })
})

var azurite = sync.OnceValues(func() (string, error) {
	return start("azurite-blob", func(port string) []string {
		return []string{"--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent", "--blobHost", "127.0.0.1", "--blobPort", port}
	})
})

func url(t testing.TB, f func() (string, error)) string {
	t.Helper()
	u, err := f()
	if err != nil && os.Getenv("ATHENSCTL_TEST_REQUIRE") != "" {
		t.Fatal(err)
	} else if err != nil {
		t.Skip(err)
	}
	return u
}

// Peer is the URL of @vercel/cosmosdb-server, started once for a package's tests.
// Where it is not installed the test is skipped, or fails with
// ATHENSCTL_TEST_REQUIRE.
func Peer(t testing.TB) string { return url(t, peer) }

// Azurite is the connection string of Microsoft's Azurite, in the same way.
func Azurite(t testing.TB) string {
	return BlobConnection(url(t, azurite))
}

// BlobConnection is the connection string of an Azurite at that URL.
func BlobConnection(url string) string {
	return fmt.Sprintf("DefaultEndpointsProtocol=http;AccountName=%s;AccountKey=%s;BlobEndpoint=%s/%s;", blobAccount, blobKey, url, blobAccount)
}
