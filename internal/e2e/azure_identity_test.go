//go:build unix

package e2e

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/athensctl/athensctl/storage/storagetest"
)

// Workload identity, as on AKS: the token that Kubernetes has put into a file is exchanged for one
// of the account, with which doctor and a storage role work; without it they say what is missing. The
// tenant is one of AD FS: for others the SDK asks Microsoft whether the authority is one of its own.
func TestAzureWorkloadIdentity(t *testing.T) {
	const federated, granted = "token-of-kubernetes", "token-of-the-account"
	fake, _, store := azureArgs(t, false)
	fake.Token = granted
	store = store[:len(store)-2] // without the key
	var exchanged atomic.Int64
	var authority *httptest.Server
	authority = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.URL.Path == "/adfs/.well-known/openid-configuration":
			json.NewEncoder(w).Encode(map[string]string{"issuer": authority.URL + "/adfs", "authorization_endpoint": authority.URL + "/adfs/authorize", "token_endpoint": authority.URL + "/adfs/token"})
		case r.URL.Path == "/adfs/token" && r.FormValue("client_assertion") == federated && r.FormValue("client_id") == "the-client":
			exchanged.Add(1)
			fmt.Fprintf(w, `{"access_token":%q,"expires_in":3600,"token_type":"Bearer"}`, granted)
		default:
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"error":"invalid_client","error_description":"AADSTS70021: No matching federated identity record found"}`)
		}
	}))
	defer authority.Close()
	dir := t.TempDir()
	file := func(name, content string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	env := func(token string) []string {
		return []string{
			"AZURE_CLIENT_ID=the-client", "AZURE_TENANT_ID=adfs", "AZURE_AUTHORITY_HOST=" + authority.URL, "AZURE_FEDERATED_TOKEN_FILE=" + file("token", token),
			"SSL_CERT_FILE=" + file("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority.Certificate().Raw}))),
		}
	}
	doctor := func(token string) (string, error) {
		cmd := exec.Command(binary, append([]string{"doctor", "--role=storage", "--listen=127.0.0.1:1", "--data-dir", t.TempDir()}, store...)...)
		cmd.Env = append(os.Environ(), env(token)...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := doctor("another"); err == nil || !strings.Contains(out, "AADSTS70021: No matching federated identity record found") || strings.Contains(out, "another") {
		t.Errorf("doctor, with a token that is not trusted: %v\n%s", err, out)
	}
	if out, err := doctor(federated); err != nil || !strings.Contains(out, "ok    Cosmos DB, database athensctl, can be read and written") {
		t.Errorf("doctor: %v\n%s", err, out)
	}
	p := prepare(t, append([]string{"--internal-token", token, "--role=storage", "--data-dir", t.TempDir()}, store...)...)
	p.env = env(federated)
	p.start()
	v := storagetest.New("example.com/m", "v1.0.0", "")
	if err := save(p.url, v); err != nil {
		t.Fatal(err)
	}
	if status, body, _ := get(t, p.url+"/example.com/m/@v/v1.0.0.zip"); status != 200 || body != string(v.Zip) {
		t.Errorf("zip: %d, %d bytes", status, len(body))
	}
	if n := exchanged.Load(); n != 2 { // one for each process: it is remembered
		t.Errorf("%d exchanges", n)
	}
	init := exec.Command(binary, append([]string{"storage", "init"}, store...)...)
	init.Env = append(os.Environ(), env(federated)...)
	if out, err := init.CombinedOutput(); err == nil || !strings.Contains(string(out), "an identity can't make databases") {
		t.Errorf("storage init with an identity: %v\n%s", err, out)
	}
}
