package blob

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"

	"github.com/athensctl/athensctl/goproxy"
)

// patience is how long one request is tried, as in storage/cosmos; and how long an
// attempt may take, a content that does not come on. A body that is sent has a second more for
// each 256 KiB.
type patience struct{ whole, attempt, idle time.Duration }

var usual = patience{whole: 20 * time.Second, attempt: 15 * time.Second, idle: 15 * time.Second}

const bytesASecond = 256 << 10

// Do implements policy.Policy. It stands before the SDK's own retries, which are off: those try
// for as long as the number of tries takes, and forget what the service has said. What may
// be had another time is 503 with the Retry-After that was told; at once where that is
// later than the patience or the context's deadline. Source: Microsoft's "Azure Storage
// error codes" and "Designing for retries".
func (p patience) Do(req *policy.Request) (*http.Response, error) {
	ctx := req.Raw().Context()
	sending := time.Duration(max(0, req.Raw().ContentLength)/bytesASecond) * time.Second
	end := time.Now().Add(p.whole + sending)
	var failed string // what the last attempt ended with
	var pause time.Duration
	tooLate := func() error {
		return goproxy.Busy(max(time.Second, pause), "Blob Storage does not answer as it should: %s", failed)
	}
	for attempt := 0; ; attempt++ {
		if failed != "" && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, tooLate()
		} else if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err := req.RewindBody(); err != nil {
			return nil, err
		}
		one, cancel := context.WithCancel(ctx)
		timer := time.AfterFunc(min(time.Until(end), p.attempt+sending), cancel)
		resp, err := req.Clone(one).Next()
		inTime := timer.Stop()
		if ctx.Err() != nil {
			cancel()
			continue
		}
		pause = min(50*time.Millisecond<<min(attempt, 6), 2*time.Second)
		pause = time.Duration(float64(pause) * (0.5 + rand.Float64()))
		switch {
		case err == nil && !again(resp.StatusCode):
			if req.Raw().Method == http.MethodGet {
				resp.Body = &body{ReadCloser: resp.Body, cancel: cancel, idle: p.idle}
			} else {
				cancel() // it is read already
			}
			return resp, nil
		case err == nil:
			failed = strings.TrimSpace(strconv.Itoa(resp.StatusCode) + " " + resp.Header.Get("x-ms-error-code"))
			pause = max(pause, retryAfter(resp))
			runtime.Drain(resp)
		case !inTime:
			failed = "no answer within " + (p.attempt + sending).String()
		default:
			var final interface{ NonRetriable() }
			if errors.As(err, &final) {
				cancel()
				return nil, err
			}
			failed = inOneLine(err)
		}
		cancel()
		deadline := end
		if d, ok := ctx.Deadline(); ok && d.Before(end) {
			deadline = d
		}
		if time.Now().Add(pause).After(deadline) {
			return nil, tooLate()
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func again(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// retryAfter is what the service says: in milliseconds, in seconds, or as a time.
func retryAfter(resp *http.Response) time.Duration {
	const most = time.Minute
	if ms, err := strconv.ParseInt(resp.Header.Get("x-ms-retry-after-ms"), 10, 64); err == nil && ms > 0 {
		return min(time.Duration(min(ms, most.Milliseconds()))*time.Millisecond, most)
	}
	return min(goproxy.RetryAfter(resp.Header, time.Now()), most)
}

// body is content that is cut where it does not come on. A reader that is slow itself is
// not cut.
type body struct {
	io.ReadCloser
	cancel context.CancelFunc
	idle   time.Duration
}

func (b *body) Read(p []byte) (int, error) {
	timer := time.AfterFunc(b.idle, b.cancel)
	n, err := b.ReadCloser.Read(p)
	if !timer.Stop() && err != nil && err != io.EOF {
		err = io.ErrUnexpectedEOF // another answer may go on
	}
	return n, err
}

func (b *body) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}

// inOneLine is an error of the SDK, which has many lines where several ways to get an
// identity were tried: each says why it was none.
func inOneLine(err error) string {
	var parts []string
	for line := range strings.Lines(err.Error()) {
		if line = strings.TrimSpace(line); strings.Trim(line, "-") != "" {
			parts = append(parts, line)
		}
	}
	return strings.Join(parts, "; ")
}

func newHTTP() *http.Client {
	return &http.Client{Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext, ForceAttemptHTTP2: true,
		MaxIdleConnsPerHost: 256, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 5 * time.Second,
	}}
}
