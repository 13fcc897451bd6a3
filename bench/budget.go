package main

import "fmt"

// budget is a promise of the project and what became of it. Show is its number
// in the list that the promises come from: issue 2, and issue 3 for git.
type budget struct {
	Show     int
	Name     string
	Limit    string
	Measured string
	OK       bool
}

// budgets compares what was measured with what was promised. A promise on a
// section that ran but that has no figure counts as missed.
func budgets(opt *options, rep *report) []budget {
	if opt.athensctl == "none" {
		return nil
	}
	var bs []budget
	if opt.only["herd"] {
		bs = append(bs, herdBudgets(rep)...)
	}
	if opt.only["warm"] {
		bs = append(bs, warmBudgets(rep)...)
	}
	if opt.only["cold"] {
		bs = append(bs, coldBudgets(rep)...)
	}
	if opt.only["git"] {
		bs = append(bs, gitBudgets(opt, rep)...)
	}
	return bs
}

const notMeasured = "not measured"

func warmBudgets(rep *report) []budget {
	var bs []budget
	for _, goal := range warmGoals() {
		if goal.maxRatio == 0 {
			continue
		}
		for _, name := range []string{nameAll, nameThree} {
			b := budget{
				Show: 5, Name: fmt.Sprintf("warm %s, %s: CPU a request", goal.name, name),
				Limit: fmt.Sprintf("≤ %.1f × %s", goal.maxRatio, goal.ref), Measured: notMeasured,
			}
			for _, c := range rep.Warm {
				if c.File != goal.name || c.Peer != name || c.Ratio == 0 {
					continue
				}
				b.Measured = fmt.Sprintf("%.2f ×", c.Ratio)
				b.OK = c.Ratio <= goal.maxRatio && c.Failures == 0
				if c.Failures > 0 {
					b.Measured += fmt.Sprintf(", %d failures", c.Failures)
				}
			}
			bs = append(bs, b)
		}
	}
	return bs
}

// coldBudgets judge real modules, and made-up ones where upstream is not on this machine:
// where it is, and the go command has next to nothing to do, the two cores are what counts.
func coldBudgets(rep *report) []budget {
	var bs []budget
	for _, r := range rep.Cold {
		if r.Peer == nameAll && (r.Modules != madeUp || r.Delay > 0) {
			bs = append(bs, budget{
				Show: 6, Name: fmt.Sprintf("cold go mod download, %s, modules %s, upstream takes %v", nameAll, r.Modules, r.Delay), Limit: "≤ 1.2 × direct",
				Measured: fmt.Sprintf("%.2f ×", r.Ratio), OK: r.Ratio > 0 && r.Ratio <= 1.2,
			})
		}
	}
	if len(bs) == 0 {
		bs = append(bs, budget{Show: 6, Name: "cold go mod download, " + nameAll, Limit: "≤ 1.2 × direct", Measured: notMeasured})
	}
	return bs
}

func herdBudgets(rep *report) []budget {
	const maxPeakMiB = 96
	var bs []budget
	for _, name := range []string{nameFleet, nameAll} {
		var r *herdResult
		for _, h := range rep.Herds {
			if h.Peer == name {
				r = h
			}
		}
		add := func(show int, what, limit string, ok func() bool, measured func() string) {
			b := budget{Show: show, Name: what + ", " + name, Limit: limit, Measured: notMeasured}
			if r != nil {
				b.OK, b.Measured = ok(), measured()
			}
			bs = append(bs, b)
		}
		add(2, "herd on one zip: upstream zip requests", "1, no failure",
			func() bool { return r.Zip.UpstreamZips == 1 && r.Zip.Failures == 0 },
			func() string { return fmt.Sprintf("%d, %d failures", r.Zip.UpstreamZips, r.Zip.Failures) })
		if name == nameFleet { // the promise is on the fleet
			add(2, "herd on one zip: peak memory of a process", fmt.Sprintf("≤ %d MiB", maxPeakMiB),
				func() bool { return len(r.Zip.PeakMiB) > 0 && largest(r.Zip.PeakMiB) <= maxPeakMiB },
				func() string { return fmt.Sprintf("%.0f MiB", largest(r.Zip.PeakMiB)) })
		}
		add(3, "herd on lists", "all 200, one upstream list a module, no process",
			func() bool {
				return r.Lists.Failures == 0 && r.Lists.UpstreamLists == r.Lists.Modules && r.Lists.Watched && r.Lists.Processes == 0 && !r.Lists.Reaped
			},
			func() string {
				return fmt.Sprintf("%s; %d upstream for %d modules; %s",
					statusText(r.Lists.Statuses), r.Lists.UpstreamLists, r.Lists.Modules, processText(r.Lists))
			})
		add(4, "p99 of a cached .info beside slow lists", "≤ 2 × alone, the lists answered",
			func() bool {
				return r.Slow.Ratio > 0 && r.Slow.Ratio <= 2 && r.Slow.InfoFailures == 0 && r.Slow.Waited &&
					r.Slow.ListStatuses[200] == r.Slow.ListRequests
			},
			func() string {
				s := fmt.Sprintf("%.2f ×; lists %s", r.Slow.Ratio, statusText(r.Slow.ListStatuses))
				if !r.Slow.Waited {
					s += "; some lists did not wait"
				}
				return s
			})
		add(6, "go list -m -u all: upstream zip requests", "0",
			func() bool { return r.Graph.UpstreamZips == 0 && r.Graph.Modules > 0 },
			func() string { return fmt.Sprintf("%d, for %d modules", r.Graph.UpstreamZips, r.Graph.Modules) })
	}
	return bs
}

func largest(byName map[string]float64) float64 {
	var most float64
	for _, v := range byName {
		most = max(most, v)
	}
	return most
}

func processText(l listHerd) string {
	switch {
	case l.Processes > 0:
		return fmt.Sprintf("%d processes", l.Processes)
	case l.Reaped:
		return "processes, too short to count"
	case !l.Watched:
		return "processes not watched"
	}
	return "no process"
}
