package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// bench is one run.
type bench struct {
	opt       *options
	tmp       string // everything that is written, gone at the end
	self      string // this program, for its children
	up        *upstream
	athensctl starter
	began     time.Time
}

func (b *bench) logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%6.1fs %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}

// run measures what the options say. The report holds all that was measured,
// also when there is an error.
func run(ctx context.Context, opt *options) (rep *report, err error) {
	b := &bench{opt: opt, began: time.Now()}
	if b.self, err = os.Executable(); err != nil {
		return nil, err
	}
	if b.tmp, err = os.MkdirTemp("", "athensctl-bench"); err != nil {
		return nil, err
	}
	defer os.RemoveAll(b.tmp)
	if b.up, err = startUpstream(opt.upstreamListen); err != nil {
		return nil, err
	}
	defer b.up.close()
	b.logf("upstream on %s", b.up.url)

	bin := opt.athensctl
	switch bin {
	case "none":
	case "build":
		b.logf("building athensctl")
		bin, err = buildAthensctl(ctx, b.tmp)
	default:
		bin, err = filepath.Abs(bin)
	}
	if err != nil {
		return nil, err
	}
	b.athensctl = starter{bin: bin, upstream: b.up.url, dir: b.tmp}

	rep = newReport(opt)
	var errs []error
	if opt.only["warm"] {
		errs = append(errs, b.warm(ctx, rep))
	}
	if opt.only["cold"] && ctx.Err() == nil {
		errs = append(errs, b.cold(ctx, rep))
	}
	if opt.only["herd"] && ctx.Err() == nil {
		errs = append(errs, b.herds(ctx, rep))
	}
	if opt.only["git"] && ctx.Err() == nil {
		errs = append(errs, b.measureGit(ctx, rep))
	}
	if err := context.Cause(ctx); err != nil {
		errs = append(errs, fmt.Errorf("the run was cut short: %w", err))
	}
	rep.Budgets = budgets(opt, rep)
	for _, err := range errs {
		if err != nil {
			rep.Errors = append(rep.Errors, err.Error())
		}
	}
	return rep, errors.Join(errs...)
}

// warm starts the references and athensctl, and measures them beside the peers.
func (b *bench) warm(ctx context.Context, rep *report) (err error) {
	files := warmFiles(b.up)
	tree := filepath.Join(b.tmp, "tree")
	if err := writeTree(tree, files); err != nil {
		return err
	}
	var peers []*peer
	defer func() {
		for _, p := range peers {
			p.stop()
		}
	}()

	reference := func(name string, start func(addr string) (*child, error)) error {
		addr, err := freeAddr()
		if err != nil {
			return err
		}
		c, err := start(addr)
		if err != nil {
			return err
		}
		p := &peer{name: name, urls: []string{"http://" + addr}}
		p.add(c)
		peers = append(peers, p)
		return c.ready(ctx, p.urls[0]+"/"+files[0].path)
	}
	for _, name := range []string{nameBare, nameServeContent} {
		sub := "_" + name // see hidden
		err := reference(name, func(addr string) (*child, error) {
			return startChild(b.tmp, name, childAttr(), b.self, sub, addr, tree)
		})
		if err != nil {
			return err
		}
	}
	switch bin := findNginx(); {
	case b.opt.nginx == "off":
	case bin != "":
		err := reference(nameNginx, func(addr string) (*child, error) { return startNginx(bin, b.tmp, addr, tree) })
		if err != nil {
			return err
		}
	case b.opt.nginx == "require":
		return errors.New("nginx is not installed (apt-get install nginx-light)")
	default:
		rep.Notes = append(rep.Notes, "nginx is not installed (apt-get install nginx-light) and was left out.")
	}

	var errs []error
	if b.opt.athensctl != "none" {
		for _, name := range []string{nameAll, nameThree} {
			p, err := b.athensctl.start(ctx, name)
			if err != nil {
				errs = append(errs, fmt.Errorf("warm: %w", err))
				continue
			}
			peers = append(peers, p)
		}
	}
	peers = append(peers, b.running()...)
	rep.Warm, err = b.measureWarm(ctx, files, peers)
	return errors.Join(append(errs, err)...)
}

// running is the peers that run already.
func (b *bench) running() []*peer {
	var peers []*peer
	for _, o := range b.opt.peers {
		p := &peer{name: o.name, urls: []string{o.url}}
		if o.pid != 0 {
			p.procs = []proc{{o.name, o.pid}}
		}
		peers = append(peers, p)
	}
	return peers
}

// herds measures one peer after the other, each while no other runs.
func (b *bench) herds(ctx context.Context, rep *report) error {
	var errs []error
	measure := func(p *peer) {
		r, err := b.measureHerd(ctx, p)
		if err != nil {
			errs = append(errs, err)
			return
		}
		rep.Herds = append(rep.Herds, r)
	}
	if b.opt.athensctl != "none" {
		for _, name := range []string{nameFleet, nameAll} {
			p, err := b.athensctl.start(ctx, name)
			if err != nil {
				errs = append(errs, fmt.Errorf("herd: %w", err))
				continue
			}
			measure(p)
			p.stop()
		}
	}
	for _, p := range b.running() {
		measure(p)
	}
	return errors.Join(errs...)
}
