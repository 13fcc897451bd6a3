package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/athensctl/athensctl/config"
	"github.com/athensctl/athensctl/storage/blob"
	"github.com/athensctl/athensctl/storage/cosmos"
)

// openTimeout bounds the first request to Azure.
const openTimeout = 30 * time.Second

// azure are the accounts that the settings name.
type azure struct {
	cosmos cosmos.Account
	blob   *blob.Account // nil: zips are in Cosmos DB
}

func azureOf(cfg *config.Config) azure {
	a := azure{cosmos: cosmos.Account{
		Endpoint: cfg.CosmosEndpoint, Key: cfg.CosmosKey, Connection: cfg.CosmosConnectionString,
		Database: cfg.CosmosDatabase, Regions: cfg.CosmosRegions,
	}}
	if cfg.BlobEndpoint != "" || cfg.BlobConnectionString != "" {
		a.blob = &blob.Account{Endpoint: cfg.BlobEndpoint, Connection: cfg.BlobConnectionString, Container: cfg.BlobContainer}
	}
	return a
}

func (p *process) openCosmos(ctx context.Context) (*cosmos.Store, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	a := azureOf(p.cfg)
	tmp, err := p.tempDir()
	if err != nil {
		return nil, err
	}
	o := cosmos.Options{TempDir: tmp, QueueMax: p.cfg.QueueMax, BackgroundUnits: p.cfg.CosmosBackgroundUnits, Metrics: p.registry, Log: p.log}
	if a.blob != nil {
		if o.Zips, err = blob.Open(ctx, *a.blob); err != nil {
			return nil, err
		}
	}
	return cosmos.Open(ctx, a.cosmos, o)
}

// storageCommand is what an operator does with the store itself.
func storageCommand(environ []string) *cobra.Command {
	storage := group(&cobra.Command{Use: "storage", Short: "Prepare the store"})
	var t cosmos.Throughput
	initialise := &cobra.Command{
		Use:   "init",
		Short: "Make the database and the containers of store cosmos, where they are not there",
		Long: `Makes the database, its containers and the container for zips, where they are not
there, and says what it did. It can be run again.

It needs a key or a connection string: an identity may read and write items but not
make databases. In production Terraform makes them (deploy/terraform).`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(cmd.Flags(), environ)
			if err != nil {
				return err
			}
			if cfg.Store != "cosmos" {
				return fmt.Errorf("store %s needs no preparation; it is --store=cosmos that does", cfg.Store)
			}
			if t.Manual < 0 || t.AutoscaleMax < 0 {
				return fmt.Errorf("throughput and autoscale are numbers of units, not %d", min(t.Manual, t.AutoscaleMax))
			}
			a := azureOf(cfg)
			report := func(s string) { fmt.Fprintln(cmd.OutOrStdout(), s) }
			ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Minute)
			defer cancel()
			err = cosmos.Init(ctx, a.cosmos, t, report)
			if err == nil && a.blob != nil {
				err = blob.Init(ctx, *a.blob, report)
			}
			if err != nil && cmd.Context().Err() != nil {
				return cmd.Context().Err() // the SDK has words of its own for it
			}
			return err
		},
	}
	config.Flags(initialise.Flags())
	initialise.Flags().Int32Var(&t.Manual, "throughput", 0, "request units a second that the containers share; 0: a serverless account")
	initialise.Flags().Int32Var(&t.AutoscaleMax, "autoscale", 0, "as --throughput, as the most that autoscale goes up to")
	initialise.MarkFlagsMutuallyExclusive("throughput", "autoscale")
	storage.AddCommand(initialise)
	return storage
}
