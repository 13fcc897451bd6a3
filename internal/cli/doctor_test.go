package cli

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/athensctl/athensctl/internal/cosmosfake"
	"github.com/athensctl/athensctl/internal/testupstream"
)

// key is a key of no account.
const key = "bm90IGEgcmVhbCBrZXk="

// doctor runs the command and returns what it printed.
func doctor(args ...string) (status int, printed string) {
	var out, errs bytes.Buffer
	status = Main(append([]string{"doctor"}, args...), nil, &out, &errs)
	return status, out.String() + errs.String()
}

// server answers everything with f, until the test ends.
func server(t *testing.T, f http.HandlerFunc) string {
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	return srv.URL
}

// What is wrong is said in words, with what to do; what is right is said too.
func TestDoctor(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fake := &cosmosfake.Server{Key: key, Serverless: true}
	account := server(t, fake.ServeHTTP)
	faulty := func(f cosmosfake.Fault) string {
		s := &cosmosfake.Server{}
		s.SetFault(func(cosmosfake.Call) *cosmosfake.Fault { return &f })
		return server(t, s.ServeHTTP)
	}
	off := server(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
		fake.ServeHTTP(w, r)
	})
	cosmos := func(endpoint string, more ...string) []string {
		return append([]string{"--role=storage", "--listen=127.0.0.1:1", "--store=cosmos", "--cosmos-key=" + key, "--cosmos-endpoint=" + endpoint, "--data-dir=" + dir}, more...)
	}
	if status := Main(append([]string{"storage", "init"}, cosmos(account)...), nil, new(bytes.Buffer), os.Stderr); status != 0 {
		t.Fatal("storage init")
	}
	blob := func(code string) []string {
		url := server(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("x-ms-error-code", code)
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(map[bool]int{true: http.StatusNotFound, false: http.StatusForbidden}[code == "ContainerNotFound"])
			fmt.Fprintf(w, "<?xml version=\"1.0\"?><Error><Code>%s</Code><Message>said.\nRequestId:1</Message></Error>", code)
		})
		return cosmos(account, "--blob-connection-string=DefaultEndpointsProtocol=http;AccountName=a;AccountKey="+key+";BlobEndpoint="+url+"/a;")
	}
	role := func(token string) string { // a role's server that asks for a token
		return server(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/readyz" && r.Header.Get("Authorization") != "Bearer "+token {
				http.Error(w, "unauthorized: the internal token is missing or wrong", http.StatusUnauthorized)
			}
		})
	}
	const token = "0123456789abcdef"
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	mirror := server(t, http.NotFound)
	feed := server(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.String() != "/index?limit=1" && r.URL.String() != "/catalog?pagesize=1" && r.URL.Path != "/" {
			http.NotFound(w, r)
		}
	})
	broken := server(t, func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "maintenance", http.StatusServiceUnavailable)
	})
	up := testupstream.Start(t)
	proxy := []string{"--role=proxy", "--internal-token=" + token, "--data-dir=" + dir}
	for name, tc := range map[string]struct {
		args []string
		ok   bool
		want []string
	}{
		"disk":              {[]string{"--data-dir=" + dir, "--upstream=" + mirror, "--sumdb=off"}, true, []string{"ok    data-dir " + dir, "ok    cache-dir ", "ok    upstream " + mirror}},
		"data-dir":          {[]string{"--data-dir=" + filepath.Join(file, "x"), "--cache-dir=" + dir, "--upstream=" + mirror, "--sumdb=off"}, false, []string{"FAIL  data-dir ", "not a directory", "2 of the checks failed"}},
		"upstream away":     {[]string{"--data-dir=" + dir, "--upstream=" + gone.URL, "--sumdb=off"}, false, []string{"FAIL  upstream " + gone.URL, "connection refused"}},
		"upstream fails":    {[]string{"--data-dir=" + dir, "--upstream=" + broken, "--sumdb=off"}, false, []string{"FAIL  upstream " + broken, "503 Service Unavailable: maintenance"}},
		"checksum database": {[]string{"--data-dir=" + dir, "--upstream=" + mirror, "--sumdb=sum.golang.org " + gone.URL}, false, []string{"FAIL  checksum database sum.golang.org", "connection refused"}},
		"its answer":        {[]string{"--data-dir=" + dir, "--upstream=" + up.URL(), "--sumdb=" + up.GOSUMDB()}, true, []string{"ok    checksum database "}},
		"storage away":      {append(proxy, "--storage-url="+gone.URL, "--crawler-url="+role(token)), false, []string{"FAIL  storage at " + gone.URL, "connection refused", "ok    crawler"}},
		"wrong token":       {append(proxy, "--storage-url="+role("another-0123456789"), "--crawler-url="+role("another-0123456789")), false, []string{"FAIL  storage at", "FAIL  crawler at", "the internal token is missing or wrong", "2 of the checks failed"}},

		"cosmos":           {cosmos(account), true, []string{"ok    Cosmos DB answers at " + account, "ok    Cosmos DB, database athensctl, can be read and written"}},
		"wrong key":        {append(cosmos(account), "--cosmos-key=d3Jvbmc="), false, []string{"ok    Cosmos DB answers", "FAIL  Cosmos DB, database athensctl", "the key is wrong"}},
		"no such database": {append(cosmos(account), "--cosmos-database=other"), false, []string{"FAIL  Cosmos DB, database other", "athensctl storage init"}},
		"clock":            {cosmos(off), false, []string{"FAIL  Cosmos DB answers at " + off, "clock is off by 1h0m"}},
		"no permission":    {cosmos(faulty(cosmosfake.Fault{Status: 403, Message: "Request is blocked because principal [x] does not have required RBAC permissions to perform action [y]"})), false, []string{"Cosmos DB Built-in Data Contributor"}},
		"firewall":         {cosmos(faulty(cosmosfake.Fault{Status: 403, Message: "Request originated from IP 192.0.2.1 through public internet. This is blocked by your Cosmos DB account firewall settings."})), false, []string{"firewall does not let this address in"}},

		"connection string": {[]string{"--role=storage", "--listen=127.0.0.1:1", "--store=cosmos", "--cosmos-connection-string=AccountEndpoint=" + off + "/;AccountKey=" + key + ";", "--data-dir=" + dir}, false, []string{"FAIL  Cosmos DB answers at " + off, "clock is off by 1h0m"}},
		"spool":             {append(cosmos(account), "--data-dir="+filepath.Join(file, "x")), false, []string{"FAIL  files that are being made can be written in " + filepath.Join(file, "x", "spool"), "not a directory"}},
		"feeds": {[]string{"--data-dir=" + dir, "--upstream=" + mirror, "--sumdb=off", "--crawl-index=" + feed + "," + mirror, "--crawl-catalog=store," + feed + "," + broken}, false,
			[]string{"ok    files that are being made", "ok    index feed " + feed, "FAIL  index feed " + mirror + ": /index: 404", "ok    catalog " + feed, "FAIL  catalog " + broken + ": /catalog: 503 Service Unavailable: maintenance", "2 of the checks failed"}},

		"blob, no container": {blob("ContainerNotFound"), false, []string{"FAIL  Blob Storage, container modules", "the container is not there", "athensctl storage init"}},
		"blob, no role":      {blob("AuthorizationPermissionMismatch"), false, []string{"FAIL  Blob Storage, container modules", "Storage Blob Data Contributor"}},
		"blob, firewall":     {blob("AuthorizationFailure"), false, []string{"firewall"}},
		"blob, no keys":      {blob("KeyBasedAuthenticationNotPermitted"), false, []string{"takes no keys"}},
		"blob, key":          {blob("AuthenticationFailed"), false, []string{"the key is wrong"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			status, printed := doctor(tc.args...)
			for _, want := range tc.want {
				if !strings.Contains(printed, want) {
					t.Errorf("printed %q, not %q", printed, want)
				}
			}
			if (status == 0) != tc.ok || tc.ok && strings.Contains(printed, "FAIL") {
				t.Errorf("status %d: %s", status, printed)
			}
			if strings.Contains(printed, key) || strings.Contains(printed, "d3Jvbmc=") || strings.Contains(printed, token) {
				t.Errorf("a secret is printed: %s", printed)
			}
		})
	}
}
