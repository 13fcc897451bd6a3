package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of the times in /proc/PID/stat: USER_HZ, 100 on every
// architecture that Go runs on. Source: man 5 proc_pid_stat, man 7 time.
const tick = 10 * time.Millisecond

// procStat is what the bench reads of /proc/PID/stat.
type procStat struct {
	ppid     int
	cpu      time.Duration // user and system time, its own and of children it has waited for
	cminflts uint64        // page faults of children it has waited for: grows when a child has ended
}

// parseStat reads the content of /proc/PID/stat. The second field is the
// command's name in parentheses and may hold anything, parentheses too.
func parseStat(stat string) (procStat, error) {
	end := strings.LastIndexByte(stat, ')')
	fields := strings.Fields(stat[end+1:])
	if end < 0 || len(fields) < 15 {
		return procStat{}, fmt.Errorf("not a /proc/PID/stat line: %q", stat)
	}
	// fields[0] is field 3 of the manual page.
	var nums [15]uint64
	for _, i := range []int{1, 8, 11, 12, 13, 14} {
		n, err := strconv.ParseUint(fields[i], 10, 64)
		if err != nil {
			return procStat{}, fmt.Errorf("/proc/PID/stat: field %d: %w", i+3, err)
		}
		nums[i] = n
	}
	return procStat{
		ppid:     int(nums[1]),
		cminflts: nums[8],
		cpu:      time.Duration(nums[11]+nums[12]+nums[13]+nums[14]) * tick,
	}, nil
}

// parsePeakKiB finds VmHWM, the peak resident memory, in /proc/PID/status.
func parsePeakKiB(status string) (int64, error) {
	for line := range strings.SplitSeq(status, "\n") {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			return strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(rest, "kB")), 10, 64)
		}
	}
	return 0, fmt.Errorf("no VmHWM in /proc/PID/status")
}

// snapshot is all processes of the machine at one moment.
type snapshot map[int]procStat

func takeSnapshot() snapshot {
	names, _ := filepath.Glob("/proc/[0-9]*/stat") // the only error is a bad pattern
	s := make(snapshot, len(names))
	for _, name := range names {
		raw, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			continue
		}
		if st, err := parseStat(string(raw)); err == nil {
			s[pid] = st
		}
	}
	return s
}

// tree is the process and all below it; empty when there is no such process.
func (s snapshot) tree(root int) []int {
	if _, ok := s[root]; !ok {
		return nil
	}
	children := map[int][]int{}
	for pid, st := range s {
		children[st.ppid] = append(children[st.ppid], pid)
	}
	all := []int{root}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all
}

// cpu is the CPU time that the processes and all below them have used.
func (s snapshot) cpu(roots ...int) time.Duration {
	var sum time.Duration
	for _, root := range roots {
		for _, pid := range s.tree(root) {
			sum += s[pid].cpu
		}
	}
	return sum
}

// peakKiB is the sum of the peaks of a process and all below it, 0 when it
// cannot be read. Pages that processes share count once in each.
func (s snapshot) peakKiB(root int) int64 {
	var sum int64
	for _, pid := range s.tree(root) {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue
		}
		if kib, err := parsePeakKiB(string(raw)); err == nil {
			sum += kib
		}
	}
	return sum
}

// resetPeak makes VmHWM start again from what is resident now. Where the kernel
// or the rights do not allow it, peaks are those since the process started.
func (s snapshot) resetPeak(root int) {
	for _, pid := range s.tree(root) {
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
	}
}
