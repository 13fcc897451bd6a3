// Package kv holds everything that a storage backend keeps besides the files
// themselves, over an ordered key-value database: the ledger, the catalog of
// complete versions, the index feed and the tombstones. The disk backend gives
// it bbolt, and a [Journal] for the queue; the memory backend a [Tree] for each.
//
// Keys:
//
//	c path 0 version            complete version → its index time
//	i time                      the index feed → path 0 version
//	t time                      tombstones → path 0 version
//	k path 0 query 0 file       Known, JSON, with when it may be forgotten
//	x time k-key                when to look whether it may
//	s key                       small state
//
//	j path 0 query 0 file       in the queue: Job, JSON
//	q priority time j-key       when a job is due
//	b                           QueueCounts, JSON
//
// Times are 8 bytes, big-endian, nanoseconds since 1970.
package kv

import (
	"encoding/binary"
	"math"
	"time"
)

// DB is an ordered key-value database with transactions.
type DB interface {
	View(func(Tx) error) error
	// Update commits when f returns nil, and else changes nothing. f may be
	// called again after a failure that is not its own.
	Update(f func(Tx) error) error
}

// Tx is a transaction. What it returns is valid until it ends.
type Tx interface {
	Get(key []byte) []byte // nil: absent
	Put(key, value []byte) error
	Delete(key []byte) error
	// Ascend calls f in key order from the first key ≥ from, until it returns
	// false. f does not change the database.
	Ascend(from []byte, f func(key, value []byte) bool)
}

func key(prefix byte, parts ...string) []byte {
	b := []byte{prefix}
	for i, p := range parts {
		if i > 0 {
			b = append(b, 0)
		}
		b = append(b, p...)
	}
	return b
}

// appendTime: a time before 1970 is 1970, and one that has too many nanoseconds the last that has not.
func appendTime(b []byte, t time.Time) []byte {
	var ns int64
	switch {
	case t.After(time.Unix(0, math.MaxInt64)):
		ns = math.MaxInt64
	case t.After(time.Unix(0, 0)):
		ns = t.UnixNano()
	}
	return binary.BigEndian.AppendUint64(b, uint64(ns))
}

func readTime(b []byte) time.Time {
	return time.Unix(0, int64(binary.BigEndian.Uint64(b))).UTC()
}
