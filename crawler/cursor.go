package crawler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/athensctl/athensctl/storage"
)

// cursor is a place, of type T, that is kept in the ledger, and that one crawler of
// the fleet holds at a time.
type cursor[T any] struct {
	ledger storage.Ledger
	key    string
	holder string

	mu   sync.Mutex
	kept []byte // as it is in the ledger
	at   T
}

// place is how a cursor is kept.
type place[T any] struct {
	At     T
	Holder string    `json:",omitempty"`
	Until  time.Time // when another may hold it
}

// A crawler that died is followed by another after this long.
const holdFor = time.Minute

// errHeld: another crawler holds the cursor.
var errHeld = errors.New("another crawler does it")

// hold calls f while this crawler holds the cursor: with what is kept, and a context
// that ends when another has taken it.
func (cu *cursor[T]) hold(ctx context.Context, f func(context.Context) error) error {
	raw, err := cu.ledger.Load(ctx, cu.key)
	if err != nil {
		return err
	}
	var p place[T]
	if raw != nil {
		if err := json.Unmarshal(raw, &p); err != nil {
			return fmt.Errorf("%s: %w", cu.key, err)
		}
	}
	// Longer than anybody holds it is no time that somebody holds it: a clock was set back.
	left := time.Until(p.Until)
	if p.Holder != "" && p.Holder != cu.holder && left > 0 && left <= holdFor+storage.ClocksDiffer {
		return errHeld
	}
	cu.kept, cu.at = raw, p.At
	if err := cu.write(ctx, holdFor); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for failed := 0; sleep(ctx, holdFor/4); {
			switch err := cu.write(ctx, holdFor); {
			case err == nil:
				failed = 0
			case errors.Is(err, errHeld):
				cancel(err)
				return
			default:
				if failed++; failed == 4 { // the lease is over
					cancel(err)
					return
				}
			}
		}
	})
	err = f(ctx)
	lost := context.Cause(ctx)
	cancel(nil)
	wg.Wait()
	if errors.Is(lost, errHeld) {
		return errHeld
	}
	// Given back, for the next crawler: worth a moment at the end of the process.
	end, stop := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer stop()
	cu.write(end, 0)
	return err
}

// move keeps a new place.
func (cu *cursor[T]) move(ctx context.Context, at T) error {
	cu.mu.Lock()
	cu.at = at
	cu.mu.Unlock()
	return cu.write(ctx, holdFor)
}

func (cu *cursor[T]) write(ctx context.Context, hold time.Duration) error {
	cu.mu.Lock()
	defer cu.mu.Unlock()
	p := place[T]{At: cu.at, Holder: cu.holder, Until: time.Now().Add(hold).UTC()}
	if hold == 0 {
		p.Holder = ""
	}
	raw, err := json.Marshal(p)
	if err != nil {
		return err
	}
	for range 3 {
		err = cu.ledger.CompareAndSwap(ctx, cu.key, cu.kept, raw)
		if !errors.Is(err, storage.ErrSwapped) {
			break
		}
		// A write of one's own, of which the answer was lost, or came too late, is no
		// other's.
		now, e := cu.ledger.Load(ctx, cu.key)
		if e != nil {
			return e
		}
		var other place[T]
		if string(now) != string(raw) && (json.Unmarshal(now, &other) != nil || other.Holder != cu.holder) {
			return errHeld
		}
		cu.kept = now
		if string(now) == string(raw) {
			return nil
		}
	}
	if errors.Is(err, storage.ErrSwapped) {
		return errHeld
	}
	if err == nil {
		cu.kept = raw
	}
	return err
}
