package storage_test

import (
	"testing"

	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/disk"
	"github.com/athensctl/athensctl/storage/memory"
	"github.com/athensctl/athensctl/storage/storagetest"
)

func openDisk(t *testing.T, dir string, o storagetest.Options) (storage.Store, storage.Ledger) {
	s, err := disk.Open(dir, disk.Options{Now: o.Now, QueueMax: o.QueueMax})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, s
}

func openMemory(t *testing.T, _ string, o storagetest.Options) (storage.Store, storage.Ledger) {
	s := memory.New(o.QueueMax, o.Now)
	return s, s
}

func TestMemory(t *testing.T) {
	storagetest.Run(t, storagetest.Backend{Open: openMemory, Volatile: true, InMemory: true})
}

func TestDisk(t *testing.T) {
	storagetest.Run(t, storagetest.Backend{Open: openDisk})
}

func TestMemoryOverHTTP(t *testing.T) {
	storagetest.Run(t, storagetest.Backend{Open: storagetest.OverHTTP(openMemory), Volatile: true, InMemory: true})
}

func TestDiskOverHTTP(t *testing.T) {
	storagetest.Run(t, storagetest.Backend{Open: storagetest.OverHTTP(openDisk)})
}
