// Command bench measures GOPROXY servers side by side in one run: athensctl
// built from this tree, any further server by --peer, and references of its
// own (a bare net/http handler, http.ServeContent, nginx).
//
// It answers three questions, a section each: what does a request cost when
// everything is cached (warm), what does a go command wait for when nothing is
// (cold), and what happens when many ask at once (herd). Every budget that the
// project has set itself on these is compared and printed.
//
// Figures of different runs do not compare, not even on one machine; the ratios
// within a run do. So peers take turns, and each ratio is the median of the
// ratios of the passes.
//
// All traffic stays on loopback. Each server, and the load generator, is a
// process of its own, so that /proc can tell whose CPU time was spent; each is
// ended when the run ends, however it ends. See README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	if code, ok := hidden(os.Args[1:]); ok {
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := mainCode(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// mainCode is the program without the process: its exit status is 0 when all
// went well, 1 when a budget was missed under --check or a measurement failed,
// 2 when the command line was wrong.
func mainCode(ctx context.Context, args []string) int {
	opt, err := parseOptions(args, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 2
	}
	ctx, cancel := context.WithTimeout(ctx, opt.timeout)
	defer cancel()

	rep, err := run(ctx, opt)
	if rep != nil {
		fmt.Print(rep.Markdown())
		if opt.out != "" {
			err = errors.Join(err, rep.write(opt.out))
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	if opt.check && !rep.passed() {
		fmt.Fprintln(os.Stderr, "bench: a budget was missed")
		return 1
	}
	return 0
}

// hidden runs the program as one of its own children, when args say so.
func hidden(args []string) (code int, ok bool) {
	if len(args) == 0 {
		return 0, false
	}
	var err error
	switch args[0] {
	case "_load":
		err = loadMain(os.Stdin, os.Stdout)
	case "_bare":
		err = bareMain(args[1:])
	case "_servecontent":
		err = serveContentMain(args[1:])
	default:
		return 0, false
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench "+args[0]+":", err)
		return 1, true
	}
	return 0, true
}
