package cosmos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/cosmosfake"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/storagetest"
)

// at calls f before the k-th request from now on, while that waits; reached says whether
// there was one. Requests that f makes do not count.
func at(fake *cosmosfake.Server, k int, f func(cosmosfake.Call) *cosmosfake.Fault) (reached func() bool) {
	var n atomic.Int64
	var inside, done atomic.Bool
	fake.SetFault(func(c cosmosfake.Call) *cosmosfake.Fault {
		if inside.Load() || n.Add(1) != int64(k) {
			return nil
		}
		inside.Store(true)
		defer inside.Store(false)
		done.Store(true)
		return f(c)
	})
	return func() bool {
		fake.SetFault(nil)
		return done.Load()
	}
}

// wantAgree: a version that is complete is in the catalog and the index once, and its
// bytes are there; another is in neither.
func wantAgree(t *testing.T, s *Store, v storagetest.Version, when string) {
	t.Helper()
	wantAllAgree(t, s, map[string]storagetest.Version{when: v})
}

// wantAllAgree is wantAgree of many, by how each came about.
func wantAllAgree(t *testing.T, s *Store, all map[string]storagetest.Version) {
	t.Helper()
	ctx := context.Background()
	page, err := s.Catalog(ctx, "", 10_000)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := s.Index(ctx, time.Time{}, 10_000)
	if err != nil {
		t.Fatal(err)
	}
	listed, indexed := map[string]int{}, map[string]int{}
	for _, m := range page.Versions {
		listed[m.String()]++
	}
	for _, e := range entries {
		indexed[e.Path+"@"+e.Version]++
	}
	for when, v := range all {
		item, _, err := s.version(ctx, "test", v.Version)
		if err != nil && err != errAbsent {
			t.Fatal(err)
		}
		want := 0
		if err == nil && item.Complete != 0 {
			want = 1
		}
		if listed, indexed := listed[v.String()], indexed[v.String()]; listed != want || indexed != want {
			t.Errorf("%s: %s: kept %d, in the catalog %d, in the index %d", when, v, want, listed, indexed)
		}
		if want == 1 {
			b, err := s.Zip(ctx, v.Version)
			if err == nil {
				_, err = io.Copy(io.Discard, b)
			}
			if err != nil {
				t.Errorf("%s: the zip of %s: %v", when, v, err)
			}
		}
	}
}

func tombstones(t *testing.T, s *Store, v storagetest.Version) (n int) {
	t.Helper()
	gone, err := s.Deleted(context.Background(), time.Time{}, 10_000)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range gone {
		if e.Path == v.Path && e.Version == v.Version.Version {
			n++
		}
	}
	return n
}

// Who reads a tombstone and asks again gets nothing: it would keep that for ever.
func TestTombstoneComesLast(t *testing.T) {
	ctx := context.Background()
	f, a := fake(t)
	dir := t.TempDir()
	s, other := open(t, a, dir, Options{}), open(t, a, dir, Options{})
	for k, reached := 1, true; reached; k++ {
		v := storagetest.New(fmt.Sprintf("example.com/m%d", k), "v1.0.0", "")
		if err := s.Put(ctx, v.Version, v.Files()); err != nil {
			t.Fatal(err)
		}
		was := at(f, k, func(c cosmosfake.Call) *cosmosfake.Fault {
			if tombstones(t, other, v) > 0 {
				if _, err := other.Mod(ctx, v.Version); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("before request %d (%s): there is a tombstone, and the version is served: %v", k, c.Op, err)
				}
			}
			return nil
		})
		if err := s.Delete(ctx, v.Version); err != nil {
			t.Fatal(err)
		}
		reached = was()
		if n := tombstones(t, s, v); n != 1 {
			t.Errorf("%d tombstones", n)
		}
	}
}

// A Put, of the same bytes or of others, that comes between any two requests of a
// Delete, and a Delete between any two of a Put: in the end catalog and index say what is
// kept, at once, and after Finish and Sweep too.
func TestPutAndDelete(t *testing.T) {
	ctx := context.Background()
	f, a := fake(t)
	dir := t.TempDir()
	now, later := skewed()
	// Pages of five, so that they are turned over in between too.
	s, other := open(t, a, dir, Options{Now: now, PageSize: 5}), open(t, a, dir, Options{Now: now, PageSize: 5})
	var all []storagetest.Version
	for _, tt := range []struct {
		name           string
		before, during func(v, changed storagetest.Version) error
		second         func(v, changed storagetest.Version) error
	}{
		{"delete, put of the same",
			func(v, _ storagetest.Version) error { return s.Put(ctx, v.Version, v.Files()) },
			func(v, _ storagetest.Version) error { return s.Delete(ctx, v.Version) },
			func(v, _ storagetest.Version) error { return other.Put(ctx, v.Version, v.Files()) }},
		{"delete, put of others",
			func(v, _ storagetest.Version) error { return s.Put(ctx, v.Version, v.Files()) },
			func(v, _ storagetest.Version) error { return s.Delete(ctx, v.Version) },
			func(v, changed storagetest.Version) error { return other.Put(ctx, v.Version, changed.Files()) }},
		{"put, delete",
			func(v, _ storagetest.Version) error { return s.Put(ctx, v.Version, storage.Files{Info: v.Info}) },
			func(v, _ storagetest.Version) error { return s.Put(ctx, v.Version, v.Files()) },
			func(v, _ storagetest.Version) error { return other.Delete(ctx, v.Version) }},
		{"put of what is kept, delete",
			func(v, _ storagetest.Version) error { return s.Put(ctx, v.Version, v.Files()) },
			func(v, _ storagetest.Version) error { return s.Put(ctx, v.Version, v.Files()) },
			func(v, _ storagetest.Version) error { return other.Delete(ctx, v.Version) }},
		{"put of what is kept, delete and put of others",
			func(v, _ storagetest.Version) error { return s.Put(ctx, v.Version, v.Files()) },
			func(v, _ storagetest.Version) error { return s.Put(ctx, v.Version, v.Files()) },
			func(v, changed storagetest.Version) error {
				return errors.Join(other.Delete(ctx, v.Version), other.Put(ctx, v.Version, changed.Files()))
			}},
	} {
		for k, reached := 1, true; reached; k++ {
			v := storagetest.New(fmt.Sprintf("example.com/m%d", len(all)), "v1.0.0", "")
			changed := storagetest.New(v.Path, "v1.0.0", "changed")
			all = append(all, v)
			if err := tt.before(v, changed); err != nil {
				t.Fatal(err)
			}
			was := at(f, k, func(cosmosfake.Call) *cosmosfake.Fault {
				err := tt.second(v, changed)
				if s := goproxy.Status(err); err != nil && s != 409 && s != 404 && s != 503 {
					t.Errorf("%s, at request %d: %v", tt.name, k, err)
				}
				return nil
			})
			err := tt.during(v, changed)
			if s := goproxy.Status(err); err != nil && s != 409 && s != 404 && s != 503 {
				t.Errorf("%s, request %d: %v", tt.name, k, err)
			}
			reached = was()
			wantAgree(t, s, v, fmt.Sprintf("%s, at request %d", tt.name, k))
		}
	}
	t.Logf("%d ways", len(all))
	for _, d := range []time.Duration{time.Minute, 2 * time.Hour} {
		later(d)
		if err := errors.Join(s.Finish(ctx), other.Sweep(ctx)); err != nil {
			t.Error(err)
		}
		for _, v := range all {
			wantAgree(t, s, v, fmt.Sprintf("%v later", d))
		}
	}
}

// A Delete that is cut before any of its requests, or behind it, has changed nothing, or is
// ended a minute later: with a tombstone, also where the version was put again by then.
func TestDeleteCut(t *testing.T) {
	ctx := context.Background()
	f, a := fake(t)
	dir := t.TempDir()
	now, later := skewed()
	s := open(t, a, dir, Options{Now: now})
	ways := 0
	for _, again := range []string{"", "same", "others"} {
		for _, part := range []bool{false, true} {
			for _, done := range []bool{false, true} {
				for k, reached := 1, true; reached; k++ {
					ways++
					v := storagetest.New(fmt.Sprintf("example.com/%s%v%v%d", again, part, done, k), "v1.0.0", "")
					when := fmt.Sprintf("put again %q, of a part %v, cut at request %d, which is done %v", again, part, k, done)
					files := v.Files()
					if part {
						files.Info, files.Zip = nil, nil
					}
					if err := s.Put(ctx, v.Version, files); err != nil {
						t.Fatal(err)
					}
					f.Calls()
					var n atomic.Int64
					f.SetFault(func(cosmosfake.Call) *cosmosfake.Fault {
						switch i := n.Add(1); {
						case i == int64(k) && done:
							return &cosmosfake.Fault{Status: 400, After: true}
						case i >= int64(k):
							return &cosmosfake.Fault{Status: 400}
						}
						return nil
					})
					err := s.Delete(ctx, v.Version)
					f.SetFault(nil)
					reached = n.Load() >= int64(k)
					if (err != nil) != reached {
						t.Errorf("%s: %v", when, err)
					}
					gone := false
					if _, err := s.Mod(ctx, v.Version); err != nil {
						gone = true
					}
					switch again {
					case "same":
						err = s.Put(ctx, v.Version, v.Files())
					case "others":
						err = s.Put(ctx, v.Version, storagetest.New(v.Path, "v1.0.0", "changed").Files())
					default:
						err = nil
					}
					if err != nil && (gone || !errors.Is(err, storage.ErrConflict)) {
						t.Errorf("%s: put again: %v", when, err)
					}
					later(time.Minute)
					if err := s.Finish(ctx); err != nil {
						t.Errorf("%s: Finish: %v", when, err)
					}
					wantAgree(t, s, v, when)
					if n := tombstones(t, s, v); gone && n == 0 {
						t.Errorf("%s: it was gone, and there is no tombstone", when)
					}
					// Once ended, nothing is done again.
					before := tombstones(t, s, v)
					later(time.Minute)
					if err := s.Finish(ctx); err != nil || tombstones(t, s, v) != before {
						t.Errorf("%s: the next Finish: %v, %d more tombstones", when, err, tombstones(t, s, v)-before)
					}
				}
			}
		}
	}
	t.Logf("%d ways", ways)
}

// mortal carries the requests of a replica that dies: before one of them another replica does
// something, and before one that is that or a later one it is killed. Nothing that it has begun goes on then.
type mortal struct {
	mu          sync.Mutex
	alive       bool // requests count
	n           int
	meets, dies int
	meet        func()
	met, dead   bool
}

type killed struct{}

func (killed) Error() string { return "the process was killed" }
func (killed) NonRetriable() {}

func (m *mortal) RoundTrip(r *http.Request) (*http.Response, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.alive {
		if m.n++; m.n == m.meets {
			m.met = true
			m.meet()
		}
		m.dead = m.dead || m.n == m.dies
	}
	if m.dead {
		return nil, killed{}
	}
	return http.DefaultTransport.RoundTrip(r)
}

// A replica puts or deletes, another does the opposite in between, and the first is killed: at any of
// its requests each. A minute later what that has made or left is in the catalog and the index, and
// when Puts that went on then must have ended, what it has not is in neither.
func TestKilledWithAnother(t *testing.T) {
	ctx := context.Background()
	_, a := fake(t)
	now, later := skewed()
	type does = func(*Store, storagetest.Version) error
	nothing := func(*Store, storagetest.Version) error { return nil }
	put := func(s *Store, v storagetest.Version) error { return s.Put(ctx, v.Version, v.Files()) }
	part := func(s *Store, v storagetest.Version) error {
		return s.Put(ctx, v.Version, storage.Files{Info: v.Info, Zip: v.Files().Zip})
	}
	rest := func(s *Store, v storagetest.Version) error {
		return s.Put(ctx, v.Version, storage.Files{Mod: v.Mod})
	}
	remove := func(s *Store, v storagetest.Version) error { return s.Delete(ctx, v.Version) }
	ways := 0
	for _, tt := range []struct {
		name                   string
		before, during, second does
		soon                   bool
	}{
		{"delete, put", put, remove, put, true},
		{"put of the rest, delete", part, rest, remove, false},
		{"put of what is kept, delete", put, put, remove, false},
		{"put, put and delete", nothing, put, func(s *Store, v storagetest.Version) error { return errors.Join(put(s, v), remove(s, v)) }, false},
	} {
		dir := t.TempDir()
		other := open(t, a, dir, Options{Now: now, PageSize: 5, Log: slog.New(slog.DiscardHandler)})
		database, _ := databases.Load(dir)
		all := map[string]storagetest.Version{}
		fine := func(when string, err error) {
			if s := goproxy.Status(err); err != nil && s != 409 && s != 404 && s != 503 {
				t.Errorf("%s: %v", when, err)
			}
		}
		for k, met := 1, true; met; k++ {
			for end, died := k, true; died; end++ {
				when := fmt.Sprintf("%s, at request %d, killed at %d", tt.name, k, end)
				v := storagetest.New(fmt.Sprintf("example.com/m%d", len(all)), "v1.0.0", "")
				all[when] = v
				if err := tt.before(other, v); err != nil {
					t.Fatal(err)
				}
				m := &mortal{meets: k, dies: end, meet: func() { fine(when, tt.second(other, v)) }}
				mortal := a
				mortal.Database = database.(string)
				mortal.HTTP = &http.Client{Transport: m}
				s, err := Open(ctx, mortal, Options{Now: now, PageSize: 5, Log: slog.New(slog.DiscardHandler)})
				if err != nil {
					t.Fatal(err)
				}
				m.alive = true
				fine(when, tt.during(s, v))
				m.mu.Lock()
				met, died = m.met, m.dead
				m.dead = true
				m.mu.Unlock()
			}
		}
		ways += len(all)
		later(time.Minute)
		if err := other.Finish(ctx); err != nil {
			t.Error(err)
		}
		if tt.soon {
			wantAllAgree(t, other, all)
		}
		later(2 * time.Hour)
		if err := other.Sweep(ctx); err != nil {
			t.Error(err)
		}
		wantAllAgree(t, other, all)
		// Nothing is left to be done, and no bytes of what is not kept.
		left := 0
		if err := other.query(ctx, other.ledger, "test", "", "SELECT * FROM c WHERE c.started > 0", 100, nil, decode(func(*intent) bool { left++; return true })); err != nil || left > 0 {
			t.Errorf("%s: %d intents are left: %v", tt.name, left, err)
		}
		for when, v := range all {
			z, err := other.source(ctx, bytes.NewReader(v.Zip))
			if err != nil {
				t.Fatal(err)
			}
			name, err := zipName(v.Version, z.sha)
			if err != nil {
				t.Fatal(err)
			}
			_, err = other.get(ctx, other.modules, "test", chunkPK(name), chunkID(0), new(chunk))
			if _, kept := other.Zip(ctx, v.Version); (kept == nil) != (err == nil) {
				t.Errorf("%s: kept: %v, its bytes: %v", when, kept, err)
			}
		}
	}
	t.Logf("%d ways", ways)
}

// Two replicas put and delete one version as fast as they can, with pauses anywhere.
func TestPutsAndDeletes(t *testing.T) {
	ctx := context.Background()
	f, a := fake(t)
	dir := t.TempDir()
	now, later := skewed()
	stores := []*Store{open(t, a, dir, Options{Now: now, PageSize: 7}), open(t, a, dir, Options{Now: now, PageSize: 7})}
	f.SetFault(func(cosmosfake.Call) *cosmosfake.Fault {
		return &cosmosfake.Fault{Delay: time.Duration(rand.IntN(3)) * time.Millisecond}
	})
	one, two := storagetest.New("example.com/m", "v1.0.0", "one"), storagetest.New("example.com/m", "v1.0.0", "two")
	for round := range 5 {
		var wg sync.WaitGroup
		for _, s := range stores {
			for range 2 {
				wg.Go(func() {
					for range 6 {
						var err error
						switch rand.IntN(3) {
						case 0:
							err = s.Put(ctx, one.Version, one.Files())
						case 1:
							err = s.Put(ctx, two.Version, two.Files())
						default:
							err = s.Delete(ctx, one.Version)
						}
						if st := goproxy.Status(err); err != nil && st != 404 && st != 409 && st != 503 {
							t.Error(err)
						}
					}
				})
			}
		}
		wg.Wait()
		wantAgree(t, stores[0], one, fmt.Sprintf("round %d", round))
		later(2 * time.Hour)
		if err := errors.Join(stores[0].Finish(ctx), stores[1].Sweep(ctx)); err != nil {
			t.Error(err)
		}
		wantAgree(t, stores[0], one, fmt.Sprintf("round %d, after the sweep", round))
	}
	b, err := stores[0].Zip(ctx, one.Version)
	if errors.Is(err, fs.ErrNotExist) {
		return
	} else if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, one.Zip) && !bytes.Equal(got, two.Zip) {
		t.Errorf("%d bytes that nobody put, %v", len(got), err)
	}
}
