package kv

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func content(t *testing.T, db DB) map[string]string {
	t.Helper()
	got := map[string]string{}
	err := db.View(func(tx Tx) error {
		tx.Ascend(nil, func(k, v []byte) bool {
			got[string(k)] = string(v)
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// fill makes n transactions of up to three changes and returns the content
// after each.
func fill(t *testing.T, db DB, n int) []map[string]string {
	t.Helper()
	want := content(t, db)
	states := []map[string]string{maps.Clone(want)}
	for range n {
		err := db.Update(func(tx Tx) error {
			for range 1 + rand.IntN(3) {
				k := fmt.Sprint(rand.IntN(40))
				if rand.IntN(3) == 0 {
					delete(want, k)
					if err := tx.Delete([]byte(k)); err != nil {
						return err
					}
					continue
				}
				v := make([]byte, rand.IntN(300)) // an empty value is one too
				want[k] = string(v)
				if err := tx.Put([]byte(k), v); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		states = append(states, maps.Clone(want))
	}
	return states
}

func openJournal(t *testing.T, name string) *Journal {
	t.Helper()
	j, err := OpenJournal(name, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

// Cut anywhere, a journal has the content after some transaction: the last one
// that is whole.
func TestJournalCut(t *testing.T) {
	name := filepath.Join(t.TempDir(), "queue")
	j := openJournal(t, name)
	states := fill(t, j, 60)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	at := 0
	for cut := 0; cut <= len(whole); cut += 1 + rand.IntN(20) {
		broken := append([]byte{}, whole[:cut]...)
		if rand.IntN(2) == 0 { // and garbage where the rest would be
			broken = append(broken, make([]byte, rand.IntN(50))...)
			if cut > 0 && cut < len(whole) {
				broken[cut-1] ^= 0x55
			}
		}
		if err := os.WriteFile(name, broken, 0o600); err != nil {
			t.Fatal(err)
		}
		j := openJournal(t, name)
		got := content(t, j)
		for at < len(states) && !maps.Equal(got, states[at]) {
			at++
		}
		if at == len(states) {
			t.Fatalf("cut at %d of %d: content that never was: %v", cut, len(whole), got)
		}
		// It goes on from there.
		after := fill(t, j, 2)[2]
		j.Close()
		if got := content(t, openJournal(t, name)); !maps.Equal(got, after) {
			t.Fatalf("cut at %d: written after the cut: %v, want %v", cut, got, after)
		}
		at = max(0, at-1) // a flipped bit drops a record that a longer cut has
	}
}

// What follows a damaged record is kept aside, and the log says so; a journal that is
// whole, or was cut between two records, makes no such file.
func TestJournalDamaged(t *testing.T) {
	name := filepath.Join(t.TempDir(), "queue")
	j := openJournal(t, name)
	states := fill(t, j, 10)
	at := j.size
	fill(t, j, 10)
	j.Close()
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	aside := func() (content [][]byte) {
		t.Helper()
		names, err := filepath.Glob(name + ".damaged-*")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			content = append(content, b)
		}
		return content
	}
	openJournal(t, name).Close()
	if n := len(aside()); n != 0 {
		t.Errorf("%d files beside a whole journal", n)
	}
	damaged := bytes.Clone(whole)
	damaged[at+8] ^= 1 // the first byte behind a record's head
	if err := os.WriteFile(name, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	j, err = OpenJournal(name, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	if got := content(t, j); !maps.Equal(got, states[10]) {
		t.Errorf("content %v, want that before the damage, %v", got, states[10])
	}
	if kept := aside(); len(kept) != 1 || !bytes.Equal(kept[0], damaged[at:]) {
		t.Errorf("%d files kept aside, want one with the %d bytes from the damage on", len(kept), len(damaged)-int(at))
	}
	if want := fmt.Sprintf("from=%d bytes=%d", at, len(damaged)-int(at)); !strings.Contains(log.String(), want) {
		t.Errorf("log %q, want %q", log.String(), want)
	}
	j.Close()
	openJournal(t, name).Close() // it was cut
	if n := len(aside()); n != 1 {
		t.Errorf("%d files kept aside after another start, want the one", n)
	}
}

// A journal is written anew when it has grown, and loses nothing by it.
func TestJournalRewrite(t *testing.T) {
	name := filepath.Join(t.TempDir(), "queue")
	j := openJournal(t, name)
	j.rewrite = 10_000
	states := fill(t, j, 2000)
	if j.rewrites == 0 || j.size > 4<<20+10_000 {
		t.Errorf("%d rewrites, %d bytes", j.rewrites, j.size)
	}
	j.Close()
	again := openJournal(t, name)
	if got, want := content(t, again), states[len(states)-1]; !maps.Equal(got, want) {
		t.Errorf("content %v, want %v", got, want)
	}
	if err := again.compact(); err != nil {
		t.Fatal(err)
	}
	if got, want := content(t, openJournal(t, name)), states[len(states)-1]; !maps.Equal(got, want) {
		t.Errorf("after another: content %v, want %v", got, want)
	}
}

// A transaction that fails, or cannot be written, changes nothing.
func TestJournalFails(t *testing.T) {
	name := filepath.Join(t.TempDir(), "queue")
	j := openJournal(t, name)
	states := fill(t, j, 10)
	want := states[len(states)-1]
	bad := fmt.Errorf("no")
	if err := j.Update(func(tx Tx) error { tx.Put([]byte("x"), nil); return bad }); err != bad {
		t.Errorf("error %v", err)
	}
	j.f.Close() // every write fails
	if err := j.Update(func(tx Tx) error { return tx.Put([]byte("x"), nil) }); err == nil {
		t.Error("a write to a closed file succeeded")
	}
	if got := content(t, j); !maps.Equal(got, want) {
		t.Errorf("content %v, want %v", got, want)
	}
	if got := content(t, openJournal(t, name)); !maps.Equal(got, want) {
		t.Errorf("on disk: content %v, want %v", got, want)
	}
}

// A journal that cannot be written anew, since the disk is full, stays as it is and
// takes what comes.
func TestJournalRewriteFails(t *testing.T) {
	const full = "/dev/full"
	if _, err := os.Stat(full); err != nil {
		if os.Getenv("ATHENSCTL_TEST_REQUIRE") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	name := filepath.Join(t.TempDir(), "queue")
	j := openJournal(t, name)
	states := fill(t, j, 50)
	if err := os.Symlink(full, name+".new"); err != nil {
		t.Fatal(err)
	}
	j.rewrite = 0
	states = append(states, fill(t, j, 1)[1])
	if j.rewrites != 0 || j.rewrite <= j.size {
		t.Errorf("%d rewrites; the next at %d of %d bytes", j.rewrites, j.rewrite, j.size)
	}
	states = append(states, fill(t, j, 1)[1])
	j.Close()
	if st, err := os.Lstat(name); err != nil || !st.Mode().IsRegular() {
		t.Fatalf("the journal is not what it was: %v, %v", st, err)
	}
	if got, want := content(t, openJournal(t, name)), states[len(states)-1]; !maps.Equal(got, want) {
		t.Errorf("content %v, want %v", got, want)
	}
}

func FuzzJournal(f *testing.F) {
	f.Add([]byte{})
	f.Add(record([]change{{[]byte("a"), []byte("b")}, {[]byte("c"), nil}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		name := filepath.Join(t.TempDir(), "queue")
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		want := fill(t, openJournal(t, name), 3)[3]
		if got := content(t, openJournal(t, name)); !maps.Equal(got, want) {
			t.Errorf("content %v, want %v", got, want)
		}
	})
}
