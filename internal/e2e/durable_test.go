//go:build unix

package e2e

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/dirhash"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
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

// kill -9 at random moments during saves, while jobs are made, claimed and done: after
// each restart every version is whole, in catalog, list and index, or it is in none, and what is kept
// of it is whole; its hashes are those of what was saved; every job that was made and not done is in
// the queue once, with its holder, no other is, and the queue goes on.
func TestKill(t *testing.T) {
	t.Parallel()
	const kills = 200
	dir := t.TempDir()
	p := prepare(t, "--role=storage", "--data-dir", dir, "--internal-token", token, "--queue-max=100000")
	k := &killed{t: t, p: p, dir: dir, saved: map[string]bool{}, jobs: newKilledJobs(t, p.url)}
	lost := 0
	for life := range kills {
		p.start()
		k.jobs.check()
		k.check()
		done := make(chan struct{})
		time.AfterFunc(time.Duration(rand.IntN(50_000))*time.Microsecond, func() {
			p.cmd.Process.Kill()
			close(done)
		})
		running := func() bool {
			select {
			case <-done:
				return false
			default:
				return true
			}
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for running() {
				k.jobs.step()
				time.Sleep(time.Duration(rand.IntN(5_000)) * time.Microsecond) // the saves share the disk
			}
		})
		before := len(k.saved)
		for running() {
			k.save()
		}
		wg.Wait()
		p.cmd.Wait()
		if lost += len(k.recent) - (len(k.saved) - before); t.Failed() {
			t.Fatalf("after %d kills", life+1)
		}
	}
	p.start()
	k.jobs.check()
	k.check()
	t.Logf("%d kills, %d saves tried, %d succeeded; %d jobs were made for sure, %d done", kills, len(k.tried), len(k.saved), k.jobs.made, k.jobs.finished)
	if lost == 0 || len(k.saved) == 0 || k.jobs.made == 0 || k.jobs.finished == 0 {
		t.Error("the kills did not meet the work")
	}
	// All of them, once more; and a save that was cut can be made again.
	k.recent = k.tried
	k.check()
	for _, v := range k.tried {
		if err := save(p.url, v); err != nil {
			t.Errorf("save %s again: %v", v, err)
		}
		k.saved[v.String()] = true
	}
	k.recent = k.tried
	k.check()
	_, body, _ := get(t, p.url+"/index?limit=10000")
	if lines := strings.Count(body, "\n"); lines != len(k.tried) {
		t.Errorf("the index has %d lines, want %d", lines, len(k.tried))
	}
	k.jobs.drain()
}

// killed is what was saved at a storage role that is killed now and then.
type killed struct {
	t      *testing.T
	p      *process
	dir    string
	tried  []storagetest.Version
	recent []storagetest.Version // of them: since the last check
	saved  map[string]bool       // whose save has succeeded
	jobs   *killedJobs
}

func (k *killed) save() {
	n := len(k.tried)
	v := storagetest.New(fmt.Sprintf("example.com/m%d", n%17), fmt.Sprintf("v1.%d.0", n), strings.Repeat("x", rand.IntN(100_000)))
	k.tried, k.recent = append(k.tried, v), append(k.recent, v)
	if err := save(k.p.url, v); err == nil {
		k.saved[v.String()] = true
	}
}

// check looks at what was saved since the last time. What is complete and not listed, since its
// process was killed between the two, is listed in a moment, and nobody has to ask for it.
func (k *killed) check() {
	k.t.Helper()
	var wrong []string
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if wrong = k.look(); len(wrong) == 0 || time.Now().After(end) {
			break
		}
	}
	for _, w := range wrong {
		k.t.Error(w)
	}
	k.recent = nil
}

// look returns what is wrong.
func (k *killed) look() (wrong []string) {
	t := k.t
	t.Helper()
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	catalog := catalogOf(t, k.p.url)
	_, body, _ := get(t, k.p.url+"/index?limit=10000")
	index := map[string]int{}
	for line := range strings.Lines(body) {
		var e storage.IndexEntry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("index: %v: %s", err, line)
		}
		index[e.Path+"@"+e.Version]++
	}
	for name := range k.saved {
		if !catalog[name] {
			complain("%s was saved, and is not in the catalog", name)
		}
	}
	if len(index) != len(catalog) {
		complain("%d versions are in the index, %d in the catalog", len(index), len(catalog))
	}
	for _, v := range k.recent {
		name, there := v.String(), map[string]bool{}
		for ext, want := range map[string][]byte{"info": v.Info, "mod": v.Mod, "zip": v.Zip} {
			status, body, _ := get(t, fmt.Sprintf("%s/%s/@v/%s.%s", k.p.url, v.Path, v.Version.Version, ext))
			there[ext] = status == 200
			if status != 404 && (status != 200 || body != string(want)) {
				complain("%s.%s: status %d, %d bytes of %d", name, ext, status, len(body), len(want))
			}
		}
		_, list, _ := get(t, fmt.Sprintf("%s/%s/@v/list", k.p.url, v.Path))
		listed := slices.Contains(strings.Fields(list), v.Version.Version)
		if whole := there["info"] && there["mod"] && there["zip"]; catalog[name] != whole || listed != whole || (index[name] == 1) != whole || index[name] > 1 {
			complain("%s: of its files there are %v; in the catalog: %v, in the list: %v, in the index: %d times", name, there, catalog[name], listed, index[name])
		}
		if there["zip"] && !(there["info"] && there["mod"]) {
			complain("%s: there is a zip, and of the others %v", name, there)
		}
		h1, err := k.jobs.client.ZipH1(context.Background(), v.Version)
		if err != nil || h1 == "" && k.saved[name] {
			complain("%s: its hash: %q, %v", name, h1, err)
		} else if h1 != "" {
			want, err := dirhash.HashZip(filepath.Join(k.dir, "modules", v.Path, "@v", v.Version.Version+".zip"), dirhash.Hash1)
			if err != nil || h1 != want {
				complain("%s: its hash is %s, that of the zip %s, %v", name, h1, want, err)
			}
		}
	}
	return wrong
}

// killedJobs are jobs of a storage role that is killed now and then.
type killedJobs struct {
	t              *testing.T
	client         *storage.Client
	n              int
	jobs           map[storage.Key]*killedJob
	made, finished int // for sure
}

type killedJob struct {
	made   bool         // Enqueue has succeeded
	held   *storage.Job // as Claim has returned it; nil: it has not
	ending bool         // Done was called
	ended  bool         // Done has succeeded
}

func newKilledJobs(t *testing.T, storageURL string) *killedJobs {
	base, err := url.Parse(storageURL)
	if err != nil {
		t.Fatal(err)
	}
	base.User = url.UserPassword("x", token)
	return &killedJobs{t: t, jobs: map[storage.Key]*killedJob{}, client: &storage.Client{
		Client: goproxy.Client{Base: base, HTTP: &http.Client{Timeout: 10 * time.Second}},
	}}
}

// step makes a job or claims one, and does every second that it has claimed.
func (k *killedJobs) step() {
	ctx := context.Background()
	if k.n++; k.n%3 != 0 {
		key := storage.Key{Path: fmt.Sprintf("example.com/job%d", k.n), Query: "v1.0.0", File: storage.FileZip}
		k.jobs[key] = &killedJob{}
		if _, err := k.client.Enqueue(ctx, storage.Job{Key: key, Created: time.Now()}); err == nil {
			k.jobs[key].made = true
			k.made++
		}
		return
	}
	j, err := k.client.Claim(ctx, "worker", time.Hour)
	if err != nil || j == nil {
		return
	}
	mine := k.jobs[j.Key]
	if mine == nil || mine.held != nil || mine.ending {
		k.t.Errorf("%s was claimed: %+v", j.Key, mine)
		return
	}
	if mine.held = j; k.n%2 == 0 {
		k.finish(j)
	}
}

func (k *killedJobs) finish(j *storage.Job) {
	mine := k.jobs[j.Key]
	mine.ending = true
	if err := k.client.Done(context.Background(), j, nil); err == nil {
		mine.ended = true
		k.finished++
	}
}

// check compares the queue with what was done to it.
func (k *killedJobs) check() map[storage.Key]storage.Job {
	k.t.Helper()
	list, err := k.client.Jobs(context.Background(), 10_000)
	if err != nil {
		k.t.Fatal(err)
	}
	there := map[storage.Key]storage.Job{}
	for _, j := range list {
		if _, twice := there[j.Key]; twice || k.jobs[j.Key] == nil {
			k.t.Errorf("%s is in the queue, twice: %v", j.Key, twice)
		}
		there[j.Key] = j
	}
	for key, mine := range k.jobs {
		j, ok := there[key]
		switch {
		case mine.ended && ok:
			k.t.Errorf("%s was done, and is in the queue", key)
		case mine.made && !mine.ending && !ok:
			k.t.Errorf("%s is not in the queue any more", key)
		case ok && mine.held != nil && (j.Worker != "worker" || j.Fence != mine.held.Fence || j.Attempts != 1 || !j.LeaseEnds.After(time.Now())):
			k.t.Errorf("%s was claimed, and is %+v", key, j)
		}
	}
	stats, err := k.client.Queue(context.Background())
	if err != nil || stats.Jobs != len(there) {
		k.t.Errorf("%d jobs are in the queue, which says %+v, %v", len(there), stats, err)
	}
	return there
}

// drain ends all: those that are held, and those that nobody has claimed yet, each of which
// is claimed once. A claim whose answer was lost holds one for its hour.
func (k *killedJobs) drain() {
	unclaimed := 0
	for key, j := range k.check() {
		switch mine := k.jobs[key]; {
		case mine.held != nil:
			k.finish(mine.held)
			if !mine.ended {
				k.t.Errorf("%s, which is held, cannot be ended", key)
			}
		case j.Worker == "":
			unclaimed++
		}
	}
	claimed := 0
	for {
		j, err := k.client.Claim(context.Background(), "worker", time.Hour)
		if err != nil {
			k.t.Fatal(err)
		}
		if j == nil {
			break
		}
		k.jobs[j.Key].held = j
		k.finish(j)
		claimed++
	}
	if claimed != unclaimed {
		k.t.Errorf("%d jobs could be claimed, want %d", claimed, unclaimed)
	}
	for key, j := range k.check() {
		if j.Worker == "" || k.jobs[key].held != nil {
			k.t.Errorf("in the queue is left %s: %+v", key, j)
		}
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
	t.Parallel()
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
