package cosmos

import (
	"context"
	"net/http"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/data/azcosmos"

	"github.com/athensctl/athensctl/goproxy"
)

// batch makes a transaction. failed is the operation that was refused, and nothing
// is changed; -1: all were done, and the first item has the ETag. A conflict with oneself,
// after an answer was lost, is for the caller to see.
func (a *account) batch(ctx context.Context, op string, b azcosmos.TransactionalBatch) (failed int, etag azcore.ETag, err error) {
	var got azcosmos.TransactionalBatchResponse
	for range 100 {
		err = a.try(ctx, op, func(ctx context.Context) (azcosmos.Response, error) {
			var err error
			got, err = a.modules.ExecuteTransactionalBatch(ctx, b, nil)
			return got.Response, err
		})
		if err != nil {
			return 0, "", err
		}
		if got.Success {
			if len(got.OperationResults) > 0 {
				etag = got.OperationResults[0].ETag
			}
			return -1, etag, nil
		}
		again := false
		for i, r := range got.OperationResults {
			switch r.StatusCode {
			case http.StatusFailedDependency, http.StatusOK, http.StatusCreated:
				continue
			case http.StatusConflict, http.StatusPreconditionFailed:
				return i, "", nil
			case http.StatusTooManyRequests, 449, http.StatusRequestTimeout, http.StatusServiceUnavailable:
				again = true
			default:
				return 0, "", goproxy.Errorf(http.StatusInternalServerError, "Cosmos DB (%s): operation %d: %d", op, i, r.StatusCode)
			}
		}
		if !again {
			return 0, "", goproxy.Errorf(http.StatusInternalServerError, "Cosmos DB (%s) failed without a reason", op)
		}
		if d, ok := ctx.Deadline(); ok && time.Until(d) < 50*time.Millisecond {
			break
		}
		select {
		case <-ctx.Done():
			return 0, "", ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return 0, "", goproxy.Busy(time.Second, "Cosmos DB (%s) does not answer as it should", op)
}
