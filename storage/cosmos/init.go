package cosmos

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/data/azcosmos"

	"github.com/athensctl/athensctl/goproxy"
)

// indexed are the properties that queries of a container filter or order by; no
// other is indexed, since each costs units with every write.
var indexed = map[string][]string{
	ModulesContainer: {"pk", "key", "t", "complete"},
	LedgerContainer:  {"pk", "started", "due0", "due1"},
}

// Throughput of a database that Init makes.
type Throughput struct {
	// Manual or AutoscaleMax are request units a second, shared by the
	// containers; neither: a serverless account, which takes none.
	Manual, AutoscaleMax int32
}

// said is what report says of it.
func (t Throughput) said(existed bool) string {
	switch {
	case existed && t != (Throughput{}):
		return ", with the throughput left as it is"
	case existed:
		return ""
	case t.AutoscaleMax > 0:
		return fmt.Sprintf(", with autoscale up to %d units a second", t.AutoscaleMax)
	case t.Manual > 0:
		return fmt.Sprintf(", with %d units a second", t.Manual)
	}
	return ", serverless"
}

const wasThere = ": was there"

// Init makes the database and its containers where they are not there, and says
// what it did to report. It needs a key: an identity of the data plane may not.
func Init(ctx context.Context, a Account, t Throughput, report func(string)) error {
	if a.Key == "" && a.Connection == "" {
		return errors.New("an identity can't make databases or containers in Cosmos DB, whatever its role on the data plane: use Terraform (deploy/terraform), or a key")
	}
	client, err := a.client()
	if err != nil {
		return err
	}
	o := &azcosmos.CreateDatabaseOptions{}
	switch {
	case t.AutoscaleMax > 0:
		p := azcosmos.NewAutoscaleThroughputProperties(t.AutoscaleMax)
		o.ThroughputProperties = &p
	case t.Manual > 0:
		p := azcosmos.NewManualThroughputProperties(t.Manual)
		o.ThroughputProperties = &p
	}
	_, err = client.CreateDatabase(ctx, azcosmos.DatabaseProperties{ID: a.Database}, o)
	err = made(err, func(s string) { report(s + t.said(strings.HasSuffix(s, wasThere))) }, "database "+a.Database)
	if err != nil {
		return err
	}
	db, err := client.NewDatabase(a.Database)
	if err != nil {
		return err
	}
	for _, name := range []string{ModulesContainer, LedgerContainer} {
		always := int32(-1) // items that say so expire, and no others
		policy := &azcosmos.IndexingPolicy{
			Automatic: true, IndexingMode: azcosmos.IndexingModeConsistent,
			ExcludedPaths: []azcosmos.ExcludedPath{{Path: "/*"}},
		}
		for _, p := range indexed[name] {
			policy.IncludedPaths = append(policy.IncludedPaths, azcosmos.IncludedPath{Path: "/" + p + "/?"})
		}
		_, err := db.CreateContainer(ctx, azcosmos.ContainerProperties{
			ID: name, PartitionKeyDefinition: azcosmos.PartitionKeyDefinition{Paths: []string{"/pk"}, Version: 2},
			DefaultTimeToLive: &always, IndexingPolicy: policy,
		}, nil)
		if err := made(err, report, "container "+name); err != nil {
			return err
		}
	}
	return nil
}

func made(err error, report func(string), what string) error {
	var re *azcore.ResponseError
	switch {
	case err == nil:
		report(what + ": made")
		return nil
	case errors.As(err, &re) && re.StatusCode == http.StatusConflict:
		report(what + wasThere)
		return nil
	case errors.As(err, &re) && (re.StatusCode == http.StatusUnauthorized || re.StatusCode == http.StatusForbidden):
		return goproxy.Errorf(http.StatusForbidden, "%s: Cosmos DB refused: %s", what, whyRefused(err.Error()))
	case errors.As(err, &re) && re.StatusCode == http.StatusBadRequest:
		return fmt.Errorf("%s: Cosmos DB refused: %w (a serverless account takes no throughput; others need one)", what, short(err))
	}
	return fmt.Errorf("%s: %w", what, short(err))
}
