package cosmos

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// version is the item of one version. All that is kept of it becomes visible with
// one write of this item.
type version struct {
	ID       string `json:"id"` // the version
	PK       string `json:"pk"`
	Info     *text  `json:"info,omitempty"`
	Mod      *text  `json:"mod,omitempty"`
	Zip      *zipAt `json:"zip,omitempty"`
	Complete int64  `json:"complete,omitempty"` // when it became so, µs
	Page     int    `json:"page,omitempty"`     // of the index: the only one that may have its entry
	stamp
}

// text is a small file: as it is, or compressed where it is not small.
type text struct {
	Plain string `json:"t,omitempty"`
	Gzip  []byte `json:"z,omitempty"`
	Kept  int64  `json:"kept"` // µs
}

// zipAt is where a zip is.
type zipAt struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
	H1   string `json:"h1,omitempty"`
	Kept int64  `json:"kept"` // µs
	// Bytes behind the first were found missing: until they are put again nobody gets half
	// of the zip and a cut connection.
	Lost bool `json:"lost,omitempty"`
}

// Above this a file is compressed; above maxItemText it does not fit an item, which no
// go.mod file that is not made to does. (Nor do two that are nearly as large: maxItem.)
const (
	plainText   = 32 << 10
	maxItemText = 1 << 20
)

func newText(b []byte, now time.Time) (*text, error) {
	t := &text{Kept: micros(now)}
	if len(b) <= plainText && string(bytes.ToValidUTF8(b, nil)) == string(b) {
		t.Plain = string(b)
		return t, nil
	}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(b)
	if err := w.Close(); err != nil {
		return nil, err
	}
	if z.Len() > maxItemText {
		return nil, goproxy.Errorf(http.StatusRequestEntityTooLarge, "%d bytes, %d compressed: Cosmos DB keeps files of up to %d compressed", len(b), z.Len(), maxItemText)
	}
	t.Gzip = z.Bytes()
	return t, nil
}

func (t *text) bytes() ([]byte, error) {
	if t.Gzip == nil {
		return []byte(t.Plain), nil
	}
	r, err := gzip.NewReader(bytes.NewReader(t.Gzip))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// merge puts content into the slot *t, or compares it with what is there.
func merge(t **text, content []byte, now time.Time) (changed bool, err error) {
	if content == nil {
		return false, nil
	}
	if *t != nil {
		have, err := (*t).bytes()
		if err == nil && !bytes.Equal(have, content) {
			err = storage.ErrConflict
		}
		return false, err
	}
	*t, err = newText(content, now)
	return true, err
}

func modulePK(path string) string { return "m/" + path }

// maxName bounds path and version: ids are at most 1,023 bytes.
const maxName = 900

func checkName(m module.Version) error {
	if len(m.Path)+len(m.Version) > maxName {
		return goproxy.Errorf(http.StatusBadRequest, "bad request: %.60s…: path and version are longer than %d bytes", m, maxName)
	}
	return nil
}

// version reads the item of m; errAbsent.
func (s *Store) version(ctx context.Context, op string, m module.Version) (*version, azcore.ETag, error) {
	if err := checkName(m); err != nil {
		return nil, "", err
	}
	v := new(version)
	etag, err := s.get(ctx, s.modules, op, modulePK(m.Path), m.Version, v)
	if err != nil {
		return nil, "", err
	}
	return v, etag, nil
}

// Resolve implements storage.Store.
func (s *Store) Resolve(ctx context.Context, path, query string) (*goproxy.Info, error) {
	if query == goproxy.Latest {
		list, err := s.List(ctx, path)
		if err != nil {
			return nil, err
		}
		if query = list.LatestVersion(); query == "" {
			return nil, goproxy.NotFound("%s@latest: no version is kept", path)
		}
	} else if !goproxy.IsCanonical(path, query) {
		return nil, goproxy.NotFound("%s@%s: only canonical versions are kept", path, query)
	}
	m := module.Version{Path: path, Version: query}
	v, _, err := s.version(ctx, "info", m)
	if err == errAbsent || err == nil && v.Info == nil {
		return nil, goproxy.NotFound("%s (info): not kept", m)
	} else if err != nil {
		return nil, err
	}
	raw, err := v.Info.bytes()
	if err != nil {
		return nil, err
	}
	info, err := goproxy.ParseInfo(path, query, raw)
	if err != nil {
		return nil, err
	}
	info.Kept = fromMicros(v.Info.Kept)
	return info, nil
}

// Mod implements storage.Store.
func (s *Store) Mod(ctx context.Context, m module.Version) (*goproxy.Blob, error) {
	v, _, err := s.version(ctx, "mod", m)
	if err == errAbsent || err == nil && v.Mod == nil {
		return nil, goproxy.NotFound("%s (mod): not kept", m)
	} else if err != nil {
		return nil, err
	}
	kept := fromMicros(v.Mod.Kept)
	if z := v.Mod.Gzip; len(z) > 4 { // it may be a thousand times as large
		r, err := gzip.NewReader(bytes.NewReader(z))
		if err != nil {
			return nil, err
		}
		size := binary.LittleEndian.Uint32(z[len(z)-4:]) // https://www.rfc-editor.org/rfc/rfc1952#page-6: ISIZE
		return &goproxy.Blob{ReadCloser: r, SizeBytes: int64(size), ModTime: kept}, nil
	}
	return goproxy.NewBlob([]byte(v.Mod.Plain), kept), nil
}

// Zip implements storage.Store.
func (s *Store) Zip(ctx context.Context, m module.Version) (*goproxy.Blob, error) {
	v, _, err := s.version(ctx, "zip", m)
	if err == errAbsent || err == nil && v.Zip == nil {
		return nil, goproxy.NotFound("%s (zip): not kept", m)
	} else if err != nil {
		return nil, err
	}
	if v.Zip.Lost {
		return nil, fmt.Errorf("%s (zip): %w", m, storage.ErrLost)
	}
	r, err := s.zips.Get(ctx, v.Zip.Name, v.Zip.Size)
	if errors.Is(err, storage.ErrLost) {
		s.o.Log.Warn("the bytes of a zip are lost; it is fetched again when somebody asks", "version", m.String(), "err", err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s (zip): %w", m, err)
	}
	r = &zipReader{ReadSeekCloser: r, lost: func() { s.markLost(ctx, m, v.Zip.Name) }}
	return &goproxy.Blob{ReadCloser: r, SizeBytes: v.Zip.Size, ModTime: fromMicros(v.Zip.Kept)}, nil
}

// zipReader tells of a zip that has a beginning and not all of the rest.
type zipReader struct {
	io.ReadSeekCloser
	lost func()
}

func (r *zipReader) Read(b []byte) (int, error) {
	n, err := r.ReadSeekCloser.Read(b)
	if errors.Is(err, storage.ErrLost) {
		r.lost()
	}
	return n, err
}

// markLost: who asks next is told at the start, whichever replica it asks.
func (s *Store) markLost(ctx context.Context, m module.Version, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), attemptTimeout)
	defer cancel()
	v, etag, err := s.version(ctx, "lost", m)
	if err == nil && v.Zip != nil && v.Zip.Name == name && !v.Zip.Lost {
		v.Zip.Lost, v.stamp = true, newStamp()
		_, err = s.replace(ctx, s.modules, "lost", v.PK, v.ID, v, v.stamp, etag)
	}
	s.o.Log.Warn("bytes of a zip are lost; it is fetched again when somebody asks", "version", m.String(), "zip", name, "err", err)
}

// ZipH1 implements storage.Store.
func (s *Store) ZipH1(ctx context.Context, m module.Version) (string, error) {
	v, _, err := s.version(ctx, "zip", m)
	if err == errAbsent || err == nil && v.Zip == nil {
		return "", nil
	} else if err != nil {
		return "", err
	}
	return v.Zip.H1, nil
}

// Delete implements storage.Store. The item goes first: until then nothing has changed, and
// after it nobody gets the version, so that who reads the tombstone and asks again does
// not get it either. What a crash leaves undone then, Finish does. The bytes of the zip stay
// until Sweep removes them, when no Put can be writing the same.
func (s *Store) Delete(ctx context.Context, m module.Version) error {
	var before *intent
	for {
		v, etag, err := s.version(ctx, "delete", m)
		if err == errAbsent {
			if before != nil {
				s.done(before) // somebody else has deleted it
			}
			return goproxy.NotFound("%s: not kept", m)
		} else if err != nil {
			return err
		}
		i := newDeletion(m, v)
		if err := s.intendDelete(ctx, i, before); err != nil {
			return err
		}
		before = i
		err = s.remove(ctx, s.modules, "delete", v.PK, v.ID, etag)
		if err == errMoved {
			continue
		} else if err != nil {
			return err
		}
		return s.endDelete(ctx, i)
	}
}

// endDelete does what follows on the removal of a version's item. Then Sweep alone is left.
// That it is done twice costs another tombstone at most.
func (s *Store) endDelete(ctx context.Context, i *intent) error {
	m := module.Version{Path: i.Path, Version: i.Version}
	if _, err := s.deleted.append(ctx, entry{Path: m.Path, Version: m.Version, ID: i.W}, 0); err != nil {
		return err
	}
	if i.Page > 0 {
		if err := s.withdraw(ctx, m, i.Page); err != nil {
			return err
		}
	}
	var err error
	if i.Zip == nil {
		err = s.remove(ctx, s.ledger, "delete", i.PK, i.ID, i.etag)
	} else {
		left := *i
		left.Bytes, left.stamp = true, newStamp()
		left.etag, err = s.replace(ctx, s.ledger, "delete", i.PK, i.ID, left, left.stamp, i.etag)
		if err == nil {
			*i = left
		}
	}
	if err == errMoved || err == errAbsent {
		err = nil // somebody else has done it
	}
	return err
}

// List implements goproxy.Source: the complete versions of a module.
func (s *Store) List(ctx context.Context, path string) (*goproxy.VersionList, error) {
	var versions []string
	err := s.query(ctx, s.modules, "list", modulePK(path), "SELECT VALUE c.id FROM c WHERE c.pk = @pk AND c.complete > 0", 1000, nil, decode(func(v *string) bool {
		versions = append(versions, *v)
		return true
	}))
	if err != nil {
		return nil, err
	}
	return goproxy.NewVersionList(path, versions, time.Time{}), nil
}

// hashID is an id for any string: ids may not have / \ ? #, and are short.
func hashID(s string) string {
	sum := sha256.Sum256([]byte(s))
	return base64.RawURLEncoding.EncodeToString(sum[:18])
}
