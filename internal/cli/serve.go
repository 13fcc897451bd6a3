package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/config"
	"github.com/athensctl/athensctl/crawler"
	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/fleet"
	"github.com/athensctl/athensctl/internal/serve"
	"github.com/athensctl/athensctl/internal/tracing"
	"github.com/athensctl/athensctl/proxy"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/disk"
	"github.com/athensctl/athensctl/storage/memory"
	"github.com/athensctl/athensctl/vcs"
	"github.com/athensctl/athensctl/vcs/remote"
)

// deletionsEvery is how often a proxy looks for deletions.
const deletionsEvery = 20 * time.Second

// process is the wiring of the roles of one process.
type process struct {
	cfg      *config.Config
	name     string // unique in the fleet
	log      *slog.Logger
	registry *prometheus.Registry
	tracer   trace.Tracer // nil: nothing is traced
	servers  *serve.Servers
	work     []func(context.Context) // runs beside the servers, until they have drained
	closers  []func() error
	silent   bool // nobody is served

	// patience is until when a store that another process has open is waited for; nil: not at all.
	patience context.Context

	store   storage.Store
	ledger  storage.Ledger
	crawler goproxy.Source
	sumdb   *proxy.SumDB
	webhook func(context.Context, http.Header, []byte) error
}

func newProcess(cfg *config.Config, log *slog.Logger) *process {
	host, _ := os.Hostname()
	p := &process{cfg: cfg, log: log, registry: prometheus.NewRegistry(), name: fmt.Sprintf("%s-%d-%s", host, os.Getpid(), fleet.NewID(3))}
	p.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), limits(cfg))
	p.openTraces()
	p.servers = serve.New(serve.Options{
		Version: Version(), Token: cfg.InternalToken, MaxRequests: cfg.MaxConnections, MaxHeaderBytes: int(cfg.MaxHeaderBytes),
		ReadHeaderTimeout: cfg.ReadHeaderTimeout, BodyTimeout: cfg.BodyTimeout, WriteTimeout: cfg.WriteTimeout, IdleTimeout: cfg.IdleTimeout,
		DrainDelay: cfg.DrainDelay, DrainTimeout: cfg.DrainTimeout, Registry: p.registry, Tracer: p.tracer, Log: log,
	})
	return p
}

// ballastBytes is garbage that may gather in any case. What a role keeps in memory is
// small, so that garbage would be collected some thirty times a second under load, at a
// tenth of all CPU time.
const ballastBytes = 16 << 20

func runServe(ctx context.Context, cfg *config.Config, stderr io.Writer) (err error) {
	ballast := make([]byte, ballastBytes) // never touched: it takes no memory, but counts as live
	defer runtime.KeepAlive(ballast)
	out := newLogWriter(stderr)
	defer out.Close()
	log := newLogger(cfg, out)
	p := newProcess(cfg, log)
	defer func() { err = errors.Join(err, p.close()) }()
	patience, cancel := context.WithTimeout(ctx, cfg.DrainDelay+cfg.DrainTimeout)
	defer cancel()
	p.patience = patience
	// Each needs what stands before it.
	for _, role := range []func() error{func() error { return p.addStorage(ctx) }, p.addCrawler, p.addProxy} {
		if err := role(); err != nil {
			return err
		}
	}
	// The work goes on while requests in flight end: they may wait for it.
	workCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	for _, w := range p.work {
		wg.Go(func() { w(workCtx) })
	}
	err = p.servers.Run(ctx)
	stop()
	wg.Wait()
	return err
}

func (p *process) close() (err error) {
	for i := len(p.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, p.closers[i]())
	}
	return err
}

// staleTemp is older than any file that is still being made.
const staleTemp = 2 * time.Hour

// tempDir is the folder for files that are being made. What a crash has left there
// is removed, now or when nobody can be making it any more.
func (p *process) tempDir() (string, error) {
	dir := filepath.Join(p.cfg.DataDir, "spool")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	p.work = append(p.work, func(ctx context.Context) {
		tick := time.NewTicker(staleTemp / 2)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if err := removeStale(dir); err != nil {
				p.log.Warn("a file that a crash has left", "err", err)
			}
		}
	})
	return dir, removeStale(dir)
}

// removeStale removes the files in dir that nobody can be making any more; other processes
// may do the same.
func removeStale(dir string) error {
	left, err := os.ReadDir(dir)
	for _, f := range left {
		if info, e := f.Info(); e == nil && time.Since(info.ModTime()) > staleTemp {
			if e := os.Remove(filepath.Join(dir, f.Name())); !errors.Is(e, fs.ErrNotExist) {
				err = errors.Join(err, e)
			}
		}
	}
	return err
}

// openStore opens the store that this process has, or the client of another's. The end of
// ctx ends the attempt.
func (p *process) openStore(ctx context.Context) error {
	cfg := p.cfg
	if !cfg.Has("storage") {
		urls, err := config.ParseURLs(cfg.StorageURL)
		if err != nil {
			return err
		}
		t := fleet.New(urls, cfg.InternalToken)
		c := &storage.Client{Client: goproxy.Client{Base: t.Base(), HTTP: &http.Client{Transport: t}, IdleTimeout: cfg.UpstreamTimeout}}
		p.store, p.ledger = c, c
		return nil
	}
	switch cfg.Store {
	case "memory":
		s := memory.New(cfg.QueueMax, nil)
		p.store, p.ledger = s, s
	case "cosmos":
		s, err := p.openCosmos(ctx)
		if err != nil {
			return err
		}
		p.store, p.ledger = s, s
		p.work = append(p.work, s.Run)
		p.closers = append(p.closers, s.Close)
	default:
		s, err := p.openDisk()
		if err != nil {
			return err
		}
		p.store, p.ledger = s, s
		p.closers = append(p.closers, s.Close)
	}
	return nil
}

// openDisk opens the store on disk. The process before this one may still be draining: on
// Kubernetes the pod that follows one that is deleted starts at once, and each time that it
// ended for want of the store it would be started later.
func (p *process) openDisk() (*disk.Store, error) {
	for first := true; ; first = false {
		s, err := disk.Open(p.cfg.DataDir, disk.Options{QueueMax: p.cfg.QueueMax, Log: p.log})
		switch {
		case errors.Is(err, disk.ErrLocked) && p.patience == nil:
			return nil, fmt.Errorf("%w: end it, or name it with storage-url (its storage role has to listen: listen, or storage-listen beside other roles)", err)
		case !errors.Is(err, disk.ErrLocked) || p.patience.Err() != nil:
			return s, err
		}
		if first {
			p.log.Warn("another process has the store open: waiting for its end", "dir", p.cfg.DataDir)
		}
	}
}

func (p *process) addStorage(ctx context.Context) error {
	if err := p.openStore(ctx); err != nil || !p.cfg.Has("storage") {
		return err
	}
	cfg := p.cfg
	p.registry.MustRegister(newQueueMetrics(p.ledger, p.log))
	if cfg.Address("storage") == "" {
		return nil
	}
	tmp, err := p.tempDir()
	if err != nil {
		return err
	}
	srv := &storage.Server{Store: p.store, Ledger: p.ledger, TempDir: tmp, MaxBodyBytes: int64(cfg.MaxBodyBytes), Ending: p.servers.Ending()}
	return p.servers.Listen(serve.Role{
		Name: "storage", Address: cfg.Address("storage"), Internal: true, Ready: p.storageReady,
		Routes: func(e *echo.Echo) { e.Any("/*", srv.Handler()) },
	})
}

func (p *process) storageReady(ctx context.Context) error {
	_, err := p.ledger.Load(ctx, "ready")
	return err
}

func (p *process) addCrawler() error {
	cfg := p.cfg
	if !cfg.Has("crawler") {
		if !cfg.Has("proxy") || cfg.NetworkMode == proxy.Offline || cfg.CrawlerURL == "" {
			return nil
		}
		urls, err := config.ParseURLs(cfg.CrawlerURL)
		if err != nil {
			return err
		}
		t := fleet.New(urls, cfg.InternalToken)
		c := &goproxy.Client{Base: t.Base(), HTTP: &http.Client{Transport: t}, IdleTimeout: cfg.UpstreamTimeout}
		p.crawler = c
		p.webhook = forwardWebhook(t)
		p.setSumDB(func(ctx context.Context, path string) ([]byte, error) {
			resp, err := c.Get(ctx, "/sumdb"+path)
			if err != nil {
				return nil, err
			}
			defer resp.Body.Close()
			return io.ReadAll(io.LimitReader(resp.Body, goproxy.MaxSumDBBytes))
		})
		return nil
	}
	if cfg.NetworkMode == proxy.Offline {
		return nil
	}
	bounds := crawler.NewHosts(crawler.HostOptions{Connections: cfg.HostConnections, Rate: float64(cfg.HostRate), Failures: cfg.HostFailures, Timeout: cfg.UpstreamTimeout, Metrics: p.registry})
	remote, err := gitRemote(cfg, bounded(bounds))
	if err != nil {
		return err
	}
	// Upstream proxies, the checksum database, feeds and catalogs are where the operator says.
	upstream := remote.Named(&http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: cfg.Workers, MaxIdleConns: 2 * cfg.Workers,
		ResponseHeaderTimeout: cfg.UpstreamTimeout, TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: 90 * time.Second,
		DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
	})
	sumdb, err := crawler.NewSumDB(cfg.SumDB, upstream, proxies(cfg), p.ledger, cfg.IsPrivate)
	if err != nil {
		return err
	}
	tmp, err := p.tempDir()
	if err != nil {
		return err
	}
	refused := gitRefused()
	p.registry.MustRegister(refused)
	hosts := vcs.New(remote, vcs.Options{TempDir: tmp, Refused: func(bound string) { refused.WithLabelValues(bound).Inc() }})
	p.closers = append(p.closers, hosts.Close)
	o := crawler.Options{
		Origins: origins(cfg, upstream, hosts), TempDir: tmp, Freshness: cfg.Freshness,
		Workers: cfg.Workers, ZipWorkers: cfg.ZipWorkers, MaxWaiting: cfg.CrawlerMaxWaiting, InflightBytes: int64(cfg.InflightMaxBytes),
		Lease: cfg.JobLease, Attempts: cfg.JobAttempts, Ahead: p.ahead(upstream), Name: p.name, Metrics: p.registry, Tracer: p.tracer, Log: p.log,
	}
	if cfg.WebhookSecret != "" {
		o.ModuleOf = remote.Module
	}
	if sumdb != nil {
		o.Verifier = sumdb
		p.setSumDB(sumdb.Get)
	}
	c := crawler.New(p.store, p.ledger, o)
	p.crawler = c
	p.webhook = takeWebhook(cfg.WebhookSecret, c)
	p.work = append(p.work, c.Run)
	if cfg.Address("crawler") == "" || p.silent {
		return nil
	}
	return p.servers.Listen(serve.Role{
		Name: "crawler", Address: cfg.Address("crawler"), Internal: true, Ready: p.storageReady,
		Routes: func(e *echo.Echo) {
			e.GET("/sumdb/*", func(ctx echo.Context) error {
				if sumdb == nil {
					return goproxy.NotFound("no checksum database is set here")
				}
				b, err := sumdb.Get(ctx.Request().Context(), strings.TrimPrefix(ctx.Request().URL.Path, "/sumdb"))
				if err != nil {
					return err
				}
				ctx.Response().Header().Set("Cache-Control", goproxy.CacheNever)
				return ctx.Blob(http.StatusOK, "application/octet-stream", b)
			})
			p.serveWebhook(e)
			e.Any("/*", goproxy.Handler(c))
		},
	})
}

func (p *process) setSumDB(get func(context.Context, string) ([]byte, error)) {
	name := crawler.SumDBName(p.cfg.SumDB)
	if name != "" {
		p.sumdb = &proxy.SumDB{Name: name, Private: p.cfg.IsPrivate, Get: get}
	}
}

func proxies(cfg *config.Config) (list []*url.URL) {
	upstreams, _ := config.ParseUpstream(cfg.Upstream) // Load has checked it
	for _, u := range upstreams {
		if u.URL != nil {
			list = append(list, u.URL)
		}
	}
	return list
}

// origins are whom the crawler asks, in their order; hosts is "direct".
func origins(cfg *config.Config, client *http.Client, hosts goproxy.Source) (list []crawler.Origin) {
	upstreams, _ := config.ParseUpstream(cfg.Upstream) // Load has checked it
	for _, u := range upstreams {
		switch {
		case u.Off:
			list = append(list, crawler.Origin{Name: "off", Source: nothing{goproxy.NotFound("upstream is off")}})
		case u.Direct:
			list = append(list, crawler.Origin{Name: "direct", AnyError: u.AnyError, Source: hosts})
		default:
			list = append(list, crawler.Origin{Name: goproxy.WithoutUser(u.URL).String(), AnyError: u.AnyError,
				Source: &goproxy.Client{Base: u.URL, HTTP: client, IdleTimeout: cfg.UpstreamTimeout}})
		}
	}
	return list
}

// gitRemote reaches git hosts; wrap bounds what is asked of them.
func gitRemote(cfg *config.Config, wrap func(http.RoundTripper) http.RoundTripper) (*remote.Remote, error) {
	netrc, err := readNetrc(cfg.VCSNetrc)
	if err != nil {
		return nil, err
	}
	return remote.New(remote.Options{
		InsteadOf: cfg.VCSInsteadOf, AllowHosts: cfg.VCSAllowHost, Insecure: cfg.VCSInsecure, Tokens: cfg.VCSTokens, Netrc: netrc, Wrap: wrap,
		SSHKeys: cfg.VCSSSHKey, SSHPassphrase: cfg.VCSPassphrase, KnownHosts: knownHosts(cfg),
	})
}

// knownHosts is the file that is named, or the user's where none is and there is one,
// and where SSH is used.
func knownHosts(cfg *config.Config) string {
	if cfg.VCSKnownHosts != "" || len(cfg.VCSSSHKey) == 0 {
		return cfg.VCSKnownHosts
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	name := filepath.Join(home, ".ssh", "known_hosts")
	if _, err := os.Stat(name); err != nil {
		return ""
	}
	return name
}

// bounded is what stands before each request to the internet: the bounds of its host, and
// its span.
func bounded(bounds *crawler.Hosts) func(http.RoundTripper) http.RoundTripper {
	return func(next http.RoundTripper) http.RoundTripper { return bounds.Wrap(&tracing.Transport{Next: next}) }
}

// readNetrc reads the file that is named, or the user's where none is and there is
// one.
func readNetrc(name string) (string, error) {
	if name == "off" {
		return "", nil
	}
	named := name != ""
	if !named {
		name = os.Getenv("NETRC")
	}
	if name == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", nil
		}
		name = filepath.Join(home, ".netrc")
	}
	b, err := os.ReadFile(name)
	if err != nil && !named {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("vcs-netrc: %w", err)
	}
	return string(b), nil
}

// nothing is a Source that answers everything with one error.
type nothing struct{ err error }

func (n nothing) List(context.Context, string) (*goproxy.VersionList, error) { return nil, n.err }
func (n nothing) Resolve(context.Context, string, string) (*goproxy.Info, error) {
	return nil, n.err
}
func (n nothing) Mod(context.Context, module.Version) (*goproxy.Blob, error) { return nil, n.err }
func (n nothing) Zip(context.Context, module.Version) (*goproxy.Blob, error) { return nil, n.err }

func (p *process) addProxy() error {
	cfg := p.cfg
	if !cfg.Has("proxy") {
		return nil
	}
	px, err := proxy.New(p.store, p.ledger, p.crawler, proxy.Options{
		Mode: cfg.NetworkMode, Freshness: cfg.Freshness, ListMaxStale: cfg.ListMaxStale, ListWait: cfg.ListWait,
		ListRemember: listRemember(cfg), FetchTimeout: cfg.FetchTimeout, FetchTimeoutStatus: cfg.FetchTimeoutStatus, MaxWaiting: cfg.MaxWaiting,
		CacheDir: cfg.CacheDir, CacheBytes: int64(cfg.CacheMaxBytes), MemoryBytes: int64(cfg.CacheMemoryBytes),
		Metrics: p.registry, Log: p.log,
	})
	if err != nil {
		return err
	}
	p.closers = append(p.closers, px.Close)
	p.work = append(p.work, func(ctx context.Context) { px.Run(ctx, deletionsEvery) })
	if p.sumdb == nil && cfg.NetworkMode == proxy.Offline {
		p.setSumDB(nil)
	}
	sumdb := px.ServeSumDB(p.sumdb)
	return p.servers.Listen(serve.Role{
		Name: "proxy", Address: cfg.Listen, RequireHeader: cfg.RequireHeader, Ready: p.storageReady,
		Routes: func(e *echo.Echo) {
			for _, method := range []string{http.MethodGet, http.MethodHead} {
				e.Add(method, "/", proxy.ServePage(Version()))
				e.Add(method, "/sumdb/*", sumdb)
				e.Add(method, "/cached-only/sumdb/*", sumdb)
				if cfg.PublicFeeds {
					e.Add(method, "/catalog", func(c echo.Context) error { return storage.ServeCatalog(c, p.store) })
					e.Add(method, "/index", func(c echo.Context) error { return storage.ServeIndex(c, p.store) })
				}
			}
			p.serveWebhook(e)
			e.Any("/*", goproxy.Handler(px))
		},
	})
}

func newLogger(cfg *config.Config, w io.Writer) *slog.Logger {
	var level slog.Level
	level.UnmarshalText([]byte(cfg.LogLevel)) // Load has checked it
	o := &slog.HandlerOptions{Level: level}
	if cfg.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}
