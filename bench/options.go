package main

import (
	"flag"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// options is what the command line says.
type options struct {
	only           map[string]bool // sections: warm, cold, herd, git
	duration       time.Duration   // of one warm cell
	requests       int             // of one warm cell; over duration when > 0
	connections    int
	passes         int
	athensctl      string // "build", "none", or a binary
	peers          []peerOption
	upstreamListen string
	nginx          string // auto, require, off
	coldPairs      int
	coldDelay      time.Duration
	coldGoMod      string
	out            string
	check          bool
	timeout        time.Duration

	// Not flags: the budgets speak of these counts. Tests make them smaller.
	herd  herdSize
	git   gitSize
	graph int // modules in the generated graph
}

// peerOption is a server that runs already.
type peerOption struct {
	name, url string
	pid       int // 0: not told
}

func parseOptions(args []string, stderr io.Writer) (*options, error) {
	opt := &options{only: map[string]bool{}, herd: fullHerd, git: fullGit, graph: 100}
	var only string
	pids := map[string]int{}

	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&only, "only", "warm,cold,herd,git", "sections to run, with commas")
	fs.DurationVar(&opt.duration, "duration", 2*time.Second, "how long one warm cell is loaded")
	fs.IntVar(&opt.requests, "requests", 0, "requests in one warm cell, in place of --duration")
	fs.IntVar(&opt.connections, "connections", 64, "connections of the warm load")
	fs.IntVar(&opt.passes, "passes", 3, "interleaved passes; medians are taken")
	fs.StringVar(&opt.athensctl, "athensctl", "build", `athensctl binary; "build" builds the tree, "none" leaves it out`)
	fs.Func("peer", "`name=URL` of a server that runs already and fetches from --upstream-listen (repeatable)", func(s string) error {
		name, rawURL, ok := strings.Cut(s, "=")
		u, err := url.Parse(rawURL)
		if !ok || name == "" || err != nil || u.Scheme != "http" || u.Host == "" {
			return fmt.Errorf("%q is not name=http://host:port", s)
		}
		opt.peers = append(opt.peers, peerOption{name: name, url: strings.TrimSuffix(rawURL, "/")})
		return nil
	})
	fs.Func("peer-pid", "`name=PID` of a peer, for its CPU time and memory (repeatable)", func(s string) error {
		name, digits, _ := strings.Cut(s, "=")
		pid, err := strconv.Atoi(digits)
		if name == "" || err != nil || pid < 1 {
			return fmt.Errorf("%q is not name=PID", s)
		}
		pids[name] = pid
		return nil
	})
	fs.StringVar(&opt.upstreamListen, "upstream-listen", "127.0.0.1:0", "address of the bench's own upstream")
	fs.StringVar(&opt.nginx, "nginx", "auto", "auto: when installed; require; off")
	fs.IntVar(&opt.coldPairs, "cold-pairs", 5, "pairs of cold downloads")
	fs.DurationVar(&opt.coldDelay, "cold-delay", 20*time.Millisecond, "how far upstream is: one more series of made-up modules, where it takes that long to answer; 0: none")
	fs.StringVar(&opt.coldGoMod, "cold-gomod", "go.mod", "`file` whose modules, real ones, are downloaded from the module cache as an upstream; empty: only made-up ones")
	fs.StringVar(&opt.out, "out", "", "`folder` for bench.md and bench.json")
	fs.BoolVar(&opt.check, "check", false, "exit with 1 when a budget is missed")
	fs.DurationVar(&opt.timeout, "timeout", 40*time.Minute, "end the run after this time")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}

	if fs.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	for s := range strings.SplitSeq(only, ",") {
		if s != "warm" && s != "cold" && s != "herd" && s != "git" {
			return nil, fmt.Errorf("--only: %q is not warm, cold, herd or git", s)
		}
		opt.only[s] = true
	}
	if opt.nginx != "auto" && opt.nginx != "require" && opt.nginx != "off" {
		return nil, fmt.Errorf("--nginx: %q is not auto, require or off", opt.nginx)
	}
	if opt.passes < 1 || opt.connections < 1 || opt.coldPairs < 1 || opt.duration <= 0 || opt.requests < 0 {
		return nil, fmt.Errorf("--passes, --connections, --cold-pairs and --duration must be above zero, --requests not below")
	}
	taken := map[string]bool{nameAll: true, nameThree: true, nameFleet: true, nameBare: true, nameServeContent: true, nameNginx: true}
	for i := range opt.peers {
		p := &opt.peers[i]
		if taken[p.name] {
			return nil, fmt.Errorf("--peer: the name %q is taken", p.name)
		}
		taken[p.name] = true
		p.pid = pids[p.name]
		delete(pids, p.name)
	}
	for name := range pids {
		return nil, fmt.Errorf("--peer-pid: no peer is called %q", name)
	}
	return opt, nil
}
