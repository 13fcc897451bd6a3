package kv

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/tidwall/btree"
)

// Journal is a DB in memory whose transactions are appended to a file. A
// transaction survives the end of the process, however it ends, from when Update
// returns; and that of the machine once Sync has returned after it. It is for
// what is small and changes all the time: the queue.
//
// The file is a sequence of records: the length of the changes (4 bytes,
// big-endian), their CRC-32C (4 bytes), and the changes: for each the length of
// the key, the key, the length of the value plus one, or 0 for a deletion, and
// the value; lengths are uvarints. A record that is not whole was being written when
// the machine stopped, or is damaged: it and what follows it are no part of the
// journal any more, since later transactions rest on earlier ones. They go to a file
// beside it, NAME.damaged-…, and the log says so.
type Journal struct {
	Tree
	name     string
	f        *os.File
	size     int64 // bytes of whole records
	rewrite  int64 // the size at which the file is written anew
	rewrites int
	log      *slog.Logger
}

// minRewrite is the size below which a journal is not written anew.
const minRewrite = 4 << 20

// maxRecordBytes bounds the memory that a damaged length can cost.
const maxRecordBytes = 64 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// OpenJournal opens a journal, which is made when it is not there. It is for one
// process at a time, which the caller sees to. log is told of what goes wrong and
// fails nothing; nil is slog.Default.
func OpenJournal(name string, log *slog.Logger) (*Journal, error) {
	if log == nil {
		log = slog.Default()
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	j := &Journal{name: name, f: f, rewrite: minRewrite, log: log}
	if err := j.replay(); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	j.Tree.commit = j.append
	return j, nil
}

// replay reads the whole records, and sets aside what follows them.
func (j *Journal) replay() error {
	r := bufio.NewReader(j.f)
	for {
		var head [8]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			if err != io.EOF && err != io.ErrUnexpectedEOF {
				return err
			}
			break
		}
		n := binary.BigEndian.Uint32(head[:4])
		if n > maxRecordBytes {
			break
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(r, body); err != nil {
			if err != io.EOF && err != io.ErrUnexpectedEOF {
				return err
			}
			break
		}
		if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(head[4:]) || apply(&j.Tree.m, body) != nil {
			break
		}
		j.size += int64(len(head)) + int64(n)
	}
	end, err := j.f.Seek(0, io.SeekEnd)
	if err != nil || end == j.size {
		return err
	}
	aside, err := j.setAside(end)
	if err != nil { // on a full disk, say: the queue has to go on
		j.log.Error("the end of the queue's journal is damaged, is dropped, and cannot be kept aside", "file", j.name, "from", j.size, "bytes", end-j.size, "err", err)
	} else {
		j.log.Warn("the end of the queue's journal is damaged: jobs may be missing, or done again", "file", j.name, "from", j.size, "bytes", end-j.size, "kept", aside)
	}
	return j.f.Truncate(j.size)
}

// setAside copies what is between the last whole record and end to a file, which it
// names.
func (j *Journal) setAside(end int64) (name string, err error) {
	f, err := os.CreateTemp(filepath.Dir(j.name), filepath.Base(j.name)+".damaged-*")
	if err != nil {
		return "", err
	}
	_, err = io.Copy(f, io.NewSectionReader(j.f, j.size, end-j.size))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		os.Remove(f.Name())
	}
	return f.Name(), err
}

func apply(m *btree.Map[string, []byte], body []byte) error {
	var bad error
	next := func() []byte {
		n, used := binary.Uvarint(body)
		if used <= 0 || n > uint64(len(body)-used) {
			bad = errors.New("a length is wrong")
			return nil
		}
		part := body[used : used+int(n)]
		body = body[used+int(n):]
		return part
	}
	for len(body) > 0 {
		key := next()
		if bad != nil {
			return bad
		}
		if len(body) > 0 && body[0] == 0 {
			body = body[1:]
			m.Delete(string(key))
			continue
		}
		// The value's length is one more than it has bytes: it ends with a 0.
		value := next()
		if bad != nil || len(value) == 0 {
			return errors.Join(bad, errors.New("a value is missing"))
		}
		m.Set(string(key), value[:len(value)-1:len(value)-1])
	}
	return nil
}

func record(changes []change) []byte {
	b := make([]byte, 8, 512)
	for _, c := range changes {
		b = append(binary.AppendUvarint(b, uint64(len(c.key))), c.key...)
		if c.value == nil {
			b = append(b, 0)
			continue
		}
		b = append(binary.AppendUvarint(b, uint64(len(c.value))+1), c.value...)
		b = append(b, 0)
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-8))
	binary.BigEndian.PutUint32(b[4:], crc32.Checksum(b[8:], castagnoli))
	return b
}

// append is Tree.commit. What a failed write leaves lies behind the last whole
// record, and the next one is written over it. A journal that can't be written anew
// is whole as it is, and grows on.
func (j *Journal) append(changes []change) error {
	if j.size >= j.rewrite {
		if err := j.compact(); err != nil {
			j.rewrite = j.size + minRewrite
			j.log.Warn("the queue's journal is not written anew for now", "file", j.name, "bytes", j.size, "err", err)
		}
	}
	b := record(changes)
	if _, err := j.f.WriteAt(b, j.size); err != nil {
		return errors.Join(err, j.f.Truncate(j.size))
	}
	j.size += int64(len(b))
	return nil
}

// compact writes a file with what is there now in place of how it came about.
func (j *Journal) compact() error {
	f, err := os.OpenFile(j.name+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	var size int64
	w := bufio.NewWriter(f)
	j.Tree.m.Scan(func(k string, v []byte) bool {
		var n int
		n, err = w.Write(record([]change{{[]byte(k), v}}))
		size += int64(n)
		return err == nil
	})
	if err = errors.Join(err, w.Flush(), f.Sync()); err == nil {
		err = os.Rename(f.Name(), j.name) // only what is whole takes the journal's place
	}
	if err != nil {
		f.Close()
		os.Remove(f.Name())
		return err
	}
	j.f.Close()
	j.f, j.size, j.rewrite = f, size, max(minRewrite, 4*size)
	j.rewrites++
	d, err := os.Open(filepath.Dir(j.name))
	if err != nil {
		return err
	}
	defer d.Close()
	d.Sync() // not every system can; the file itself is synced
	return nil
}

// Sync returns when the transactions so far survive the machine.
func (j *Journal) Sync() error {
	j.Tree.mu.Lock()
	f := j.f
	j.Tree.mu.Unlock()
	if err := f.Sync(); err != nil && !errors.Is(err, os.ErrClosed) { // closed: compact has synced another
		return err
	}
	return nil
}

// Close syncs and closes the file.
func (j *Journal) Close() error {
	j.Tree.mu.Lock()
	defer j.Tree.mu.Unlock()
	return errors.Join(j.f.Sync(), j.f.Close())
}
