package proxy

import (
	"context"
	"errors"
	"io/fs"
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
	list    *goproxy.VersionList
	info    *goproxy.Info
	err     error // a refusal
	checked time.Time
	looked  time.Time // when the ledger said so
}

// List implements goproxy.Source: from what is known, as fresh as Options say.
func (p *Proxy) List(ctx context.Context, path string) (*goproxy.VersionList, error) {
	k := storage.Key{Path: path, File: storage.FileList}
	if !p.mayFetch(ctx) {
		list, err := p.store.List(ctx, path)
		if err == nil && len(list.Versions) == 0 {
			return nil, notKept(k)
		}
		return list, err
	}
	a, stale, err := p.current(ctx, k)
	if err != nil {
		if p.o.Mode == Fallback && mayFallBack(err) {
			if list, keptErr := p.store.List(ctx, path); keptErr == nil && len(list.Versions) > 0 {
				p.count("stale", k)
				list.Stale = true
				return list, nil
			}
		}
		return nil, err
	}
	if stale {
		l := *a.list
		l.Stale = true
		return &l, nil
	}
	return a.list, nil
}

// resolveQuery answers "latest", a branch or a commit.
func (p *Proxy) resolveQuery(ctx context.Context, k storage.Key) (*goproxy.Info, error) {
	if !p.mayFetch(ctx) {
		return p.store.Resolve(ctx, k.Path, k.Query)
	}
	a, stale, err := p.current(ctx, k)
	if err != nil {
		if p.o.Mode == Fallback && mayFallBack(err) {
			if info, keptErr := p.store.Resolve(ctx, k.Path, k.Query); keptErr == nil {
				p.count("stale", k)
				info.Stale = true
				return info, nil
			}
		}
		return nil, err
	}
	if stale {
		i := *a.info
		i.Stale = true
		return &i, nil
	}
	return a.info, nil
}

// mayFallBack: upstream failed; a refusal is an answer, and a client that left wants none.
func mayFallBack(err error) bool {
	s := goproxy.Status(err)
	return s >= 500 && s != 501 || s == 429
}

// current returns upstream's answer for k: what is in memory or in the ledger
// if it is fresh; if it is a little older too, while a refresh goes on behind;
// older still, it waits a little for the refresh. Only the first sight of k
// waits as long as a fetch may take.
func (p *Proxy) current(ctx context.Context, k storage.Key) (a *changing, stale bool, err error) {
	if v, ok := p.memory.get(k); ok {
		a, _ = v.(*changing)
	}
	if a == nil || time.Since(a.looked) >= p.o.ListRemember || time.Since(a.checked) >= p.o.Freshness {
		// Another proxy, or a push, may have had it refreshed, or have made it old.
		if known := p.fromLedger(ctx, k); known != nil && (a == nil || !known.checked.Equal(a.checked) || a.looked != known.looked) {
			a = known
			p.rememberChanging(k, a)
			p.count("storage", k)
		}
	} else {
		p.count("memory", k)
	}
	age := time.Duration(0)
	if a != nil {
		age = time.Since(a.checked)
	}
	switch {
	case a == nil || a.err != nil && age >= p.o.Freshness:
		a, err = p.refresh(ctx, k)
		if err != nil {
			return nil, false, err
		}
	case age < p.o.Freshness:
	case age < p.o.ListMaxStale:
		p.refreshBehind(ctx, k)
	default:
		wait, cancel := context.WithTimeout(ctx, p.o.ListWait)
		fresh, err := p.refresh(wait, k)
		late := wait.Err() != nil
		cancel()
		switch {
		case err == nil:
			a = fresh
		case ctx.Err() != nil:
			return nil, false, ctx.Err()
		case p.o.Mode == Strict && !late:
			return nil, false, err
		case p.o.Mode == Strict:
			// Strict wants upstream's word: it waits for it as for a first sight.
			if a, err = p.refresh(ctx, k); err != nil {
				return nil, false, err
			}
		default:
			stale = true
		}
	}
	if a.err != nil {
		return nil, false, a.err
	}
	return a, stale, nil
}

func (p *Proxy) rememberChanging(k storage.Key, a *changing) {
	size := 0
	if a.list != nil {
		size = 2 * len(a.list.Text())
	} else if a.info != nil {
		size = len(a.info.Raw)
	}
	p.remember(k, a, size)
}

// fromLedger is what the fleet knows; nil when that is nothing or storage is away.
func (p *Proxy) fromLedger(ctx context.Context, k storage.Key) *changing {
	v, err, _ := p.flights.Do("known "+k.String(), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return p.ledger.Known(ctx, k)
	})
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			p.o.Log.Warn("the ledger cannot be read", "key", k.String(), "err", err)
		}
		return nil
	}
	known := v.(*storage.Known)
	a := &changing{checked: known.Checked, looked: time.Now()}
	switch {
	case known.RefusedStatus != 0:
		a.err = &goproxy.Error{Status: known.RefusedStatus, Message: known.Refused}
	case k.File == storage.FileList:
		a.list = goproxy.NewVersionList(k.Path, known.Versions, known.Checked)
	default:
		if a.info, err = goproxy.ParseInfo(k.Path, k.Query, known.Info); err != nil {
			return nil
		}
		a.info.Checked = known.Checked
	}
	return a
}

// refresh asks the crawler and remembers its answer.
func (p *Proxy) refresh(ctx context.Context, k storage.Key) (*changing, error) {
	v, err := p.share(ctx, k, func(ctx context.Context) (any, error) {
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
		p.count("crawler", k)
		switch goproxy.Status(err) {
		case 200:
		case 404, 410, 403, 501:
			a.err = err
		default:
			return nil, err
		}
		p.rememberChanging(k, a)
		return a, nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*changing), nil
}

func (p *Proxy) refreshBehind(ctx context.Context, k storage.Key) {
	if _, running := p.behind.LoadOrStore(k, true); running {
		return
	}
	go func() {
		defer p.behind.Delete(k)
		if _, err := p.refresh(context.WithoutCancel(ctx), k); err != nil {
			p.o.Log.Warn("refresh behind a reader", "key", k.String(), "err", err)
		}
	}()
}
