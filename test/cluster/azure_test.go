//go:build cluster

package cluster

import (
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/athensctl/athensctl/internal/cosmosfake"
	"github.com/athensctl/athensctl/internal/testazure"
)

// counter counts the requests for what is behind it, by the address of who asks.
type counter struct {
	next http.Handler
	mu   sync.Mutex
	from map[string]int
}

func (c *counter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	c.mu.Lock()
	c.from[host]++
	c.mu.Unlock()
	c.next.ServeHTTP(w, r)
}

// counts is how often each of the addresses has asked.
func (c *counter) counts(hosts []string) (list []int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range hosts {
		list = append(list, c.from[h])
	}
	return list
}

// listen serves a handler to pods, counted.
func listen(t *testing.T, address string, h http.Handler) *counter {
	t.Helper()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	c := &counter{next: h, from: map[string]int{}}
	srv := &http.Server{Handler: c}
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
	return c
}

// azure: the same chart with Cosmos DB and Blob Storage, that is their stand-ins, and
// two storage replicas, of which each asks both. All is new to the CDN.
func azure(t *testing.T, sets []string, sumdb string) {
	const cosmosAt, blobAt = node + ":18081", node + ":18082"
	bin, err := filepath.Abs("../azure/node_modules/.bin/azurite-blob")
	if err != nil {
		t.Fatal(err)
	}
	daemon(t, bin, "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent", "--blobHost", "127.0.0.1", "--blobPort", "18083")
	eventually(t, "azurite", time.Minute, func() bool { return status("http://127.0.0.1:18083/") != 0 })
	cosmos := listen(t, cosmosAt, &cosmosfake.Server{Key: testazure.CosmosKey, Serverless: true})
	blob := listen(t, blobAt, &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: "127.0.0.1:18083"})
		r.Out.Host = r.In.Host
	}})
	endpoint, connection := "http://"+cosmosAt, testazure.BlobConnection("http://"+blobAt)
	binary := filepath.Join(scratch, "athensctl")
	command(t, "go", "build", "-o", binary, "../..")
	t.Log(command(t, binary, "storage", "init", "--store=cosmos", "--cosmos-endpoint="+endpoint, "--cosmos-key="+testazure.CosmosKey, "--blob-connection-string="+connection))
	kubectl(t, "create", "secret", "generic", "azure", "--from-literal=cosmos-key="+testazure.CosmosKey, "--from-literal=blob-connection-string="+connection)
	before := inNamespace(t)
	install(t, append(sets, "storage.resources.limits.cpu=750m", "store.type=cosmos", "store.cosmos.endpoint="+endpoint, "store.existingSecret=azure", to("storage", 18082)), "--set", "storage.replicas=2")
	egress(t, "storage", dns, "18081 >", "18082 > "+node+"/32")
	eventually(t, "ingress", 30*time.Second, func() bool { return status(ingress+"/healthz") == 200 })

	command(t, "varnishadm", "-n", filepath.Join(scratch, "ingress", "varnish"), "ban", "req.url ~ .")
	if err := os.Truncate(filepath.Join(scratch, "ingress", "access.log"), 0); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, path := range downloads {
			goDownload(t, cdn, sumdb, path)
		}
	}
	onceEach(t)
	for _, path := range downloads {
		goDownload(t, ingress, sumdb, path)
	}
	pods := strings.Fields(kubectl(t, "get", "pods", "-l", "app.kubernetes.io/component=storage", "-o", "jsonpath={.items[*].status.podIP}"))
	if len(pods) != 2 {
		t.Fatalf("storage pods: %v", pods)
	}
	// What one has kept, both have.
	token, err := base64.StdEncoding.DecodeString(kubectl(t, "get", "secret", "site-athensctl-token", "-o", "jsonpath={.data.token}"))
	if err != nil {
		t.Fatal(err)
	}
	for _, pod := range pods {
		for _, m := range downloads {
			req, err := http.NewRequest("GET", "http://"+pod+":3000/"+escape(m)+"/@v/"+version(t, m)+".zip", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+string(token))
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			n, err := io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != 200 || n == 0 || n != resp.ContentLength {
				t.Errorf("%s of the storage pod %s: %s, %d bytes, %v", m, pod, resp.Status, n, err)
			}
		}
	}
	for name, c := range map[string]*counter{"Cosmos DB": cosmos, "Blob Storage": blob} {
		n := c.counts(pods)
		t.Logf("requests to %s of the two storage pods: %v", name, n)
		for i, pod := range pods {
			if n[i] == 0 {
				t.Errorf("%s was not asked by the storage pod %s", name, pod)
			}
		}
		c.mu.Lock()
		for host := range c.from { // and of storage init, from this host
			if host != pods[0] && host != pods[1] && host != node {
				t.Errorf("%s was asked by %s, which is no storage pod", name, host)
			}
		}
		c.mu.Unlock()
	}
	// The processors of a limit are rounded up; without one there are those of the node.
	for role, want := range map[string]string{"storage": "1", "crawler": strconv.Itoa(runtime.NumCPU())} {
		for _, uid := range strings.Fields(kubectl(t, "get", "pods", "-l", "app.kubernetes.io/component="+role, "-o", "jsonpath={.items[*].metadata.uid}")) {
			found := processes(t, uid)
			if len(found) != 1 {
				t.Errorf("%d processes of %s", len(found), role)
			}
			for pid := range found {
				environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Contains(strings.Split(string(environ), "\x00"), "GOMAXPROCS="+want) {
					t.Errorf("%s has no GOMAXPROCS=%s: %q", role, want, regexp.MustCompile("GOMAXPROCS=[^\x00]*").FindString(string(environ)))
				}
			}
		}
	}
	helm(t, "uninstall", "site", "--wait", "--timeout", "2m")
	left(t, "uninstall leaves nothing", before)
}
