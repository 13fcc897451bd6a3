package kv

import (
	"sync"

	"github.com/tidwall/btree"
)

// Tree is a DB in memory, over a B-tree that is copied when it is written. The
// zero value is an empty one.
type Tree struct {
	mu sync.Mutex
	m  btree.Map[string, []byte]
	// commit takes the changes of a transaction before anybody sees them; nil:
	// they are kept nowhere else.
	commit func([]change) error
}

// change is one Put or, with a nil value, one Delete.
type change struct{ key, value []byte }

// View implements DB.
func (t *Tree) View(f func(Tx) error) error {
	t.mu.Lock()
	snapshot := t.m.Copy()
	t.mu.Unlock()
	return f(&treeTx{m: snapshot})
}

// Update implements DB.
func (t *Tree) Update(f func(Tx) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	tx := &treeTx{m: t.m.Copy(), keep: t.commit != nil}
	if err := f(tx); err != nil {
		return err
	}
	if t.commit != nil && len(tx.changes) > 0 {
		if err := t.commit(tx.changes); err != nil {
			return err
		}
	}
	t.m = *tx.m
	return nil
}

type treeTx struct {
	m       *btree.Map[string, []byte]
	keep    bool
	changes []change
}

func (tx *treeTx) Get(key []byte) []byte {
	v, _ := tx.m.Get(string(key))
	return v
}

func (tx *treeTx) Put(key, value []byte) error {
	v := append([]byte{}, value...)
	tx.m.Set(string(key), v)
	if tx.keep {
		tx.changes = append(tx.changes, change{append([]byte{}, key...), v})
	}
	return nil
}

func (tx *treeTx) Delete(key []byte) error {
	tx.m.Delete(string(key))
	if tx.keep {
		tx.changes = append(tx.changes, change{append([]byte{}, key...), nil})
	}
	return nil
}

func (tx *treeTx) Ascend(from []byte, f func(k, v []byte) bool) {
	tx.m.Ascend(string(from), func(k string, v []byte) bool { return f([]byte(k), v) })
}
