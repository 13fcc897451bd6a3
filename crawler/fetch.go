package crawler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// fetch does the work of one job. outcome is "ok", "kept" (somebody else did
// it), "refused" (upstream has no such thing, or it can't be had; remembered),
// or "" with an error.
func (c *Crawler) fetch(ctx context.Context, job *storage.Job) (outcome string, err error) {
	k := job.Key
	m := module.Version{Path: k.Path, Version: k.Query}
	canonical := goproxy.IsCanonical(k.Path, k.Query)
	if done, err := c.isDone(ctx, job, canonical); err != nil {
		return "", err
	} else if done {
		if k.File == storage.FileZip {
			c.complete(ctx, m) // a crash may have come between the two
		}
		return "kept", nil
	}
	switch {
	case k.File == storage.FileList:
		err = c.fetchList(ctx, k)
	case k.File == storage.FileInfo && !canonical:
		err = c.fetchQuery(ctx, k)
	case k.File == storage.FileInfo:
		err = c.fetchInfo(ctx, m)
	case k.File == storage.FileMod:
		err = c.fetchMod(ctx, m)
	case k.File == storage.FileZip:
		if err = c.fetchZip(ctx, m); err == nil {
			c.complete(ctx, m)
		}
	default:
		err = goproxy.Errorf(http.StatusBadRequest, "%s: not something that can be fetched", k)
	}
	switch goproxy.Status(err) {
	case http.StatusOK:
		return "ok", nil
	case http.StatusNotFound, http.StatusGone, http.StatusForbidden, http.StatusNotImplemented:
		known := &storage.Known{Checked: time.Now().UTC(), RefusedStatus: goproxy.Status(err), Refused: err.Error()}
		if err := c.ledger.SetKnown(ctx, k, known); err != nil {
			return "", err
		}
		return "refused", err
	}
	return "", err
}

// isDone reports whether the job's result is there already: a crash, or another
// request just before, may have left a job behind that has nothing to do.
func (c *Crawler) isDone(ctx context.Context, job *storage.Job, canonical bool) (bool, error) {
	k := job.Key
	m := module.Version{Path: k.Path, Version: k.Query}
	var b *goproxy.Blob
	var err error
	switch {
	case k.File == storage.FileMod:
		b, err = c.store.Mod(ctx, m)
	case k.File == storage.FileZip:
		b, err = c.store.Zip(ctx, m)
	case k.File == storage.FileInfo && canonical:
		_, err = c.store.Resolve(ctx, k.Path, k.Query)
	default:
		_, err = c.known(ctx, k)
	}
	if b != nil {
		b.Close()
	}
	if isRefused(err) || errors.Is(err, fs.ErrNotExist) {
		return false, nil // a refusal that is remembered: the job asks once more
	}
	return err == nil, err
}

// ask asks the origins in their order, as the go command does with GOPROXY.
// What is not there is upstream's 404 or 410; every other failure is 502 but
// for the 501 of an origin that is not supported, and keeps what upstream said
// about coming again. An unsupported origin behind one that said "not found"
// changes nothing of that but the text: the go command asks for every prefix of
// a path, and must be told that there is no such module.
// Source: https://go.dev/ref/mod#goproxy-protocol.
func ask[T any](c *Crawler, what string, f func(goproxy.Source) (T, error)) (T, error) {
	var none T
	err := error(goproxy.NotFound("%s: upstream is off", what))
	for i, o := range c.o.Origins {
		var v T
		before := err
		if v, err = f(o.Source); err == nil {
			return v, nil
		}
		if i > 0 && goproxy.Status(err) == http.StatusNotImplemented && errors.Is(before, fs.ErrNotExist) {
			err = goproxy.NotFound("%w (%s: %w)", before, o.Name, err)
		}
		absent := errors.Is(err, fs.ErrNotExist)
		switch s := goproxy.Status(err); {
		case absent && strings.HasPrefix(err.Error(), "not found: "+what):
		case absent:
			err = goproxy.NotFound("%s at %s: %w", what, o.Name, err)
		case s == http.StatusNotImplemented:
		default:
			e := goproxy.Errorf(http.StatusBadGateway, "%s: %s: %w", what, o.Name, err)
			var cause *goproxy.Error
			if errors.As(err, &cause) {
				e.RetryAfter = cause.RetryAfter
			}
			err = e
		}
		if !absent && !o.AnyError {
			break
		}
	}
	return none, err
}

func (c *Crawler) fetchList(ctx context.Context, k storage.Key) error {
	last, err := c.ledger.Known(ctx, k)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// A refusal is no list that could be the same still.
	conditional := err == nil && last.RefusedStatus == 0 && last.Validator != ""
	if conditional {
		ctx = goproxy.WithValidator(ctx, last.Validator)
	}
	next, err := ask(c, k.Path+": version list", func(s goproxy.Source) (*storage.Known, error) {
		list, err := s.List(ctx, k.Path)
		if conditional && errors.Is(err, goproxy.ErrNotModified) {
			return &storage.Known{Versions: last.Versions, Validator: last.Validator}, nil
		} else if err != nil {
			return nil, err
		}
		versions := list.Versions
		if len(versions) == 0 && list.Pseudo != "" {
			versions = []string{list.Pseudo} // "latest" where upstream does not say it
		}
		return &storage.Known{Versions: versions, Validator: list.Validator}, nil
	})
	if err != nil {
		return err
	}
	next.Checked = time.Now().UTC()
	return c.ledger.SetKnown(ctx, k, next)
}

// fetchQuery asks for what is not a canonical version. "latest" is worked out
// from the list where upstream has no answer for it.
func (c *Crawler) fetchQuery(ctx context.Context, k storage.Key) error {
	info, err := ask(c, k.Path+"@"+k.Query, func(s goproxy.Source) (*goproxy.Info, error) {
		return s.Resolve(ctx, k.Path, k.Query)
	})
	if k.Query == goproxy.Latest && (errors.Is(err, fs.ErrNotExist) || goproxy.Status(err) == http.StatusNotImplemented) {
		// Within this job: waiting for another would hold a worker.
		if found, foundErr := c.latestOfList(ctx, k.Path); foundErr == nil {
			info, err = found, nil
		} else if !errors.Is(foundErr, fs.ErrNotExist) {
			err = foundErr
		}
	}
	if err != nil {
		return err
	}
	return c.ledger.SetKnown(ctx, k, &storage.Known{Checked: time.Now().UTC(), Info: info.JSON()})
}

func (c *Crawler) latestOfList(ctx context.Context, path string) (*goproxy.Info, error) {
	k := storage.Key{Path: path, File: storage.FileList}
	known, err := c.known(ctx, k)
	if errors.Is(err, fs.ErrNotExist) && !isRefused(err) {
		if err = c.fetchList(ctx, k); err == nil {
			known, err = c.known(ctx, k)
		}
	}
	if err != nil {
		return nil, err
	}
	latest := goproxy.NewVersionList(path, known.Versions, known.Checked).LatestVersion()
	if latest == "" {
		return nil, goproxy.NotFound("%s@latest: there is no version", path)
	}
	info, err := c.store.Resolve(ctx, path, latest)
	if errors.Is(err, fs.ErrNotExist) {
		if err = c.fetchInfo(ctx, module.Version{Path: path, Version: latest}); err == nil {
			info, err = c.store.Resolve(ctx, path, latest)
		}
	}
	return info, err
}

func (c *Crawler) fetchInfo(ctx context.Context, m module.Version) error {
	info, err := ask(c, m.String(), func(s goproxy.Source) (*goproxy.Info, error) {
		return s.Resolve(ctx, m.Path, m.Version)
	})
	if err != nil {
		return err
	}
	return keep(c.store.Put(ctx, m, storage.Files{Info: info.JSON()}))
}

func (c *Crawler) fetchMod(ctx context.Context, m module.Version) error {
	verify := c.expect(ctx, m.Path, m.Version+"/go.mod")
	mod, err := ask(c, m.String()+" (mod)", func(s goproxy.Source) ([]byte, error) {
		b, err := s.Mod(ctx, m)
		if err != nil {
			return nil, err
		}
		return b.ReadAll(goproxy.MaxModBytes)
	})
	if err != nil {
		return err
	}
	if err := goproxy.CheckMod(m, mod); err != nil {
		return badAnswer(err)
	}
	if err := verifyMod(mod, verify); err != nil {
		return err
	}
	return keep(c.store.Put(ctx, m, storage.Files{Mod: mod}))
}

func badAnswer(err error) error {
	return goproxy.Errorf(http.StatusBadGateway, "upstream's answer is refused: %w", err)
}

// expect starts to ask for the hash that something must have, so that the answer
// is there when the content is; the function it returns compares.
func (c *Crawler) expect(ctx context.Context, path, version string) (verify func(h1 string) error) {
	if c.o.Verifier == nil {
		return func(string) error { return nil }
	}
	type answer struct {
		h1  string
		err error
	}
	ch := make(chan answer, 1)
	go func() {
		var a answer
		defer func() { ch <- a }()
		defer goproxy.Recover(&a.err)
		a.h1, a.err = c.o.Verifier.H1(ctx, path, version)
	}()
	return func(h1 string) error {
		select {
		case want := <-ch:
			if want.err != nil || want.h1 == "" || want.h1 == h1 {
				return want.err
			}
			c.mismatches.Inc()
			return goproxy.Errorf(http.StatusBadGateway, "%s@%s: checksum mismatch: upstream has %s, the checksum database says %s", path, version, h1, want.h1)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func verifyMod(mod []byte, verify func(string) error) error {
	h1, err := goproxy.ModH1(mod)
	if err != nil {
		return err
	}
	return verify(h1)
}

// fetchZip spools the zip to disk, checks all of it, and only then keeps it,
// with the go.mod file that is in it.
func (c *Crawler) fetchZip(ctx context.Context, m module.Version) error {
	if err := c.zips.Acquire(ctx, 1); err != nil {
		return err
	}
	defer c.zips.Release(1)
	verify, verifyItsMod := c.expect(ctx, m.Path, m.Version), c.expect(ctx, m.Path, m.Version+"/go.mod")
	tmp, err := os.CreateTemp(c.o.TempDir, "fetch-")
	if err != nil {
		return storage.FullDisk(err)
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	if _, err := ask(c, m.String()+" (zip)", func(s goproxy.Source) (struct{}, error) {
		return struct{}{}, c.spool(ctx, s, m, tmp)
	}); err != nil {
		return storage.FullDisk(err) // where that is why: upstream is well
	}
	h1, mod, err := goproxy.CheckZip(m, tmp.Name())
	if err == nil {
		err = c.sameMod(ctx, m, mod)
	}
	if err != nil {
		return badAnswer(err)
	}
	if err := verifyMod(mod, verifyItsMod); err != nil {
		return err
	}
	if err := verify(h1); err != nil {
		return err
	}
	if _, err := tmp.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return keep(c.store.Put(ctx, m, storage.Files{Mod: mod, Zip: tmp, ZipH1: h1}))
}

// complete fetches .info where the zip was asked for alone, as a job of its own
// that this worker does: a git host's answer to the zip holds it. It is for later:
// who waits for the zip has it, whatever comes of this.
func (c *Crawler) complete(ctx context.Context, m module.Version) {
	if _, err := c.store.Resolve(ctx, m.Path, m.Version); !errors.Is(err, fs.ErrNotExist) {
		return
	}
	k := storage.Key{Path: m.Path, Query: m.Version, File: storage.FileInfo}
	job, err := c.ledger.Start(ctx, jobOf(ctx, k, storage.Demand), c.workerName(), c.o.Lease)
	if err == nil && job != nil {
		err = c.run(ctx, job)
	}
	if err != nil {
		c.o.Log.Warn("a version is not complete", "version", m.String(), "err", err)
	}
}

// spool writes the zip that s has to tmp, in place of what is there.
func (c *Crawler) spool(ctx context.Context, s goproxy.Source, m module.Version, tmp *os.File) error {
	if _, err := tmp.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := tmp.Truncate(0); err != nil {
		return err
	}
	b, err := s.Zip(ctx, m)
	if err != nil {
		return err
	}
	defer b.Close()
	if b.SizeBytes > goproxy.MaxZipBytes {
		return fmt.Errorf("zip of %d bytes; at most %d are accepted", b.SizeBytes, goproxy.MaxZipBytes)
	}
	weight := b.SizeBytes
	if weight < 0 {
		weight = goproxy.MaxZipBytes
	}
	weight = min(weight, c.o.InflightBytes)
	if err := c.inflight.Acquire(ctx, weight); err != nil {
		return err
	}
	defer c.inflight.Release(weight)
	c.bytes.Add(weight)
	defer c.bytes.Add(-weight)
	n, err := io.Copy(tmp, io.LimitReader(b, goproxy.MaxZipBytes+1))
	if err != nil {
		return err
	}
	if b.SizeBytes >= 0 && n != b.SizeBytes {
		return fmt.Errorf("the zip was cut after %d of %d bytes", n, b.SizeBytes)
	}
	return nil
}

// sameMod compares the zip's go.mod with the one kept, if one is.
func (c *Crawler) sameMod(ctx context.Context, m module.Version, mod []byte) error {
	b, err := c.store.Mod(ctx, m)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	have, err := b.ReadAll(goproxy.MaxModBytes)
	if err != nil {
		return err
	}
	if !bytes.Equal(have, mod) {
		return fmt.Errorf("%s: the go.mod in the zip is not the .mod file", m)
	}
	return nil
}

// keep takes a conflict as success: another crawler was first, and what it kept stays.
func keep(err error) error {
	if errors.Is(err, storage.ErrConflict) {
		return nil
	}
	return err
}
