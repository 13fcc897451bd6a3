package cosmos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
)

// A Put writes down what it is about to do before it writes the bytes of a zip or
// makes a version complete, and strikes it out when all is done. What is left is of one that
// failed, or of a process that died: Finish publishes what is complete, soon; Sweep ends the rest
// after a while. No chunk or blob is ever removed otherwise. Puts of the same bytes share one intent.
//
// A Delete writes one of its own, which no Put takes over and which stays until Sweep: when
// it has ended, a Put that it came upon may still be entering what it has removed, and die.
type intent struct {
	ID       string `json:"id"`
	PK       string `json:"pk"`
	Path     string `json:"path"`
	Version  string `json:"v"`
	Zip      *zipAt `json:"zip,omitempty"`
	Started  int64  `json:"started"`            // µs
	Sweeping bool   `json:"sweeping,omitempty"` // since Started
	Bytes    bool   `json:"bytes,omitempty"`    // there is nothing to do but for Sweep
	// A deletion of the item with the mark Of, whose entry is in that page of the index;
	// 0: it has none.
	Delete bool   `json:"delete,omitempty"`
	Of     string `json:"of,omitempty"`
	Page   int    `json:"page,omitempty"`
	stamp
	etag azcore.ETag
}

const (
	// finishAfter is longer than most Puts take to publish what they have made
	// complete; that both do it does no harm.
	finishAfter = 30 * time.Second
	// sweepAfter is longer than any Put.
	sweepAfter = time.Hour
	// A sweep that goes on for longer has died, and a Put may write the same bytes again.
	// One that has not died ends by itself in half of that time.
	sweepTakes = 10 * time.Minute
	// intentShards spreads the intents over partitions.
	intentShards = 16
)

func intentPK(shard int) string { return fmt.Sprintf("p/%x", shard) }

func newIntent(m module.Version, zip *zipAt) *intent {
	name := m.String()
	if zip != nil {
		name = zip.Name
	}
	id := hashID(name)
	return &intent{ID: id, PK: intentPK(int(id[0]) % intentShards), Path: m.Path, Version: m.Version, Zip: zip}
}

// newDeletion is the intent to delete what v is.
func newDeletion(m module.Version, v *version) *intent {
	i := newIntent(m, v.Zip)
	i.Delete, i.Of, i.Page = true, v.W, v.Page
	i.ID = hashID(newStamp().W)
	i.PK = intentPK(int(i.ID[0]) % intentShards)
	return i
}

// intend writes the intent of a Put, or takes over the one that is left of another. Where
// the bytes that it is about are being removed: 503.
func (s *Store) intend(ctx context.Context, i *intent) (*intent, error) {
	for {
		i.Started, i.stamp = micros(s.now()), newStamp()
		etag, err := s.create(ctx, s.ledger, "intent", i.PK, i.ID, i, i.stamp)
		if err == errExists {
			var old intent
			oldTag, e := s.get(ctx, s.ledger, "intent", i.PK, i.ID, &old)
			if e == errAbsent {
				continue
			} else if e != nil {
				return nil, e
			}
			if old.Sweeping && s.now().Sub(fromMicros(old.Started)) < s.sweepTakes {
				return nil, goproxy.Busy(5*time.Second, "%s@%s: what is left of it is being removed", i.Path, i.Version)
			}
			etag, err = s.replace(ctx, s.ledger, "intent", i.PK, i.ID, i, i.stamp, oldTag)
			if err == errMoved || err == errAbsent {
				continue
			}
		}
		i.etag = etag
		return i, err
	}
}

// intendDelete writes the intent of a Delete, in place of the one that the same Delete had when it
// looked before; nil: it had none.
func (s *Store) intendDelete(ctx context.Context, i, before *intent) (err error) {
	i.Started, i.stamp = micros(s.now()), newStamp()
	if before != nil {
		own := *i
		own.ID, own.PK = before.ID, before.PK
		if own.etag, err = s.replace(ctx, s.ledger, "intent", own.PK, own.ID, own, own.stamp, before.etag); err == nil {
			*i = own
		}
		if err != errMoved && err != errAbsent { // else somebody has ended it: what it was about was gone
			return err
		}
	}
	i.etag, err = s.create(ctx, s.ledger, "intent", i.PK, i.ID, i, i.stamp)
	return err
}

// done strikes an intent out. That it fails costs no more than a look by Sweep.
func (s *Store) done(i *intent) {
	ctx, cancel := context.WithTimeout(context.Background(), attemptTimeout)
	defer cancel()
	if err := s.remove(ctx, s.ledger, "intent", i.PK, i.ID, i.etag); err != nil && err != errMoved {
		s.o.Log.Debug("strike out a put", "module", i.Path, "version", i.Version, "err", err)
	}
}

// taggedIntent is an intent as a query returns it.
type taggedIntent struct {
	intent
	ETag string `json:"_etag"`
}

// Finish puts versions in the catalog and the index that a Put made complete and did
// not come to put there, and ends Deletes that did not come to their end. Any number of
// processes may.
func (s *Store) Finish(ctx context.Context) error {
	var left []*intent
	before := micros(s.now().Add(-finishAfter))
	err := s.query(ctx, s.ledger, "finish", "", "SELECT * FROM c WHERE c.started > 0 AND c.started < @before", 100, map[string]any{"@before": before}, decode(func(i *taggedIntent) bool {
		if i.intent.etag = azcore.ETag(i.ETag); !i.Sweeping && !i.Bytes {
			left = append(left, &i.intent)
		}
		return len(left) < 1000
	}))
	if err != nil {
		return err
	}
	var failed failures
	for _, i := range left {
		if err := s.finish(ctx, i); err != nil {
			failed.add(fmt.Errorf("finish %s@%s: %w", i.Path, i.Version, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return failed.err()
}

func (s *Store) finish(ctx context.Context, i *intent) error {
	m := module.Version{Path: i.Path, Version: i.Version}
	v, vtag, err := s.version(ctx, "finish", m)
	if i.Delete && (err == errAbsent || err == nil && v.W != i.Of) {
		return s.endDelete(ctx, i) // it is gone, though a Put may have made another
	} else if i.Delete && err == nil {
		return nil // it has not begun
	}
	if err == errAbsent || err == nil && v.Complete == 0 {
		return nil
	} else if err != nil {
		return err
	}
	if err := s.publish(ctx, m, v, vtag); err != nil {
		return err
	}
	if i.Zip != nil && (v.Zip == nil || v.Zip.Name != i.Zip.Name) {
		return nil
	}
	if err := s.remove(ctx, s.ledger, "finish", i.PK, i.ID, i.etag); err != errMoved {
		return err
	}
	return nil
}

// failures are what went wrong in work that goes on without what failed: one that
// always fails holds up no other.
type failures struct {
	first error // that is not only the database's being away, if there is one
	n     int
}

func (f *failures) add(err error) {
	if f.n++; f.first == nil || goproxy.Status(f.first) == http.StatusServiceUnavailable {
		f.first = err
	}
}

func (f *failures) err() error {
	if f.n > 1 {
		return fmt.Errorf("%w (and %d more failed)", f.first, f.n-1)
	}
	return f.first
}

// Sweep finishes what Puts and Deletes have left undone for more than an hour: it
// publishes versions that are complete, and removes the bytes of zips that no
// version has. Any number of processes may sweep.
func (s *Store) Sweep(ctx context.Context) error {
	var failed failures
	for shard := range intentShards {
		var left []*intent
		before := micros(s.now().Add(-sweepAfter))
		err := s.query(ctx, s.ledger, "sweep", intentPK(shard), "SELECT * FROM c WHERE c.pk = @pk AND c.started < @before", 100, map[string]any{"@before": before}, decode(func(i *intent) bool {
			left = append(left, i)
			return len(left) < 1000
		}))
		if err != nil {
			failed.add(err)
		}
		for _, i := range left {
			if err := s.sweep(ctx, i); err != nil {
				failed.add(fmt.Errorf("sweep %s@%s: %w", i.Path, i.Version, err))
			}
			if ctx.Err() != nil {
				return failed.err()
			}
		}
	}
	return failed.err()
}

func (s *Store) sweep(ctx context.Context, i *intent) error {
	etag, err := s.get(ctx, s.ledger, "sweep", i.PK, i.ID, i)
	if err == errAbsent || err == nil && s.now().Sub(fromMicros(i.Started)) < sweepAfter {
		return nil
	} else if err != nil {
		return err
	}
	if i.etag = etag; i.Delete {
		return s.sweepDelete(ctx, i)
	}
	// In a while it is refused no more. What is not removed by then is the next
	// sweep's: the Put may be writing the same bytes.
	ctx, cancel := context.WithTimeout(ctx, s.sweepTakes/2)
	defer cancel()
	// Taken before the version is looked at: a Put that begins now is refused.
	i.Sweeping, i.Started, i.stamp = true, micros(s.now()), newStamp()
	etag, err = s.replace(ctx, s.ledger, "sweep", i.PK, i.ID, i, i.stamp, etag)
	if err == errMoved || err == errAbsent {
		return nil
	} else if err != nil {
		return err
	}
	m := module.Version{Path: i.Path, Version: i.Version}
	v, vtag, err := s.version(ctx, "sweep", m)
	if err != nil && err != errAbsent {
		return err
	}
	there := err == nil
	if there && v.Complete != 0 {
		if err := s.publish(ctx, m, v, vtag); err != nil {
			return err
		}
	}
	if i.Zip != nil && (!there || v.Zip == nil || v.Zip.Name != i.Zip.Name) {
		if err := s.zips.Delete(ctx, i.Zip.Name, i.Zip.Size); err != nil {
			return err
		}
		s.o.Log.Info("removed what a put or a deletion left", "zip", i.Zip.Name)
	}
	if err := s.remove(ctx, s.ledger, "sweep", i.PK, i.ID, etag); err != nil && err != errMoved {
		return err
	}
	return nil
}

// sweepDelete sees to what is left of a deletion when no Put goes on any more that began before it: the
// entries that one has made, or its own withdrawal has taken; and the bytes, which are then as those
// that a Put has left.
func (s *Store) sweepDelete(ctx context.Context, i *intent) error {
	if !i.Bytes {
		if err := s.finish(ctx, i); err != nil {
			return err
		}
	}
	m := module.Version{Path: i.Path, Version: i.Version}
	v, vtag, err := s.version(ctx, "sweep", m)
	if err != nil && err != errAbsent {
		return err
	}
	complete := err == nil && v.Complete != 0
	if i.Page > 0 && (!complete || v.Page != i.Page) {
		err = s.withdraw(ctx, m, i.Page)
	} else if err = nil; complete {
		err = s.enter(ctx, m, v, vtag)
	}
	if err != nil {
		return err
	}
	left := newIntent(m, i.Zip)
	if left.Started, left.stamp = i.Started, newStamp(); i.Zip != nil {
		if _, err := s.create(ctx, s.ledger, "sweep", left.PK, left.ID, left, left.stamp); err != nil && err != errExists {
			return err
		}
	}
	if err := s.remove(ctx, s.ledger, "sweep", i.PK, i.ID, i.etag); err != nil && err != errMoved {
		return err
	}
	if i.Zip == nil {
		return nil
	}
	return s.sweep(ctx, left)
}

// Run does the work behind until ctx ends: Finish about twice a minute, Sweep every 10
// minutes or so, and where the queue is bounded a count of its jobs once a minute; replicas that start together do not do it together.
func (s *Store) Run(ctx context.Context) {
	every := func(first, d time.Duration, work func(context.Context) error) {
		for pause := first; ; pause = d {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Duration(float64(pause) * (0.5 + rand.Float64()))):
			}
			if err := work(ctx); err != nil && ctx.Err() == nil && goproxy.Status(err) != http.StatusServiceUnavailable {
				s.o.Log.Warn("work behind", "err", err)
			}
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { every(finishAfter, finishAfter, s.Finish) })
	// The first one soon: processes that live for minutes sweep too.
	wg.Go(func() { every(5*time.Minute, 12*time.Minute, s.Sweep) })
	if s.o.QueueMax > 0 { // what others put in, and take out, is known here by counting alone
		wg.Go(func() {
			every(0, time.Minute, func(ctx context.Context) error { _, err := s.Queue(ctx); return err })
		})
	}
	wg.Wait()
}
