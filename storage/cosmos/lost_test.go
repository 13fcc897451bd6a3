package cosmos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"testing"

	"github.com/athensctl/athensctl/internal/testazure"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/blob"
	"github.com/athensctl/athensctl/storage/storagetest"
)

// A zip whose bytes are lost, at the start or behind it, is one that is not kept to who
// asks, at any replica; a Put of the same heals it, and until then it is listed.
func TestLostBytes(t *testing.T) {
	ctx := context.Background()
	b := make([]byte, 3*chunkBytes)
	rand.NewChaCha8([32]byte{3}).Read(b)
	body := fmt.Sprintf("%x", b) // of a few chunks
	for _, tt := range []struct {
		name     string
		withBlob bool
		lost     int64
	}{{"first chunk", false, 0}, {"last chunk", false, 2}, {"blob", true, 0}} {
		t.Run(tt.name, func(t *testing.T) {
			_, a := fake(t)
			dir := t.TempDir()
			var o Options
			if tt.withBlob {
				o.Zips = openZips(t, testazure.Azurite(t), dir)
			}
			s, other := open(t, a, dir, o), open(t, a, dir, o)
			v := storagetest.New("example.com/m", "v1.0.0", body)
			if err := s.Put(ctx, v.Version, v.Files()); err != nil {
				t.Fatal(err)
			}
			item, _, err := s.version(ctx, "test", v.Version)
			if err != nil {
				t.Fatal(err)
			}
			if tt.withBlob {
				err = o.Zips.(*blob.Store).Delete(ctx, item.Zip.Name, item.Zip.Size)
			} else {
				err = s.remove(ctx, s.modules, "test", chunkPK(item.Zip.Name), chunkID(tt.lost), "")
			}
			if err != nil {
				t.Fatal(err)
			}
			read := func(s *Store) error {
				z, err := s.Zip(ctx, v.Version)
				if err != nil {
					return err
				}
				defer z.Close()
				got, err := io.ReadAll(z)
				if err == nil && string(got) != string(v.Zip) {
					t.Errorf("%d other bytes", len(got))
				}
				return err
			}
			if err := read(s); !errors.Is(err, storage.ErrLost) {
				t.Errorf("the first reader: %v", err)
			}
			for _, s := range []*Store{s, other} {
				if _, err := s.Zip(ctx, v.Version); !errors.Is(err, storage.ErrLost) || !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("who asks then: %v, want that it is not there", err)
				}
			}
			if err := other.Put(ctx, v.Version, v.Files()); err != nil {
				t.Fatal(err)
			}
			for _, s := range []*Store{s, other} {
				if err := read(s); err != nil {
					t.Errorf("after a Put: %v", err)
				}
				wantAgree(t, s, v, "after a Put")
			}
		})
	}
}
