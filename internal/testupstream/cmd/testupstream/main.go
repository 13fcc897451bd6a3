// Command testupstream runs package testupstream as a process. It prints two
// lines, its URL and the value for GOSUMDB, and serves until SIGTERM or an
// interrupt. GET /_counts answers with the counters as JSON; DELETE /_counts
// sets them to zero.
//
//	go run ./internal/testupstream/cmd/testupstream --modules 100 --zip-bytes 100000 --root /tmp/app --latency zip=1s
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/athensctl/athensctl/internal/testupstream"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on")
	modCache := flag.String("modcache", "", "serve this module cache")
	modules := flag.Int("modules", 0, "make that many modules, graph.test/m0000 and on, which need each other")
	versions := flag.Int("versions", 3, "versions of each module made")
	zipBytes := flag.Int64("zip-bytes", 0, "size of each zip made; 0: small")
	root := flag.String("root", "", "write a main module that needs all modules made into this folder")
	latestOff := flag.Bool("latest-off", false, "answer 404 to @latest")
	u, err := testupstream.NewUpstream()
	if err != nil {
		return err
	}
	defer u.Close()
	flag.Func("latency", "wait before each answer: 1s, or zip=1s for a kind; may be repeated", func(s string) error {
		kind, text, ok := strings.Cut(s, "=")
		if !ok {
			kind, text = "", s
		}
		switch k := testupstream.Kind(kind); k {
		case "", testupstream.List, testupstream.Latest, testupstream.Info, testupstream.Mod, testupstream.Zip, testupstream.SumDB:
		default:
			return fmt.Errorf("unknown kind %q", kind)
		}
		d, err := time.ParseDuration(text)
		if err != nil {
			return err
		}
		u.Fault(testupstream.Match{Kind: testupstream.Kind(kind)}, testupstream.Fault{Latency: d})
		return nil
	})
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	if *modCache != "" {
		if err := u.ServeModCache(*modCache); err != nil {
			return err
		}
	}
	r, err := u.AddGraph(testupstream.Graph{Modules: *modules, Versions: *versions, ZipBytes: *zipBytes})
	if err != nil {
		return err
	}
	if *root != "" {
		if err := r.Write(*root); err != nil {
			return err
		}
	}
	u.SetLatestOff(*latestOff)

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, os.Interrupt)
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	// Not a ServeMux, which would clean paths.
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != "/_counts":
			u.ServeHTTP(w, r)
		case r.Method == http.MethodDelete:
			u.Reset()
		default:
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(u.Counts())
		}
	})
	if err := u.Serve(l, handler); err != nil {
		return err
	}
	fmt.Printf("%s\n%s\n", u.URL(), u.GOSUMDB())
	<-stop
	return nil
}
