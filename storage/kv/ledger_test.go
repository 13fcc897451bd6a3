package kv

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/athensctl/athensctl/storage"
)

// What may be forgotten is, when there is something to write: neither answers nor
// notes of when to look pile up.
func TestForgets(t *testing.T) {
	ctx := context.Background()
	now := time.Now()
	db := &Tree{}
	l := NewLedger(db, &Tree{}, 0, func() time.Time { return now })
	set := func(i int, query string, a storage.Known) {
		t.Helper()
		a.Checked = now.Add(time.Minute) // by another clock
		if err := l.SetKnown(ctx, storage.Key{Path: fmt.Sprint("example.com/m", i), Query: query, File: storage.FileInfo}, &a); err != nil {
			t.Fatal(err)
		}
	}
	kept := func() (answers, notes int) {
		t.Helper()
		for k := range content(t, db) {
			if strings.HasPrefix(k, "k") {
				answers++
			} else if strings.HasPrefix(k, "x") {
				notes++
			}
		}
		return answers, notes
	}
	const n = 20
	for range 100 { // a branch that is asked for all the time
		set(0, "main", storage.Known{Info: []byte(`{}`)})
		now = now.Add(time.Minute)
	}
	if answers, notes := kept(); answers != 1 || notes != 1 {
		t.Errorf("one answer, set again and again: %d answers, %d notes", answers, notes)
	}
	for i := range n {
		set(i, "v1.0.0", storage.Known{RefusedStatus: 404})
		set(i, "main", storage.Known{Info: []byte(`{}`)})
	}
	for _, tt := range []struct {
		after         time.Duration
		answers, left int
	}{
		{59 * time.Minute, 2 * n, 2 * n},
		{61 * time.Minute, n, n},
		{30*24*time.Hour + time.Minute, 0, 0},
	} {
		now = now.Add(tt.after)
		for range n {
			set(0, "latest", storage.Known{})
		}
		if answers, notes := kept(); answers != tt.answers+1 || notes != tt.left {
			t.Errorf("%v later: %d answers and %d notes, want %d and %d", tt.after, answers, notes, tt.answers+1, tt.left)
		}
	}
}

// A queue of a version that did not note the counts is counted.
func TestCountsOfOldQueue(t *testing.T) {
	ctx := context.Background()
	queue := &Tree{}
	l := NewLedger(&Tree{}, queue, 2, nil)
	job := func(i int) storage.Job {
		return storage.Job{Key: storage.Key{Path: "example.com/m", Query: fmt.Sprintf("v1.%d.0", i), File: storage.FileZip}}
	}
	if _, err := l.Enqueue(ctx, job(1)); err != nil {
		t.Fatal(err)
	}
	if err := queue.Update(func(tx Tx) error { return tx.Delete([]byte{'b'}) }); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Enqueue(ctx, job(2)); err != nil {
		t.Errorf("the second of two: %v", err)
	}
	if _, err := l.Enqueue(ctx, job(3)); !errors.Is(err, storage.ErrQueueFull) {
		t.Errorf("the third of two: %v", err)
	}
}
