package proxy

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"time"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

func isLocalFile(b *goproxy.Blob) bool {
	_, ok := b.ReadCloser.(*os.File)
	return ok
}

// changing is an answer of upstream that another may follow: a list, or what a
// query stands for.
type changing struct {
	list     *goproxy.VersionList
	info     *goproxy.Info
	err      error // a refusal
	checked  time.Time
	looked   time.Time // when the ledger said so
	outdated bool      // there is another, which is not fetched yet
}

// List implements goproxy.Source: from what is known, as fresh as Options say.
func (p *Proxy) List(ctx context.Context, path string) (*goproxy.VersionList, error) {
	start := time.Now()
	k := storage.Key{Path: path, File: storage.FileList}
	if !p.mayFetch(ctx) {
		ctx, cancel := context.WithTimeout(ctx, p.o.FetchTimeout)
		defer cancel()
		list, err := whenBack(ctx, p.o.FetchTimeout, func() (*goproxy.VersionList, error) { return p.kept(ctx, k) })
		if err == nil || isRefusal(err) {
			p.metrics.answered(ctx, start, fromStorage, k.File)
		}
		return list, err
	}
	a, tier, err := p.current(ctx, start, k)
	if err != nil {
		if p.o.Mode == Fallback && mayFallBack(err) {
			ctx, cancel := context.WithTimeout(ctx, keptWait)
			defer cancel()
			if list, keptErr := p.kept(ctx, k); keptErr == nil {
				p.metrics.answered(ctx, start, fromOld, k.File)
				list.Stale = true
				return list, nil
			}
		}
		p.metrics.answered(ctx, start, tier, k.File)
		return nil, err
	}
	now := p.metrics.answered(ctx, start, tier, k.File)
	p.metrics.served(k.File, now.Sub(a.checked))
	if tier == fromOld {
		l := *a.list
		l.Stale = true
		return &l, nil
	}
	return a.list, nil
}

// resolveQuery answers "latest", a branch or a commit.
func (p *Proxy) resolveQuery(ctx context.Context, start time.Time, k storage.Key) (*goproxy.Info, error) {
	if !p.mayFetch(ctx) {
		ctx, cancel := context.WithTimeout(ctx, p.o.FetchTimeout)
		defer cancel()
		info, err := whenBack(ctx, p.o.FetchTimeout, func() (*goproxy.Info, error) { return p.store.Resolve(ctx, k.Path, k.Query) })
		if err == nil || isRefusal(err) {
			p.metrics.answered(ctx, start, fromStorage, k.File)
		}
		return info, err
	}
	a, tier, err := p.current(ctx, start, k)
	if err != nil {
		if p.o.Mode == Fallback && mayFallBack(err) {
			ctx, cancel := context.WithTimeout(ctx, keptWait)
			defer cancel()
			if info, keptErr := p.store.Resolve(ctx, k.Path, k.Query); keptErr == nil {
				p.metrics.answered(ctx, start, fromOld, k.File)
				info.Stale = true
				return info, nil
			}
		}
		p.metrics.answered(ctx, start, tier, k.File)
		return nil, err
	}
	now := p.metrics.answered(ctx, start, tier, k.File)
	p.metrics.served(k.File, now.Sub(a.checked))
	if tier == fromOld {
		i := *a.info
		i.Stale = true
		return &i, nil
	}
	return a.info, nil
}

// keptWait is how long storage may take to say what is kept, after upstream could not be
// asked: what is in front of a proxy gives up after 60 s, of which FetchTimeout has 50.
const keptWait = 5 * time.Second

// kept is the list of what storage keeps of a module: not found, where that is nothing. One
// of which only pseudo-versions are kept has an empty list, where the go command goes on to
// @latest.
func (p *Proxy) kept(ctx context.Context, k storage.Key) (*goproxy.VersionList, error) {
	list, err := p.store.List(ctx, k.Path)
	if err != nil || len(list.Versions) > 0 {
		return list, err
	}
	_, err = p.store.Resolve(ctx, k.Path, goproxy.Latest)
	if goproxy.IsAbsent(err) {
		return nil, notKept(k)
	}
	return list, err
}

// mayFallBack: upstream failed, or has no such thing, which what is kept contradicts (a
// module that was published here, or that upstream has lost). A client that left, and
// what policy forbids, get nothing.
func mayFallBack(err error) bool {
	s := goproxy.Status(err)
	return s >= 500 || s == 429 || s == 404 || s == 410
}

// current returns upstream's answer for k: what is in memory or in the ledger
// if it is fresh; if it is a little older too, or outdated, while a refresh goes on behind;
// older still, it waits a little for the refresh. Only the first sight of k
// waits as long as a fetch may take. tier is where the answer came from, of a refusal
// too; "" with an error that is none.
func (p *Proxy) current(ctx context.Context, now time.Time, k storage.Key) (a *changing, tier string, err error) {
	if v, ok := p.memory.get(k); ok {
		a, _ = v.(*changing)
	}
	tier = fromMemory
	if a == nil || a.outdated || now.Sub(a.looked) >= p.o.ListRemember || storage.Age(a.checked, now) >= p.o.Freshness {
		// Another proxy, or a push, may have had it refreshed, or have made it old.
		if known := p.fromLedger(ctx, k); known != nil && (a == nil || !known.checked.Equal(a.checked) || a.looked != known.looked) {
			a, tier = known, fromStorage
			p.rememberChanging(k, a)
		}
	}
	age := time.Duration(0)
	if a != nil {
		age = storage.Age(a.checked, now)
	}
	switch {
	case a == nil || a.err != nil && age >= p.o.Freshness:
		old := a
		if a, err = p.awaitRefresh(ctx, k); err != nil {
			if e := p.wasAbsent(old, err); e != nil {
				return nil, fromOld, e
			}
			return nil, "", err
		}
		tier = fromCrawler
	case age < p.o.Freshness && !a.outdated:
	case age < p.o.ListMaxStale:
		p.refreshBehind(ctx, k)
	default:
		wait, cancel := context.WithTimeout(ctx, p.o.ListWait)
		fresh, err := p.awaitRefresh(wait, k)
		late := wait.Err() != nil
		cancel()
		switch {
		case err == nil:
			a, tier = fresh, fromCrawler
		case ctx.Err() != nil:
			return nil, "", ctx.Err()
		case p.o.Mode == Strict && !late:
			return nil, "", err
		case p.o.Mode == Strict:
			// Strict wants upstream's word: it waits for it as for a first sight.
			if a, err = p.awaitRefresh(ctx, k); err != nil {
				return nil, "", err
			}
			tier = fromCrawler
		default:
			tier = fromOld
		}
	}
	if a.err != nil {
		return nil, tier, a.err
	}
	return a, tier, nil
}

// wasAbsent is the answer for what upstream said it does not have, when it fails now: the go
// command asks for every path in front of a package's module, and an error of one ends its
// work. nil: that was not said, or mode and failure want the failure handed on.
func (p *Proxy) wasAbsent(old *changing, failure error) error {
	s := goproxy.Status(failure)
	if p.o.Mode != Fallback || s < 500 && s != http.StatusTooManyRequests || old == nil || !goproxy.IsAbsent(old.err) {
		return nil
	}
	return &goproxy.Error{Status: goproxy.Status(old.err), Message: old.err.Error(), NoStore: true}
}

func (p *Proxy) rememberChanging(k storage.Key, a *changing) {
	size := 0
	if a.list != nil {
		size = listBytes(a.list)
	} else if a.info != nil {
		size = 2 * len(a.info.Raw) // Origin is a part of it
	}
	p.remember(k, a, size)
}

// listBytes is what a list takes: its text, and of each version a string with its header.
func listBytes(l *goproxy.VersionList) int { return 2*len(l.Text()) + 20*len(l.Versions) }

// ledgerTimeout bounds a look at what the fleet knows.
const ledgerTimeout = 5 * time.Second

// fromLedger is what the fleet knows; nil when that is nothing or storage is away. Those who
// ask at the same time share it: a list may be long.
func (p *Proxy) fromLedger(ctx context.Context, k storage.Key) *changing {
	ch := p.flights.DoChan("known "+k.String(), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ledgerTimeout)
		defer cancel()
		known, err := p.ledger.Known(ctx, k)
		if err != nil {
			return nil, err
		}
		return changingOf(k, known), nil
	})
	var v any
	var err error
	select {
	case r := <-ch:
		v, err = r.Val, r.Err
	case <-ctx.Done():
		return nil
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			p.o.Log.Warn("the ledger cannot be read", "key", k.String(), "err", err)
		}
		return nil
	}
	return v.(*changing)
}

// changingOf is an answer as the ledger has it; nil where it is none.
func changingOf(k storage.Key, known *storage.Known) *changing {
	a := &changing{checked: known.Checked, looked: time.Now(), outdated: known.Outdated}
	switch {
	case known.RefusedStatus != 0:
		a.err = &goproxy.Error{Status: known.RefusedStatus, Message: known.Refused, Checked: known.Checked}
	case k.File == storage.FileList:
		a.list = goproxy.NewVersionList(k.Path, known.Versions, known.Checked)
	default:
		info, err := goproxy.ParseInfo(k.Path, k.Query, known.Info)
		if err != nil {
			return nil
		}
		info.Checked = known.Checked
		a.info = info
	}
	return a
}

// awaitRefresh is refresh for somebody who waits.
func (p *Proxy) awaitRefresh(ctx context.Context, k storage.Key) (*changing, error) {
	leave, err := p.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	return p.refresh(ctx, k)
}

// refresh asks the crawler and remembers its answer.
func (p *Proxy) refresh(ctx context.Context, k storage.Key) (*changing, error) {
	v, _, err := p.share(ctx, k.String(), k, func(ctx context.Context) (any, string, error) {
		a := &changing{checked: time.Now(), looked: time.Now()}
		var err error
		if k.File == storage.FileList {
			if a.list, err = p.crawler.List(ctx, k.Path); err == nil && !a.list.Checked.IsZero() {
				a.checked = a.list.Checked
			}
		} else {
			if a.info, err = p.crawler.Resolve(ctx, k.Path, k.Query); err == nil && !a.info.Checked.IsZero() {
				a.checked = a.info.Checked
			}
		}
		if err != nil && !lasts(err) {
			return nil, "", err
		}
		if err != nil {
			a.err, a.checked = err, checkedOf(err)
		}
		p.rememberChanging(k, a)
		return a, fromCrawler, nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*changing), nil
}

// refreshBehind refreshes while nobody waits: past MaxWaiting of those it is left to the
// next reader.
func (p *Proxy) refreshBehind(ctx context.Context, k storage.Key) {
	if n := p.behinds.Add(1); n > int64(p.o.MaxWaiting) {
		p.behinds.Add(-1)
		return
	}
	if _, running := p.behind.LoadOrStore(k, true); running {
		p.behinds.Add(-1)
		return
	}
	go func() {
		defer p.behinds.Add(-1)
		defer p.behind.Delete(k)
		if _, err := p.refresh(context.WithoutCancel(ctx), k); err != nil {
			p.o.Log.Warn("refresh behind a reader", "key", k.String(), "err", err)
		}
	}()
}
