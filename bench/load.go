package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"
)

// loadSpec is what a load process is to do. It either sends Requests requests
// in all, request k to Targets[k mod n] on connection k mod Connections, or loads
// until Duration has passed, connection i on Targets[i mod n].
type loadSpec struct {
	Targets     []loadTarget
	Connections int
	Requests    int           // 0: for Duration
	Duration    time.Duration // ignored when Requests is set
	Timeout     time.Duration // of one answer; past it the request has failed
}

// loadTarget is one URL, and how long its answer is; -1 for any length.
type loadTarget struct {
	URL    string
	Length int64
}

// loadResult is what came of it. A request has failed unless its answer was
// whole, had status 200 and the expected length.
type loadResult struct {
	Requests     int
	Failures     int
	FirstFailure string      `json:",omitempty"`
	Statuses     map[int]int // 0: no answer
	Elapsed      time.Duration
	// Latencies of all requests that had an answer.
	Min, P50, P99, Max time.Duration
}

// requestsPerSecond counts whole answers only.
func (r *loadResult) requestsPerSecond() float64 {
	if r.Elapsed == 0 {
		return 0
	}
	return float64(r.Requests-r.Failures) / r.Elapsed.Seconds()
}

// runLoad runs a load in a process of its own. A request that fails is part of
// the result, not an error.
func runLoad(ctx context.Context, self string, spec loadSpec) (*loadResult, error) {
	in, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, "_load")
	cmd.Stdin = bytes.NewReader(in)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = childAttr()
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("load generator: %w", err)
	}
	var res loadResult
	if err := json.Unmarshal(out, &res); err != nil {
		return nil, fmt.Errorf("load generator: %w", err)
	}
	return &res, nil
}

// loadMain is the load process: a spec in, a result out.
func loadMain(in io.Reader, out io.Writer) error {
	var spec loadSpec
	if err := json.NewDecoder(in).Decode(&spec); err != nil {
		return err
	}
	res, err := load(spec)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(res)
}

// worker is one connection's share of a load.
type worker struct {
	loadResult
	latencies []time.Duration
}

// load connects all workers first, then lets them go at once.
func load(spec loadSpec) (*loadResult, error) {
	if len(spec.Targets) == 0 || spec.Connections < 1 {
		return nil, fmt.Errorf("no targets or no connections")
	}
	type target struct {
		addr    string
		request []byte
		length  int64
	}
	targets := make([]target, len(spec.Targets))
	for i, t := range spec.Targets {
		u, err := url.Parse(t.URL)
		if err != nil {
			return nil, err
		}
		targets[i] = target{u.Host, fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: athensctl-bench\r\n\r\n", u.RequestURI(), u.Host), t.Length}
	}

	var ready, ended sync.WaitGroup
	var started time.Time // set before start is closed
	start := make(chan struct{})
	workers := make([]*worker, spec.Connections)
	for i := range workers {
		w := &worker{loadResult: loadResult{Statuses: map[int]int{}}}
		workers[i] = w
		ready.Add(1)
		ended.Go(func() {
			var c *rawConn
			first := &targets[i%len(targets)]
			c, err := dialRaw(first.addr, spec.Timeout)
			ready.Done()
			<-start
			defer func() {
				if c != nil {
					c.close()
				}
			}()
			for k := i; ; k += spec.Connections {
				t := first
				if spec.Requests > 0 {
					if k >= spec.Requests {
						return
					}
					t = &targets[k%len(targets)]
				} else if time.Since(started) >= spec.Duration {
					return
				}
				began := time.Now()
				if c != nil && c.addr != t.addr {
					c.close()
					c = nil
				}
				if c == nil && err == nil {
					c, err = dialRaw(t.addr, spec.Timeout)
				}
				var status int
				var length int64
				if err == nil {
					status, length, err = c.do(t.request, spec.Timeout)
				}
				w.Requests++
				w.Statuses[status]++
				switch {
				case err != nil:
					w.fail(err.Error())
					if c != nil {
						c.close()
						c = nil
					}
					err = nil
					time.Sleep(time.Millisecond) // a dead server is not to be hammered
					continue
				case status != 200:
					w.fail(fmt.Sprintf("status %d", status))
				case t.length >= 0 && length != t.length:
					w.fail(fmt.Sprintf("%d bytes, want %d", length, t.length))
				}
				w.latencies = append(w.latencies, time.Since(began))
				if c.closing {
					c.close()
					c = nil
				}
			}
		})
	}
	ready.Wait()
	started = time.Now()
	close(start)
	ended.Wait()
	return merge(workers, time.Since(started)), nil
}

func (w *worker) fail(why string) {
	w.Failures++
	if w.FirstFailure == "" {
		w.FirstFailure = why
	}
}

func merge(workers []*worker, elapsed time.Duration) *loadResult {
	sum := &loadResult{Statuses: map[int]int{}, Elapsed: elapsed}
	var all []time.Duration
	for _, w := range workers {
		sum.Requests += w.Requests
		sum.Failures += w.Failures
		if sum.FirstFailure == "" {
			sum.FirstFailure = w.FirstFailure
		}
		for s, n := range w.Statuses {
			sum.Statuses[s] += n
		}
		all = append(all, w.latencies...)
	}
	slices.Sort(all)
	sum.Min, sum.P50, sum.P99, sum.Max = percentile(all, 0), percentile(all, 50), percentile(all, 99), percentile(all, 100)
	return sum
}
