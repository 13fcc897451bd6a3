package cosmos

import (
	"context"
	"fmt"
	"testing"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/storage/storagetest"
)

// A page of the catalog ends after some queries, however the versions are spread: each is
// in one page, and partitions that are empty by now are passed over.
func TestCatalogOfManyHosts(t *testing.T) {
	ctx := context.Background()
	f, a := fake(t)
	s := open(t, a, t.TempDir(), Options{})
	put := func(i int) storagetest.Version {
		v := storagetest.New(fmt.Sprintf("host%04d.example.com/m", i), "v1.0.0", "")
		if err := s.Put(ctx, v.Version, v.Files()); err != nil {
			t.Fatal(err)
		}
		return v
	}
	const hosts, empty = 70, 130
	for i := range hosts {
		put(2 * i)
	}
	for i := range empty { // some between those that have versions, and then a long row
		if err := s.Delete(ctx, put(2*i+1).Version); err != nil {
			t.Fatal(err)
		}
	}
	f.Calls()
	for _, size := range []int{1, 7, 50, 1000} {
		var got []module.Version
		pages, queries := 0, 0
		for token := ""; ; {
			page, err := s.Catalog(ctx, token, size)
			if err != nil {
				t.Fatal(err)
			}
			pages++
			n := len(f.Calls())
			if queries += n; n > catalogQueries+1 || len(page.Versions) > size {
				t.Errorf("page of %d: %d requests, %d versions", size, n, len(page.Versions))
			}
			got = append(got, page.Versions...)
			if page.Next == "" {
				break
			} else if page.Next == token {
				t.Fatalf("page of %d: the token does not go on", size)
			}
			token = page.Next
		}
		if len(got) != hosts {
			t.Errorf("pages of %d: %d versions, want %d", size, len(got), hosts)
		}
		for i, m := range got {
			if want := fmt.Sprintf("host%04d.example.com/m", 2*i); m.Path != want {
				t.Fatalf("pages of %d: version %d is %s, want %s", size, i, m, want)
			}
		}
		// One query for each partition, and one for each 50 of them, or each page.
		if most := hosts + empty + (hosts+empty)/catalogQueries + 2*pages; queries > most {
			t.Errorf("pages of %d: %d requests in %d pages, want %d at most", size, queries, pages, most)
		}
		t.Logf("pages of %d: %d requests in %d pages", size, queries, pages)
	}
}
