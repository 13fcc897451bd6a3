package cosmos

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"time"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// known is the item of one answer of upstream. Packed is the JSON of a long list.
type known struct {
	ID     string         `json:"id"`
	PK     string         `json:"pk"`
	Answer *storage.Known `json:"answer,omitempty"`
	Packed []byte         `json:"z,omitempty"`
	TTL    int            `json:"ttl,omitempty"` // seconds
}

// maxUnpacked bounds the JSON of an answer: one that was kept before goproxy.MaxListBytes was
// as small as it is can be read.
const maxUnpacked = 32 << 20

// How long an answer of upstream is remembered when nobody asks for it again.
const (
	forgetRefused = time.Hour
	forgetQuery   = 30 * 24 * time.Hour
)

func knownAt(k storage.Key) (pk, id string) {
	return "k/" + k.Path, hashID(k.Query + "#" + string(k.File))
}

// Known implements storage.Ledger.
func (s *Store) Known(ctx context.Context, k storage.Key) (*storage.Known, error) {
	pk, id := knownAt(k)
	var item known
	_, err := s.get(ctx, s.ledger, "known", pk, id, &item)
	if err == errAbsent {
		return nil, fmt.Errorf("%s: nothing is known: %w", k, fs.ErrNotExist)
	} else if err != nil {
		return nil, err
	}
	if item.Packed == nil {
		if item.Answer == nil {
			return nil, fmt.Errorf("%s: the item has no answer: %w", k, fs.ErrNotExist)
		}
		return item.Answer, nil
	}
	r, err := gzip.NewReader(bytes.NewReader(item.Packed))
	if err != nil {
		return nil, err
	}
	a := new(storage.Known)
	return a, json.NewDecoder(io.LimitReader(r, maxUnpacked)).Decode(a)
}

// SetKnown implements storage.Ledger. The item has its time to live, which begins anew
// with each write.
func (s *Store) SetKnown(ctx context.Context, k storage.Key, a *storage.Known) error {
	item := known{Answer: a}
	item.PK, item.ID = knownAt(k)
	switch {
	case a.RefusedStatus != 0:
		item.TTL = int(forgetRefused / time.Second)
	case k.File == storage.FileList || k.Query == goproxy.Latest:
	default:
		item.TTL = int(forgetQuery / time.Second)
	}
	if len(a.Versions) > 1000 { // some 30 KB
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		if err := json.NewEncoder(w).Encode(a); err != nil {
			return err
		}
		if err := w.Close(); err != nil {
			return err
		}
		if z.Len() > maxItemText {
			return goproxy.Errorf(http.StatusRequestEntityTooLarge, "%s: a list of %d versions does not fit an item", k, len(a.Versions))
		}
		item.Answer, item.Packed = nil, z.Bytes()
	}
	return s.upsert(ctx, s.ledger, "set known", item.PK, item)
}

// maxStateBytes is the size of a small value.
const maxStateBytes = 64 << 10

type state struct {
	ID    string `json:"id"`
	PK    string `json:"pk"`
	Value []byte `json:"value"`
	stamp
}

func statePK(name string) string { return "s/" + name }

const stateID = "state"

// Load implements storage.Ledger.
func (s *Store) Load(ctx context.Context, name string) ([]byte, error) {
	var v state
	_, err := s.get(ctx, s.ledger, "load", statePK(name), stateID, &v)
	if err == errAbsent {
		return nil, nil
	} else if err == nil && v.Value == nil {
		v.Value = []byte{}
	}
	return v.Value, err
}

// CompareAndSwap implements storage.Ledger.
func (s *Store) CompareAndSwap(ctx context.Context, name string, old, new []byte) error {
	if len(new) > maxStateBytes {
		return goproxy.Errorf(http.StatusRequestEntityTooLarge, "%s: a value of %d bytes; at most %d are kept", name, len(new), maxStateBytes)
	}
	item := state{ID: stateID, PK: statePK(name), Value: new, stamp: newStamp()}
	if old == nil && new != nil {
		_, err := s.create(ctx, s.ledger, "swap", item.PK, item.ID, item, item.stamp)
		if err == errExists {
			err = storage.ErrSwapped
		}
		return err
	}
	var have state
	etag, err := s.get(ctx, s.ledger, "swap", item.PK, item.ID, &have)
	if err == errAbsent {
		if old == nil {
			return nil
		}
		return storage.ErrSwapped
	} else if err != nil {
		return err
	}
	if old == nil || !bytes.Equal(have.Value, old) {
		return storage.ErrSwapped
	}
	if new == nil {
		err = s.remove(ctx, s.ledger, "swap", item.PK, item.ID, etag)
	} else {
		_, err = s.replace(ctx, s.ledger, "swap", item.PK, item.ID, item, item.stamp, etag)
	}
	if err == errMoved || err == errAbsent {
		err = storage.ErrSwapped
	}
	return err
}
