package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// madeUp modules have few files, so that the go command has little to do with each byte.
const madeUp = "made up"

// nameDirect is the go command without a server between it and the upstream.
const nameDirect = "direct"

// coldResult is one peer's cold downloads.
type coldResult struct {
	Peer    string
	Modules string        // madeUp, or those of a go.mod file
	Delay   time.Duration // of each of upstream's answers
	Seconds []float64     // one for each pair
	Ratios  []float64     // to direct, of the same pair
	Median  float64       // seconds
	Ratio   float64       // median of Ratios
	Zips    int           // in the client's cache, of the last download
	Mods    int
	MiB     float64 // of the zips
	// UpstreamZips is what the peer asked of upstream in the last download.
	UpstreamZips int
}

// coldWork is what is downloaded.
type coldWork struct {
	modules string // madeUp, or whose they are
	goMod   []byte
	prefix  string // of modules that are made up
}

// cold measures real modules, those of a go.mod file, from an upstream that answers at once,
// and made-up ones from such an upstream and from one that takes a while.
func (b *bench) cold(ctx context.Context, rep *report) error {
	var errs []error
	measure := func(work coldWork, delay time.Duration) {
		rs, err := b.measureCold(ctx, work, delay)
		rep.Cold = append(rep.Cold, rs...)
		errs = append(errs, err)
	}
	if file := b.opt.coldGoMod; file != "" {
		b.logf("cold: getting the modules of %s", file)
		goMod, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("--cold-gomod: %w", err)
		}
		dir, err := realCorpus(ctx, goMod)
		if err != nil {
			return fmt.Errorf("--cold-gomod %s: %w", file, err)
		}
		b.up.setCorpus(dir)
		measure(coldWork{modules: "of " + file, goMod: goMod}, 0)
		b.up.setCorpus("")
	}
	measure(coldWork{modules: madeUp}, 0)
	if b.opt.coldDelay > 0 {
		measure(coldWork{modules: madeUp}, b.opt.coldDelay)
	}
	return errors.Join(errs...)
}

// measureCold has the go command download the same modules straight from the
// upstream and through each server, by turns, with empty caches each time;
// upstream takes delay for each answer.
// athensctl starts anew, with an empty store, for each; a peer that runs
// already cannot, so every pair has modules of its own (not with real ones, which is why
// such peers are left out there).
func (b *bench) measureCold(ctx context.Context, work coldWork, delay time.Duration) ([]*coldResult, error) {
	names := []string{nameDirect}
	if b.opt.athensctl != "none" {
		names = append(names, nameAll, nameThree)
	}
	if work.modules == madeUp {
		for _, p := range b.opt.peers {
			names = append(names, p.name)
		}
	}
	byName := map[string]*coldResult{}
	var results []*coldResult
	for _, name := range names {
		r := &coldResult{Peer: name, Modules: work.modules, Delay: delay}
		byName[name] = r
		results = append(results, r)
	}

	b.up.delay("", "", delay)
	defer b.up.delay("", "", 0)
	for pair := range b.opt.coldPairs {
		if work.modules == madeUp {
			work.prefix = fmt.Sprintf("bench.example/cold%d-%d", delay.Milliseconds(), pair)
			ms, goMod := graph(work.prefix, b.opt.graph)
			for _, m := range ms {
				m.zip("v1.1.0") // made before it is asked for
			}
			b.up.add(ms...)
			work.goMod = goMod
		}
		order := slices.Clone(names)
		if pair%2 == 1 { // who goes first finds the machine otherwise than who goes last
			slices.Reverse(order)
		}
		for _, name := range order {
			seconds, err := b.coldDownload(ctx, byName[name], work)
			if err != nil {
				return nil, fmt.Errorf("cold: %s: %w", name, err)
			}
			b.logf("cold, modules %s, upstream takes %v: pair %d of %d: %s: %.2f s", work.modules, delay, pair+1, b.opt.coldPairs, name, seconds)
			byName[name].Seconds = append(byName[name].Seconds, seconds)
		}
		if work.prefix != "" {
			b.up.remove(work.prefix)
		}
	}
	for _, r := range results {
		for i, s := range r.Seconds {
			r.Ratios = append(r.Ratios, s/byName[nameDirect].Seconds[i])
		}
		r.Median, r.Ratio = median(r.Seconds), median(r.Ratios)
	}
	return results, nil
}

// coldDownload times one go mod download. Starting the server and clearing up
// are not timed.
func (b *bench) coldDownload(ctx context.Context, r *coldResult, work coldWork) (seconds float64, err error) {
	url := b.up.url
	switch r.Peer {
	case nameDirect:
	case nameAll, nameThree:
		p, err := b.athensctl.start(ctx, r.Peer)
		if err != nil {
			return 0, err
		}
		defer p.stop()
		url = p.urls[0]
	default:
		for _, p := range b.opt.peers {
			if p.name == r.Peer {
				url = p.url
			}
		}
	}
	g, err := b.newGoClient(url, work.goMod)
	if err != nil {
		return 0, err
	}
	defer g.remove()
	zips := b.up.count(kindZip, "")
	settle() // who goes next does not wait for what was before
	began := time.Now()
	if _, err := g.run(ctx, "mod", "download"); err != nil {
		return 0, err
	}
	took := time.Since(began).Seconds()
	r.UpstreamZips = b.up.count(kindZip, "") - zips
	r.Zips, r.Mods, r.MiB, err = g.downloaded()
	return took, err
}

// goClient is a go command with a module and empty caches of its own.
type goClient struct {
	dir, proxy string
	env        []string               // besides
	ended      func(*os.ProcessState) // nil, or told of each command that has ended
}

func (b *bench) newGoClient(proxy string, goMod []byte) (*goClient, error) {
	dir, err := os.MkdirTemp(b.tmp, "client")
	if err != nil {
		return nil, err
	}
	return &goClient{dir: dir, proxy: proxy}, os.WriteFile(filepath.Join(dir, "go.mod"), goMod, 0o644)
}

func (g *goClient) remove() { os.RemoveAll(g.dir) } // -modcacherw makes it possible

// run runs the go command with no setting from outside.
func (g *goClient) run(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = g.dir
	cmd.SysProcAttr = childAttr()
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + g.dir, "TMPDIR=" + os.TempDir(),
		"GOENV=off", "GOWORK=off", "GOTOOLCHAIN=local", "GOTELEMETRY=off", "GO111MODULE=on",
		"GOPROXY=" + g.proxy, "GOSUMDB=off", "GOFLAGS=-modcacherw -mod=mod",
		"GOPATH=" + filepath.Join(g.dir, "gopath"),
		"GOMODCACHE=" + filepath.Join(g.dir, "modcache"),
		"GOCACHE=" + filepath.Join(g.dir, "gocache"),
	}
	cmd.Env = append(cmd.Env, g.env...)
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	err := cmd.Run()
	if g.ended != nil && cmd.ProcessState != nil {
		g.ended(cmd.ProcessState)
	}
	if err != nil {
		return nil, fmt.Errorf("go %s: %w\n%.2000s", strings.Join(args, " "), err, problems.String())
	}
	return out.Bytes(), nil
}

// downloaded counts what lies in the client's download folder.
func (g *goClient) downloaded() (zips, mods int, mib float64, err error) {
	err = filepath.WalkDir(filepath.Join(g.dir, "modcache", "cache", "download"), func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch filepath.Ext(name) {
		case ".mod":
			mods++
		case ".zip":
			st, err := d.Info()
			if err != nil {
				return err
			}
			zips++
			mib += float64(st.Size()) / (1 << 20)
		}
		return nil
	})
	return zips, mods, mib, err
}

// realCorpus has the go command bring the modules of a go.mod file into the module cache,
// with the caller's own settings, and returns the folder of the cache that can be served.
func realCorpus(ctx context.Context, goMod []byte) (dir string, err error) {
	tmp, err := os.MkdirTemp("", "athensctl-bench")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := os.WriteFile(filepath.Join(tmp, "go.mod"), goMod, 0o644); err != nil {
		return "", err
	}
	for _, args := range [][]string{{"mod", "download"}, {"env", "GOMODCACHE"}} {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir = tmp
		cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod")
		var problems bytes.Buffer
		cmd.Stderr = &problems
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("go %s: %w\n%.2000s", strings.Join(args, " "), err, problems.String())
		}
		dir = filepath.Join(strings.TrimSpace(string(out)), "cache", "download")
	}
	return dir, nil
}
