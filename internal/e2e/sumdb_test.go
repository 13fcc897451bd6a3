//go:build unix

package e2e

import (
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/athensctl/athensctl/internal/testupstream"
)

// checkedGo runs the go command with an empty module cache and the upstream's checksum
// database, which it can only ask through the proxy.
func checkedGo(t *testing.T, u *testupstream.Upstream, dir, proxy string, env []string, args ...string) string {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	cmd.Env = append(append(u.GoEnv(proxy, t.TempDir()), "GOSUMDB="+u.VerifierKey()), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// What the checksum database does not confirm is neither kept nor served.
func TestChecksumRefused(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		bad    func(*testupstream.Upstream)
		file   string
		status int
		want   []string // in the body
	}{
		{"wrong zip", func(u *testupstream.Upstream) { u.SetSum("example.com/m", "v1.0.0", testupstream.SumWrongZip) },
			"zip", 502, []string{"example.com/m@v1.0.0", "checksum mismatch", "upstream has h1:", "the checksum database says h1:"}},
		{"wrong go.mod", func(u *testupstream.Upstream) { u.SetSum("example.com/m", "v1.0.0", testupstream.SumWrongMod) },
			"mod", 502, []string{"example.com/m@v1.0.0/go.mod", "checksum mismatch", "upstream has h1:", "the checksum database says h1:"}},
		{"unknown", func(u *testupstream.Upstream) { u.SetSum("example.com/m", "v1.0.0", testupstream.SumUnknown) },
			"zip", 403, []string{"knows no such version", "setting private"}},
		{"away", func(u *testupstream.Upstream) { u.SetSumDBAway(true) }, "zip", 503, []string{"checksum database"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			u := testupstream.Start(t, testupstream.Module{Path: "example.com/m", Version: "v1.0.0"})
			tc.bad(u)
			p := start(t, "--upstream", u.URL(), "--data-dir", t.TempDir(), "--sumdb", u.VerifierKey())
			url := p.url + "/example.com/m/@v/v1.0.0." + tc.file
			status, body, h := get(t, url)
			if status != tc.status {
				t.Errorf("status %d, want %d: %s", status, tc.status, body)
			}
			for _, want := range tc.want {
				if !strings.Contains(body, want) {
					t.Errorf("the answer does not say %q: %s", want, body)
				}
			}
			if status == 503 && h.Get("Retry-After") == "" {
				t.Error("503 without Retry-After")
			}
			if status, body, _ := get(t, p.url+"/cached-only/example.com/m/@v/v1.0.0."+tc.file); status == 200 {
				t.Errorf("it was kept: %.100s", body)
			}
			_, metrics, _ := get(t, p.url+"/metrics")
			if counted := !strings.Contains(metrics, "athensctl_checksum_mismatches_total 0\n"); counted != (tc.status == 502) {
				t.Errorf("counted as a mismatch: %v", counted)
			}
			if tc.name != "away" {
				return
			}
			u.SetSumDBAway(false)
			for end := time.Now().Add(time.Minute); status != 200 && time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
				status, body, _ = get(t, url)
			}
			if status != 200 {
				t.Errorf("the database is back: %d %s", status, body)
			}
		})
	}
}

// A private module is not looked up, by nobody.
func TestChecksumPrivate(t *testing.T) {
	t.Parallel()
	u := testupstream.Start(t, testupstream.Module{Path: "corp.example.com/m", Version: "v1.0.0"})
	u.SetSum("corp.example.com/m", "v1.0.0", testupstream.SumUnknown)
	p := start(t, "--upstream", u.URL(), "--data-dir", t.TempDir(), "--sumdb", u.VerifierKey(), "--private", "corp.example.com")
	if status, body, _ := get(t, p.url+"/corp.example.com/m/@v/v1.0.0.zip"); status != 200 {
		t.Errorf("zip: %d %s", status, body)
	}
	if status, body, _ := get(t, p.url+"/sumdb/"+u.SumDBName()+"/lookup/corp.example.com/m@v1.0.0"); status != 403 || !strings.Contains(body, "private") {
		t.Errorf("lookup: %d %s", status, body)
	}
	if n := u.Requests(testupstream.SumDB, ""); n != 0 {
		t.Errorf("the checksum database was asked %d times", n)
	}
}

// GOTOOLCHAIN switches through the proxy. A toolchain is a module, and the go
// command always wants it in the checksum database.
func TestToolchain(t *testing.T) {
	t.Parallel()
	version := "v0.0.1-go1.99.9." + runtime.GOOS + "-" + runtime.GOARCH
	u := testupstream.Start(t, testupstream.Module{Path: "golang.org/toolchain", Version: version, Files: map[string]string{
		"bin/go":           "#!/bin/sh\necho a toolchain from the proxy: $*\n",
		"bin/gofmt":        "not one\n",
		"pkg/tool/compile": "not one\n",
		"lib/empty":        "the go command looks for this folder\n",
	}})
	p := start(t, "--upstream", u.URL(), "--data-dir", t.TempDir(), "--sumdb", u.VerifierKey())
	for range 2 {
		if out := checkedGo(t, u, t.TempDir(), p.url, []string{"GOTOOLCHAIN=go1.99.9"}, "version"); !strings.Contains(out, "a toolchain from the proxy: version") {
			t.Errorf("go version: %s", out)
		}
		u.Stop()
	}
}
