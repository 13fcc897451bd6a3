package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"
)

// warmGoal is one kind of answer, the reference that its price is compared to,
// and the ratio that the project has promised; 0 for none.
type warmGoal struct {
	name, ref string
	maxRatio  float64
}

func warmGoals() []warmGoal {
	return []warmGoal{
		{"info", nameBare, 1.5},
		{"mod", nameBare, 1.5},
		{"list", nameBare, 1.5},
		{"latest", nameBare, 1.5},
		{"zip 100 KB", nameBare, 0},
		{"zip 5 MB", nameServeContent, 1.2},
	}
}

// warmFile is an answer that exists.
type warmFile struct {
	warmGoal
	path  string // of the URL, without its first slash
	body  []byte // as upstream has it
	exact bool   // every peer has to answer these very bytes
}

// warmFiles makes the modules, tells upstream, and says what to ask for.
func warmFiles(u *upstream) []warmFile {
	small, large := sized("bench.example/warm/small", 100<<10, 1), sized("bench.example/warm/large", 5<<20, 2)
	small.versions = nil
	for i := range 50 {
		small.versions = append(small.versions, fmt.Sprintf("v1.%d.0", i))
	}
	small.require = map[string][]string{}
	for i := range 20 {
		small.require["v1.7.0"] = append(small.require["v1.7.0"], fmt.Sprintf("bench.example/needed/module%02d v1.2.3", i))
	}
	u.add(small, large)

	var files []warmFile
	for _, goal := range warmGoals() {
		f := warmFile{warmGoal: goal, exact: true}
		var m *genModule
		var kind fileKind
		var version string
		switch goal.name {
		case "info":
			m, kind, version = small, kindInfo, "v1.7.0"
		case "mod":
			m, kind, version = small, kindMod, "v1.7.0"
		case "list":
			m, kind = small, kindList
		case "latest":
			m, kind = small, kindLatest
		case "zip 100 KB":
			m, kind, version = small, kindZip, "v1.7.0"
		case "zip 5 MB":
			m, kind, version = large, kindZip, "v1.0.0"
		}
		f.path = m.path + "/@v/" + version + "." + string(kind)
		switch kind {
		case kindList:
			f.path, f.exact = m.path+"/@v/list", false
		case kindLatest:
			f.path, f.exact = m.path+"/@latest", false
		}
		f.body, _ = m.file(kind, version) // every version above is there
		files = append(files, f)
	}
	return files
}

// warmCell is one peer's answer to one file.
type warmCell struct {
	File, Peer string
	Passes     []warmPass
	// Medians of the passes; the ratios are medians of the ratios of the passes.
	CPUMicros, FrontCPUMicros float64 `json:",omitzero"`
	RefName                   string
	Ratio, FrontRatio         float64 `json:",omitzero"` // 0: not known
	RequestsPerSecond         float64
	P50Millis, P99Millis      float64
	PeakMiB                   float64 `json:",omitzero"` // of all passes
	Failures                  int
	FirstFailure              string `json:",omitempty"`
}

// warmPass is one turn of a cell. CPU is the server's, for each request.
type warmPass struct {
	CPUMicros, FrontCPUMicros float64 `json:",omitzero"`
	RequestsPerSecond         float64
	P50Millis, P99Millis      float64
	PeakKiB                   int64 `json:",omitzero"`
}

// measureWarm lets the peers take turns on each file. A peer that does not
// answer as it should before the load is left out, with an error that says why.
func (b *bench) measureWarm(ctx context.Context, files []warmFile, peers []*peer) ([]*warmCell, error) {
	var errs []error
	var able []*peer
	lengths := map[string]map[string]int64{} // by peer, then by file
	for _, p := range peers {
		byFile, err := prime(ctx, p, files)
		if err != nil {
			errs = append(errs, fmt.Errorf("warm: %s: %w", p.name, err))
			continue
		}
		able = append(able, p)
		lengths[p.name] = byFile
	}

	var cells []*warmCell
	byKey := map[[2]string]*warmCell{}
	for _, f := range files {
		for _, p := range able {
			c := &warmCell{File: f.name, Peer: p.name, RefName: f.ref}
			cells = append(cells, c)
			byKey[[2]string{f.name, p.name}] = c
		}
	}
	for pass := range b.opt.passes {
		for _, f := range files {
			b.logf("warm: pass %d of %d: %s", pass+1, b.opt.passes, f.name)
			for _, p := range able {
				if err := b.warmPass(ctx, byKey[[2]string{f.name, p.name}], p, f, lengths[p.name][f.name]); err != nil {
					return cells, errors.Join(append(errs, err)...)
				}
			}
		}
	}
	for _, c := range cells {
		c.summarise(byKey[[2]string{c.File, c.RefName}])
	}
	return cells, errors.Join(errs...)
}

// prime asks for every file, so that all later requests are warm, and checks
// the answers. It asks more than once: a cache may fill behind the first answer.
func prime(ctx context.Context, p *peer, files []warmFile) (map[string]int64, error) {
	lengths := map[string]int64{}
	for range 3 {
		for _, f := range files {
			body, err := get(ctx, p.urls[0]+"/"+f.path)
			if err != nil {
				return nil, err
			}
			if f.exact && !bytes.Equal(body, f.body) {
				return nil, fmt.Errorf("%s: not the bytes that upstream has", f.path)
			}
			if len(body) == 0 {
				return nil, fmt.Errorf("%s: empty", f.path)
			}
			lengths[f.name] = int64(len(body))
		}
		time.Sleep(100 * time.Millisecond)
	}
	return lengths, nil
}

func (b *bench) warmPass(ctx context.Context, c *warmCell, p *peer, f warmFile, length int64) error {
	spec := loadSpec{
		Targets:     []loadTarget{{URL: p.urls[0] + "/" + f.path, Length: length}},
		Connections: b.opt.connections,
		Duration:    b.opt.duration,
		Timeout:     30 * time.Second,
	}
	if len(c.Passes) == 0 { // open files and grow heaps first
		warmUp := spec
		warmUp.Requests = 2 * spec.Connections
		if _, err := runLoad(ctx, b.self, warmUp); err != nil {
			return err
		}
	}
	spec.Requests = b.opt.requests

	before := takeSnapshot()
	for _, pr := range p.procs {
		before.resetPeak(pr.pid)
	}
	res, err := runLoad(ctx, b.self, spec)
	if err != nil {
		return err
	}
	after := takeSnapshot()

	pass := warmPass{
		RequestsPerSecond: res.requestsPerSecond(),
		P50Millis:         millis(res.P50),
		P99Millis:         millis(res.P99),
	}
	perRequest := func(pids ...int) float64 {
		spent := after.cpu(pids...) - before.cpu(pids...)
		return float64(spent.Nanoseconds()) / 1e3 / float64(max(res.Requests, 1))
	}
	if len(p.procs) > 0 {
		pass.CPUMicros = perRequest(p.pids()...)
	}
	if p.front != 0 {
		pass.FrontCPUMicros = perRequest(p.front)
	}
	for _, pr := range p.procs {
		pass.PeakKiB += after.peakKiB(pr.pid)
	}
	c.Passes = append(c.Passes, pass)
	c.Failures += res.Failures
	if c.FirstFailure == "" {
		c.FirstFailure = res.FirstFailure
	}
	return nil
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

// summarise takes the medians. ref is nil when the reference was not measured.
func (c *warmCell) summarise(ref *warmCell) {
	c.CPUMicros = medianOf(c.Passes, func(p warmPass) float64 { return p.CPUMicros })
	c.FrontCPUMicros = medianOf(c.Passes, func(p warmPass) float64 { return p.FrontCPUMicros })
	c.RequestsPerSecond = medianOf(c.Passes, func(p warmPass) float64 { return p.RequestsPerSecond })
	c.P50Millis = medianOf(c.Passes, func(p warmPass) float64 { return p.P50Millis })
	c.P99Millis = medianOf(c.Passes, func(p warmPass) float64 { return p.P99Millis })
	for _, p := range c.Passes {
		c.PeakMiB = max(c.PeakMiB, float64(p.PeakKiB)/1024)
	}
	if ref == nil {
		return
	}
	figures := func(ps []warmPass, figure func(warmPass) float64) []float64 {
		fs := make([]float64, len(ps))
		for i, p := range ps {
			fs[i] = figure(p)
		}
		return fs
	}
	whole := func(p warmPass) float64 { return p.CPUMicros }
	base := figures(ref.Passes, whole)
	c.Ratio = medianRatio(figures(c.Passes, whole), base)
	c.FrontRatio = medianRatio(figures(c.Passes, func(p warmPass) float64 { return p.FrontCPUMicros }), base)
}
