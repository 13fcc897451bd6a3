package kv

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"sync"
	"time"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// maxStateBytes is the size of a small value.
const maxStateBytes = 64 << 10

// How long an answer of upstream is remembered when nobody asks for it again.
const (
	forgetRefused = time.Hour
	forgetQuery   = 30 * 24 * time.Hour
)

// Ledger implements storage.Ledger, and the catalog and index half of
// storage.Store, for one process. Jobs survive the process; who waits for one
// does not.
type Ledger struct {
	db       DB
	queue    DB
	now      func() time.Time
	queueMax int

	mu      sync.Mutex
	waiting map[storage.Key][]chan error // each takes one error
}

var _ storage.Ledger = (*Ledger)(nil)

// NewLedger returns a ledger over db, and queue for the jobs. A queue may have a
// method Sync: what nobody waits for, and so nobody would ask for again, is in the
// queue when it has returned. queueMax bounds the jobs, as storage.QueueCounts has it; 0: no bound. now is the
// clock; nil is time.Now.
func NewLedger(db, queue DB, queueMax int, now func() time.Time) *Ledger {
	if now == nil {
		now = time.Now
	}
	return &Ledger{db: db, queue: queue, now: now, queueMax: queueMax, waiting: map[storage.Key][]chan error{}}
}

func ledgerKey(prefix byte, k storage.Key) []byte {
	return key(prefix, k.Path, k.Query, string(k.File))
}

// Known implements storage.Ledger.
func (l *Ledger) Known(ctx context.Context, k storage.Key) (*storage.Known, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var a *storage.Known
	err := l.db.View(func(tx Tx) error {
		b := tx.Get(ledgerKey('k', k))
		if b == nil {
			return fmt.Errorf("%s: nothing is known: %w", k, fs.ErrNotExist)
		}
		a = new(storage.Known)
		return json.Unmarshal(b, a)
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

// known is an answer as it is kept.
type known struct {
	*storage.Known
	Forget time.Time `json:",omitzero"` // when its time has come; zero: never
}

// SetKnown implements storage.Ledger: a refusal's time has come after an hour, that of
// another answer that is no list and not that to "latest" after 30 days.
func (l *Ledger) SetKnown(ctx context.Context, k storage.Key, a *storage.Known) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	keep := known{Known: a}
	switch {
	case a.RefusedStatus != 0:
		keep.Forget = l.now().Add(forgetRefused).UTC()
	case k.File != storage.FileList && k.Query != goproxy.Latest:
		keep.Forget = l.now().Add(forgetQuery).UTC()
	}
	b, err := json.Marshal(keep)
	if err != nil {
		return err
	}
	kk := ledgerKey('k', k)
	return l.db.Update(func(tx Tx) error {
		var old known
		if b := tx.Get(kk); b != nil && bytes.Contains(b, forgetName) && json.Unmarshal(b, &old) == nil && !old.Forget.IsZero() {
			if err := tx.Delete(forgetKey(old.Forget, kk)); err != nil {
				return err
			}
		}
		if err := tx.Put(kk, b); err != nil {
			return err
		}
		if err := l.forget(tx); err != nil || keep.Forget.IsZero() {
			return err
		}
		return tx.Put(forgetKey(keep.Forget, kk), nil)
	})
}

// forgetName is in each answer that has a time to be forgotten: the long lists are none of those.
var forgetName = []byte(`"Forget":`)

func forgetKey(t time.Time, known []byte) []byte {
	return append(appendTime([]byte{'x'}, t), known...)
}

// forget drops a few answers whose time has come, so that the work of dropping
// is spread over the writes. What says when to look may be of an answer before: the one
// that is there now has a time of its own.
func (l *Ledger) forget(tx Tx) error {
	var due [][]byte
	now := l.now()
	tx.Ascend([]byte{'x'}, func(k, _ []byte) bool {
		if k[0] != 'x' || readTime(k[1:9]).After(now) || len(due) == 4 {
			return false
		}
		due = append(due, bytes.Clone(k))
		return true
	})
	for _, x := range due {
		var a known
		if b := tx.Get(x[9:]); b != nil && json.Unmarshal(b, &a) == nil && !a.Forget.IsZero() && !a.Forget.After(now) {
			if err := tx.Delete(x[9:]); err != nil {
				return err
			}
		}
		if err := tx.Delete(x); err != nil {
			return err
		}
	}
	return nil
}

// Load implements storage.Ledger.
func (l *Ledger) Load(ctx context.Context, name string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var value []byte
	err := l.db.View(func(tx Tx) error {
		value = bytes.Clone(tx.Get(key('s', name)))
		return nil
	})
	return value, err
}

// CompareAndSwap implements storage.Ledger.
func (l *Ledger) CompareAndSwap(ctx context.Context, name string, old, new []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(new) > maxStateBytes {
		return goproxy.Errorf(http.StatusRequestEntityTooLarge, "%s: a value of %d bytes; at most %d are kept", name, len(new), maxStateBytes)
	}
	sk := key('s', name)
	return l.db.Update(func(tx Tx) error {
		have := tx.Get(sk)
		if (have == nil) != (old == nil) || !bytes.Equal(have, old) {
			return storage.ErrSwapped
		}
		if new == nil {
			return tx.Delete(sk)
		}
		return tx.Put(sk, new)
	})
}
