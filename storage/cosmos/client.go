package cosmos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/data/azcosmos"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/fleet"
	"github.com/athensctl/athensctl/internal/tracing"
)

// What the database answers that callers act on. Everything else is an error for
// who asked storage.
var (
	errAbsent = errors.New("no such item")                           // 404
	errExists = errors.New("the item exists")                        // 409, and it is not ours
	errMoved  = errors.New("the item has changed since it was read") // 412, and not by us
)

// errNoContainer: what is asked is an item of a container, or the container of a database, that is not
// there. That says nothing of the item.
var errNoContainer = errors.New("no such container")

// stamp is part of each item that is written on a condition: a random mark of the
// write, by which one whose answer was lost is recognised as one's own.
type stamp struct {
	W string `json:"w"`
}

func newStamp() stamp { return stamp{fleet.NewID(8)} }

// account is the database with its two containers. It makes every request: it
// counts request units, and retries what may be retried.
type account struct {
	client          *azcosmos.Client
	http            *http.Client
	modules, ledger *azcosmos.ContainerClient
	patience        time.Duration // how long one operation is tried
	background      *rate.Limiter // units a second for what nobody waits for; nil: no bound
	units           *prometheus.CounterVec
	answers         *prometheus.CounterVec
}

// An attempt takes this long at most, and ends when the whole is to end: the SDK goes on for minutes when a name does
// not resolve, and a chunk of a zip is 512 KB.
const attemptTimeout = 15 * time.Second

// try makes one operation until it has an answer that is final: 429 after the time
// that the service says, other answers that mean "again" after a back-off, up to
// the account's patience or the context's deadline. Then the error is 503 with a
// Retry-After, at once where the next try would be too late. Source: Microsoft's "Designing resilient applications with Azure
// Cosmos DB SDKs", its table of status codes.
func (a *account) try(ctx context.Context, op string, f func(context.Context) (azcosmos.Response, error)) (err error) {
	ctx, span := tracing.Start(ctx, "cosmos "+op, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(semconv.DBSystemNameAzureCosmosDB, semconv.DBOperationName(op)))
	attempts, units := 0, float32(0)
	defer func() {
		span.SetAttributes(attribute.Int("athensctl.attempts", attempts), semconv.AzureCosmosDBOperationRequestCharge(float64(units)))
		failed := err
		if err == errAbsent || err == errExists || err == errMoved {
			failed = nil // answers
		}
		tracing.End(span, failed)
	}()
	if err := a.afford(ctx, op); err != nil {
		return err
	}
	end := time.Now().Add(a.patience) // of the last attempt; ctx has its own
	deadline := end
	if d, ok := ctx.Deadline(); ok {
		deadline = earlier(end, d)
	}
	var failed error // of the last attempt, and not that it was cut where one before had an answer
	var pause time.Duration
	tooLate := func() error {
		return goproxy.Busy(max(time.Second, pause), "Cosmos DB (%s) does not answer as it should: %w", op, short(failed))
	}
	for attempt := 0; ; attempt++ {
		if failed != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return tooLate()
		} else if ctx.Err() != nil {
			return ctx.Err()
		}
		attempts++
		one, cancel := context.WithDeadline(ctx, earlier(end, time.Now().Add(attemptTimeout)))
		resp, err := f(one)
		cancel()
		if err == nil {
			units += resp.RequestCharge
			a.count(op, "ok", resp.RequestCharge)
			a.spend(ctx, resp.RequestCharge)
			return nil
		}
		if ctx.Err() != nil {
			continue
		}
		if failed == nil || !errors.Is(err, context.DeadlineExceeded) {
			failed = err
		}
		pause = min(50*time.Millisecond<<min(attempt, 6), 2*time.Second)
		pause = time.Duration(float64(pause) * (0.5 + rand.Float64()))
		var re *azcore.ResponseError
		if !errors.As(err, &re) {
			a.count(op, "none", 0)
			// The SDK asks for the account's regions first, and wraps what that
			// answers in text.
			if wrappedRefusal.MatchString(err.Error()) {
				return refused(op, err)
			}
			// An identity that can't be had: who gives it was asked as often as makes sense.
			var final interface{ NonRetriable() }
			if errors.As(err, &final) {
				return goproxy.Busy(5*time.Second, "Cosmos DB (%s): there is no key, and no identity: %w", op, short(err))
			}
		} else {
			var charge float64
			if re.RawResponse != nil {
				charge, _ = strconv.ParseFloat(re.RawResponse.Header.Get("x-ms-request-charge"), 32)
			}
			units += float32(charge)
			a.count(op, strconv.Itoa(re.StatusCode), float32(charge))
			a.spend(ctx, float32(charge))
			switch re.StatusCode {
			case http.StatusNotFound:
				switch substatus(re.RawResponse) {
				case ownerAbsent:
					return goproxy.Errorf(http.StatusInternalServerError, "Cosmos DB (%s): %w", op, errNoContainer)
				case notYetRead:
				default:
					return errAbsent
				}
			case http.StatusConflict:
				return errExists
			case http.StatusPreconditionFailed:
				return errMoved
			case http.StatusUnauthorized, http.StatusForbidden:
				return refused(op, err)
			case http.StatusRequestEntityTooLarge:
				return goproxy.Errorf(http.StatusRequestEntityTooLarge, "Cosmos DB (%s): %w", op, short(err))
			case http.StatusTooManyRequests:
				pause = max(pause, retryAfter(re.RawResponse))
			case 449: // Retry With: another write to the item was going on
				pause = time.Duration(10+rand.IntN(50)) * time.Millisecond
			case http.StatusRequestTimeout, http.StatusGone, http.StatusInternalServerError, http.StatusBadGateway,
				http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			default:
				return goproxy.Errorf(http.StatusInternalServerError, "Cosmos DB (%s): %w", op, short(err))
			}
		}
		if time.Now().Add(pause).After(deadline) {
			return tooLate()
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// Substatus of a 404 that is not of the item. Source: Microsoft's "HTTP status codes for Azure Cosmos DB".
const (
	ownerAbsent = "1003" // the container or the database is not there
	notYetRead  = "1002" // the replica that was asked is behind
)

func substatus(resp *http.Response) string {
	if resp == nil {
		return ""
	}
	return resp.Header.Get("x-ms-substatus")
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// afford waits until what was spent in the background is paid off. What an operation
// costs is known only afterwards.
func (a *account) afford(ctx context.Context, op string) error {
	if a.background == nil || !fleet.CallOf(ctx).Background {
		return nil
	}
	if err := a.background.WaitN(ctx, 1); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return goproxy.Busy(5*time.Second, "Cosmos DB (%s): the units for work in the background are spent (setting cosmos-background-units)", op)
	}
	return nil
}

// billKey is of the *float32 that adds up what is charged under a context: where work is
// done for several at once, each of them spends its part.
type billKey struct{}

func (a *account) spend(ctx context.Context, charge float32) {
	if bill, ok := ctx.Value(billKey{}).(*float32); ok {
		*bill += charge
	}
	if a.background == nil || !fleet.CallOf(ctx).Background {
		return
	}
	for left := int(math.Ceil(float64(charge))); left > 0; left -= a.background.Burst() {
		a.background.ReserveN(time.Now(), min(left, a.background.Burst()))
	}
}

var wrappedRefusal = regexp.MustCompile(`RESPONSE 40[13]: `)

// refused says why the service does not let this process in.
func refused(op string, err error) error {
	return goproxy.Errorf(http.StatusInternalServerError, "Cosmos DB (%s) refused: %s", op, whyRefused(err.Error()))
}

// whyRefused is in words what the text of a 401 or 403 says, and what to do. Source:
// Microsoft's "Troubleshoot Azure Cosmos DB forbidden exceptions" and "… unauthorized
// exceptions".
func whyRefused(text string) string {
	has := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(strings.ToLower(text), w) })
	}
	switch {
	case has("firewall", "public internet", "service endpoint", "private endpoint"):
		return "the account's firewall does not let this address in: allow it, or reach the account by its private endpoint"
	case has("not valid at the current time", "x-ms-date", "date header"):
		return "the clock of this machine is wrong, and the request looks old or new to it"
	case has("local authorization is disabled"):
		return "the account takes no keys: leave cosmos-key and cosmos-connection-string out, so that the identity is used"
	case has("cannot be authorized by aad token in data plane"):
		return "an identity may not do that on the data plane: databases and containers are made with a key (athensctl storage init) or by Terraform"
	case has("rbac permissions", "principal"):
		return "the identity has no right to it: give it the role Cosmos DB Built-in Data Contributor on the database"
	case has("wrong key", "mac signature", "authorization token can't serve"):
		return "the key is wrong: cosmos-key, or the one in cosmos-connection-string, is not of this account"
	}
	line, _, _ := strings.Cut(text[max(0, strings.Index(text, "RESPONSE ")):], "\n")
	return fmt.Sprintf("%.200s: look at the key or the identity's role, the firewall, and the clock", line)
}

// short is an error without the request and response that the SDK prints with it.
func short(err error) error {
	var re *azcore.ResponseError
	if errors.As(err, &re) {
		return fmt.Errorf("%d %s", re.StatusCode, re.ErrorCode)
	}
	// One of an identity has many lines where several ways to get one were tried: each says
	// why it was none.
	var parts []string
	for line := range strings.Lines(err.Error()) {
		if line = strings.TrimSpace(line); strings.Trim(line, "-") != "" {
			parts = append(parts, line)
		}
	}
	return errors.New(strings.Join(parts, "; "))
}

func retryAfter(resp *http.Response) time.Duration {
	if resp == nil {
		return 0
	}
	ms, err := strconv.ParseInt(resp.Header.Get("x-ms-retry-after-ms"), 10, 64)
	if err != nil || ms < 0 {
		return 0
	}
	return time.Duration(min(ms, 60_000)) * time.Millisecond
}

func (a *account) count(op, status string, charge float32) {
	a.units.WithLabelValues(op).Add(float64(charge))
	a.answers.WithLabelValues(op, status).Inc()
}

// get reads an item into v; errAbsent.
func (a *account) get(ctx context.Context, c *azcosmos.ContainerClient, op, pk, id string, v any) (azcore.ETag, error) {
	var got azcosmos.ItemResponse
	err := a.try(ctx, op, func(ctx context.Context) (azcosmos.Response, error) {
		var err error
		got, err = c.ReadItem(ctx, azcosmos.NewPartitionKeyString(pk), id, nil)
		return got.Response, err
	})
	if err != nil {
		return "", err
	}
	return got.ETag, json.Unmarshal(got.Value, v)
}

// maxItem is the size of an item's JSON. The service takes 2 MB, with what it adds.
const maxItem = 2<<20 - 16<<10

// itemJSON is 413 for what does not fit: it would not fit the next time either.
func itemJSON(op string, v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err == nil && len(b) > maxItem {
		err = goproxy.Errorf(http.StatusRequestEntityTooLarge, "Cosmos DB (%s): an item of %d bytes; at most %d are kept", op, len(b), maxItem)
	}
	return b, err
}

// create writes an item that is not there; errExists.
func (a *account) create(ctx context.Context, c *azcosmos.ContainerClient, op, pk, id string, v any, s stamp) (azcore.ETag, error) {
	b, err := itemJSON(op, v)
	if err != nil {
		return "", err
	}
	var etag azcore.ETag
	err = a.try(ctx, op, func(ctx context.Context) (azcosmos.Response, error) {
		r, err := c.CreateItem(ctx, azcosmos.NewPartitionKeyString(pk), b, nil)
		etag = r.ETag
		return r.Response, err
	})
	if err == errExists && s.W != "" {
		return a.mine(ctx, c, op, pk, id, s, err)
	}
	return etag, err
}

// replace writes an item if it still has the ETag; errMoved, errAbsent.
func (a *account) replace(ctx context.Context, c *azcosmos.ContainerClient, op, pk, id string, v any, s stamp, old azcore.ETag) (azcore.ETag, error) {
	b, err := itemJSON(op, v)
	if err != nil {
		return "", err
	}
	var etag azcore.ETag
	err = a.try(ctx, op, func(ctx context.Context) (azcosmos.Response, error) {
		r, err := c.ReplaceItem(ctx, azcosmos.NewPartitionKeyString(pk), id, b, &azcosmos.ItemOptions{IfMatchEtag: &old})
		etag = r.ETag
		return r.Response, err
	})
	if err == errMoved {
		return a.mine(ctx, c, op, pk, id, s, err)
	}
	return etag, err
}

// mine turns a conflict with a write of one's own, whose answer was lost, into
// the success that it was.
func (a *account) mine(ctx context.Context, c *azcosmos.ContainerClient, op, pk, id string, s stamp, conflict error) (azcore.ETag, error) {
	var there stamp
	etag, err := a.get(ctx, c, op, pk, id, &there)
	switch {
	case err == errAbsent:
		return "", conflict
	case err != nil:
		return "", err
	case there == s:
		return etag, nil
	}
	return "", conflict
}

// upsert writes an item whatever was there.
func (a *account) upsert(ctx context.Context, c *azcosmos.ContainerClient, op, pk string, v any) error {
	b, err := itemJSON(op, v)
	if err != nil {
		return err
	}
	return a.try(ctx, op, func(ctx context.Context) (azcosmos.Response, error) {
		r, err := c.UpsertItem(ctx, azcosmos.NewPartitionKeyString(pk), b, nil)
		return r.Response, err
	})
}

// remove deletes an item, if it has the ETag when one is given: errMoved. One
// that is not there is a success: it may have been this call that removed it.
func (a *account) remove(ctx context.Context, c *azcosmos.ContainerClient, op, pk, id string, old azcore.ETag) error {
	o := &azcosmos.ItemOptions{}
	if old != "" {
		o.IfMatchEtag = &old
	}
	err := a.try(ctx, op, func(ctx context.Context) (azcosmos.Response, error) {
		r, err := c.DeleteItem(ctx, azcosmos.NewPartitionKeyString(pk), id, o)
		return r.Response, err
	})
	if err == errAbsent {
		return nil
	}
	return err
}

// query calls f for each result of a query, until it returns false. pk is the one
// partition that is asked; "" asks all, which the service does only for plain
// filters and projections.
func (a *account) query(ctx context.Context, c *azcosmos.ContainerClient, op, pk, text string, page int, params map[string]any, f func(json.RawMessage) (bool, error)) error {
	key := azcosmos.NewPartitionKey()
	o := &azcosmos.QueryOptions{PageSizeHint: int32(page)}
	if pk != "" {
		key = azcosmos.NewPartitionKeyString(pk)
		o.QueryParameters = append(o.QueryParameters, azcosmos.QueryParameter{Name: "@pk", Value: pk})
	}
	for name, value := range params {
		o.QueryParameters = append(o.QueryParameters, azcosmos.QueryParameter{Name: name, Value: value})
	}
	for {
		var got azcosmos.QueryItemsResponse
		err := a.try(ctx, op, func(ctx context.Context) (azcosmos.Response, error) {
			var err error
			// A pager fetches one page: one that failed can't be asked again.
			got, err = c.NewQueryItemsPager(text, key, o).NextPage(ctx)
			return got.Response, err
		})
		if err == errAbsent {
			err = goproxy.Errorf(http.StatusInternalServerError, "Cosmos DB (%s): %w", op, errNoContainer)
		}
		if err != nil {
			return err
		}
		for _, item := range got.Items {
			if more, err := f(item); err != nil || !more {
				return err
			}
		}
		if got.ContinuationToken == nil || *got.ContinuationToken == "" {
			return nil
		}
		o.ContinuationToken = got.ContinuationToken
	}
}
