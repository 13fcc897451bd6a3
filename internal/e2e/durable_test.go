//go:build unix

package e2e

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"mime/multipart"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/dirhash"

	"github.com/athensctl/athensctl/storage/storagetest"
)

func save(url string, v storagetest.Version) error {
	var b bytes.Buffer
	form := multipart.NewWriter(&b)
	for name, content := range map[string][]byte{"mod.info": v.Info, "mod.mod": v.Mod, "mod.zip": v.Zip} {
		w, err := form.CreateFormFile(name, name)
		if err != nil {
			return err
		}
		w.Write(content)
	}
	form.Close()
	client := &http.Client{Timeout: 10 * time.Second}
	req, err := http.NewRequest(http.MethodPost, fmt.Sprintf("%s/%s/@v/%s.save", url, v.Path, v.Version.Version), &b)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", form.FormDataContentType())
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		text, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("%s: %s", resp.Status, text)
	}
	return nil
}

// kill -9 at random moments during saves: after each restart every version is
// whole or absent, and one whose save succeeded is whole, in catalog and index.
func TestKill(t *testing.T) {
	const kills = 200
	dir := t.TempDir()
	p := prepare(t, "--role=storage", "--data-dir", dir)
	saved := map[string]storagetest.Version{}
	tried := map[string]storagetest.Version{}
	n := 0
	for range kills {
		p.start()
		stop := make(chan struct{})
		killed := make(chan struct{})
		go func() {
			time.Sleep(time.Duration(rand.IntN(25_000)) * time.Microsecond)
			p.cmd.Process.Kill()
			close(killed)
		}()
		go func() { <-killed; close(stop) }()
		for running := true; running; {
			v := storagetest.New(fmt.Sprintf("example.com/m%d", n%17), fmt.Sprintf("v1.%d.0", n), strings.Repeat("x", rand.IntN(100_000)))
			n++
			tried[v.String()] = v
			if err := save(p.url, v); err == nil {
				saved[v.String()] = v
			}
			select {
			case <-stop:
				running = false
			default:
			}
		}
		p.cmd.Wait()
	}
	p.start()
	t.Logf("%d kills, %d saves tried, %d succeeded", kills, len(tried), len(saved))
	var whole map[string]bool
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		_, body, _ := get(t, p.url+"/catalog?pagesize=10000")
		var page struct {
			Modules []struct{ Module, Version string }
		}
		if err := json.Unmarshal([]byte(body), &page); err != nil {
			t.Fatal(err)
		}
		whole = map[string]bool{}
		for _, m := range page.Modules {
			whole[m.Module+"@"+m.Version] = true
		}
		missing := 0
		for name := range saved {
			if !whole[name] {
				missing++
			}
		}
		if missing == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d saved versions are not in the catalog", missing)
		}
	}
	for name, v := range tried {
		for ext, want := range map[string][]byte{"info": v.Info, "mod": v.Mod, "zip": v.Zip} {
			status, body, _ := get(t, fmt.Sprintf("%s/%s/@v/%s.%s", p.url, v.Path, v.Version.Version, ext))
			switch {
			case status == 200 && body == string(want):
			case status == 404 && !whole[name]:
			default:
				t.Errorf("%s.%s: status %d, %d bytes of %d; in the catalog: %v", name, ext, status, len(body), len(want), whole[name])
			}
		}
		// A save that was cut can be made again.
		if err := save(p.url, v); err != nil {
			t.Errorf("save %s again: %v", name, err)
		}
	}
	_, body, _ := get(t, p.url+"/index?limit=10000")
	if lines := strings.Count(body, "\n"); lines != len(tried) {
		t.Errorf("the index has %d lines, want %d", lines, len(tried))
	}
}

// need skips on a laptop, and fails where everything must run.
func need(t *testing.T, tool string) string {
	t.Helper()
	path, err := exec.LookPath(tool)
	if err != nil {
		if os.Getenv("ATHENSCTL_TEST_REQUIRE") != "" {
			t.Fatalf("%s is missing", tool)
		}
		t.Skipf("%s is missing", tool)
	}
	return path
}

// needRoot skips a test on a laptop, and fails where everything must run; CI is root.
func needRoot(t *testing.T, what string) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("ATHENSCTL_TEST_REQUIRE") != "" {
		t.Fatalf("%s needs root: sudo env \"PATH=$PATH\" \"HOME=$HOME\" make test", what)
	}
	t.Skipf("%s needs root", what)
}

// A full disk: a clear error, nothing half-written, reads go on; with space again the same
// save succeeds.
func TestFullDisk(t *testing.T) {
	needRoot(t, "mounting a small file system")
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() { exec.Command("umount", "-l", dir).Run() })
	p := start(t, "--role=storage", "--data-dir", dir)
	kept := map[string]storagetest.Version{}
	var refused storagetest.Version
	var err error
	for i := 0; err == nil; i++ {
		if i > 100 {
			t.Fatal("the disk does not fill")
		}
		noise := make([]byte, 150<<10)
		rand.NewChaCha8([32]byte{byte(i)}).Read(noise)
		refused = storagetest.New("example.com/m", fmt.Sprintf("v1.%d.0", i), hex.EncodeToString(noise))
		if err = save(p.url, refused); err == nil {
			kept[refused.String()] = refused
		}
	}
	if !strings.Contains(err.Error(), "503") || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("on a full disk: %v", err)
	}
	if len(kept) == 0 {
		t.Fatal("nothing was kept before the disk was full")
	}
	// Fill what is left, as a log beside it would, and save on.
	filler, ferr := os.Create(filepath.Join(dir, "filler"))
	if ferr != nil {
		t.Fatal(ferr)
	}
	io.Copy(filler, rand.NewChaCha8([32]byte{1}))
	filler.Close()
	for i := range 20 {
		v := storagetest.New("example.com/other", fmt.Sprintf("v1.%d.0", i), "")
		if err := save(p.url, v); err == nil {
			kept[v.String()] = v
		} else if !strings.Contains(err.Error(), "503") || !strings.Contains(err.Error(), "no space left") {
			t.Errorf("on a full disk: %v", err)
		}
	}
	whole := func(v storagetest.Version) {
		t.Helper()
		for ext, want := range map[string][]byte{"info": v.Info, "mod": v.Mod, "zip": v.Zip} {
			if status, body, _ := get(t, p.url+"/"+v.Path+"/@v/"+v.Version.Version+"."+ext); status != 200 || body != string(want) {
				t.Errorf("%s.%s after the disk was full: %d, %d bytes of %d", v, ext, status, len(body), len(want))
			}
		}
	}
	for _, v := range kept {
		whole(v)
	}
	listed := catalogOf(t, p.url)
	for name := range listed {
		if _, ok := kept[name]; !ok {
			t.Errorf("%s was refused, and is in the catalog", name)
		}
	}
	if len(listed) != len(kept) {
		t.Errorf("%d versions are in the catalog, %d were kept", len(listed), len(kept))
	}
	// Of what was refused a small file may be there, whole. Nothing else is on the disk.
	files := 0
	werr := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(dir, name)
		if top, _, deep := strings.Cut(rel, "/"); top != "modules" {
			if deep && top != "queue" {
				t.Errorf("%s was left", rel)
			}
			return nil
		}
		files++
		base, ext := strings.TrimSuffix(name, filepath.Ext(name)), filepath.Ext(name)
		path := strings.TrimPrefix(filepath.Dir(filepath.Dir(rel)), "modules/")
		v := storagetest.New(path, filepath.Base(base), "")
		got, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		want := map[string][]byte{".info": v.Info, ".mod": v.Mod, ".zip": kept[v.String()].Zip}[ext]
		switch {
		case ext == ".ziphash":
			h1, err := dirhash.HashZip(base+".zip", dirhash.Hash1)
			if want = []byte(h1); err != nil {
				t.Errorf("%s: %v", rel, err)
			}
		case filepath.Base(name) == "list":
			for version := range strings.FieldsSeq(string(got)) {
				if want = got; !listed[path+"@"+version] {
					t.Errorf("%s has %s, which is not kept", rel, version)
				}
			}
		}
		if want == nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, want %d", rel, len(got), len(want))
		}
		return nil
	})
	if werr != nil || files < 3*len(kept) {
		t.Errorf("%d files of modules are there, of %d versions: %v", files, len(kept), werr)
	}
	if err := os.Remove(filler.Name()); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-o", "remount,size=32m", dir).CombinedOutput(); err != nil {
		t.Fatalf("remount: %v: %s", err, out)
	}
	if err := save(p.url, refused); err != nil {
		t.Errorf("with space again: %v", err)
	}
	whole(refused)
	if status := p.terminate(); status != 0 {
		t.Errorf("exit status %d after SIGTERM", status)
	}
	if out, err := athensctl(t, "verify", "--data-dir", dir, "--sumdb=off"); err != nil || !strings.Contains(out, fmt.Sprintf("%d versions are good, 0 are bad", len(kept)+1)) {
		t.Errorf("verify: %s, %v", out, err)
	}
}
