package cosmos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/data/azcosmos"
	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/tracing"
)

// feed is a sequence of entries whose times only grow, whoever writes and whatever
// the clocks say. It is a row of pages, one partition each. A page has a head,
// with the time of its last entry; entries are written in one transaction with
// the head, on the condition that it has not changed, and so one after another.
// A full page is sealed: its last entry is the seal, behind which the next page
// goes on. So whoever reads a page to its seal has missed nothing of it.
type feed struct {
	s    *Store
	name string
	ttl  time.Duration // of entries; 0: for ever

	mu      sync.Mutex
	current int // the page that takes entries, as far as is known; 0: not known
	head    *head
	etag    azcore.ETag // of head
	pending []*pendingEntry
	writing bool
}

// entry is one item of a page.
type entry struct {
	ID      string `json:"id"`
	PK      string `json:"pk"`
	Time    int64  `json:"t"` // µs
	Path    string `json:"path,omitempty"`
	Version string `json:"v,omitempty"`
	Seal    bool   `json:"seal,omitempty"`
	TTL     int    `json:"ttl,omitempty"` // seconds
}

type head struct {
	ID      string `json:"id"`
	PK      string `json:"pk"`
	Last    int64  `json:"last"` // time of the last entry, µs
	Entries int    `json:"n"`
	Sealed  bool   `json:"sealed,omitempty"`
	stamp
}

// pages says where each page begins. It may be behind: the seals are not.
type pages struct {
	ID    string  `json:"id"`
	PK    string  `json:"pk"`
	Froms []int64 `json:"froms"` // Froms[i]: what page i+1 begins after, µs
	stamp
}

type pendingEntry struct {
	entry
	page  int
	done  chan struct{}
	time  int64
	units float32 // its part of what the writing has cost
	err   error
}

const (
	headID  = "head"
	pagesID = "pages"
	// A transaction takes at most 100 operations; these are entries beside the head.
	entriesAtOnce = 50
)

// errSealed: the page takes no entry any more, and has none with that id.
var errSealed = errors.New("the page is sealed")

func newFeed(s *Store, name string, ttl time.Duration) *feed {
	return &feed{s: s, name: name, ttl: ttl}
}

func (f *feed) pk(page int) string { return fmt.Sprintf("f/%s/%06d", f.name, page) }

// entryID is the same for each try to enter a version in a page.
func entryID(m module.Version) string {
	return strings.ReplaceAll(m.Path, "/", ":") + " " + m.Version
}

// page returns the page that takes entries now, as far as is known.
func (f *feed) page(ctx context.Context) (int, error) {
	f.mu.Lock()
	n := f.current
	f.mu.Unlock()
	if n > 0 {
		return n, nil
	}
	p, _, err := f.pages(ctx)
	if err != nil {
		return 0, err
	}
	n = max(1, len(p.Froms))
	f.mu.Lock()
	defer f.mu.Unlock()
	f.current = max(f.current, n)
	return f.current, nil
}

func (f *feed) pages(ctx context.Context) (*pages, azcore.ETag, error) {
	p := &pages{}
	etag, err := f.s.get(ctx, f.s.modules, "feed pages", "f/"+f.name, pagesID, p)
	if err == errAbsent {
		return &pages{ID: pagesID, PK: "f/" + f.name}, "", nil
	}
	return p, etag, err
}

// append enters e at the end, with a time of its own, which it returns. In a page
// that is named it is entered once, by its id, however often it is tried; page 0
// is the one that takes entries now. errSealed.
func (f *feed) append(ctx context.Context, e entry, page int) (int64, error) {
	for {
		n := page
		if page == 0 {
			var err error
			if n, err = f.page(ctx); err != nil {
				return 0, err
			}
		}
		t, err := f.enter(ctx, e, n)
		if err == errSealed && page == 0 {
			continue
		}
		return t, err
	}
}

// enter joins the entries that wait; whoever comes first starts a writer for all. The
// writer is nobody's: it pays for no background's units and belongs to no trace. Each
// spends its own part.
func (f *feed) enter(ctx context.Context, e entry, page int) (t int64, err error) {
	ctx, span := tracing.Start(ctx, "cosmos feed entry")
	defer func() {
		failed := err
		if err == errSealed {
			failed = nil // an answer
		}
		tracing.End(span, failed)
	}()
	if err := f.s.afford(ctx, "feed append"); err != nil {
		return 0, err
	}
	e.PK = f.pk(page)
	if f.ttl > 0 {
		e.TTL = int(f.ttl / time.Second)
	}
	p := &pendingEntry{entry: e, page: page, done: make(chan struct{})}
	f.mu.Lock()
	f.pending = append(f.pending, p)
	if !f.writing {
		f.writing = true
		go f.write()
	}
	f.mu.Unlock()
	select {
	case <-p.done:
		f.s.spend(ctx, p.units)
		return p.time, p.err
	case <-ctx.Done():
		f.leave(p)
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return 0, errSlowFeed
		}
		return 0, ctx.Err()
	}
}

var errSlowFeed = goproxy.Busy(time.Second, "Cosmos DB (feed append) does not answer as it should: entries wait")

// leave takes back an entry that nobody waits for any more: one that waits is not written. Whoever
// wanted one that is being written does not look whether the version was deleted meanwhile
// (see Store.enter), and that is done when it is written.
func (f *feed) leave(p *pendingEntry) {
	f.mu.Lock()
	waits := len(f.pending)
	f.pending = slices.DeleteFunc(f.pending, func(q *pendingEntry) bool { return q == p })
	waits -= len(f.pending)
	f.mu.Unlock()
	if waits > 0 || f.ttl > 0 {
		return
	}
	go func() {
		if <-p.done; p.err == errSealed {
			return
		}
		f.s.lookAfter(module.Version{Path: p.Path, Version: p.Version}, p.page)
	}()
}

// write writes what waits, until nothing does.
func (f *feed) write() {
	for {
		f.mu.Lock()
		if len(f.pending) == 0 {
			f.writing = false
			f.mu.Unlock()
			return
		}
		pk := f.pending[0].PK
		var batch, rest []*pendingEntry
		ids := map[string]bool{}
		for _, p := range f.pending {
			if p.PK == pk && len(batch) < entriesAtOnce && !ids[p.ID] {
				batch, ids[p.ID] = append(batch, p), true
			} else {
				rest = append(rest, p)
			}
		}
		f.pending = rest
		f.mu.Unlock()
		bill := new(float32)
		ctx, cancel := context.WithTimeout(context.WithValue(context.Background(), billKey{}, bill), 2*f.s.patience)
		err := f.writeBatch(ctx, pk, batch)
		if ctx.Err() != nil {
			err = errSlowFeed
		}
		cancel()
		for _, p := range batch {
			p.units = *bill / float32(len(batch))
			if p.time == 0 && p.err == nil {
				p.err = err
			}
			close(p.done)
		}
	}
}

// writeBatch enters the entries of one page. Each ends with a time or an error of
// its own, or with the error returned.
func (f *feed) writeBatch(ctx context.Context, pk string, batch []*pendingEntry) error {
	for len(batch) > 0 {
		h, etag, err := f.readHead(ctx, pk)
		if err != nil {
			return err
		}
		if h.Sealed {
			if err := f.turn(ctx, pk, h); err != nil {
				return err
			}
			for _, p := range batch {
				if p.time, p.err = f.entered(ctx, p.entry); p.err == errAbsent {
					p.err = errSealed
				}
			}
			return nil
		}
		next := *h
		next.stamp = newStamp()
		now := micros(f.s.now())
		entries := make([]entry, 0, len(batch)+1)
		for _, p := range batch {
			next.Last = max(now, next.Last+1)
			next.Entries++
			p.Time = next.Last
			entries = append(entries, p.entry)
		}
		if next.Entries >= f.s.o.PageSize {
			next.Sealed = true
			next.Last++
			entries = append(entries, entry{ID: "seal", PK: pk, Time: next.Last, Seal: true})
		}
		b := f.s.modules.NewTransactionalBatch(azcosmos.NewPartitionKeyString(pk))
		item, err := json.Marshal(next)
		if err != nil {
			return err
		}
		b.ReplaceItem(headID, item, &azcosmos.TransactionalBatchItemOptions{IfMatchETag: &etag})
		for _, e := range entries {
			if item, err = json.Marshal(e); err != nil {
				return err
			}
			b.CreateItem(item, nil)
		}
		failed, newTag, err := f.s.batch(ctx, "feed append", b)
		if err != nil {
			f.forgetHead()
			return err
		}
		if failed < 0 {
			f.keepHead(&next, newTag)
			for _, p := range batch {
				p.time = p.Time
			}
			if next.Sealed {
				return f.turn(ctx, pk, &next)
			}
			return nil
		}
		f.forgetHead()
		if i := failed - 1; 0 <= i && i < len(batch) { // that one is there: from a try before, or this one
			p := batch[i]
			if p.time, p.err = f.entered(ctx, p.entry); p.err == errAbsent {
				p.time, p.err = 0, nil // removed meanwhile
				continue
			}
			batch = append(batch[:i:i], batch[i+1:]...)
		}
	}
	return nil
}

// entered returns the time of an entry that is there; errAbsent.
func (f *feed) entered(ctx context.Context, e entry) (int64, error) {
	var there entry
	_, err := f.s.get(ctx, f.s.modules, "feed append", e.PK, e.ID, &there)
	return there.Time, err
}

func (f *feed) keepHead(h *head, etag azcore.ETag) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if etag == "" {
		f.head = nil
		return
	}
	f.head, f.etag = h, etag
}

func (f *feed) forgetHead() { f.keepHead(nil, "") }

// readHead returns the head of a page; the first page begins with its first entry.
func (f *feed) readHead(ctx context.Context, pk string) (*head, azcore.ETag, error) {
	f.mu.Lock()
	if f.head != nil && f.head.PK == pk {
		defer f.mu.Unlock()
		return f.head, f.etag, nil
	}
	f.mu.Unlock()
	h := new(head)
	etag, err := f.s.get(ctx, f.s.modules, "feed head", pk, headID, h)
	if err == errAbsent && pk == f.pk(1) {
		h = &head{ID: headID, PK: pk, stamp: newStamp()}
		if etag, err = f.s.create(ctx, f.s.modules, "feed head", pk, headID, h, h.stamp); err == errExists {
			etag, err = f.s.get(ctx, f.s.modules, "feed head", pk, headID, h)
		}
	}
	if err != nil {
		return nil, "", fmt.Errorf("head of %s: %w", pk, err)
	}
	return h, etag, nil
}

// turn sees to it that there is a page behind the sealed one, and that pages says
// where it begins. Whoever finds a seal does it: each step can be made again.
func (f *feed) turn(ctx context.Context, pk string, sealed *head) error {
	var n int
	if _, err := fmt.Sscanf(strings.TrimPrefix(pk, "f/"+f.name+"/"), "%d", &n); err != nil {
		return err
	}
	next := head{ID: headID, PK: f.pk(n + 1), Last: sealed.Last, stamp: newStamp()}
	if _, err := f.s.create(ctx, f.s.modules, "feed head", next.PK, headID, next, next.stamp); err != nil && err != errExists {
		return err
	}
	for {
		p, etag, err := f.pages(ctx)
		if err != nil {
			return err
		}
		if len(p.Froms) > n {
			break
		}
		if len(p.Froms) == 0 {
			p.Froms = []int64{0}
		}
		if len(p.Froms) == n {
			p.Froms = append(p.Froms, sealed.Last)
		}
		p.stamp = newStamp()
		if etag == "" {
			_, err = f.s.create(ctx, f.s.modules, "feed pages", p.PK, p.ID, p, p.stamp)
		} else {
			_, err = f.s.replace(ctx, f.s.modules, "feed pages", p.PK, p.ID, p, p.stamp, etag)
		}
		if err != nil && err != errExists && err != errMoved {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.current = max(f.current, n+1)
	return nil
}
