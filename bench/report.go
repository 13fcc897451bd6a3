package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report is a whole run. Its JSON form is bench.json.
type report struct {
	Machine machine
	Options string // those that change figures, in words
	Budgets []budget
	Warm    []*warmCell   `json:",omitempty"`
	Cold    []*coldResult `json:",omitempty"`
	Herds   []*herdResult `json:",omitempty"`
	// GitRepository is what Git is about, in words.
	GitRepository string       `json:",omitempty"`
	Git           []*gitResult `json:",omitempty"`
	Notes         []string     `json:",omitempty"`
	Errors        []string     `json:",omitempty"`
}

// machine says where the figures come from.
type machine struct {
	Cores   int
	CPU     string `json:",omitempty"`
	OS      string
	Go      string
	Date    time.Time
	LoadAvg string `json:",omitempty"` // when the run began: how busy others kept it
}

func newReport(opt *options) *report {
	rep := &report{Machine: machine{
		Cores: runtime.NumCPU(), OS: runtime.GOOS + "/" + runtime.GOARCH, Go: runtime.Version(), Date: time.Now().UTC().Truncate(time.Second),
	}}
	if raw, err := os.ReadFile("/proc/loadavg"); err == nil {
		if f := strings.Fields(string(raw)); len(f) > 0 {
			rep.Machine.LoadAvg = f[0]
		}
	}
	if raw, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, rest, ok := strings.Cut(string(raw), "model name"); ok {
			line, _, _ := strings.Cut(rest, "\n")
			rep.Machine.CPU = strings.TrimSpace(strings.TrimLeft(line, "\t :"))
		}
	}
	cell := opt.duration.String()
	if opt.requests > 0 {
		cell = fmt.Sprintf("%d requests", opt.requests)
	}
	rep.Options = fmt.Sprintf("%d connections, %d passes of %s, %d cold pairs", opt.connections, opt.passes, cell, opt.coldPairs)
	return rep
}

// passed says whether every budget was kept and everything was measured.
func (r *report) passed() bool {
	for _, b := range r.Budgets {
		if !b.OK {
			return false
		}
	}
	return len(r.Errors) == 0
}

// write leaves bench.md and bench.json in dir.
func (r *report) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	raw, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "bench.json"), append(raw, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "bench.md"), []byte(r.Markdown()), 0o644)
}

// Markdown is the report for people.
func (r *report) Markdown() string {
	var b strings.Builder
	m := r.Machine
	fmt.Fprintf(&b, "# Bench\n\n%d cores", m.Cores)
	if m.CPU != "" {
		fmt.Fprintf(&b, " (%s)", m.CPU)
	}
	fmt.Fprintf(&b, ", %s, %s, %s, load average %s at the start. %s.\n", m.OS, m.Go, m.Date.Format(time.RFC3339), orDash(m.LoadAvg), r.Options)
	b.WriteString("Ratios within this run compare; figures of different runs do not.\n")
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "%s\n", n)
	}
	if len(r.Errors) > 0 {
		b.WriteString("\n## What went wrong\n\n")
		for _, e := range r.Errors {
			fmt.Fprintf(&b, "```\n%s\n```\n", e)
		}
	}
	if len(r.Budgets) > 0 {
		fmt.Fprintf(&b, "\n## Budgets\n\n%s", budgetTable(r.Budgets))
	}
	if len(r.Warm) > 0 {
		fmt.Fprintf(&b, "\n## Warm\n\nnginx runs with its access log off; athensctl with its default log and metrics, the log in a file.\n\n%s", warmTable(r.Warm))
	}
	if len(r.Cold) > 0 {
		fmt.Fprintf(&b, "\n## Cold: go mod download, all caches empty\n\n%s", coldTable(r.Cold))
	}
	for _, h := range r.Herds {
		fmt.Fprintf(&b, "\n## Herds: %s\n\n%s", h.Peer, herdTable(h))
	}
	if len(r.Git) > 0 {
		fmt.Fprintf(&b, "\n## Git: %s\n\n%s", r.GitRepository, gitTable(r.Git))
	}
	return b.String()
}

func budgetTable(bs []budget) string {
	t := table{{"Show", "Budget", "Limit", "Measured", ""}}
	for _, b := range bs {
		verdict := "**missed**"
		if b.OK {
			verdict = "kept"
		}
		t.add(fmt.Sprint(b.Show), b.Name, b.Limit, b.Measured, verdict)
	}
	return t.String()
}

func warmTable(cells []*warmCell) string {
	t := table{{"File", "Server", "CPU µs a request", "Ratio", "to", "Proxy alone µs", "Ratio", "Requests/s", "p50 ms", "p99 ms", "Peak MiB", "Failures"}}
	for _, c := range cells {
		t.add(c.File, c.Peer, number("%.1f", c.CPUMicros), number("%.2f", c.Ratio), c.RefName,
			number("%.1f", c.FrontCPUMicros), number("%.2f", c.FrontRatio),
			number("%.0f", c.RequestsPerSecond), fmt.Sprintf("%.2f", c.P50Millis), fmt.Sprintf("%.2f", c.P99Millis),
			number("%.0f", c.PeakMiB), failures(c.Failures, c.FirstFailure))
	}
	return t.String()
}

func coldTable(rs []*coldResult) string {
	t := table{{"Server", "Modules", "Upstream takes", "Median s", "Ratio to direct", "of the pairs", "zips", "go.mod", "MiB", "Upstream zip requests"}}
	for _, r := range rs {
		pairs := make([]string, len(r.Ratios))
		for i, x := range r.Ratios {
			pairs[i] = fmt.Sprintf("%.2f", x)
		}
		t.add(r.Peer, r.Modules, r.Delay.String(), fmt.Sprintf("%.2f", r.Median), fmt.Sprintf("%.2f", r.Ratio), strings.Join(pairs, " "),
			fmt.Sprint(r.Zips), fmt.Sprint(r.Mods), fmt.Sprintf("%.1f", r.MiB), fmt.Sprint(r.UpstreamZips))
	}
	return t.String()
}

func herdTable(h *herdResult) string {
	var peaks []string
	for _, name := range slices.Sorted(maps.Keys(h.Zip.PeakMiB)) {
		peaks = append(peaks, fmt.Sprintf("%s %.0f", name, h.Zip.PeakMiB[name]))
	}
	t := table{{"Herd", "Answers", "Upstream", "Time", "Besides"}}
	t.add(fmt.Sprintf("%d clients, one zip", h.Zip.Clients), withFailure(statusText(h.Zip.Statuses), h.Zip.FirstFailure),
		fmt.Sprintf("%d zip requests", h.Zip.UpstreamZips), fmt.Sprintf("%.1f s", h.Zip.Seconds), "peak MiB: "+orDash(strings.Join(peaks, ", ")))
	t.add(fmt.Sprintf("%d lists, %d modules", h.Lists.Requests, h.Lists.Modules), withFailure(statusText(h.Lists.Statuses), h.Lists.FirstFailure),
		fmt.Sprintf("%d list requests", h.Lists.UpstreamLists), fmt.Sprintf("%.1f s", h.Lists.Seconds), processText(h.Lists))
	t.add(fmt.Sprintf("cached .info beside %d slow lists", h.Slow.ListRequests/max(1, len(h.Slow.AloneP99Millis))), withFailure(statusText(h.Slow.ListStatuses), h.Slow.FirstFailure),
		"", fmt.Sprintf("%.1f s", h.Slow.ListSeconds),
		fmt.Sprintf("p99 %.2f ms alone, %.2f ms beside: %.2f ×", median(h.Slow.AloneP99Millis), median(h.Slow.BesideP99Millis), h.Slow.Ratio))
	t.add(fmt.Sprintf("go list -m -u all, %d modules", h.Graph.Modules), "", fmt.Sprintf("%d zip requests", h.Graph.UpstreamZips), fmt.Sprintf("%.1f s", h.Graph.Seconds), "")
	return t.String()
}

// number formats a figure that is 0 when it is not known.
func number(format string, x float64) string {
	if x == 0 {
		return "–"
	}
	return fmt.Sprintf(format, x)
}

func orDash(s string) string {
	if s == "" {
		return "–"
	}
	return s
}

func failures(n int, first string) string {
	if n == 0 {
		return "0"
	}
	return withFailure(fmt.Sprint(n), first)
}

func withFailure(s, first string) string {
	if first == "" {
		return s
	}
	return s + " (" + first + ")"
}
