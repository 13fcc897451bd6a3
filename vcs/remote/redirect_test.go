package remote

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/athensctl/athensctl/goproxy"
)

// A host that the operator named with https sends to another one inside, over https too:
// it is not followed, neither to an address nor to a name; to itself it is.
func TestRedirectInside(t *testing.T) {
	if at := os.Getenv("ATHENSCTL_TEST_REDIRECT"); at != "" { // the roots are read once in a process
		r, err := New(Options{InsteadOf: []string{"https://git.example.org/=" + at + "/"}})
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{"/ok", "/self", "/address", "/name"} {
			_, err := get(r, at+path)
			fmt.Printf("answer %s %d %v\n", path, goproxy.Status(err), err)
		}
		return
	}
	asked := 0
	inside := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked++ }))
	t.Cleanup(inside.Close)
	named := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/self":
			http.Redirect(w, r, "/ok", http.StatusFound)
		case "/address":
			http.Redirect(w, r, inside.URL, http.StatusFound)
		case "/name":
			http.Redirect(w, r, strings.Replace(inside.URL, "127.0.0.1", "localhost", 1), http.StatusFound)
		}
	}))
	t.Cleanup(named.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: named.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestRedirectInside$")
	cmd.Env = append(os.Environ(), "ATHENSCTL_TEST_REDIRECT="+named.URL, "SSL_CERT_FILE="+ca)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for path, want := range map[string]string{"/ok": "200 <nil>", "/self": "200 <nil>", "/address": "403 ", "/name": "403 "} {
		_, got, _ := strings.Cut(string(out), "answer "+path+" ")
		got, _, _ = strings.Cut(got, "\n")
		if !strings.HasPrefix(got, want) || want == "403 " && !strings.Contains(got, "is not an address on the internet (setting vcs-allow-host)") {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	if asked > 0 {
		t.Errorf("%d requests got inside", asked)
	}
}
