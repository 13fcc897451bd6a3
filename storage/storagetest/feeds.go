package storagetest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

func fill(t *testing.T, s storage.Store) []module.Version {
	var all []module.Version
	all = append(all, awkward...)
	for i := range 30 {
		all = append(all, module.Version{Path: fmt.Sprintf("example.com/n%d", i%7), Version: fmt.Sprintf("v1.%d.0", i)})
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, m := range all {
		must(t, s.Put(ctx, m, New(m.Path, m.Version, "").Files()))
	}
	return all
}

// Every pair appears once, in order, whatever the page size.
func catalog(t *testing.T, b Backend) {
	s, _ := b.open(t, t.TempDir(), time.Now)
	all := fill(t, s)
	slices.SortFunc(all, func(a, b module.Version) int {
		return cmpStrings(a.Path, b.Path, a.Version, b.Version)
	})
	for size := 1; size <= len(all)+1; size++ {
		var got []module.Version
		for token := ""; ; {
			page, err := s.Catalog(ctx, token, size)
			must(t, err)
			if len(page.Versions) > size {
				t.Fatalf("page of %d, asked for %d", len(page.Versions), size)
			}
			got = append(got, page.Versions...)
			if token = page.Next; token == "" {
				break
			}
		}
		if !slices.Equal(got, all) {
			t.Fatalf("page size %d: got %d pairs, want %d in order", size, len(got), len(all))
		}
	}
	for _, bad := range []func() error{
		func() error { _, err := s.Catalog(ctx, "no token", 1); return err },
		func() error { _, err := s.Catalog(ctx, "", 0); return err },
	} {
		if err := bad(); goproxy.Status(err) != 400 {
			t.Errorf("got %v, want status 400", err)
		}
	}
}

func cmpStrings(pairs ...string) int {
	for i := 0; i < len(pairs); i += 2 {
		if c := strings.Compare(pairs[i], pairs[i+1]); c != 0 {
			return c
		}
	}
	return 0
}

// Times only grow, even when the clock goes back; a follower misses nothing.
func index(t *testing.T, b Backend) {
	c := newClock()
	s, _ := b.open(t, t.TempDir(), func() time.Time { c.advance(-time.Second); return c.now() })
	all := fill(t, s)
	whole, err := s.Index(ctx, time.Time{}, len(all)+1)
	must(t, err)
	if len(whole) != len(all) {
		t.Fatalf("%d entries, want %d", len(whole), len(all))
	}
	for i, e := range whole {
		if (module.Version{Path: e.Path, Version: e.Version}) != all[i] {
			t.Errorf("entry %d is %v, want %v", i, e, all[i])
		}
		if i > 0 && !e.Timestamp.After(whole[i-1].Timestamp) {
			t.Errorf("entry %d is not later than the one before", i)
		}
	}
	// Anybody may ask for any time that RFC 3339 has.
	for year, want := range map[int]int{0: len(all), 1000: len(all), 1600: len(all), 2300: 0, 9999: 0} {
		got, err := s.Index(ctx, time.Date(year, 1, 2, 3, 4, 5, 6, time.UTC), len(all)+1)
		if err != nil || len(got) != want {
			t.Errorf("since the year %d: %d entries, want %d: %v", year, len(got), want, err)
		}
	}
	for _, size := range []int{2, 3, 7, len(all)} {
		var got []storage.IndexEntry
		since := time.Time{}
		for {
			page, err := s.Index(ctx, since, size)
			must(t, err)
			if len(got) > 0 && len(page) > 0 && page[0] == got[len(got)-1] {
				page = page[1:]
			}
			if len(page) == 0 {
				break
			}
			got = append(got, page...)
			since = got[len(got)-1].Timestamp
		}
		if !slices.Equal(got, whole) {
			t.Errorf("resumed with pages of %d: %d entries, want %d", size, len(got), len(whole))
		}
	}
}

// A follower that reads while others write sees each entry once, in order.
func indexWriters(t *testing.T, b Backend) {
	s, _ := b.open(t, t.TempDir(), time.Now)
	const writers, each = 4, 8
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				v := New(fmt.Sprintf("example.com/w%d", w), fmt.Sprintf("v1.%d.0", i), "")
				if err := s.Put(ctx, v.Version, v.Files()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	seen := map[string]bool{}
	since := time.Time{}
	for deadline := time.Now().Add(30 * time.Second); len(seen) < writers*each; {
		if time.Now().After(deadline) {
			t.Fatalf("the follower saw %d of %d", len(seen), writers*each)
		}
		page, err := s.Index(ctx, since, 3)
		must(t, err)
		for _, e := range page {
			seen[e.Path+"@"+e.Version] = true
			since = e.Timestamp.Add(time.Microsecond) // nothing may come before
		}
	}
	wg.Wait()
}
