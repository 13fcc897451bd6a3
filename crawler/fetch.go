package crawler

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/fleet"
	"github.com/athensctl/athensctl/storage"
)

// fetch does the work of one job. outcome is "ok", "kept" (somebody else did
// it), "refused" (upstream has no such thing, or it can't be had; remembered),
// or "" with an error, which may pass.
func (c *Crawler) fetch(ctx context.Context, job *storage.Job) (outcome string, err error) {
	k := job.Key
	m := module.Version{Path: k.Path, Version: k.Query}
	canonical := goproxy.IsCanonical(k.Path, k.Query)
	asked := time.Now().UTC() // what upstream says is true then, however long the answer takes
	if done, err := c.isDone(ctx, job, canonical); err != nil {
		return "", ours(k, err)
	} else if done {
		if k.File == storage.FileZip {
			c.complete(ctx, m, true) // a crash may have come between the two
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
			c.complete(ctx, m, false)
		}
	default:
		err = goproxy.Errorf(http.StatusBadRequest, "%s: not something that can be fetched", k)
	}
	switch {
	case err == nil:
		return "ok", nil
	case isRefused(err) && goproxy.Status(err) == http.StatusBadGateway && c.answeredBefore(ctx, k):
		return "refused", err // what upstream has said before says more
	case isRefused(err):
		known := &storage.Known{Checked: asked, RefusedStatus: goproxy.Status(err), Refused: err.Error()}
		if err := c.ledger.SetKnown(ctx, k, known); err != nil {
			return "", ours(k, err)
		}
		return "refused", err
	case isPending(err) && job.Priority == storage.Demand:
		return "refused", err // for this once: who comes again has it asked for again
	}
	return "", ours(k, err)
}

// answeredBefore reports whether a list or an answer is known, or it may be.
func (c *Crawler) answeredBefore(ctx context.Context, k storage.Key) bool {
	known, err := c.ledger.Known(ctx, k)
	return err == nil && known.RefusedStatus == 0 || err != nil && !errors.Is(err, fs.ErrNotExist)
}

// ours is an error that is not upstream's answer as who waits is told it: that a folder or
// storage says "not found" or "forbidden" is not said of a module. It may pass.
func ours(k storage.Key, err error) error {
	switch s := goproxy.Status(err); {
	case isPending(err):
		return goproxy.Errorf(http.StatusBadGateway, "%s", err)
	case s == http.StatusUnauthorized, s == http.StatusForbidden, s == http.StatusNotFound, s == http.StatusGone, s == http.StatusNotImplemented:
		return goproxy.Errorf(http.StatusInternalServerError, "%s: %s", k, err) // the cause's status is not to be found in it
	}
	return err
}

// isPending reports that upstream has no such thing yet, and looks for it.
func isPending(err error) bool {
	var e *goproxy.Error
	return errors.As(err, &e) && e.NoStore && goproxy.IsAbsent(err)
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
		_, err = c.known(ctx, k, c.o.Freshness)
	}
	if b != nil {
		b.Close()
	}
	if isRefused(err) || errors.Is(err, fs.ErrNotExist) {
		return false, nil // a refusal that is remembered: the job asks once more
	}
	return err == nil, err
}

// off is the name of the origin behind which nobody is asked.
const off = "off"

// ask asks the origins in their order, as the go command does with GOPROXY, and returns
// what says most where none has an answer: a failure (502, with what upstream said about
// coming again; 503 where it was not asked, for its host's bounds) before "not supported" (501), and that before absence (404), so that
// nothing counts as absent while somebody could not be asked. The last two are refusals;
// absence while one of them still looks is not. An unsupported origin behind one that said
// "not found" changes nothing of that but the text: the go command asks for every
// prefix of a path, and must be told that there is no such module. A failure that stays (a
// version of which no module zip can be made, what an upstream forbids) is a refusal too.
// Sources: https://go.dev/ref/mod#goproxy-protocol, cmd/go/internal/modfetch.TryProxies.
func ask[T any](c *Crawler, what string, f func(goproxy.Source) (T, error)) (T, error) {
	var none T
	absence := goproxy.NotFound("%s: upstream is off", what)
	var unsupported, failure error
	asked, pending, passing := false, false, false
	for _, o := range c.o.Origins {
		v, err := f(o.Source)
		if err == nil {
			return v, nil
		}
		var cause *goproxy.Error
		errors.As(err, &cause)
		absent := goproxy.IsAbsent(err)
		switch {
		case goproxy.IsLocal(err):
			return none, goproxy.Errorf(http.StatusInternalServerError, "%s: %w", what, err)
		case !absent && goproxy.Status(err) == http.StatusNotImplemented && asked && unsupported == nil && failure == nil:
			absent = true
			absence = goproxy.NotFound("%w (%s: %w)", absence, o.Name, err)
		case !absent && goproxy.Status(err) == http.StatusNotImplemented:
			unsupported = err
		case !absent:
			e := goproxy.Errorf(http.StatusBadGateway, "%s: %s: %w", what, o.Name, err)
			if cause != nil {
				e.RetryAfter = cause.RetryAfter
			}
			if isNotSent(err) {
				e.Status = http.StatusServiceUnavailable // a bound was hit
			}
			if passes := transient(e); passes || !passing {
				failure, passing = e, passes
			}
		case strings.HasPrefix(err.Error(), "not found: "+what):
			absence = goproxy.NotFound("%w", err)
		default:
			absence = goproxy.NotFound("%s at %s: %w", what, o.Name, err)
		}
		asked = true
		pending = pending || absent && cause != nil && cause.NoStore
		if !absent && !o.AnyError || o.Name == off {
			break
		}
	}
	switch {
	case failure != nil && !passing && !pending: // nobody may have an answer soon
		return none, refused{failure}
	case failure != nil:
		return none, failure
	case pending:
		absence.NoStore = true
		return none, absence
	case unsupported != nil:
		return none, refused{unsupported}
	}
	return none, refused{absence}
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
	part := c.memory.part(ctx, laneOf(k).host)
	defer part.release()
	ctx = goproxy.WithMemory(ctx, func(n int64) error { return part.hold(ctx, listFactor*n) })
	asked := time.Now().UTC()
	next, err := ask(c, k.Path+": version list", func(s goproxy.Source) (*storage.Known, error) {
		list, err := s.List(ctx, k.Path)
		if conditional && errors.Is(err, goproxy.ErrNotModified) {
			return &storage.Known{Versions: last.Versions, Validator: last.Validator}, nil
		} else if err != nil {
			return nil, err
		}
		if n := len(list.Text()); n > goproxy.MaxListBytes {
			return nil, goproxy.Errorf(http.StatusRequestEntityTooLarge, "a list of %d bytes; at most %d are accepted", n, goproxy.MaxListBytes)
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
	next.Checked = asked
	return c.ledger.SetKnown(ctx, k, next)
}

// fetchQuery asks for what is not a canonical version. "latest" is worked out
// from the list where upstream has no answer for it.
func (c *Crawler) fetchQuery(ctx context.Context, k storage.Key) error {
	asked := time.Now().UTC()
	info, err := ask(c, k.Path+"@"+k.Query, func(s goproxy.Source) (*goproxy.Info, error) {
		return s.Resolve(ctx, k.Path, k.Query)
	})
	if k.Query == goproxy.Latest && (isRefused(err) && goproxy.Status(err) != http.StatusBadGateway || isPending(err)) {
		// Within this job: waiting for another would hold a worker.
		if found, foundErr := c.latestOfList(ctx, k.Path); foundErr == nil {
			info, err = found, nil
		} else if !goproxy.IsAbsent(foundErr) || isPending(foundErr) {
			err = foundErr
		}
	}
	if err != nil {
		return err
	}
	c.noteVanity(ctx, k.Path, info)
	return c.ledger.SetKnown(ctx, k, &storage.Known{Checked: asked, Info: info.JSON()})
}

func (c *Crawler) latestOfList(ctx context.Context, path string) (*goproxy.Info, error) {
	k := storage.Key{Path: path, File: storage.FileList}
	known, err := c.known(ctx, k, c.o.Freshness)
	if errors.Is(err, fs.ErrNotExist) && !isRefused(err) {
		if err = c.fetchList(ctx, k); err == nil {
			known, err = c.known(ctx, k, c.o.Freshness+atMost(k.File))
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
	c.noteVanity(ctx, m.Path, info)
	return keep(c.put(ctx, m, storage.Files{Info: info.JSON()}, 0))
}

func (c *Crawler) fetchMod(ctx context.Context, m module.Version) error {
	verify := c.expect(ctx, m.Path, m.Version+"/go.mod")
	part := c.memory.part(ctx, laneOf(storage.Key{Path: m.Path}).host)
	defer part.release()
	mod, err := ask(c, m.String()+" (mod)", func(s goproxy.Source) ([]byte, error) {
		b, err := s.Mod(ctx, m)
		if err != nil {
			return nil, err
		}
		if b.SizeBytes >= 0 {
			if err := part.hold(ctx, min(b.SizeBytes, goproxy.MaxModBytes+1)); err != nil {
				b.Close()
				return nil, err
			}
			return b.ReadAll(goproxy.MaxModBytes)
		}
		defer b.Close()
		return (&goproxy.Blob{ReadCloser: io.NopCloser(readFunc(func(p []byte) (int, error) {
			n, err := b.Read(p)
			if e := part.hold(ctx, int64(n)); e != nil {
				return 0, e
			}
			return n, err
		}))}).ReadAll(goproxy.MaxModBytes)
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
	return keep(c.put(ctx, m, storage.Files{Mod: mod}, int64(len(mod))))
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
			switch {
			case goproxy.Status(want.err) == http.StatusForbidden:
				return refused{want.err}
			case want.err != nil || want.h1 == "" || want.h1 == h1:
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

// put is Put, which has a minute, in the background five, and a second more for each 256 KiB.
func (c *Crawler) put(ctx context.Context, m module.Version, f storage.Files, sizeBytes int64) error {
	most := time.Minute
	if fleet.CallOf(ctx).Background {
		most *= 5
	}
	file, _ := f.Zip.(*os.File)
	return do(ctx, most+time.Duration(sizeBytes>>18)*time.Second, func(ctx context.Context) error {
		err := c.store.Put(ctx, m, f)
		if file != nil && err != nil {
			f.Zip = io.NewSectionReader(file, 0, sizeBytes) // from its start, each time; what reads the file still is in nobody's way
		}
		return err
	})
}

// keep takes a conflict as success: another crawler was first, and what it kept stays.
func keep(err error) error {
	if errors.Is(err, storage.ErrConflict) {
		return nil
	}
	return err
}
