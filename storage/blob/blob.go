// Package blob keeps zips in Azure Blob Storage: a blob for each, named by the
// version and the hash of its content, written once.
package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/tracing"
	"github.com/athensctl/athensctl/storage"
)

// Account says which container, and how to reach it: with a connection string, or
// else the identity of the process (azidentity's default chain).
type Account struct {
	Endpoint   string // https://<account>.blob.core.windows.net
	Connection string // AccountName=…;AccountKey=…; in place of Endpoint
	Container  string
	HTTP       *http.Client // nil: a client of its own
}

func (a Account) client(p patience) (*container.Client, error) {
	if a.HTTP == nil {
		a.HTTP = newHTTP()
	}
	o := &container.ClientOptions{ClientOptions: policy.ClientOptions{
		Transport:       a.HTTP,
		Retry:           policy.RetryOptions{MaxRetries: -1},
		PerCallPolicies: []policy.Policy{p},
		Telemetry:       policy.TelemetryOptions{ApplicationID: "athensctl"},
	}}
	if a.Connection != "" {
		c, err := container.NewClientFromConnectionString(a.Connection, a.Container, o)
		if err != nil {
			return nil, errors.New("blob-connection-string: not of the form AccountName=…;AccountKey=…;EndpointSuffix=… or BlobEndpoint=…")
		}
		return c, nil
	}
	u, err := url.Parse(a.Endpoint)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("blob-endpoint: %q is not a URL such as https://NAME.blob.core.windows.net", a.Endpoint)
	}
	// Tests speak http to loopback; a token is sent to nobody else in clear.
	ip := net.ParseIP(u.Hostname())
	o.InsecureAllowCredentialWithHTTP = u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	if u.Scheme != "https" && !o.InsecureAllowCredentialWithHTTP {
		return nil, fmt.Errorf("blob-endpoint: %s: a token would be sent in clear: an identity needs https", a.Endpoint)
	}
	identity, err := azidentity.NewDefaultAzureCredential(nil)
	if err != nil {
		return nil, fmt.Errorf("blob: there is no connection string, and no identity: %w", err)
	}
	return container.NewClient(u.JoinPath(a.Container).String(), identity, o)
}

// Store keeps blobs in one container. It is safe for concurrent use.
type Store struct{ container *container.Client }

// Open returns the store in a container that is there already; see Init. It makes
// one request, to say at once that the container can't be reached or read.
func Open(ctx context.Context, a Account) (*Store, error) {
	c, err := a.client(usual)
	if err != nil {
		return nil, err
	}
	s := &Store{c}
	if err := s.Check(ctx); err != nil {
		return nil, fmt.Errorf("open Blob Storage, container %s: %w", a.Container, err)
	}
	return s, nil
}

// Check reads the container: with a blob's rights, which is all that an identity has.
func (s *Store) Check(ctx context.Context) error {
	_, err := s.container.NewBlobClient("ready").GetProperties(ctx, nil)
	if bloberror.HasCode(err, bloberror.BlobNotFound) {
		return nil
	}
	// HEAD has no body: the status is all that some answers have.
	var re *azcore.ResponseError
	if errors.As(err, &re) && re.StatusCode == http.StatusNotFound && re.ErrorCode != string(bloberror.ContainerNotFound) {
		return nil
	}
	return failure("read", err)
}

// Init makes the container where it is not there.
func Init(ctx context.Context, a Account, report func(string)) error {
	c, err := a.client(usual)
	if err != nil {
		return err
	}
	switch _, err = c.Create(ctx, nil); {
	case err == nil:
		report("container " + a.Container + ": made")
	case bloberror.HasCode(err, bloberror.ContainerAlreadyExists):
		report("container " + a.Container + ": was there")
		err = nil
	default:
		err = fmt.Errorf("container %s: %w", a.Container, failure("make it", err))
	}
	return err
}

// A zip below this is one request; a larger one is sent in blocks.
const (
	oneRequest = 8 << 20
	blockBytes = 4 << 20
)

// Put keeps size bytes; those that are kept already, which the name says are the
// same, are a success. A blob of another size is not what the name says, and is replaced.
func (s *Store) Put(ctx context.Context, name string, r io.ReadSeeker, size int64) (err error) {
	ctx, span := start(ctx, "put", size)
	defer func() { tracing.End(span, err) }()
	b := s.container.NewBlockBlobClient(name)
	begin, err := r.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	absent := azcore.ETagAny
	once := &blob.ModifiedAccessConditions{IfNoneMatch: &absent}
	if size > oneRequest { // a look is cheaper than all the blocks
		if there, err := b.GetProperties(ctx, nil); err == nil && there.ContentLength != nil && *there.ContentLength == size {
			return nil
		}
	}
	for try := 1; ; try++ {
		err := upload(ctx, b, r, size, once)
		if !bloberror.HasCode(err, bloberror.BlobAlreadyExists, bloberror.ConditionNotMet, bloberror.InvalidBlockList) {
			return failure("write", err)
		}
		there, e := b.GetProperties(ctx, nil)
		switch {
		case e == nil && there.ContentLength != nil && *there.ContentLength == size:
			return nil
		case e == nil && there.ETag != nil && try < 3:
			once = &blob.ModifiedAccessConditions{IfMatch: there.ETag}
		case e == nil:
			return goproxy.Errorf(http.StatusInternalServerError, "Blob Storage has %s with another size", name)
		case !bloberror.HasCode(e, bloberror.BlobNotFound) || try == 3:
			return failure("write", err)
		default:
			// It was there, and was removed: blocks that wait to be committed are dropped
			// when others of the same blob are.
			once = &blob.ModifiedAccessConditions{IfNoneMatch: &absent}
		}
		if _, err := r.Seek(begin, io.SeekStart); err != nil {
			return err
		}
	}
}

// upload writes a blob, on that condition.
func upload(ctx context.Context, b *blockblob.Client, r io.ReadSeeker, size int64, once *blob.ModifiedAccessConditions) (err error) {
	condition := &blob.AccessConditions{ModifiedAccessConditions: once}
	zip := "application/zip"
	headers := &blob.HTTPHeaders{BlobContentType: &zip}
	if size <= oneRequest {
		_, err = b.Upload(ctx, streaming.NopCloser(r), &blockblob.UploadOptions{HTTPHeaders: headers, AccessConditions: condition})
	} else {
		_, err = b.UploadStream(ctx, r, &blockblob.UploadStreamOptions{BlockSize: blockBytes, Concurrency: 2, HTTPHeaders: headers, AccessConditions: condition})
	}
	return err
}

// Get returns a reader of the blob; it fails where there is none: storage.ErrLost. What is skipped
// by Seek is not fetched, nor what is not read: it asks for no more than window bytes at once.
func (s *Store) Get(ctx context.Context, name string, size int64) (io.ReadSeekCloser, error) {
	r := &reader{ctx: ctx, blob: s.container.NewBlobClient(name), name: name, size: size}
	if size == 0 {
		return r, nil
	}
	return r, r.open()
}

// Delete removes the blob; that it is not there is a success.
func (s *Store) Delete(ctx context.Context, name string, size int64) (err error) {
	ctx, span := start(ctx, "delete", size)
	defer func() { tracing.End(span, err) }()
	_, err = s.container.NewBlobClient(name).Delete(ctx, nil)
	if bloberror.HasCode(err, bloberror.BlobNotFound) {
		return nil
	}
	return failure("delete", err)
}

// window is what one answer has: a reader that leaves has cut no more than that.
const window = 8 << 20

// reader reads from pos on, one window after the other. Seek asks nothing: whoever looks for
// the size and goes back to the start (http.ServeContent does) goes on in the answer that there is.
type reader struct {
	ctx  context.Context
	blob *blob.Client
	name string
	size int64
	pos  int64

	body    io.ReadCloser // nil: to be opened
	at, end int64         // where body is, and where it ends
}

// open asks for the window that begins at pos.
func (r *reader) open() (err error) {
	count := min(window, r.size-r.pos)
	ctx, span := start(r.ctx, "get", count)
	defer func() { tracing.End(span, err) }()
	resp, err := r.blob.DownloadStream(ctx, &blob.DownloadStreamOptions{Range: blob.HTTPRange{Offset: r.pos, Count: count}})
	switch {
	case bloberror.HasCode(err, bloberror.BlobNotFound):
		return fmt.Errorf("%w: Blob Storage has no %s", storage.ErrLost, r.name)
	case bloberror.HasCode(err, bloberror.InvalidRange):
		return fmt.Errorf("%w: Blob Storage has %s with less than %d bytes", storage.ErrLost, r.name, r.size)
	case err != nil:
		return failure("read", err)
	}
	if have := total(resp.ContentRange); have != r.size {
		resp.Body.Close()
		return fmt.Errorf("%w: Blob Storage has %s with %d bytes in place of %d", storage.ErrLost, r.name, have, r.size)
	}
	// Goes on where an answer was cut.
	r.body = resp.NewRetryReader(r.ctx, &blob.RetryReaderOptions{MaxRetries: 3})
	r.at, r.end = r.pos, r.pos+count
	return nil
}

// total is the size of the whole that a Content-Range says; -1: it says none.
func total(contentRange *string) int64 {
	if contentRange == nil {
		return -1
	}
	_, of, _ := strings.Cut(*contentRange, "/")
	n, err := strconv.ParseInt(of, 10, 64)
	if err != nil {
		return -1
	}
	return n
}

func (r *reader) Read(b []byte) (int, error) {
	if r.pos >= r.size {
		return 0, io.EOF
	}
	if r.body != nil && (r.at != r.pos || r.at == r.end) {
		r.Close()
	}
	if r.body == nil {
		if err := r.open(); err != nil {
			return 0, err
		}
	}
	n, err := r.body.Read(b)
	r.pos += int64(n)
	r.at = r.pos
	if err == io.EOF && r.at < r.end {
		err = io.ErrUnexpectedEOF
	} else if err == io.EOF && r.pos < r.size {
		err = nil // of this window
	}
	if err != nil && err != io.EOF {
		err = failure("read", err)
	}
	return n, err
}

func (r *reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.pos
	case io.SeekEnd:
		offset += r.size
	}
	if offset < 0 {
		return 0, errors.New("seek before the start")
	}
	r.pos = offset
	return offset, nil
}

func (r *reader) Close() (err error) {
	if r.body != nil {
		err = r.body.Close()
		r.body = nil
	}
	return err
}

// whyRefused is in words what a 401 or 403 says, and what to do. Source: Microsoft's
// "Azure Storage error codes".
func whyRefused(re *azcore.ResponseError) string {
	switch bloberror.Code(re.ErrorCode) {
	case bloberror.AuthorizationPermissionMismatch, bloberror.InsufficientAccountPermissions:
		return "the identity has no right to it: give it the role Storage Blob Data Contributor on the container"
	case bloberror.AuthorizationFailure:
		return "the account's firewall does not let this address in, or the identity has no role there"
	case "KeyBasedAuthenticationNotPermitted":
		return "the account takes no keys: set blob-endpoint in place of blob-connection-string, so that the identity is used"
	case bloberror.AuthenticationFailed:
		if strings.Contains(re.Error(), "Request date header too old") {
			return "the clock of this machine is wrong"
		}
		return "the key is wrong, or not of this account"
	}
	return "look at the key or the identity's role, the firewall, and the clock"
}

// start begins the span of one operation, with its retries. The span of a reading ends when
// the content begins.
func start(ctx context.Context, op string, size int64) (context.Context, trace.Span) {
	return tracing.Start(ctx, "blob "+op, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attribute.Int64("athensctl.bytes", size)))
}

// failure says what the service refused, without the request and response that
// the SDK prints.
func failure(what string, err error) error {
	var re *azcore.ResponseError
	var said *goproxy.Error
	switch {
	case err == nil || errors.As(err, &said) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return err
	case !errors.As(err, &re):
		return goproxy.Busy(time.Second, "Blob Storage does not %s: %s", what, inOneLine(err))
	case re.StatusCode == http.StatusForbidden || re.StatusCode == http.StatusUnauthorized:
		return goproxy.Errorf(http.StatusInternalServerError, "Blob Storage refused to %s: %s: %s", what, re.ErrorCode, whyRefused(re))
	case re.ErrorCode == string(bloberror.ContainerNotFound):
		return goproxy.Errorf(http.StatusInternalServerError, "Blob Storage: %s: the container is not there: Terraform makes it, or athensctl storage init", what)
	}
	return goproxy.Errorf(http.StatusInternalServerError, "Blob Storage: %s: %d %s", what, re.StatusCode, strings.TrimSpace(re.ErrorCode))
}
