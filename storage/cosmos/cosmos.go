// Package cosmos keeps modules and the ledger in Azure Cosmos DB (NoSQL API), for
// any number of processes at once. Zips go to chunk items there, or where
// Options.Zips says.
//
// Two containers, both partitioned by /pk. An item is written on a condition (it
// is not there, or has the ETag that was read); there are no locks.
//
// Container modules:
//
//	pk                 id            what
//	m/<path>           <version>     one version: .info, go.mod, and which zip: all that is visible of it
//	z/<zip's name>     000000…       a chunk of a zip, 384 KB in base64
//	c/<13 bytes>       path version  the catalog: complete versions, by the first bytes of the path
//	c                  <13 bytes>    which of those partitions there are
//	f/<feed>/<page>    path version  a page of a feed: index (i), deletions (d); and its head
//	f/<feed>           pages         where the pages begin
//
// Container ledger:
//
//	k/<path>           hash          Known, which expires
//	j/<2 characters>   hash          a job, by the beginning of its id
//	s/<name>           state         small state
//	p/0 … p/f          hash          a Put that goes on, or did not end, or a Delete (see sweep.go)
//
// docs/adr/0007 says why, and what each operation costs.
package cosmos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/data/azcosmos"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/athensctl/athensctl/storage"
)

// Names of the containers.
const (
	ModulesContainer = "modules"
	LedgerContainer  = "ledger"
)

// Account says which database, and how to reach it: with a key, a connection
// string, or else the identity of the process (azidentity's default chain: workload
// identity, managed identity, a login of the Azure CLI).
type Account struct {
	Endpoint   string // https://<account>.documents.azure.com
	Key        string // base64
	Connection string // AccountEndpoint=…;AccountKey=…; in place of Endpoint and Key
	Database   string
	Regions    []string // to read from, the nearest first; none: the account's order

	// HTTP makes the requests; nil: a client of its own.
	HTTP *http.Client
}

func newHTTP() *http.Client {
	return &http.Client{Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext, ForceAttemptHTTP2: true,
		MaxIdleConnsPerHost: 256, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 5 * time.Second,
	}}
}

// isLoopback reports whether a URL is of this machine.
func isLoopback(s string) bool {
	u, err := url.Parse(s)
	if err != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
}

// The SDK reads the account's regions now and then under a lock that every request
// takes, and would wait a minute for them, whatever time the request has.
const (
	accountTimeout = 5 * time.Second
	// A reading that had no answer is not made again for so long: the SDK goes on with the
	// regions that it knows.
	accountPause = 10 * time.Second
	accountBytes = 1 << 20
)

// transport makes the SDK's requests, and bounds those for the account's regions.
type transport struct {
	http *http.Client

	mu     sync.Mutex
	failed time.Time // when the account did not answer; zero: it did
	err    error
}

// Do implements policy.Transporter.
func (t *transport) Do(req *http.Request) (*http.Response, error) {
	if req.Method != http.MethodGet || strings.Trim(req.URL.Path, "/") != "" {
		return t.http.Do(req)
	}
	t.mu.Lock()
	failed, err := t.failed, t.err
	t.mu.Unlock()
	if err != nil && time.Since(failed) < accountPause {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(req.Context(), accountTimeout)
	defer cancel()
	resp, err := t.http.Do(req.WithContext(ctx))
	if err == nil {
		var body []byte
		body, err = io.ReadAll(io.LimitReader(resp.Body, accountBytes))
		resp.Body.Close()
		resp.Body = io.NopCloser(bytes.NewReader(body))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failed, t.err = time.Now(), err; err != nil {
		return nil, err
	}
	return resp, nil
}

// client connects to nothing yet.
func (a Account) client() (*azcosmos.Client, error) {
	if a.HTTP == nil {
		a.HTTP = newHTTP()
	}
	o := &azcosmos.ClientOptions{
		ClientOptions: policy.ClientOptions{
			Transport: &transport{http: a.HTTP},
			// account.try retries, and knows more about what may be.
			Retry:     policy.RetryOptions{MaxRetries: -1},
			Telemetry: policy.TelemetryOptions{ApplicationID: "athensctl"},
			// Tests speak http to loopback; the service itself has https alone.
			InsecureAllowCredentialWithHTTP: isLoopback(a.Endpoint),
		},
		PreferredRegions: a.Regions,
	}
	if a.Connection != "" {
		c, err := azcosmos.NewClientFromConnectionString(a.Connection, o)
		if err != nil {
			return nil, fmt.Errorf("cosmos-connection-string: %w", err)
		}
		return c, nil
	}
	if u, err := url.Parse(a.Endpoint); err != nil || u.Host == "" {
		return nil, fmt.Errorf("cosmos-endpoint: %q is not a URL such as https://NAME.documents.azure.com", a.Endpoint)
	}
	if a.Key == "" {
		// A key signs requests and stays here; a token is sent with each.
		if !strings.HasPrefix(a.Endpoint, "https://") && !isLoopback(a.Endpoint) {
			return nil, fmt.Errorf("cosmos-endpoint: %s: a token would be sent in clear: an identity needs https", a.Endpoint)
		}
		identity, err := azidentity.NewDefaultAzureCredential(nil)
		if err != nil {
			return nil, fmt.Errorf("cosmos: there is no key, and no identity: %w", err)
		}
		return azcosmos.NewClient(a.Endpoint, identity, o)
	}
	cred, err := azcosmos.NewKeyCredential(a.Key)
	if err != nil {
		return nil, errors.New("cosmos-key: not base64, as the keys of an account are")
	}
	return azcosmos.NewClientWithKey(a.Endpoint, cred, o)
}

// Zips keeps the bytes of zips under names that say what is in them: one name
// never has other bytes. It is safe for concurrent use.
type Zips interface {
	// Put keeps size bytes; those that are kept already are a success, and those of
	// them that are lost are kept again.
	Put(ctx context.Context, name string, r io.ReadSeeker, size int64) error
	// Get returns a reader at the start, which reads no more than it is asked
	// for. Bytes that are not kept are storage.ErrLost, of Get or of the reader.
	Get(ctx context.Context, name string, size int64) (io.ReadSeekCloser, error)
	// Delete removes them; that they are not there is a success.
	Delete(ctx context.Context, name string, size int64) error
}

// Options of Open. The zero value is good.
type Options struct {
	Zips     Zips          // nil: chunks in Cosmos DB
	TempDir  string        // takes zips that can't be read twice; "": the system's
	QueueMax int           // bounds the jobs in the queue, as storage.QueueCounts has it, and roughly: replicas count by themselves; 0: no bound
	Patience time.Duration // how long one operation is tried; 0: 20 s
	// BackgroundUnits a second are spent on what nobody waits for; 0: no bound.
	BackgroundUnits int
	PageSize        int              // entries in a page of a feed; 0: 100,000
	Now             func() time.Time // nil: time.Now
	Metrics         prometheus.Registerer
	Log             *slog.Logger // nil: slog.Default
}

// Store is the Cosmos DB backend: a storage.Store and a storage.Ledger.
type Store struct {
	*account
	o       Options
	now     func() time.Time
	zips    Zips
	index   *feed
	deleted *feed
	shards  sync.Map // partitions of the catalog that are known to be registered
	queue   queue

	sweepTakes time.Duration // see there
}

var (
	_ storage.Store  = (*Store)(nil)
	_ storage.Ledger = (*Store)(nil)
)

// Open returns the store in a database that is there already; see Init. It looks
// at the containers, to say at once that they are not there or can't be read.
func Open(ctx context.Context, a Account, o Options) (*Store, error) {
	if a.HTTP == nil {
		a.HTTP = newHTTP()
	}
	client, err := a.client()
	if err != nil {
		return nil, err
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Patience == 0 {
		o.Patience = 20 * time.Second
	}
	if o.PageSize == 0 {
		o.PageSize = 100_000
	}
	acc := &account{
		client: client, http: a.HTTP, patience: o.Patience,
		units: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "athensctl_cosmos_request_units_total", Help: "Request units that Cosmos DB charged, by operation.",
		}, []string{"operation"}),
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "athensctl_cosmos_requests_total", Help: "Requests to Cosmos DB, by operation and status (none: no answer).",
		}, []string{"operation", "status"}),
	}
	if o.BackgroundUnits > 0 {
		acc.background = rate.NewLimiter(rate.Limit(o.BackgroundUnits), o.BackgroundUnits)
	}
	if acc.modules, err = client.NewContainer(a.Database, ModulesContainer); err != nil {
		return nil, fmt.Errorf("cosmos-database: %w", err)
	}
	if acc.ledger, err = client.NewContainer(a.Database, LedgerContainer); err != nil {
		return nil, err
	}
	s := &Store{account: acc, o: o, now: o.Now, zips: o.Zips, sweepTakes: sweepTakes}
	if s.zips == nil {
		s.zips = chunks{acc}
	}
	s.index, s.deleted = newFeed(s, "i", 0), newFeed(s, "d", 2*storage.TombstoneTTL)
	s.queue.seed, s.queue.jobs = maphash.MakeSeed(), map[string]*jobItem{}
	s.queue.waiting = map[waitKey]*waiters{}
	if o.Metrics != nil {
		o.Metrics.MustRegister(acc.units, acc.answers)
	}
	for _, c := range []*azcosmos.ContainerClient{acc.modules, acc.ledger} {
		err := acc.try(ctx, "open", func(ctx context.Context) (azcosmos.Response, error) {
			r, err := c.Read(ctx, nil)
			return r.Response, err
		})
		if err == errAbsent || errors.Is(err, errNoContainer) {
			err = errors.New("it is not there: Terraform makes it, or athensctl storage init")
		}
		if err != nil {
			return nil, fmt.Errorf("open Cosmos DB %s, database %s, container %s: %w", client.Endpoint(), a.Database, c.ID(), err)
		}
	}
	return s, nil
}

// Close drops idle connections. Nothing is left to be written.
func (s *Store) Close() error {
	s.http.CloseIdleConnections()
	return nil
}

// micros is a time as items have it: microseconds since 1970, which a JSON number
// holds exactly.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return max(0, t.UnixMicro())
}

func fromMicros(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}
