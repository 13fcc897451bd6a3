package disk

import (
	"bytes"
	"time"

	"go.etcd.io/bbolt"

	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/kv"
)

var bucket = []byte("athensctl")

type boltDB struct{ *bbolt.DB }

func openBolt(file string) (boltDB, error) {
	db, err := bbolt.Open(file, 0o600, &bbolt.Options{Timeout: 2 * time.Second, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return boltDB{}, err
	}
	// Concurrent updates share one commit, and so one fsync.
	db.MaxBatchDelay = 200 * time.Microsecond
	err = db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(bucket)
		return err
	})
	if err != nil {
		db.Close()
		return boltDB{}, err
	}
	return boltDB{db}, nil
}

func (db boltDB) View(f func(kv.Tx) error) error {
	return db.DB.View(func(tx *bbolt.Tx) error { return f(boltTx{tx.Bucket(bucket)}) })
}

func (db boltDB) Update(f func(kv.Tx) error) error {
	return storage.FullDisk(db.DB.Batch(func(tx *bbolt.Tx) error { return f(boltTx{tx.Bucket(bucket)}) }))
}

type boltTx struct{ *bbolt.Bucket }

func (tx boltTx) Ascend(from []byte, f func(k, v []byte) bool) {
	c := tx.Bucket.Cursor()
	for k, v := c.Seek(from); k != nil && f(bytes.Clone(k), v); k, v = c.Next() {
	}
}
