// Package config is the configuration of every role: one table of settings that
// can be given as a flag (--data-dir), in the environment
// (ATHENSCTL_DATA_DIR), or in a file (data-dir), in this order of precedence.
// It is strict: an unknown key or an impossible value is an error that names it.
package config

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/mod/module"
)

// DefaultUpstream is the go command's own default: the public mirror, then the
// module's own host.
const DefaultUpstream = "https://proxy.golang.org,direct"

// List is a setting of several values: the flag may be given several times, and the
// values may stand in one, with commas.
type List []string

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
	MaxConnections    int           `key:"max-connections" default:"10000" help:"Requests in flight for each address; more are refused with 503. A connection that becomes idle while more are open is closed."`
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
