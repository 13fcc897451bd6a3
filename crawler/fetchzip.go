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

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// fetchZip spools the zip to disk, checks all of it, and only then keeps it,
// with the .mod file that goes with it.
func (c *Crawler) fetchZip(ctx context.Context, m module.Version) error {
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
	h1, mod, err := c.checks.CheckZip(m, tmp.Name())
	if err != nil {
		return badAnswer(err)
	}
	if mod, err = c.modOf(ctx, m, mod); err != nil {
		return err
	}
	if err := verifyMod(mod, verifyItsMod); err != nil {
		return err
	}
	if err := verify(h1); err != nil {
		return err
	}
	size, err := tmp.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if _, err := tmp.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return keep(c.put(ctx, m, storage.Files{Mod: mod, Zip: tmp, ZipH1: h1}, size))
}

// complete fetches .info where the zip was asked for alone, as a job of its own
// that this worker does: a git host's answer to the zip holds it. Where .info is kept and
// the zip was found kept (again), whoever kept them may not have got as far as the list
// and the index: a Put that changes nothing does. It is for later: who waits for the zip
// has it, whatever comes of this.
func (c *Crawler) complete(ctx context.Context, m module.Version, again bool) {
	info, err := c.store.Resolve(ctx, m.Path, m.Version)
	if err == nil && again {
		if err := keep(c.put(ctx, m, storage.Files{Info: info.JSON()}, 0)); err != nil {
			c.o.Log.Warn("a version may not be listed", "version", m.String(), "err", err)
		}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return
	}
	k := storage.Key{Path: m.Path, Query: m.Version, File: storage.FileInfo}
	var job *storage.Job
	job, err = c.ledger.Start(ctx, jobOf(ctx, k, storage.Demand), c.workerName(), c.o.Lease)
	switch {
	case errors.Is(err, storage.ErrQueueFull):
		err = c.fetchInfo(ctx, m) // without a job: nobody would ever make another
	case err == nil && job != nil:
		err = c.run(ctx, job, nil)
	}
	if err != nil {
		c.o.Log.Warn("a version is not complete", "version", m.String(), "err", err)
	}
}

// spool writes the zip that s has to tmp, in place of what is there. A zip for which there
// is no room within InflightBytes is held: 503, and its job goes back to the queue.
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
		return tooLarge("zip of %d bytes", b.SizeBytes)
	}
	part := c.inflight.part(ctx, laneOf(storage.Key{Path: m.Path}).host)
	defer part.release()
	if err := part.take(ctx, b); err != nil {
		return err
	}
	var r io.Reader = b
	if b.SizeBytes < 0 {
		r = part.reader(ctx, b)
	}
	n, err := io.Copy(tmp, io.LimitReader(r, goproxy.MaxZipBytes+1))
	if err != nil {
		return err
	}
	if n > goproxy.MaxZipBytes {
		return tooLarge("zip without an end")
	}
	if b.SizeBytes >= 0 && n != b.SizeBytes {
		return fmt.Errorf("the zip was cut after %d of %d bytes", n, b.SizeBytes)
	}
	return nil
}

// tooLarge is an error that another attempt does not change.
func tooLarge(format string, args ...any) error {
	return goproxy.Errorf(http.StatusRequestEntityTooLarge, format+"; at most %d are accepted", append(args, goproxy.MaxZipBytes)...)
}

// modOf is the .mod file that goes with the go.mod in a zip: the one that is kept, or else
// that very go.mod; where its line ends may be the zip's alone, upstream is asked for the
// .mod file first.
func (c *Crawler) modOf(ctx context.Context, m module.Version, inZip []byte) ([]byte, error) {
	b, err := c.store.Mod(ctx, m)
	if errors.Is(err, fs.ErrNotExist) {
		if !bytes.Contains(inZip, []byte("\r\n")) {
			return inZip, nil
		}
		if err := c.fetchMod(ctx, m); err != nil {
			return nil, err
		}
		b, err = c.store.Mod(ctx, m)
	}
	if err != nil {
		return nil, err
	}
	have, err := b.ReadAll(goproxy.MaxModBytes)
	if err != nil {
		return nil, err
	}
	if !storage.SameMod(inZip, have) {
		return nil, badAnswer(fmt.Errorf("%s: the go.mod in the zip is not the .mod file", m))
	}
	return have, nil
}
