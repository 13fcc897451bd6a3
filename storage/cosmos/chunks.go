package cosmos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// chunkBytes is the content of a chunk item: 512 KB in base64. Reads and writes
// cost by the KB whatever its size; an item may have 2 MB.
const chunkBytes = 384 << 10

const lookAgain = 500 * time.Millisecond

type chunk struct {
	ID   string `json:"id"`
	PK   string `json:"pk"`
	Data []byte `json:"d"`
}

func chunkPK(name string) string { return "z/" + name }
func chunkID(i int64) string     { return fmt.Sprintf("%06d", i) }

// chunks are Zips in Cosmos DB. One zip is one partition, so that many are spread.
type chunks struct{ a *account }

// Put implements Zips. A chunk that is there already has the same bytes: the name
// says which.
func (c chunks) Put(ctx context.Context, name string, r io.ReadSeeker, size int64) error {
	buf := make([]byte, chunkBytes)
	for i := int64(0); i*chunkBytes < size; i++ {
		n, err := io.ReadFull(r, buf[:min(chunkBytes, size-i*chunkBytes)])
		if err != nil {
			return err
		}
		item := chunk{ID: chunkID(i), PK: chunkPK(name), Data: buf[:n]}
		if _, err := c.a.create(ctx, c.a.modules, "zip write", item.PK, item.ID, item, stamp{}); err != nil && err != errExists {
			return err
		}
	}
	return nil
}

// Get implements Zips. It reads the first chunk, to fail where nothing is kept.
func (c chunks) Get(ctx context.Context, name string, size int64) (io.ReadSeekCloser, error) {
	r := &chunkReader{a: c.a, ctx: ctx, name: name, size: size, have: -1}
	if size > 0 {
		if err := r.load(0); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// Delete implements Zips.
func (c chunks) Delete(ctx context.Context, name string, size int64) error {
	// From the last, so that a Delete that was cut is seen to have begun: a
	// zip whose first chunk is missing can't be read.
	for i := (size + chunkBytes - 1) / chunkBytes; i > 0; i-- {
		if err := c.a.remove(ctx, c.a.modules, "zip delete", chunkPK(name), chunkID(i-1), ""); err != nil {
			return err
		}
	}
	return nil
}

// chunkReader reads a zip, one chunk in memory.
type chunkReader struct {
	a    *account
	ctx  context.Context
	name string
	size int64
	pos  int64
	have int64 // which chunk data is
	data []byte
}

func (r *chunkReader) load(i int64) error {
	if r.have == i {
		return nil
	}
	var item chunk
	_, err := r.a.get(r.ctx, r.a.modules, "zip read", chunkPK(r.name), chunkID(i), &item)
	if err == errAbsent { // once more: what one replica does not see yet is not lost
		select {
		case <-r.ctx.Done():
			return r.ctx.Err()
		case <-time.After(lookAgain):
		}
		_, err = r.a.get(r.ctx, r.a.modules, "zip read", chunkPK(r.name), chunkID(i), &item)
	}
	if err == errAbsent {
		return fmt.Errorf("%w: chunk %d of %s is not there", storage.ErrLost, i, r.name)
	} else if err != nil {
		return err
	}
	if int64(len(item.Data)) != min(chunkBytes, r.size-i*chunkBytes) {
		return goproxy.Errorf(http.StatusInternalServerError, "chunk %d of %s has %d bytes", i, r.name, len(item.Data))
	}
	r.have, r.data = i, item.Data
	return nil
}

func (r *chunkReader) Read(b []byte) (int, error) {
	if r.pos >= r.size {
		return 0, io.EOF
	}
	if err := r.load(r.pos / chunkBytes); err != nil {
		return 0, err
	}
	n := copy(b, r.data[r.pos%chunkBytes:])
	r.pos += int64(n)
	return n, nil
}

func (r *chunkReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.pos
	case io.SeekEnd:
		offset += r.size
	}
	if offset < 0 {
		return 0, errors.New("seek before the start")
	}
	r.pos = offset
	return offset, nil
}

func (r *chunkReader) Close() error {
	r.data, r.have = nil, -1
	return nil
}
