package git

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// A host has its part and no more; another that comes later is not held up by those of
// the first that wait.
func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := Half(4)
		ctx := t.Context()
		for range 2 {
			if err := b.Acquire(ctx, "slow", 1); err != nil {
				t.Fatal(err)
			}
		}
		got := make(chan error, 3)
		for range 2 {
			go func() { got <- b.Acquire(ctx, "slow", 1) }()
		}
		synctest.Wait()
		if len(got) > 0 || b.TryAcquire("slow", 1) {
			t.Fatal("a host has more than half")
		}
		if err := b.Acquire(ctx, "quick", 2); err != nil {
			t.Fatal(err)
		}
		if b.TryAcquire("third", 1) {
			t.Fatal("more than there is")
		}
		gone, cancel := context.WithCancel(ctx)
		left := make(chan error, 1)
		go func() { left <- b.Acquire(gone, "third", 1) }()
		synctest.Wait()
		cancel()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		b.Release("quick", 2)
		b.Release("slow", 2)
		synctest.Wait()
		if len(got) != 2 {
			t.Errorf("%d of 2 who waited", len(got))
		}
		b.Release("slow", 2)
		if b.used != 0 || len(b.by) != 0 || len(b.waiting) != 0 {
			t.Errorf("%+v", b)
		}
	})
	var none *Budget
	none.Release("h", 1)
	if !none.TryAcquire("h", 1<<40) || none.Acquire(t.Context(), "h", 1<<40) != nil {
		t.Error("nil has a bound")
	}
}
