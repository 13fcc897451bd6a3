package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/athensctl/athensctl/internal/testgit"
)

// gitSize is the repository that the git section is about, and how many want its
// versions at once.
type gitSize struct {
	large    testgit.Large
	requests []int // a run for each
}

// fullGit has a repository of 63 MB, of which each tag has 59 MB of files.
var fullGit = gitSize{
	large:    testgit.Large{Module: "git.bench.example/big.git", Tags: 40, Kept: 56 << 20, Changed: 3 << 20},
	requests: []int{40, 400},
}

// nameOneGo is one go command for all versions, with one cache.
const nameOneGo = "direct, one command"

// gitResult is how one way to get all versions went.
type gitResult struct {
	Peer               string
	Requests, Failures int
	FirstFailure       string `json:",omitempty"`
	Seconds            float64
	CPUSeconds         float64
	// Processes is how many were started: go commands, and git below them; for a
	// server, what was seen below it.
	Processes int
	// PeakMiB is the largest sum of the anonymous memory of all processes, looked at
	// every 100 ms. CrawlerMiB is the crawler's VmHWM.
	PeakMiB, CrawlerMiB float64
	// Fetches is how often the host was asked for a tag's commit.
	Fetches int
}

// measureGit has all versions of a large repository fetched at once: through athensctl,
// and by the go command straight from the host, once for each request, as a proxy that
// runs it does.
func (b *bench) measureGit(ctx context.Context, rep *report) error {
	size := b.opt.git
	root := filepath.Join(b.tmp, "git")
	b.logf("git: making the repository")
	bytes, commits, err := size.large.Write(filepath.Join(root, "big"))
	if err != nil {
		return fmt.Errorf("git: %w", err)
	}
	host, stop, err := testgit.Serve(root)
	if err != nil {
		return fmt.Errorf("git: %w", err)
	}
	defer stop()
	rep.GitRepository = fmt.Sprintf("a repository of %d MB, %d tags, %d MB of files in each", bytes>>20, size.large.Tags, (size.large.Kept+size.large.Changed)>>20)
	fetches := func() (n int) {
		for _, c := range host.Wanted(commits) {
			n += c
		}
		return n
	}
	var errs []error
	run := func(r *gitResult, f func(*gitResult) error) {
		b.logf("git: %s, %d requests", r.Peer, r.Requests)
		before := fetches()
		if err := f(r); err != nil {
			errs = append(errs, fmt.Errorf("git: %s: %w", r.Peer, err))
			return
		}
		r.Fetches = fetches() - before
		rep.Git = append(rep.Git, r)
	}
	for _, n := range size.requests {
		if b.opt.athensctl != "none" {
			run(&gitResult{Peer: nameThree, Requests: n}, func(r *gitResult) error { return b.gitAthensctl(ctx, host, r) })
		}
		if need, have := int64(n)*gitMiBEach, availableMiB(); need > have {
			rep.Notes = append(rep.Notes, fmt.Sprintf("%d go commands at once were left out: they may need %d MiB, and %d are available.", n, need, have))
			continue
		}
		run(&gitResult{Peer: nameDirect, Requests: n}, func(r *gitResult) error { return b.gitDirect(ctx, host, r, false) })
	}
	run(&gitResult{Peer: nameOneGo, Requests: size.large.Tags}, func(r *gitResult) error { return b.gitDirect(ctx, host, r, true) })
	return errors.Join(errs...)
}

// gitMiBEach is what one go command and its git may need; a run that does not fit into
// what is available is not begun.
const gitMiBEach = 150

func availableMiB() int64 {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(raw), "MemAvailable:")
	if f := strings.Fields(rest); len(f) > 0 {
		kib, _ := strconv.ParseInt(f[0], 10, 64)
		return kib >> 10
	}
	return 0
}

func (b *bench) gitAthensctl(ctx context.Context, host *testgit.Server, r *gitResult) error {
	s := b.athensctl
	s.dir = filepath.Join(b.tmp, fmt.Sprintf("git-athensctl-%d", r.Requests))
	s.upstream = "direct"
	s.extra = []string{"--vcs-instead-of=https://git.bench.example/=" + host.URL + "/", "--fetch-timeout=10m"}
	p, err := s.start(ctx, nameThree)
	if err != nil {
		return err
	}
	defer os.RemoveAll(s.dir)
	defer p.stop()
	spec := loadSpec{Connections: r.Requests, Requests: r.Requests, Timeout: 10 * time.Minute}
	for i := range r.Requests {
		spec.Targets = append(spec.Targets, loadTarget{fmt.Sprintf("%s/%s/@v/%s.zip", p.urls[0], b.opt.git.large.Module, b.tag(i)), -1})
	}
	before := takeSnapshot()
	watch, memory := watchChildren(p.pids()), watchMemory(p.pids())
	res, err := runLoad(ctx, b.self, spec)
	r.Processes, _ = watch()
	r.PeakMiB = memory()
	if err != nil {
		return err
	}
	after := takeSnapshot()
	r.CPUSeconds = (after.cpu(p.pids()...) - before.cpu(p.pids()...)).Seconds()
	r.Failures, r.FirstFailure, r.Seconds = res.Failures, res.FirstFailure, res.Elapsed.Seconds()
	for _, pr := range p.procs {
		if strings.HasPrefix(pr.name, "crawler") {
			r.CrawlerMiB = float64(after.peakKiB(pr.pid)) / 1024
		}
	}
	return nil
}

func (b *bench) tag(i int) string { return b.opt.git.large.Tag(i % b.opt.git.large.Tags) }

// gitDirect runs go mod download with GOPROXY=direct, for each request a command with
// empty caches of its own, or one for all tags.
func (b *bench) gitDirect(ctx context.Context, host *testgit.Server, r *gitResult, one bool) error {
	config := filepath.Join(b.tmp, "gitconfig")
	if err := os.WriteFile(config, []byte("[url \""+host.URL+"/\"]\n\tinsteadOf = https://git.bench.example/\n"), 0o644); err != nil {
		return err
	}
	traces, err := os.MkdirTemp(b.tmp, "trace2-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(traces)
	arguments := make([][]string, 1)
	for i := range r.Requests {
		query := b.opt.git.large.Module + "@" + b.tag(i)
		switch {
		case one:
			arguments[0] = append(arguments[0], query)
		case i == 0:
			arguments[0] = []string{query}
		default:
			arguments = append(arguments, []string{query})
		}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	memory := watchMemory([]int{os.Getpid()})
	began := time.Now()
	var cpu time.Duration
	for _, queries := range arguments {
		g, err := b.newGoClient("direct", []byte("module bench.example/main\n\ngo 1.20\n"))
		if err != nil {
			return err
		}
		defer g.remove()
		// Each git process leaves a file in the folder.
		g.env = []string{"GIT_CONFIG_GLOBAL=" + config, "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0", "GIT_TRACE2_EVENT=" + traces, "GIT_TRACE2_MAX_FILES=0"}
		g.ended = func(s *os.ProcessState) {
			mu.Lock()
			defer mu.Unlock()
			cpu += s.UserTime() + s.SystemTime() // git's too, for which it has waited
		}
		wg.Go(func() {
			_, err := g.run(ctx, append([]string{"mod", "download"}, queries...)...)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				r.Failures++
				r.FirstFailure = cmp.Or(r.FirstFailure, err.Error())
			}
		})
	}
	wg.Wait()
	r.Seconds = time.Since(began).Seconds()
	r.PeakMiB = memory()
	r.CPUSeconds = cpu.Seconds()
	started, err := os.ReadDir(traces)
	r.Processes = len(arguments) + len(started)
	return errors.Join(err, ctx.Err())
}

// watchMemory looks at the anonymous memory of some processes and all below them until
// it is told to stop, and returns the largest sum, in MiB. Of the bench's own pid it is
// that of what runs below it, but for the git host.
func watchMemory(pids []int) (stop func() float64) {
	done, ended := make(chan struct{}), make(chan struct{})
	var most int64
	look := func() {
		s := takeSnapshot()
		var roots []int
		for _, pid := range pids {
			if pid != os.Getpid() {
				roots = append(roots, pid)
				continue
			}
			for child, st := range s {
				// The kernel keeps 15 characters of a name.
				if st.ppid != pid {
					continue
				}
				if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", child)); err == nil && strings.TrimSpace(string(comm)) != "git-http-backen" {
					roots = append(roots, child)
				}
			}
		}
		var sum int64
		for _, root := range roots {
			for _, pid := range s.tree(root) {
				sum += anonymousKiB(pid)
			}
		}
		most = max(most, sum)
	}
	go func() {
		defer close(ended)
		for {
			look()
			select {
			case <-done:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	return func() float64 {
		close(done)
		<-ended
		return float64(most) / 1024
	}
}

func anonymousKiB(pid int) int64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, ok := strings.Cut(string(raw), "RssAnon:")
	if f := strings.Fields(rest); ok && len(f) > 0 {
		kib, _ := strconv.ParseInt(f[0], 10, 64)
		return kib
	}
	return 0
}

func gitTable(rs []*gitResult) string {
	t := table{{"Way", "Requests at once", "Failures", "Seconds", "CPU seconds", "Processes started", "Peak MiB, all", "Peak MiB, crawler", "Fetches from the host"}}
	for _, r := range rs {
		t.add(r.Peer, fmt.Sprint(r.Requests), failures(r.Failures, r.FirstFailure), fmt.Sprintf("%.1f", r.Seconds), fmt.Sprintf("%.1f", r.CPUSeconds),
			fmt.Sprint(r.Processes), fmt.Sprintf("%.0f", r.PeakMiB), number("%.0f", r.CrawlerMiB), fmt.Sprint(r.Fetches))
	}
	return t.String()
}

// gitBudgets are the promises of issue 3, Show 4.
func gitBudgets(opt *options, rep *report) []budget {
	const maxCrawlerMiB, maxGrowthMiB = 256, 48
	once := budget{Show: 4, Name: "large repository: every tag fetched once", Limit: fmt.Sprintf("%d fetches, no failure", opt.git.large.Tags), Measured: notMeasured}
	peak := budget{Show: 4, Name: "large repository: the crawler's peak memory", Limit: fmt.Sprintf("≤ %d MiB", maxCrawlerMiB), Measured: notMeasured}
	growth := budget{Show: 4, Name: "large repository: memory for ten times the requests", Limit: fmt.Sprintf("≤ %d MiB more", maxGrowthMiB), Measured: notMeasured}
	var mine []*gitResult
	for _, r := range rep.Git {
		if r.Peer == nameThree {
			mine = append(mine, r)
		}
	}
	if len(mine) == len(opt.git.requests) && len(mine) > 0 {
		once.OK, peak.OK = true, true
		var most float64
		var fetched []string
		for _, r := range mine {
			once.OK = once.OK && r.Failures == 0 && r.Fetches == opt.git.large.Tags
			fetched = append(fetched, fmt.Sprintf("%d, %d failures", r.Fetches, r.Failures))
			most = max(most, r.CrawlerMiB)
		}
		once.Measured = strings.Join(fetched, "; ")
		peak.Measured, peak.OK = fmt.Sprintf("%.0f MiB", most), most > 0 && most <= maxCrawlerMiB
		more := mine[len(mine)-1].CrawlerMiB - mine[0].CrawlerMiB
		growth.Measured, growth.OK = fmt.Sprintf("%.0f MiB", more), most > 0 && more <= maxGrowthMiB
	}
	return []budget{once, peak, growth}
}
