package cosmos

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// zipSource is a zip that can be read twice.
type zipSource struct {
	io.ReadSeeker
	size  int64
	sha   string // SHA-256, hexadecimal
	close func()
}

// source reads all of r once, for its size and hash: into a temporary file, unless
// it can be read again as it is.
func (s *Store) source(ctx context.Context, r io.Reader) (*zipSource, error) {
	z := &zipSource{close: func() {}}
	hash := sha256.New()
	w := io.Writer(hash)
	if rs, ok := r.(io.ReadSeeker); ok {
		if start, err := rs.Seek(0, io.SeekCurrent); err == nil { // a pipe is a file too
			z.ReadSeeker = fromHere{rs, start}
		}
	}
	if z.ReadSeeker == nil {
		tmp, err := os.CreateTemp(s.o.TempDir, "put-")
		if err != nil {
			return nil, storage.FullDisk(err)
		}
		z.close = func() { tmp.Close(); os.Remove(tmp.Name()) }
		z.ReadSeeker, w = tmp, io.MultiWriter(tmp, hash)
	}
	var err error
	if z.size, err = io.Copy(w, contextReader{ctx, r}); err != nil {
		z.close()
		return nil, storage.FullDisk(err)
	}
	z.sha = hex.EncodeToString(hash.Sum(nil))
	return z, nil
}

// fromHere begins where its reader is.
type fromHere struct {
	io.ReadSeeker
	start int64
}

func (r fromHere) Seek(offset int64, whence int) (int64, error) {
	if whence == io.SeekStart {
		offset += r.start
	}
	at, err := r.ReadSeeker.Seek(offset, whence)
	return at - r.start, err
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(b)
}

// zipName is where a zip of m with this hash is kept. A name that is too long, for a blob,
// or too deep has a hash in place of path and version, which no path begins like.
func zipName(m module.Version, sha string) (string, error) {
	p, err := module.EscapePath(m.Path)
	if err != nil {
		return "", err
	}
	v, err := module.EscapeVersion(m.Version)
	if err != nil {
		return "", err
	}
	name := p + "/@v/" + v + "." + sha + ".zip"
	if len(name) > maxZipName || strings.Count(name, "/") >= maxZipFolders {
		name = "!/" + hashID(m.String()) + "." + sha + ".zip"
	}
	return name, nil
}

// Bounds of a blob's name. Source: Microsoft's "Naming and referencing containers, blobs,
// and metadata".
const (
	maxZipName    = 1024
	maxZipFolders = 254
)

// Put implements storage.Store. The zip's bytes come first; the version's item,
// which names them, makes all of the files visible in one write; the catalog and
// the index follow. What a crash leaves undone is found by Sweep.
func (s *Store) Put(ctx context.Context, m module.Version, f storage.Files) (err error) {
	if err := checkName(m); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	var zip *zipSource
	var name string
	if f.Zip != nil {
		if zip, err = s.source(ctx, f.Zip); err != nil {
			return fmt.Errorf("put %s (zip): %w", m, err)
		}
		defer zip.close()
		if name, err = zipName(m, zip.sha); err != nil {
			return goproxy.Errorf(http.StatusBadRequest, "bad request: %w", err)
		}
	}
	var intent *intent
	uploaded := false
	for {
		v, etag, err := s.version(ctx, "put", m)
		if err == errAbsent {
			v, etag, err = &version{ID: m.Version, PK: modulePK(m.Path)}, "", nil
		}
		if err != nil {
			return err
		}
		now := s.now()
		newInfo, err := merge(&v.Info, f.Info, now)
		if err != nil {
			return fmt.Errorf("put %s (info): %w", m, err)
		}
		newMod, err := merge(&v.Mod, f.Mod, now)
		if err != nil {
			return fmt.Errorf("put %s (mod): %w", m, err)
		}
		newZip := zip != nil && v.Zip == nil
		if zip != nil && v.Zip != nil && v.Zip.Name != name {
			return fmt.Errorf("put %s (zip): %w", m, storage.ErrConflict)
		}
		healed := zip != nil && !newZip && v.Zip.Lost
		if newZip {
			v.Zip = &zipAt{Name: name, Size: zip.size, H1: f.ZipH1, Kept: micros(now)}
		} else if zip != nil && !uploaded {
			// Whoever puts it again may have found its bytes lost.
			if err := s.upload(ctx, m, name, zip); err != nil {
				return err
			}
			uploaded, v.Zip.Lost = true, false
		}
		completes := v.Complete == 0 && v.Info != nil && v.Mod != nil && v.Zip != nil
		if !newInfo && !newMod && !newZip && !healed {
			if v.Complete != 0 {
				return s.publish(ctx, m, v, etag) // the Put before may not have come that far
			}
			return nil
		}
		if (newZip || completes) && intent == nil {
			if intent, err = s.intend(ctx, newIntent(m, v.Zip)); err != nil {
				return err
			}
		}
		if newZip && !uploaded {
			if err := s.upload(ctx, m, name, zip); err != nil {
				return err
			}
			uploaded = true
		}
		if intent != nil && s.now().Sub(fromMicros(intent.Started)) > sweepAfter/2 {
			return goproxy.Busy(time.Second, "put %s: it took longer than %s", m, sweepAfter/2)
		}
		if completes {
			v.Complete = micros(now)
			if v.Page, err = s.index.page(ctx); err != nil {
				return err
			}
		}
		v.stamp = newStamp()
		if etag == "" {
			etag, err = s.create(ctx, s.modules, "put", v.PK, v.ID, v, v.stamp)
		} else {
			etag, err = s.replace(ctx, s.modules, "put", v.PK, v.ID, v, v.stamp, etag)
		}
		if err == errExists || err == errMoved || err == errAbsent {
			continue // another Put was faster: compare with what it kept
		} else if err != nil {
			return err
		}
		if completes {
			if err := s.enter(ctx, m, v, etag); err != nil {
				return err
			}
		}
		if intent != nil {
			s.done(intent)
		}
		return nil
	}
}

func (s *Store) upload(ctx context.Context, m module.Version, name string, zip *zipSource) error {
	_, err := zip.Seek(0, io.SeekStart)
	if err == nil {
		err = s.zips.Put(ctx, name, zip, zip.size)
	}
	if err != nil {
		return fmt.Errorf("put %s (zip): %w", m, err)
	}
	return nil
}
