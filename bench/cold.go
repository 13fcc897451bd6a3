package main

import (
	"bytes"
	"cmp"
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

// nameDirect is the go command without a server between it and the upstream.
const nameDirect = "direct"

// coldResult is one peer's cold downloads.
type coldResult struct {
	Peer    string
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
	goMod  []byte
	prefix string // of the generated modules; "" for a corpus
}

// measureCold has the go command download the same modules straight from the
// upstream and through each server, by turns, with empty caches each time;
// upstream takes delay for each answer.
// athensctl starts anew, with an empty store, for each; a peer that runs
// already cannot, so every pair has modules of its own (not with a corpus,
// which is why such peers are left out there).
func (b *bench) measureCold(ctx context.Context, delay time.Duration) ([]*coldResult, error) {
	names := []string{nameDirect}
	if b.opt.athensctl != "none" {
		names = append(names, nameAll, nameThree)
	}
	if b.opt.coldCorpus == "" {
		for _, p := range b.opt.peers {
			names = append(names, p.name)
		}
	}
	byName := map[string]*coldResult{}
	var results []*coldResult
	for _, name := range names {
		r := &coldResult{Peer: name, Delay: delay}
		byName[name] = r
		results = append(results, r)
	}

	b.up.delay("", "", delay)
	defer b.up.delay("", "", 0)
	var corpusMod []byte
	if b.opt.coldCorpus != "" {
		dir, err := filepath.Abs(b.opt.coldCorpus)
		if err != nil {
			return nil, err
		}
		b.up.setCorpus(dir)
		defer b.up.setCorpus("")
		if corpusMod, err = b.corpusGoMod(ctx, dir); err != nil {
			return nil, err
		}
	}
	for pair := range b.opt.coldPairs {
		work := coldWork{goMod: corpusMod}
		if corpusMod == nil {
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
			b.logf("cold, upstream %v away: pair %d of %d: %s: %.2f s", delay, pair+1, b.opt.coldPairs, name, seconds)
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

// corpusGoMod is the go.mod to download from a corpus: the one that was named,
// or else the one with the most requirements, of those in it and that of the
// current folder, for which a download from the corpus alone succeeds.
func (b *bench) corpusGoMod(ctx context.Context, dir string) ([]byte, error) {
	if b.opt.coldGoMod != "" {
		return os.ReadFile(b.opt.coldGoMod)
	}
	type candidate struct {
		name         string
		goMod        []byte
		requirements int
	}
	var all []candidate
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(name) != ".mod" {
			return err
		}
		raw, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		// A program's own go.mod holds replacements that mean nothing here.
		if n := bytes.Count(raw, []byte(" v")); n > 0 && !bytes.Contains(raw, []byte("=>")) {
			all = append(all, candidate{name, raw, n})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("--cold-corpus: %w", err)
	}
	if raw, err := os.ReadFile("go.mod"); err == nil {
		all = append(all, candidate{"go.mod", raw, bytes.Count(raw, []byte(" v"))})
	}
	slices.SortStableFunc(all, func(x, y candidate) int { return cmp.Compare(y.requirements, x.requirements) })
	all = all[:min(len(all), 50)]
	tries := errors.New("no go.mod with requirements")
	for _, c := range all {
		g, err := b.newGoClient(b.up.url, c.goMod)
		if err != nil {
			return nil, err
		}
		_, err = g.run(ctx, "mod", "download")
		g.remove()
		if err == nil {
			b.logf("cold: %s", c.name)
			return c.goMod, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		tries = err
	}
	return nil, fmt.Errorf("--cold-corpus: nothing in it downloads whole; say --cold-gomod: %w", tries)
}
