//go:build unix

package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/cosmosfake"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/storagetest"
)

// tree makes a module cache of n complete versions, and of as many more as parts says of which the go command
// wanted the .info or the go.mod file alone, or both, with what else it keeps there, and returns the
// folder of its files.
func tree(t *testing.T, n, parts int) (cache, download string) {
	cache = t.TempDir()
	download = filepath.Join(cache, "cache", "download")
	write := func(name string, content []byte) {
		name = filepath.Join(download, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		v := storagetest.New(fmt.Sprintf("example.com/M%d/sub", i%37), fmt.Sprintf("v1.%d.0", i), strings.Repeat("y", i))
		for f, content := range map[goproxy.File][]byte{goproxy.FileInfo: v.Info, goproxy.FileMod: v.Mod, goproxy.FileZip: v.Zip} {
			p, err := goproxy.Request{Path: v.Path, Query: v.Version.Version, File: f}.URLPath()
			if err != nil {
				t.Fatal(err)
			}
			write(p, content)
			if f == goproxy.FileZip {
				h1, _, err := storage.CheckZip(v.Version, filepath.Join(download, filepath.FromSlash(p)))
				if err != nil {
					t.Fatal(err)
				}
				write(strings.TrimSuffix(p, "zip")+"ziphash", []byte(h1))
			}
		}
	}
	for i := range parts {
		v := storagetest.New(fmt.Sprintf("example.com/M%d/part", i%37), fmt.Sprintf("v1.%d.0-Pre", i), "")
		p := fmt.Sprintf("example.com/!m%d/part/@v/v1.%d.0-!pre", i%37, i)
		if i%3 != 0 {
			write(p+".mod", v.Mod)
		}
		if i%3 != 1 {
			write(p+".info", v.Info)
		}
	}
	write("example.com/!m1/sub/@v/main.info", []byte(`{"Version":"v1.1.0","Time":"2026-01-02T03:04:05Z"}`))
	write("example.com/!m1/sub/@v/v1.1.0.lock", nil)
	write("sumdb/sum.example.com/lookup/example.com/@v/v1.0.0.info", []byte("x"))
	return cache, download
}

func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(binary, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("athensctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// A module cache of 1,000 versions, and 300 more that are not complete, goes into Cosmos DB and Blob Storage, in an import
// that is killed once, and out to disk again: nothing has changed.
func TestAzureImportExport(t *testing.T) {
	t.Parallel()
	const n, parts = 1000, 300
	cache, download := tree(t, n, parts)
	fake, _, store := azureArgs(t, true)
	store = append(store, "--data-dir", t.TempDir(), "--sumdb=off")
	// It is killed when it is about to write the manifest of the 300th version.
	var written atomic.Int64
	enough := make(chan struct{})
	fake.SetFault(func(c cosmosfake.Call) *cosmosfake.Fault {
		if c.Op == "create item" && strings.HasPrefix(c.PK, "m/") && written.Add(1) == 300 {
			close(enough)
		}
		return nil
	})
	cut := exec.Command(binary, append([]string{"import", cache}, store...)...)
	if err := cut.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cut.Wait() }()
	select {
	case <-enough:
		cut.Process.Kill()
		<-ended
	case err := <-ended:
		t.Fatalf("the import ended after %d versions: %v", written.Load(), err)
	case <-time.After(2 * time.Minute):
		cut.Process.Kill()
		t.Fatalf("the import is at %d versions", written.Load())
	}
	fake.SetFault(nil)
	if status := cut.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() {
		t.Fatalf("the import was not killed: %v", cut.ProcessState)
	}
	first := regexp.MustCompile(`^(\d+) versions are good, 0 are bad, 0 could`).FindStringSubmatch(run(t, append([]string{"verify"}, store...)...))
	kept := 0
	if first != nil {
		kept, _ = strconv.Atoi(first[1])
	}
	if kept == 0 || kept >= n {
		t.Fatalf("the import that was killed has kept %d versions of %d", kept, n)
	}
	out := run(t, append([]string{"import", cache}, store...)...)
	var done, skipped int
	if _, err := fmt.Sscanf(out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:], "%d versions, %d were there already", &done, &skipped); err != nil || done+skipped != n+parts || skipped < kept || done < n-300 {
		t.Errorf("the second import, with %d versions there: %s", kept, out)
	}
	t.Logf("after the kill: %s", out)
	if out := run(t, append([]string{"verify"}, store...)...); !strings.Contains(out, fmt.Sprint(n, " versions are good, 0 are bad, 0 could not be checked")) {
		t.Errorf("verify: %s", out)
	}
	target := t.TempDir()
	run(t, append([]string{"export", target}, store...)...)
	// Of the disk store alone is list, which it works out. Of the go command alone are its locks, what
	// a branch was at some time, and what it has of a checksum database: none is of a version.
	diff := exec.Command("diff", "-r", "--exclude=list", "--exclude=main.info", "--exclude=*.lock", "--exclude=sumdb", download, filepath.Join(target, "modules"))
	if out, err := diff.CombinedOutput(); err != nil {
		t.Errorf("diff -r: %v\n%.2000s", err, out)
	}
	// Out of a disk store too.
	again := t.TempDir()
	run(t, "export", again, "--data-dir", target, "--sumdb=off")
	if out, err := exec.Command("diff", "-r", filepath.Join(target, "modules"), filepath.Join(again, "modules")).CombinedOutput(); err != nil {
		t.Errorf("diff -r after an export of the data folder: %v\n%.2000s", err, out)
	}
}

// A damaged zip on disk is found by verify, moved away, and can be imported again.
func TestVerify(t *testing.T) {
	cache, download := tree(t, 20, 0)
	dir := t.TempDir()
	store := []string{"--data-dir", dir, "--sumdb=off"}
	run(t, append([]string{"import", cache}, store...)...)
	zip := filepath.Join(dir, "modules", "example.com/!m7/sub/@v/v1.7.0.zip")
	whole, err := os.ReadFile(zip)
	if err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Replace(whole, []byte("package a"), []byte("package b"), 1)
	if bytes.Equal(damaged, whole) {
		damaged = append([]byte{}, whole...)
		damaged[len(damaged)/2] ^= 1
	}
	os.Remove(zip)
	if err := os.WriteFile(zip, damaged, 0o644); err != nil {
		t.Fatal(err)
	}
	verify := func(args ...string) (string, error) {
		out, err := exec.Command(binary, append(append([]string{"verify"}, store...), args...)...).CombinedOutput()
		return string(out), err
	}
	if out, err := verify(); err == nil || !strings.Contains(out, "example.com/M7/sub@v1.7.0: zip: ") || !strings.Contains(out, "19 versions are good, 1 are bad, 0 could") {
		t.Errorf("verify: %v\n%s", err, out)
	}
	quarantine := t.TempDir()
	// A checksum database that does not answer is no reason to take anything away; nor is
	// a folder that can't be written to.
	away := exec.Command(binary, "verify", "--data-dir", dir, "--upstream=off", "--sumdb=sum.golang.org http://127.0.0.1:1", "--quarantine", quarantine)
	if out, err := away.CombinedOutput(); err == nil || !strings.Contains(string(out), "0 versions are good, 1 are bad, 19 could not be checked") {
		t.Errorf("verify without a checksum database: %v\n%s", err, out)
	}
	if _, err := os.Stat(zip); err == nil {
		t.Error("the bad version was not set aside")
	}
	if left, err := filepath.Glob(filepath.Join(dir, "modules", "example.com", "*", "sub", "@v", "*.zip")); err != nil || len(left) != 19 {
		t.Fatalf("%d zips are left of 19 that are good: %v", len(left), err)
	}
	run(t, append([]string{"import", download}, store...)...)
	os.Remove(zip)
	if err := os.WriteFile(zip, damaged, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := verify("--quarantine", filepath.Join(zip, "x")); err == nil || !strings.Contains(out, "could not be moved to quarantine") {
		t.Errorf("verify --quarantine into a file: %v\n%s", err, out)
	}
	if got, err := os.ReadFile(zip); err != nil || !bytes.Equal(got, damaged) {
		t.Errorf("what could not be moved is gone: %v", err)
	}
	if out, err := verify("--quarantine", quarantine); err == nil || !strings.Contains(out, "moved to quarantine") {
		t.Errorf("verify --quarantine: %v\n%s", err, out)
	}
	if out, err := verify(); err != nil {
		t.Errorf("verify after quarantine: %v\n%s", err, out)
	}
	if got, err := os.ReadFile(filepath.Join(quarantine, "example.com/!m7/sub/@v/v1.7.0.zip")); err != nil || !bytes.Equal(got, damaged) {
		t.Errorf("the quarantine has %d bytes: %v", len(got), err)
	}
	if out := run(t, append([]string{"import", download}, store...)...); !strings.Contains(out, "1 versions, 19 were there already") {
		t.Errorf("import again: %s", out)
	}
	// To and from a storage role that runs.
	p := start(t, "--role=storage", "--data-dir", t.TempDir())
	run(t, append([]string{"export", p.url}, store...)...)
	other := t.TempDir()
	if out := run(t, "import", p.url, "--data-dir", other); !strings.Contains(out, "20 versions, 0 were there already") {
		t.Errorf("import from a storage role: %s", out)
	}
	for args, want := range map[string]string{
		"import /nonexistent": "holds no modules", "import " + t.TempDir(): "holds no modules", "import http://": "not one http or https URL",
		"import": "accepts 1 arg", "export /proc/x": "/proc/x",
	} {
		out, err := exec.Command(binary, append(strings.Fields(args), store...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("athensctl %s: %v %s", args, err, out)
		}
	}
}

// A copy that is interrupted has not succeeded, and says so to whoever started it.
func TestTransferInterrupted(t *testing.T) {
	asked, end := make(chan string, 10), make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- r.Header.Get("Authorization")
		<-end
	}))
	defer srv.Close()
	defer close(end)
	cmd := exec.Command(binary, "import", srv.URL, "--data-dir", t.TempDir())
	cmd.Env = append(os.Environ(), "ATHENSCTL_INTERNAL_TOKEN="+token)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if got := <-asked; got != "" {
		t.Errorf("another's server got %q", got)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 || !strings.Contains(said.String(), "interrupted") {
		t.Errorf("exit status %d: %s", code, said.String())
	}
}
