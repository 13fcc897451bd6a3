package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// herdSize is how many ask. The budgets speak of fullHerd.
type herdSize struct {
	clients     int // that want one zip
	zipBytes    int
	zipDelay    time.Duration
	listModules int
	lists       int // requests for them
	slowLists   int
	slowDelay   time.Duration
	rounds      int           // of the slow lists
	window      time.Duration // in which the .info is measured beside them
}

var fullHerd = herdSize{
	clients: 1000, zipBytes: 9 << 20, zipDelay: time.Second,
	listModules: 100, lists: 500,
	slowLists: 200, slowDelay: 3 * time.Second, rounds: 3, window: 2 * time.Second,
}

// herdResult is how one peer stood all the herds.
type herdResult struct {
	Peer  string
	Zip   zipHerd
	Lists listHerd
	Slow  slowHerd
	Graph graphHerd
}

// zipHerd: many clients want one zip that nobody has.
type zipHerd struct {
	Clients, Failures int
	FirstFailure      string `json:",omitempty"`
	Statuses          map[int]int
	UpstreamZips      int
	Seconds           float64
	PeakMiB           map[string]float64 // by process
}

// listHerd: many clients want the lists of modules that nobody has.
type listHerd struct {
	Requests, Modules, Failures int
	FirstFailure                string `json:",omitempty"`
	Statuses                    map[int]int
	UpstreamLists               int
	Seconds                     float64
	// Processes is how many were seen below the server's while it worked; Reaped
	// says that one ended there, seen or not. Watched is false, and they say
	// nothing, where the server's pid is not known.
	Watched   bool
	Processes int
	Reaped    bool
}

// slowHerd: a cached .info, alone and while lists wait on a slow upstream.
type slowHerd struct {
	AloneP99Millis, BesideP99Millis []float64 // one for each round
	Ratio                           float64   // of their medians
	InfoFailures                    int
	ListRequests                    int
	ListStatuses                    map[int]int
	FirstFailure                    string  `json:",omitempty"`
	ListSeconds                     float64 // until the last list had come, longest round
	// Waited says that in every round all lists waited for the whole of the window.
	Waited bool
}

// graphHerd: go list -m -u all on a program with many dependencies.
type graphHerd struct {
	Modules      int
	UpstreamZips int
	Seconds      float64
}

// measureHerd runs all herds on one peer. The modules are new for each peer, so
// that no store knows them, whatever it has kept.
func (b *bench) measureHerd(ctx context.Context, p *peer) (*herdResult, error) {
	r := &herdResult{Peer: p.name}
	prefix := "bench.example/herd-" + strings.ToLower(p.name)
	for _, step := range []struct {
		name string
		run  func(context.Context, *peer, string, *herdResult) error
	}{
		{"one zip", b.herdZip},
		{"lists", b.herdLists},
		{"slow lists", b.herdSlow},
		{"go list -m -u all", b.herdGraph},
	} {
		b.logf("herd: %s: %s", p.name, step.name)
		if err := step.run(ctx, p, prefix, r); err != nil {
			return nil, fmt.Errorf("herd: %s: %s: %w", p.name, step.name, err)
		}
	}
	b.up.remove(prefix)
	return r, nil
}

func (b *bench) herdZip(ctx context.Context, p *peer, prefix string, r *herdResult) error {
	size := b.opt.herd
	m := sized(prefix+"/zip", size.zipBytes, 3)
	b.up.add(m)
	b.up.delay(kindZip, m.path, size.zipDelay)
	length := int64(len(m.zip("v1.0.0")))

	spec := loadSpec{Connections: size.clients, Requests: size.clients, Timeout: 2 * time.Minute}
	for _, url := range p.urls {
		spec.Targets = append(spec.Targets, loadTarget{url + "/" + m.path + "/@v/v1.0.0.zip", length})
	}
	before := takeSnapshot()
	for _, pr := range p.procs {
		before.resetPeak(pr.pid)
	}
	res, err := runLoad(ctx, b.self, spec)
	if err != nil {
		return err
	}
	after := takeSnapshot()
	r.Zip = zipHerd{
		Clients: size.clients, Failures: res.Failures, FirstFailure: res.FirstFailure, Statuses: res.Statuses,
		UpstreamZips: b.up.count(kindZip, m.path), Seconds: res.Elapsed.Seconds(), PeakMiB: map[string]float64{},
	}
	for _, pr := range p.procs {
		r.Zip.PeakMiB[pr.name] = float64(after.peakKiB(pr.pid)) / 1024
	}
	return nil
}

func (b *bench) herdLists(ctx context.Context, p *peer, prefix string, r *herdResult) error {
	size := b.opt.herd
	prefix += "/lists/"
	b.up.delay(kindList, prefix, 200*time.Millisecond) // long enough for requests to meet
	paths := make([]string, size.listModules)
	for i := range paths {
		m := goModOnly(fmt.Sprintf("%sm%03d", prefix, i), "v1.0.0", "v1.1.0")
		b.up.add(m)
		paths[i] = m.path
	}
	spec := loadSpec{Connections: size.lists, Requests: size.lists, Timeout: 90 * time.Second}
	for k := range size.lists {
		// Which proxy is asked changes with the round too, so that all are asked for each module.
		url := p.urls[(k+k/len(paths))%len(p.urls)]
		spec.Targets = append(spec.Targets, loadTarget{url + "/" + paths[k%len(paths)] + "/@v/list", -1})
	}

	watch := watchChildren(p.pids())
	res, err := runLoad(ctx, b.self, spec)
	processes, reaped := watch()
	if err != nil {
		return err
	}
	r.Lists = listHerd{
		Requests: size.lists, Modules: len(paths), Failures: res.Failures, FirstFailure: res.FirstFailure, Statuses: res.Statuses,
		UpstreamLists: b.up.count(kindList, prefix), Seconds: res.Elapsed.Seconds(),
		Watched: len(p.procs) > 0, Processes: processes, Reaped: reaped,
	}
	return nil
}

// watchChildren looks for processes below the given ones until it is told to
// stop. One that lives for less than the time between two looks may be missed
// by the count, but not by reaped: the parent's account of its ended children
// tells.
func watchChildren(pids []int) (stop func() (seen int, reaped bool)) {
	done, ended := make(chan struct{}), make(chan struct{})
	first := takeSnapshot()
	old, found := map[int]bool{}, map[int]bool{}
	for _, root := range pids {
		for _, pid := range first.tree(root) {
			old[pid] = true
		}
	}
	look := func() snapshot {
		s := takeSnapshot()
		for _, root := range pids {
			for _, pid := range s.tree(root) {
				if !old[pid] {
					found[pid] = true
				}
			}
		}
		return s
	}
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
				look()
			}
		}
	}()
	return func() (int, bool) {
		close(done)
		<-ended
		last := look()
		reaped := false
		for _, pid := range pids {
			reaped = reaped || last[pid].cminflts > first[pid].cminflts
		}
		return len(found), reaped
	}
}

func (b *bench) herdSlow(ctx context.Context, p *peer, prefix string, r *herdResult) error {
	size := b.opt.herd
	cached := goModOnly(prefix+"/cached", "v1.0.0")
	b.up.add(cached)
	path := "/" + cached.path + "/@v/v1.0.0.info"
	// Few connections: more would measure how they wait for each other.
	info := loadSpec{Connections: 4, Duration: size.window, Timeout: time.Minute}
	for _, url := range p.urls {
		var length int
		for range 3 { // at last from the cache
			body, err := get(ctx, url+path)
			if err != nil {
				return err
			}
			length = len(body)
		}
		info.Targets = append(info.Targets, loadTarget{url + path, int64(length)})
	}

	r.Slow = slowHerd{ListStatuses: map[int]int{}, Waited: true}
	warmUp := info
	warmUp.Duration = min(info.Duration, 500*time.Millisecond)
	if _, err := runLoad(ctx, b.self, warmUp); err != nil {
		return err
	}
	for round := range size.rounds {
		lists := loadSpec{Connections: size.slowLists, Requests: size.slowLists, Timeout: 90 * time.Second}
		slow := fmt.Sprintf("%s/slow%d/", prefix, round)
		b.up.delay(kindList, slow, size.slowDelay)
		for i := range size.slowLists {
			m := goModOnly(fmt.Sprintf("%sm%03d", slow, i), "v1.0.0")
			b.up.add(m)
			lists.Targets = append(lists.Targets, loadTarget{p.urls[i%len(p.urls)] + "/" + m.path + "/@v/list", -1})
		}
		if err := b.slowRound(ctx, info, lists, &r.Slow); err != nil {
			return err
		}
	}
	if alone := median(r.Slow.AloneP99Millis); alone > 0 {
		r.Slow.Ratio = median(r.Slow.BesideP99Millis) / alone
	}
	return nil
}

// slowRound measures the .info alone, then again beside the lists.
func (b *bench) slowRound(ctx context.Context, info, lists loadSpec, r *slowHerd) error {
	alone, err := runLoad(ctx, b.self, info)
	if err != nil {
		return err
	}
	type outcome struct {
		res *loadResult
		err error
	}
	pending := make(chan outcome, 1)
	go func() {
		res, err := runLoad(ctx, b.self, lists)
		pending <- outcome{res, err}
	}()
	const head = 400 * time.Millisecond // for the lists to be on their way
	select {
	case <-time.After(head):
	case <-ctx.Done():
	}
	beside, err := runLoad(ctx, b.self, info)
	waited := err == nil && len(pending) == 0
	o := <-pending // also after an error: nothing of this round runs on
	if err := errors.Join(err, o.err); err != nil {
		return err
	}
	r.AloneP99Millis = append(r.AloneP99Millis, millis(alone.P99))
	r.BesideP99Millis = append(r.BesideP99Millis, millis(beside.P99))
	r.InfoFailures += alone.Failures + beside.Failures
	r.ListRequests += o.res.Requests
	for s, n := range o.res.Statuses {
		r.ListStatuses[s] += n
	}
	for _, why := range []string{alone.FirstFailure, beside.FirstFailure, o.res.FirstFailure} {
		if r.FirstFailure == "" {
			r.FirstFailure = why
		}
	}
	r.ListSeconds = max(r.ListSeconds, o.res.Elapsed.Seconds())
	// The lists' clock starts head before the .info's: their shortest wait tells
	// whether any ended inside the window.
	r.Waited = r.Waited && waited && o.res.Min >= head+info.Duration
	return nil
}

func (b *bench) herdGraph(ctx context.Context, p *peer, prefix string, r *herdResult) error {
	prefix += "/graph"
	ms, goMod := graph(prefix, b.opt.graph)
	b.up.add(ms...)
	g, err := b.newGoClient(p.urls[0], goMod)
	if err != nil {
		return err
	}
	defer g.remove()
	began := time.Now()
	out, err := g.run(ctx, "list", "-m", "-u", "all")
	if err != nil {
		return err
	}
	r.Graph = graphHerd{
		Modules:      strings.Count(string(out), "\n") - 1, // the main module is listed too
		UpstreamZips: b.up.count(kindZip, prefix),
		Seconds:      time.Since(began).Seconds(),
	}
	if updates := strings.Count(string(out), "[v1.2.0]"); updates != len(ms) {
		return fmt.Errorf("%d updates found, want %d", updates, len(ms))
	}
	return nil
}

// statusText is "200: 500" and the like, in order.
func statusText(statuses map[int]int) string {
	var parts []string
	for _, s := range slices.Sorted(maps.Keys(statuses)) {
		name := fmt.Sprint(s)
		if s == 0 {
			name = "no answer"
		}
		parts = append(parts, fmt.Sprintf("%s: %d", name, statuses[s]))
	}
	return strings.Join(parts, ", ")
}
