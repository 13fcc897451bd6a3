package storage_test

import (
	"testing"
	"time"

	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/disk"
	"github.com/athensctl/athensctl/storage/memory"
	"github.com/athensctl/athensctl/storage/storagetest"
)

func openDisk(t *testing.T, dir string, now func() time.Time) (storage.Store, storage.Ledger) {
	s, err := disk.Open(dir, disk.Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, s
}

func openMemory(t *testing.T, _ string, now func() time.Time) (storage.Store, storage.Ledger) {
	s := memory.New(0, now)
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
