// Package config is the configuration of every role: one table of settings that
// can be given as a flag (--data-dir), in the environment
// (ATHENSCTL_DATA_DIR), or in a file (data-dir), in this order of precedence.
// It is strict: an unknown key or an impossible value is an error that names it.
package config

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/dustin/go-humanize"
	"github.com/spf13/pflag"
	"github.com/spf13/viper"
	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/note"
)

// DefaultUpstream is the go command's own default: the public mirror, then the
// module's own host.
const DefaultUpstream = "https://proxy.golang.org,direct"

// List is a setting of several values: the flag may be given several times, and the
// values may stand in one, with commas.
type List []string

// listFlag is the text of a List, to which each use of the flag adds.
type listFlag struct{ text string }

func (l *listFlag) String() string { return l.text }
func (l *listFlag) Type() string   { return "list" }
func (l *listFlag) Set(s string) error {
	if l.text != "" {
		l.text += ","
	}
	l.text += s
	return nil
}

// Bytes is a size; it is written as a number of bytes or with a unit: 10GiB.
type Bytes int64

// Config is what is in force. The tags make the table: key, default, help.
type Config struct {
	Role          string `key:"role" default:"all" help:"What this process does: all, or a comma-separated list of proxy, storage, crawler."`
	Listen        string `key:"listen" default:"127.0.0.1:3000" help:"Address of the proxy; of the only role where a process has one."`
	StorageListen string `key:"storage-listen" help:"Address of the storage role where the process has others too; empty: it does not listen."`
	CrawlerListen string `key:"crawler-listen" help:"Address of the crawler role where the process has others too; empty: it does not listen."`
	DataDir       string `key:"data-dir" default:"athensctl in $XDG_DATA_HOME or ~/.local/share; macOS: ~/Library/Application Support; Windows: %LocalAppData%" help:"Folder of the disk store, and of temporary files."`
	CacheDir      string `key:"cache-dir" default:"DATA-DIR/cache" help:"Folder of the proxy's cache; disposable."`
	Store         string `key:"store" default:"disk" help:"Where modules are kept: disk, cosmos (Azure Cosmos DB), or memory (gone when the process ends)."`

	CosmosEndpoint         string `key:"cosmos-endpoint" help:"URL of the Cosmos DB account: https://NAME.documents.azure.com."`
	CosmosKey              string `key:"cosmos-key" secret:"true" help:"Key of the account; without it, and without a connection string, the process's identity is used (workload identity, managed identity, the Azure CLI's login)."`
	CosmosConnectionString string `key:"cosmos-connection-string" secret:"true" help:"AccountEndpoint=…;AccountKey=…; in place of cosmos-endpoint and cosmos-key."`
	CosmosDatabase         string `key:"cosmos-database" default:"athensctl" help:"Name of the database; athensctl storage init makes it, or Terraform."`
	CosmosRegions          List   `key:"cosmos-regions" help:"Regions of the account to read from, the nearest first."`
	CosmosBackgroundUnits  int    `key:"cosmos-background-units" default:"0" zero:"true" help:"Request units a second that each storage process spends on what is fetched ahead of demand, so that it takes none from readers; 0: no bound."`
	BlobEndpoint           string `key:"blob-endpoint" help:"URL of the Blob Storage account that keeps the zips: https://NAME.blob.core.windows.net. Without it, and without a connection string, zips are kept in Cosmos DB."`
	BlobContainer          string `key:"blob-container" default:"modules" help:"Name of the container for zips."`
	BlobConnectionString   string `key:"blob-connection-string" secret:"true" help:"AccountName=…;AccountKey=…;EndpointSuffix=… in place of blob-endpoint and an identity."`

	StorageURL    string `key:"storage-url" help:"URL of the storage role, or several with commas, for a process without it."`
	CrawlerURL    string `key:"crawler-url" help:"URL of the crawler role, or several with commas, for a proxy without it."`
	InternalToken string `key:"internal-token" secret:"true" help:"Secret that the roles show each other, 16 characters or more. Needed where storage or crawler listens beyond loopback."`
	RequireHeader string `key:"require-header" secret:"true" help:"NAME=VALUE: the proxy refuses requests without this header, /healthz, /readyz and /metrics apart; it locks an origin to its CDN (X-Azure-FDID=the Front Door's id)."`
	Upstream      string `key:"upstream" default:"the public mirror, then direct" help:"Whom the crawler asks, in GOPROXY syntax: URLs, direct, off; a comma goes on only after \"not found\", a | after any error. direct is the module's git host."`
	Private       string `key:"private" help:"Module path patterns, as in GOPRIVATE, that are never looked up in the checksum database."`
	SumDB         string `key:"sumdb" default:"sum.golang.org" help:"Checksum database, in GOSUMDB syntax: a name, name+key, or either and a URL; off."`
	VCSInsteadOf  List   `key:"vcs-instead-of" help:"FROM=TO, as git's insteadOf: a repository URL that begins with FROM begins with TO instead. TO is a URL of https, http or ssh, or user@host:path; its host may have a private address."`
	VCSAllowHost  List   `key:"vcs-allow-host" help:"Patterns of hosts that may have addresses that are not on the internet (private, loopback, link-local): git hosts, and those that upstream, the checksum database, a feed or a catalog redirects to."`
	VCSInsecure   string `key:"vcs-insecure" help:"Module path patterns, as in GOINSECURE, whose go-get pages and git repositories may be asked over http where https is not there. Credentials are not sent over it."`
	VCSTokens     List   `key:"vcs-tokens" secret:"true" help:"HOST=SECRET or HOST/PATH=USER:SECRET: credentials for git hosts; the longest match wins, before netrc."`
	VCSNetrc      string `key:"vcs-netrc" help:"Netrc file with credentials for git hosts; empty: $NETRC or ~/.netrc where there is one; off."`
	VCSSSHKey     List   `key:"vcs-ssh-key" help:"Private keys for git over SSH: FILE, HOST=FILE or HOST/PATH=FILE; those of the longest match are offered, in their order. Empty: no git over SSH."`
	VCSPassphrase string `key:"vcs-ssh-passphrase" secret:"true" help:"Passphrase of the private keys that are encrypted."`
	VCSKnownHosts string `key:"vcs-known-hosts" help:"File with the keys of the hosts that SSH may reach, as OpenSSH's known_hosts; empty: ~/.ssh/known_hosts where there is one. A host that is not in it is refused."`
	NetworkMode   string `key:"network-mode" default:"fallback" help:"When upstream fails: strict (the request fails), fallback (what is kept is served), offline (upstream is never asked)."`
	PublicFeeds   bool   `key:"public-feeds" default:"false" help:"The proxy forwards /catalog and /index, read-only."`
	LogLevel      string `key:"log-level" default:"info" help:"debug, info (a line a request), warn or error."`
	LogFormat     string `key:"log-format" default:"text" help:"text or json."`

	OTLPEndpoint string  `key:"otlp-endpoint" help:"URL of an OpenTelemetry receiver that takes OTLP over HTTP as protobuf (http://collector:4318; /v1/traces is added). Traces are sent to it; empty: none are made."`
	OTLPHeaders  List    `key:"otlp-headers" secret:"true" help:"NAME=VALUE: headers that the receiver asks for, to know who sends."`
	TraceSample  float64 `key:"trace-sample" default:"1" zero:"true" help:"Share of the traces begun here that are recorded, from 0 to 1. Of those that a client wants recorded (its traceparent says so), the same share is."`

	Freshness          time.Duration `key:"freshness" default:"1m" help:"How long a version list, and the absence of a module, is served without asking upstream."`
	ListMaxStale       time.Duration `key:"list-max-stale" default:"1h" help:"Up to this age a list is served while it is refreshed behind the reader."`
	ListWait           time.Duration `key:"list-wait" default:"2s" help:"How long a request waits for the refresh of a list older than list-max-stale."`
	FetchTimeout       time.Duration `key:"fetch-timeout" default:"50s" help:"How long a request waits for a fetch, which goes on behind."`
	FetchTimeoutStatus int           `key:"fetch-timeout-status" default:"504" help:"The answer then: 504, or 404 as the public mirror does, which sends clients with ,direct on."`
	UpstreamTimeout    time.Duration `key:"upstream-timeout" default:"30s" help:"How long upstream may take to answer, to pause in a body, and to send one at less than 8 KiB/s."`

	RefreshAhead    time.Duration `key:"refresh-ahead" default:"72h" zero:"true" help:"For so long after a version list was last asked for, the crawler looks at it again before it is older than list-max-stale; 0s: never."`
	CrawlIndex      List          `key:"crawl-index" help:"Index feeds that the crawler follows: URLs of servers with /index (another athensctl, the public index). What they announce is fetched ahead of demand."`
	CrawlIndexSince string        `key:"crawl-index-since" default:"now" help:"Where a feed is followed from that was not followed before: now, beginning, or a time such as 2026-01-31T00:00:00Z."`
	CrawlCatalog    List          `key:"crawl-catalog" help:"Catalogs that the crawler walks, for the modules in them: store (what is kept here), or URLs of servers with /catalog (an Athens, another athensctl)."`
	CrawlEvery      time.Duration `key:"crawl-every" default:"24h" help:"From one walk of a catalog to the next."`
	CrawlPoll       time.Duration `key:"crawl-poll" default:"1m" help:"Between two looks at the end of a feed."`
	CrawlMatch      string        `key:"crawl-match" help:"Module path patterns, as in GOPRIVATE: of feeds and catalogs, these are fetched; empty: all."`
	CrawlVersions   string        `key:"crawl-versions" default:"1" help:"Which versions of a catalog's module are fetched: the latest so many, minor (the latest of each minor line), or all."`
	CrawlParallel   int           `key:"crawl-parallel" default:"8" help:"Modules that each feed, each catalog and the refreshing of lists fetch at once."`
	WebhookSecret   string        `key:"webhook-secret" secret:"true" help:"Secret that git hosts sign their pushes with, at /webhook of the proxy; the roles proxy and crawler need it. Empty: there is no /webhook."`
	HostConnections int           `key:"host-connections" default:"32" help:"Requests at once to one host on the internet, for each crawler; those ahead of demand have half of them."`
	HostFailures    int           `key:"host-failures" default:"10" zero:"true" help:"After so many failures in a row nothing is sent to a host for a time, 1s at first, 30s at most; 0: never."`
	HostRate        int           `key:"host-rate" default:"0" zero:"true" help:"Requests a second to one host on the internet, for each crawler; 0: as many as come."`

	CacheMaxBytes     Bytes         `key:"cache-max-bytes" default:"10GiB" help:"Most that the proxy's cache takes on disk."`
	CacheMemoryBytes  Bytes         `key:"cache-memory-bytes" default:"32MiB" help:"Most that the proxy's cache takes in memory."`
	Workers           int           `key:"workers" default:"256" help:"Fetches at once, for each crawler. They are shared among the hosts whose modules are fetched: one gets half of them at most, and a fifth of 256."`
	ZipWorkers        int           `key:"zip-workers" default:"16, or workers where that is less" help:"Of these, zips; one host gets half of them at most."`
	CrawlerMaxWaiting int           `key:"crawler-max-waiting" default:"4096" help:"Fetches of a crawler that may wait for their turn, for each of workers and zip-workers; those of one host half as many. More are refused with 503."`
	InflightMaxBytes  Bytes         `key:"inflight-max-bytes" default:"2GiB" help:"Bytes of zips being fetched to disk at once, for each crawler; one host gets half of them at most. A zip for which there are none is 503, and tried again later."`
	QueueMax          int           `key:"queue-max" default:"20000" help:"Jobs in the queue, besides parked ones; more are refused with 503. Work ahead of demand has half of it."`
	MaxWaiting        int           `key:"max-waiting" default:"2000" help:"Requests of a proxy that may wait for a fetch; more are refused with 503."`
	MaxConnections    int           `key:"max-connections" default:"10000" help:"Requests in flight for each address; more are refused with 503."`
	MaxBodyBytes      Bytes         `key:"max-body-bytes" default:"600MiB" help:"Largest body of a save."`
	MaxHeaderBytes    Bytes         `key:"max-header-bytes" default:"32KiB" help:"Largest header of a request."`
	ReadHeaderTimeout time.Duration `key:"read-header-timeout" default:"10s" help:"How long a client may take to send a request's header."`
	BodyTimeout       time.Duration `key:"body-timeout" default:"30s" help:"Longest pause in a request's body."`
	WriteTimeout      time.Duration `key:"write-timeout" default:"30m" help:"How long a client may take for one answer, waiting for it included."`
	IdleTimeout       time.Duration `key:"idle-timeout" default:"2m" help:"How long an idle connection is kept."`
	JobLease          time.Duration `key:"job-lease" default:"15s" help:"After this a job of a crawler that died is taken by another."`
	JobAttempts       int           `key:"job-attempts" default:"5" help:"How often a fetch that fails is tried."`
	DrainDelay        time.Duration `key:"drain-delay" default:"0s" zero:"true" help:"Between SIGTERM, when /readyz turns false, and the end of accepting connections."`
	DrainTimeout      time.Duration `key:"drain-timeout" default:"60s" help:"How long requests in flight may take to end after that."`

	settings []Setting
}

// Setting is one value in force and where it came from.
type Setting struct {
	Key, Value, Source string
}

type field struct {
	key, def, help string
	secret, zero   bool
	index          int
	kind           reflect.Type
}

var fields = table()

func table() (t []field) {
	s := reflect.TypeFor[Config]()
	for i := range s.NumField() {
		f := s.Field(i)
		if key, ok := f.Tag.Lookup("key"); ok {
			t = append(t, field{key, f.Tag.Get("default"), f.Tag.Get("help"), f.Tag.Get("secret") != "", f.Tag.Get("zero") != "", i, f.Type})
		}
	}
	return t
}

func (f field) env() string {
	return "ATHENSCTL_" + strings.ToUpper(strings.ReplaceAll(f.key, "-", "_"))
}

// Flags defines a flag for each setting, and --config for the file.
func Flags(fs *pflag.FlagSet) {
	fs.String("config", "", "configuration file: YAML, TOML or JSON (environment: ATHENSCTL_CONFIG)")
	for _, f := range fields {
		switch f.kind {
		case reflect.TypeFor[bool]():
			fs.Bool(f.key, f.def == "true", f.help)
		case reflect.TypeFor[List]():
			fs.Var(&listFlag{f.def}, f.key, f.help)
		default:
			fs.String(f.key, f.def, f.help)
		}
	}
}

// Load reads the settings: flags that were set, the environment ("K=V"), the
// file, the defaults. All errors are returned together.
func Load(flags *pflag.FlagSet, environ []string) (*Config, error) {
	return read(flags, environ, false)
}

// LoadForStore is Load for a command that serves nobody and works on the store: where
// storage-url is set, that of the storage role there, whatever role says.
func LoadForStore(flags *pflag.FlagSet, environ []string) (*Config, error) {
	return read(flags, environ, true)
}

func read(flags *pflag.FlagSet, environ []string, forStore bool) (*Config, error) {
	c := &Config{}
	env := map[string]string{}
	for _, kv := range environ {
		if k, v, _ := strings.Cut(kv, "="); strings.HasPrefix(k, "ATHENSCTL_") && v != "" {
			env[k] = v
		}
	}
	var errs []error
	file := env["ATHENSCTL_CONFIG"]
	if f := flags.Lookup("config"); f != nil && f.Changed {
		file = f.Value.String()
	}
	inFile, err := readFile(file)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	for k := range inFile {
		if !slices.ContainsFunc(fields, func(f field) bool { return f.key == k }) {
			errs = append(errs, fmt.Errorf("%s: unknown key %q", file, k))
		}
	}
	known := map[string]bool{"ATHENSCTL_CONFIG": true}
	for _, f := range fields {
		known[f.env()] = true
		text, source := f.def, "default"
		if raw := inFile[f.key]; raw != nil { // null is as good as absent
			t, err := f.fromFile(raw)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s (file %s): %w", f.key, file, err))
				continue
			}
			text, source = t, "file "+file
		}
		if e := env[f.env()]; e != "" {
			text, source = e, "environment "+f.env()
		}
		if fl := flags.Lookup(f.key); fl != nil && fl.Changed {
			text, source = fl.Value.String(), "flag"
		}
		switch computed := source == "default" || text == ""; {
		case f.key == "upstream" && source == "default":
			text = DefaultUpstream
		case f.key == "zip-workers" && source == "default":
			text = strconv.Itoa(max(1, min(16, c.Workers)))
		case f.key == "data-dir" && computed:
			text = defaultDataDir()
		case f.key == "cache-dir" && computed:
			text = filepath.Join(c.DataDir, "cache")
		}
		if err := set(reflect.ValueOf(c).Elem().Field(f.index), f, text); err != nil {
			errs = append(errs, fmt.Errorf("%s (%s): %w", f.key, source, err))
		}
		c.settings = append(c.settings, Setting{f.key, mask(f, text), source})
	}
	for k, value := range env {
		if !known[k] && !strings.HasPrefix(k, "ATHENSCTL_TEST_") && !serviceLink(k, value) {
			errs = append(errs, fmt.Errorf("environment: unknown setting %s", k))
		}
	}
	// The matcher takes spaces literally: "a, b" would not cover b.
	for _, p := range []*string{&c.Private, &c.CrawlMatch} {
		*p = strings.Join(strings.FieldsFunc(*p, func(r rune) bool { return r == ',' || unicode.IsSpace(r) }), ",")
	}
	if forStore && c.StorageURL != "" && c.Has("storage") {
		c.Role = "crawler"
	}
	if len(errs) == 0 {
		errs = c.validate()
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return c, nil
}

// readFile decodes a file by its ending. It takes viper's decoders but not its
// store, which folds the case of keys and drops a key whose value is {}.
func readFile(name string) (map[string]any, error) {
	if name == "" {
		return nil, nil
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	format := strings.TrimPrefix(filepath.Ext(name), ".")
	if !slices.Contains([]string{"yaml", "yml", "toml", "json"}, format) {
		return nil, fmt.Errorf("%s: its name has to end in .yaml, .yml, .toml or .json", name)
	}
	decoder, err := viper.NewCodecRegistry().Decoder(format)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	values := map[string]any{}
	if err := decoder.Decode(data, values); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return values, nil
}

// fromFile is the text of a file's value, if that has the setting's type. The
// error is without the value: it may be a secret.
func (f field) fromFile(raw any) (string, error) {
	zero := reflect.Zero(f.kind).Interface()
	switch raw := raw.(type) {
	case string:
		switch zero.(type) {
		case string, Bytes, time.Duration, List:
			return raw, nil
		}
	case []any:
		if _, ok := zero.(List); !ok {
			break
		}
		var texts []string
		for _, v := range raw {
			s, ok := v.(string)
			if !ok || strings.Contains(s, ",") {
				return "", errors.New("a list of strings without commas is needed")
			}
			texts = append(texts, s)
		}
		return strings.Join(texts, ","), nil
	case bool:
		if _, ok := zero.(bool); ok {
			return strconv.FormatBool(raw), nil
		}
	case int, int64, uint64, float64: // a float64 is what JSON's numbers are
		switch zero.(type) {
		case int, Bytes, float64:
			if n, ok := raw.(float64); ok {
				return strconv.FormatFloat(n, 'f', -1, 64), nil
			}
			return fmt.Sprint(raw), nil
		}
	}
	switch zero.(type) {
	case bool:
		return "", errors.New("true or false is needed, without quotes")
	case int, float64:
		return "", errors.New("a number is needed, without quotes")
	case Bytes:
		return "", errors.New("a number of bytes, or a string such as 10GiB, is needed")
	case time.Duration:
		return "", errors.New("a string such as 30s is needed")
	case List:
		return "", errors.New("a list of strings, or one with commas, is needed")
	default:
		return "", errors.New("a string is needed")
	}
}

// typeName is what the reference page calls the setting's type.
func (f field) typeName() string {
	switch reflect.Zero(f.kind).Interface().(type) {
	case Bytes:
		return "size"
	case time.Duration:
		return "duration"
	case int, float64:
		return "number"
	}
	if f.secret {
		return "secret"
	}
	return strings.ToLower(f.kind.Name())
}

// serviceLink: Kubernetes tells a pod of its Services in the environment.
func serviceLink(k, value string) bool {
	return strings.Contains(k, "_SERVICE_HOST") || strings.Contains(k, "_SERVICE_PORT") ||
		strings.HasPrefix(value, "tcp://") || strings.HasPrefix(value, "udp://") || strings.Contains(k, "_PORT_")
}

func set(v reflect.Value, f field, text string) error {
	switch v.Interface().(type) {
	case string:
		v.SetString(text)
	case List:
		var list List
		for s := range strings.SplitSeq(text, ",") {
			if s = strings.TrimSpace(s); s != "" {
				list = append(list, s)
			}
		}
		v.Set(reflect.ValueOf(list))
	case bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%q is not true or false", text)
		}
		v.SetBool(b)
	case int:
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 || n == 0 && !f.zero {
			return fmt.Errorf("%q is not a number above 0", text)
		}
		v.SetInt(int64(n))
	case float64:
		n, err := strconv.ParseFloat(text, 64)
		if err != nil || !(n >= 0) || n == 0 && !f.zero {
			return fmt.Errorf("%q is not a number above 0", text)
		}
		v.SetFloat(n)
	case Bytes:
		n, err := humanize.ParseBytes(text)
		if err != nil || n < 1 || n > 1<<60 {
			return fmt.Errorf("%q is not a size such as 512MiB or 10GiB", text)
		}
		v.SetInt(int64(n))
	case time.Duration:
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 || d == 0 && !f.zero {
			return fmt.Errorf("%q is not a duration such as 30s or 1h", text)
		}
		v.SetInt(int64(d))
	}
	return nil
}

func mask(f field, text string) string {
	if f.secret && text != "" {
		return "********"
	}
	return userinfo.ReplaceAllString(text, "://********@")
}

// userinfo is a password, or a token in its place, in a URL of a list.
var userinfo = regexp.MustCompile(`://[^/,|\s]*@`)

// defaultDataDir is "" where no home folder is known.
func defaultDataDir() string {
	home, _ := os.UserHomeDir()
	var parent string
	switch xdg := os.Getenv("XDG_DATA_HOME"); {
	case runtime.GOOS == "windows":
		parent = os.Getenv("LocalAppData")
	case runtime.GOOS == "darwin" && home != "":
		parent = filepath.Join(home, "Library", "Application Support")
	case runtime.GOOS != "darwin" && filepath.IsAbs(xdg): // XDG: ignore what is relative
		parent = xdg
	case runtime.GOOS != "darwin" && home != "":
		parent = filepath.Join(home, ".local", "share")
	}
	if parent == "" {
		return ""
	}
	return filepath.Join(parent, "athensctl")
}

// Settings returns each value in force, secrets masked, and where it came from.
func (c *Config) Settings() []Setting { return c.settings }

// IndexSince is the time that crawl-index-since stands for at time now.
func (c *Config) IndexSince(now time.Time) (time.Time, error) {
	switch c.CrawlIndexSince {
	case "now":
		return now, nil
	case "beginning":
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, c.CrawlIndexSince)
	if err != nil {
		return t, fmt.Errorf("%q is not now, beginning or a time such as 2026-01-31T00:00:00Z", c.CrawlIndexSince)
	}
	return t, nil
}

// Roles of the settings, in a fixed order.
var Roles = []string{"proxy", "storage", "crawler"}

// Has reports whether this process has a role.
func (c *Config) Has(role string) bool {
	for r := range strings.SplitSeq(c.Role, ",") {
		if r = strings.TrimSpace(r); r == role || r == "all" {
			return true
		}
	}
	return false
}

// Address is where a role listens; "" when it does not.
func (c *Config) Address(role string) string {
	n := 0
	for _, r := range Roles {
		if c.Has(r) {
			n++
		}
	}
	switch {
	case !c.Has(role):
		return ""
	case n == 1 || role == "proxy":
		return c.Listen
	case role == "storage":
		return c.StorageListen
	default:
		return c.CrawlerListen
	}
}

// IsPrivate reports whether a module path matches the setting private.
func (c *Config) IsPrivate(modulePath string) bool {
	return module.MatchPrefixPatterns(c.Private, modulePath)
}

func (c *Config) validate() (errs []error) {
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %w", key, fmt.Errorf(format, args...)))
	}
	oneOf := func(key, value string, accepted ...string) {
		if !slices.Contains(accepted, value) {
			bad(key, "%q is not one of %s", value, strings.Join(accepted, ", "))
		}
	}
	for r := range strings.SplitSeq(c.Role, ",") {
		oneOf("role", strings.TrimSpace(r), "all", "proxy", "storage", "crawler")
	}
	for key, addr := range map[string]string{"listen": c.Listen, "storage-listen": c.StorageListen, "crawler-listen": c.CrawlerListen} {
		if _, port, err := net.SplitHostPort(addr); addr != "" && (err != nil || !isPort(port)) || addr == "" && key == "listen" {
			bad(key, "%q is not an address such as 127.0.0.1:3000", addr)
		}
	}
	if c.Address("proxy") == "" && c.Address("storage") == "" && c.Address("crawler") == "" {
		bad("role", "%s: nobody can reach this process without storage-listen or crawler-listen", c.Role)
	}
	for role, own := range map[string]struct{ listen, url string }{"storage": {c.StorageListen, c.StorageURL}, "crawler": {c.CrawlerListen, c.CrawlerURL}} {
		if own.listen != "" && c.Address(role) != own.listen {
			bad(role+"-listen", "role %s: it is for a process with the %s role and others; the address of an only one is listen", c.Role, role)
		}
		if own.url != "" && c.Has(role) {
			bad(role+"-url", "role %s has the %s role in it, and would not ask another: leave it out, or say in role what this process does", c.Role, role)
		}
	}
	for _, role := range []string{"storage", "crawler"} {
		if a := c.Address(role); a != "" && !loopback(a) && c.InternalToken == "" {
			bad("internal-token", "the %s role listens on %s, beyond loopback: a token is needed", role, a)
		}
	}
	if n := len(c.InternalToken); n > 0 && n < 16 {
		bad("internal-token", "it has %d characters; at least 16 are needed", n)
	}
	if strings.ContainsFunc(c.InternalToken, func(r rune) bool { return r <= ' ' || r > '~' }) {
		bad("internal-token", "it has a space, a newline or what is not ASCII, which a header can't carry")
	}
	if name, value, ok := strings.Cut(c.RequireHeader, "="); c.RequireHeader != "" && (!ok || !headerName.MatchString(name) || value == "") {
		bad("require-header", "it is not NAME=VALUE")
	}
	if c.DataDir == "" {
		bad("data-dir", "no home folder is known to put it in: name one")
	}
	oneOf("store", c.Store, "disk", "cosmos", "memory")
	c.validateAzure(bad)
	oneOf("network-mode", c.NetworkMode, "strict", "fallback", "offline")
	if c.NetworkMode == "offline" && !c.Has("proxy") && c.Has("crawler") {
		bad("network-mode", "offline: the crawler has nothing to do then; role is %s", c.Role)
	}
	oneOf("log-level", c.LogLevel, "debug", "info", "warn", "error")
	oneOf("log-format", c.LogFormat, "text", "json")
	if c.FetchTimeoutStatus != 504 && c.FetchTimeoutStatus != 404 {
		bad("fetch-timeout-status", "%d is not one of 504, 404", c.FetchTimeoutStatus)
	}
	if c.ListMaxStale < c.Freshness {
		bad("list-max-stale", "%v is below freshness, %v", c.ListMaxStale, c.Freshness)
	}
	if c.JobLease < time.Second {
		bad("job-lease", "%v is below 1s", c.JobLease)
	}
	if c.ZipWorkers > c.Workers {
		bad("zip-workers", "%d is above workers, %d", c.ZipWorkers, c.Workers)
	}
	for key, list := range map[string]string{"storage-url": c.StorageURL, "crawler-url": c.CrawlerURL} {
		if urls, err := ParseURLs(list); err != nil {
			bad(key, "%w", err)
		} else if list != "" && len(urls) == 0 {
			bad(key, "%q has no URL", list)
		}
	}
	if !c.Has("storage") && c.StorageURL == "" {
		bad("storage-url", "role %s needs it: this process has no storage", c.Role)
	}
	if c.Has("proxy") && !c.Has("crawler") && c.CrawlerURL == "" && c.NetworkMode != "offline" {
		bad("crawler-url", "role %s needs it: this process has no crawler, and network-mode is not offline", c.Role)
	}
	if _, err := ParseUpstream(c.Upstream); err != nil {
		bad("upstream", "%w", err)
	}
	for key, patterns := range map[string]string{"private": c.Private, "crawl-match": c.CrawlMatch} {
		for p := range strings.SplitSeq(patterns, ",") {
			if _, err := path.Match(p, ""); err != nil || strings.Contains(p, "://") {
				bad(key, "%q is not a pattern of module paths such as git.example.com/*", p)
			}
		}
	}
	for key, list := range map[string]List{"crawl-index": c.CrawlIndex, "crawl-catalog": c.CrawlCatalog} {
		for _, u := range list {
			if _, err := parseURL(u); err != nil && (key == "crawl-index" || u != "store") {
				bad(key, "%w", err)
			}
		}
	}
	if _, err := c.IndexSince(time.Time{}); err != nil {
		bad("crawl-index-since", "%w", err)
	}
	if n, err := strconv.Atoi(c.CrawlVersions); c.CrawlVersions != "all" && c.CrawlVersions != "minor" && (err != nil || n < 0) {
		bad("crawl-versions", "%q is not a number, minor or all", c.CrawlVersions)
	}
	if n := len(c.WebhookSecret); n > 0 && n < 16 {
		bad("webhook-secret", "it has %d characters; at least 16 are needed", n)
	}
	c.validateTraces(bad)
	if !validSumDB(c.SumDB) {
		bad("sumdb", "%q is not sum.golang.org or name+hash+key, and perhaps a URL after a space, nor off", userinfo.ReplaceAllString(c.SumDB, "://********@"))
	}
	return errs
}

func (c *Config) validateTraces(bad func(key, format string, args ...any)) {
	u, err := parseURL(c.OTLPEndpoint)
	switch {
	case c.OTLPEndpoint == "":
	case err != nil:
		bad("otlp-endpoint", "%w", err)
	case u.User != nil:
		bad("otlp-endpoint", "it has a user or a password in it: otlp-headers is for that")
	case strings.HasSuffix(strings.TrimSuffix(u.Path, "/"), "/v1/traces"):
		bad("otlp-endpoint", "%q: leave /v1/traces out, it is added", c.OTLPEndpoint)
	}
	for i, h := range c.OTLPHeaders {
		if name, value, ok := strings.Cut(h, "="); !ok || !headerName.MatchString(name) || value == "" || strings.ContainsFunc(value, unicode.IsControl) {
			bad("otlp-headers", "entry %d is not NAME=VALUE", i+1)
		}
	}
	if len(c.OTLPHeaders) > 0 && c.OTLPEndpoint == "" {
		bad("otlp-headers", "there is no otlp-endpoint to send them to")
	}
	if c.TraceSample > 1 {
		bad("trace-sample", "%v is above 1, which is all", c.TraceSample)
	}
}

// validateAzure: a setting of Azure's that has no effect is an error too; a store
// that is not the one that was meant would be found empty.
func (c *Config) validateAzure(bad func(key, format string, args ...any)) {
	cosmos := c.Has("storage") && c.Store == "cosmos"
	for key, value := range map[string]string{
		"cosmos-endpoint": c.CosmosEndpoint, "cosmos-key": c.CosmosKey, "cosmos-connection-string": c.CosmosConnectionString,
		"blob-endpoint": c.BlobEndpoint, "blob-connection-string": c.BlobConnectionString,
	} {
		if value != "" && !cosmos {
			bad(key, "it is for the storage role with store cosmos; here role is %s and store %s", c.Role, c.Store)
		}
	}
	if !cosmos {
		return
	}
	if c.CosmosEndpoint == "" && c.CosmosConnectionString == "" {
		bad("cosmos-endpoint", "store cosmos needs it, or cosmos-connection-string")
	}
	if c.CosmosConnectionString != "" && (c.CosmosEndpoint != "" || c.CosmosKey != "") {
		bad("cosmos-connection-string", "it has the endpoint and the key: leave cosmos-endpoint and cosmos-key out")
	}
	if c.BlobConnectionString != "" && c.BlobEndpoint != "" {
		bad("blob-connection-string", "it has the endpoint: leave blob-endpoint out")
	}
	for key, value := range map[string]string{"cosmos-endpoint": c.CosmosEndpoint, "blob-endpoint": c.BlobEndpoint} {
		if _, err := parseURL(value); value != "" && err != nil {
			bad(key, "%w", err)
		}
	}
	if !containerName.MatchString(c.BlobContainer) {
		bad("blob-container", "%q is not a container's name: 3 to 63 small letters, digits and single hyphens", c.BlobContainer)
	}
	if strings.ContainsAny(c.CosmosDatabase, `/\?#`) || c.CosmosDatabase == "" {
		bad("cosmos-database", "%q is not a database's name", c.CosmosDatabase)
	}
}

var headerName = regexp.MustCompile(`^[A-Za-z0-9-]+$`)

// Source: "Naming and referencing containers, blobs, and metadata", Microsoft.
var containerName = regexp.MustCompile(`^[a-z0-9](-?[a-z0-9]){2,62}$`)

func validSumDB(s string) bool {
	f := strings.Fields(s)
	switch {
	case len(f) == 1 && f[0] == "off":
		return true
	case len(f) == 2:
		if _, err := parseURL(f[1]); err != nil {
			return false
		}
	case len(f) != 1:
		return false
	}
	_, err := note.NewVerifier(f[0])
	return err == nil || f[0] == "sum.golang.org"
}

func isPort(s string) bool {
	_, err := strconv.ParseUint(s, 10, 16)
	return err == nil
}

func loopback(addr string) bool {
	host, _, _ := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// ParseURLs reads http and https URLs, separated by commas.
func ParseURLs(list string) (urls []*url.URL, err error) {
	for s := range strings.SplitSeq(list, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		u, err := parseURL(s)
		if err != nil {
			return nil, err
		}
		urls = append(urls, u)
	}
	return urls, nil
}

func parseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" ||
		u.Port() != "" && !isPort(u.Port()) || strings.ContainsAny(s, "?# ") {
		return nil, fmt.Errorf("%q is not an http or https URL", redact(s))
	}
	return u, nil
}

func redact(s string) string {
	if i := strings.LastIndex(s, "@"); i >= 0 {
		return "…" + s[i:]
	}
	return s
}

// Upstream is one entry of the upstream setting.
type Upstream struct {
	URL      *url.URL // nil with Direct and Off
	Direct   bool
	Off      bool
	AnyError bool // the next entry is asked after any error ("|")
}

// ParseUpstream reads GOPROXY syntax. Source: https://go.dev/ref/mod#environment-variables.
func ParseUpstream(s string) (list []Upstream, err error) {
	for rest := s; rest != ""; {
		entry, sep := rest, ""
		if i := strings.IndexAny(rest, ",|"); i >= 0 {
			entry, sep, rest = rest[:i], rest[i:i+1], rest[i+1:]
		} else {
			rest = ""
		}
		u := Upstream{AnyError: sep == "|"}
		switch entry = strings.TrimSpace(entry); entry {
		case "":
			continue
		case "off":
			u.Off = true
		case "direct":
			u.Direct = true
		default:
			urls, err := ParseURLs(entry)
			if err != nil || len(urls) != 1 {
				return nil, fmt.Errorf("%q is not an http or https URL, direct or off", redact(entry))
			}
			u.URL = urls[0]
		}
		list = append(list, u)
	}
	if len(list) == 0 {
		return nil, errors.New("it is empty: write off for no upstream")
	}
	return list, nil
}

// WriteReference writes the reference page, docs/configuration.md.
func WriteReference(w io.Writer) {
	fmt.Fprint(w, `# Configuration

Every setting can be a flag, an environment variable or a key of a configuration
file (YAML, TOML or JSON: `+"`--config FILE`"+`). A flag wins over the environment, the
environment over the file. `+"`ATHENSCTL_CONFIG`"+` names the file as well. An unknown key or an impossible value is an error that
names it. `+"`athensctl config`"+` prints what is in force and where it came from.
This page is made from the code: `+"`go generate ./config`"+`.

A flag is `+"`--`"+` and the key. A duration reads like `+"`30s`"+` or `+"`1h30m`"+`, a size like `+"`512MiB`"+` or is a
number of bytes.

| key and flag | environment | type | default | meaning |
|---|---|---|---|---|
`)
	for _, f := range fields {
		def := "`" + f.def + "`"
		switch f.key {
		case "data-dir", "cache-dir", "upstream": // in words, not a value
			def = f.def
		}
		if f.def == "" {
			def = "none"
		}
		fmt.Fprintf(w, "| `%s` | `%s` | %s | %s | %s |\n", f.key, f.env(), f.typeName(), strings.ReplaceAll(def, "|", `\|`), strings.ReplaceAll(f.help, "|", `\|`))
	}
}
