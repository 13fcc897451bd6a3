package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// What athensctl is measured as.
const (
	nameAll   = "athensctl"   // one process
	nameThree = "athensctl-3" // a process for each role
	nameFleet = "athensctl-6" // one storage, two crawlers, three proxies
)

// peer is a server under test: one process or several, with one or more URLs
// that answer the same.
type peer struct {
	name  string
	urls  []string
	procs []proc // none: not known, so neither CPU time nor memory is
	// front is the pid of the proxy when other processes stand behind it; else 0.
	front    int
	children []*child // those that the bench has started
}

type proc struct {
	name string
	pid  int
}

func (p *peer) add(c *child) {
	p.children = append(p.children, c)
	p.procs = append(p.procs, proc{c.name, c.pid()})
}

func (p *peer) pids() []int {
	pids := make([]int, len(p.procs))
	for i, pr := range p.procs {
		pids[i] = pr.pid
	}
	return pids
}

// stop ends what the bench has started, the front first.
func (p *peer) stop() {
	for i := len(p.children) - 1; i >= 0; i-- {
		p.children[i].stop()
	}
}

// buildAthensctl builds the module in the current folder.
func buildAthensctl(ctx context.Context, dir string) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("run the bench inside athensctl's source tree, or with --athensctl=BINARY: %w", err)
	}
	bin := filepath.Join(dir, "athensctl")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", bin, ".")
	cmd.Dir = strings.TrimSpace(string(out))
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build athensctl: %w\n%s", err, out)
	}
	return bin, nil
}

// starter starts athensctl in its several shapes, each with empty folders.
type starter struct {
	bin      string
	upstream string
	dir      string
	seq      int      // of the folders made
	extra    []string // arguments of each process
}

const token = "bench-internal-token"

// serve starts one `athensctl serve` and waits until it is ready. args follow
// the role and the address.
func (s *starter) serve(ctx context.Context, p *peer, dir, name, role string, args ...string) (url string, err error) {
	addr, err := freeAddr()
	if err != nil {
		return "", err
	}
	argv := append([]string{s.bin, "serve", "--role=" + role, "--listen", addr}, append(args, s.extra...)...)
	c, err := startChild(dir, name, childAttr(), argv...)
	if err != nil {
		return "", err
	}
	p.add(c)
	url = "http://" + addr
	return url, c.ready(ctx, url+"/readyz")
}

// start starts the named shape. When it fails nothing is left running.
func (s *starter) start(ctx context.Context, name string) (p *peer, err error) {
	s.seq++
	dir := filepath.Join(s.dir, fmt.Sprintf("%s.%d", name, s.seq))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	p = &peer{name: name}
	defer func() {
		if err != nil {
			p.stop()
		}
	}()
	switch name {
	case nameThree:
		return p, s.roles(ctx, p, dir, 1, 1)
	case nameFleet:
		return p, s.roles(ctx, p, dir, 2, 3)
	}
	url, err := s.serve(ctx, p, dir, name, "all", "--data-dir", filepath.Join(dir, "data"), "--upstream", s.upstream, "--sumdb", "off")
	p.urls = []string{url}
	return p, err
}

func (s *starter) roles(ctx context.Context, p *peer, dir string, crawlers, proxies int) error {
	storage, err := s.serve(ctx, p, dir, "storage", "storage",
		"--data-dir", filepath.Join(dir, "storage"), "--internal-token", token)
	if err != nil {
		return err
	}
	var crawlerURLs []string
	for i := range crawlers {
		name := fmt.Sprintf("crawler%d", i+1)
		url, err := s.serve(ctx, p, dir, name, "crawler", "--storage-url", storage,
			"--data-dir", filepath.Join(dir, name), "--upstream", s.upstream, "--sumdb", "off", "--internal-token", token)
		if err != nil {
			return err
		}
		crawlerURLs = append(crawlerURLs, url)
	}
	for i := range proxies {
		name := fmt.Sprintf("proxy%d", i+1)
		url, err := s.serve(ctx, p, dir, name, "proxy", "--storage-url", storage,
			"--crawler-url", strings.Join(crawlerURLs, ","),
			"--cache-dir", filepath.Join(dir, name), "--internal-token", token)
		if err != nil {
			return err
		}
		p.urls = append(p.urls, url)
	}
	if proxies == 1 {
		p.front = p.procs[len(p.procs)-1].pid
	}
	return nil
}
