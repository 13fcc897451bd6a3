package cosmos

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/internal/testazure"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/storagetest"
)

var update = flag.Bool("update", false, "write the table of docs/azure.md again")

// cost is what is charged for: requests to Cosmos DB and their units, and to Blob Storage.
type cost struct {
	trips         int
	units         float64
	writes, reads int // of Blob Storage
}

// The table of what each operation costs is made from the requests that are really
// sent, and is in docs/azure.md: a change that makes one dearer changes the page.
func TestCosts(t *testing.T) {
	ctx := context.Background()
	f, a := fake(t)
	s := open(t, a, t.TempDir(), Options{})
	blobs := testazure.StartBlob(t)
	dir := t.TempDir()
	elsewhere := open(t, a, dir, Options{Zips: openZips(t, blobs.Connection, dir)})
	costs := map[string]cost{}
	var order []string
	measure := func(name string, work func() error) {
		t.Helper()
		f.Calls()
		blobs.Calls()
		if err := work(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var c cost
		for _, call := range f.Calls() {
			c.trips++
			c.units += call.Units
		}
		for _, call := range blobs.Calls() {
			if call.Write() {
				c.writes++
			} else {
				c.reads++
			}
		}
		costs[name] = c
		order = append(order, name)
	}
	noise := make([]byte, 50<<20)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	files := func(path string, size int) (module.Version, storage.Files) {
		v := storagetest.New(path, "v1.2.3", "")
		// A go.mod file of a usual size.
		mod := append(v.Mod, []byte("\nrequire (\n"+strings.Repeat("\texample.com/some/dependency v1.2.3\n", 30)+")\n")...)
		return v.Version, storage.Files{Info: v.Info, Mod: mod, Zip: bytes.NewReader(noise[:size])}
	}
	put := func(s *Store, path string, size int) func() error {
		m, fs := files(path, size)
		return func() error { return s.Put(ctx, m, fs) }
	}
	read := func(get func(context.Context, module.Version) (interface {
		io.Reader
	}, error), m module.Version) func() error {
		return func() error {
			r, err := get(ctx, m)
			if err == nil {
				_, err = io.Copy(io.Discard, r)
			}
			return err
		}
	}
	zip := func(ctx context.Context, m module.Version) (interface{ io.Reader }, error) { return s.Zip(ctx, m) }
	zipElsewhere := func(ctx context.Context, m module.Version) (interface{ io.Reader }, error) {
		return elsewhere.Zip(ctx, m)
	}
	if err := put(s, "example.com/first", 1)(); err != nil { // makes the feed's first page
		t.Fatal(err)
	}
	if err := put(elsewhere, "example.com/first", 1)(); err != nil {
		t.Fatal(err)
	}
	small, large := module.Version{Path: "example.com/small", Version: "v1.2.3"}, module.Version{Path: "example.com/large", Version: "v1.2.3"}
	measure("put of .mod alone", func() error {
		_, fs := files("example.com/mod", 1)
		return s.Put(ctx, module.Version{Path: "example.com/mod", Version: "v1.2.3"}, storage.Files{Mod: fs.Mod})
	})
	measure("put, zip of 100 KB in Cosmos DB", put(s, small.Path, 100<<10))
	measure("put, zip of 5 MB in Cosmos DB", put(s, large.Path, 5<<20))
	huge := module.Version{Path: "example.com/huge", Version: "v1.2.3"}
	measure("put, zip of 100 KB in Blob Storage", put(elsewhere, small.Path, 100<<10))
	measure("put, zip of 5 MB in Blob Storage", put(elsewhere, large.Path, 5<<20))
	measure("put, zip of 50 MB in Blob Storage", put(elsewhere, huge.Path, 50<<20))
	measure(".info", func() error { _, err := s.Resolve(ctx, small.Path, small.Version); return err })
	measure(".mod", func() error { _, err := s.Mod(ctx, small); return err })
	measure(".zip of 100 KB in Cosmos DB", read(zip, small))
	measure(".zip of 5 MB in Cosmos DB", read(zip, large))
	measure(".zip of 100 KB in Blob Storage", read(zipElsewhere, small))
	measure(".zip of 5 MB in Blob Storage", read(zipElsewhere, large))
	measure(".zip of 50 MB in Blob Storage", read(zipElsewhere, huge))
	const many = 20
	for i := range many {
		v := storagetest.New("example.com/many", fmt.Sprintf("v1.%d.0", i), "")
		if err := s.Put(ctx, v.Version, v.Files()); err != nil {
			t.Fatal(err)
		}
	}
	measure(fmt.Sprintf("list of %d versions that are kept", many), func() error { _, err := s.List(ctx, "example.com/many"); return err })
	list := storage.Key{Path: small.Path, File: storage.FileList}
	var versions []string
	for i := range 50 {
		versions = append(versions, fmt.Sprintf("v1.%d.0", i))
	}
	measure("list kept (known)", func() error {
		return s.SetKnown(ctx, list, &storage.Known{Checked: time.Now(), Versions: versions})
	})
	measure("list read (known)", func() error { _, err := s.Known(ctx, list); return err })
	job := storage.Job{Key: storage.Key{Path: small.Path, Query: "v1.2.4", File: storage.FileMod}}
	measure("enqueue", func() error { _, err := s.Enqueue(ctx, job); return err })
	var claimed *storage.Job
	s.queue.polled = time.Now()
	measure("claim", func() (err error) { claimed, err = s.Claim(ctx, "w", time.Minute); return err })
	measure("done", func() error { return s.Done(ctx, claimed, nil) })
	job.Key.Query = "v1.2.5"
	measure("start (enqueue and claim)", func() (err error) { claimed, err = s.Start(ctx, job, "w", time.Minute); return err })
	measure("an idle look at the queue", func() error { s.queue.polled = time.Time{}; return s.poll(ctx) })
	measure("index page of 23", func() error { _, err := s.Index(ctx, time.Time{}, 100); return err })
	measure("catalog page of 23", func() error { _, err := s.Catalog(ctx, "", 100); return err })

	var b strings.Builder
	fmt.Fprintf(&b, "| operation | requests to Cosmos DB | units | writes to Blob Storage | reads |\n|---|---|---|---|---|\n")
	for _, name := range order {
		c := costs[name]
		fmt.Fprintf(&b, "| %s | %d | %.1f | %d | %d |\n", name, c.trips, c.units, c.writes, c.reads)
	}
	b.WriteString("\n")
	writePrices(&b, costs)

	const page = "../../docs/azure.md"
	const begin, end = "<!-- costs: made by go test ./storage/cosmos -run TestCosts -update -->\n", "<!-- end of costs -->\n"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok1 := strings.Cut(string(text), begin)
	have, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no place for the costs", page)
	}
	if *update {
		if err := os.WriteFile(page, []byte(before+begin+b.String()+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if have != b.String() {
		t.Errorf("what operations cost has changed; if it should, run with -update. Now:\n%s", b.String())
	}
}

// Prices in dollars, as Microsoft lists them for one region of the US.
const (
	perMillionUnits  = 0.25  // serverless
	perCosmosGB      = 0.25  // a month
	perBlobGB        = 0.018 // a month, hot, locally redundant
	perTenThousand   = 0.004 // reads of blobs, of any size
	perTenThousandWr = 0.05  // writes of blobs, or of a block of one
)

// operations is what the requests to Blob Storage cost, in dollars.
func (c cost) operations() float64 {
	return float64(c.reads)/1e4*perTenThousand + float64(c.writes)/1e4*perTenThousandWr
}

// writePrices: what a month costs. Proxies answer most from their caches: the reads
// here are those that reach storage.
func writePrices(b *strings.Builder, costs map[string]cost) {
	const month = 30
	getBlob, putBlob := costs[".zip of 5 MB in Blob Storage"], costs["put, zip of 5 MB in Blob Storage"] // one of 1 MB costs the same
	fmt.Fprintf(b, "| site | reads of storage a day (.info, .mod, zip) | lists a day, read and refreshed | new versions a day | kept | units a month | Cosmos DB and Blob a month | zips in Cosmos DB instead |\n|---|---|---|---|---|---|---|---|\n")
	for _, site := range []struct {
		name              string
		info, zips, lists float64
		fresh             float64
		keptGB            float64
	}{
		{"small: 50 developers and their CI", 20_000, 2_000, 10_000, 300, 20},
		{"large: a public proxy", 2_000_000, 200_000, 1_000_000, 20_000, 3_000},
	} {
		rest := site.info*costs[".mod"].units + site.lists*(costs["list read (known)"].units+costs["list kept (known)"].units) +
			site.fresh*3*(costs["start (enqueue and claim)"].units+costs["done"].units) +
			2*86_400*costs["an idle look at the queue"].units // two replicas, a look a second
		withBlob := month * (rest + site.zips*getBlob.units + site.fresh*putBlob.units)
		// A zip of 1 MB stands between the two that are measured.
		inCosmos := month * (rest + site.zips*costs[".zip of 5 MB in Cosmos DB"].units/5 + site.fresh*costs["put, zip of 5 MB in Cosmos DB"].units/5)
		metadataGB := site.keptGB / 100
		dollars := withBlob/1e6*perMillionUnits + metadataGB*perCosmosGB + site.keptGB*perBlobGB +
			month*(site.zips*getBlob.operations()+site.fresh*putBlob.operations())
		without := inCosmos/1e6*perMillionUnits + (metadataGB+site.keptGB*4/3)*perCosmosGB
		fmt.Fprintf(b, "| %s | %.0f + %.0f | %.0f | %.0f | %.0f GB | %.0f million | $%.0f | $%.0f |\n",
			site.name, site.info, site.zips, site.lists, site.fresh, site.keptGB, withBlob/1e6, dollars, without)
	}
}
