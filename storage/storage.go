// Package storage keeps module versions and what the fleet knows about them.
//
// A [Store] keeps the immutable files of module versions; a [Ledger] keeps the
// rest: what upstream is known to have, the queue of fetches, small state. The
// backends are in the folders below; [Server] and [Client] carry both
// interfaces over HTTP. Package storagetest is their conformance suite: an
// interface comment and its case there change together.
package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"syscall"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
)

var (
	// ErrConflict: a file of that version is kept already, with other bytes.
	// The first bytes stay. It maps to 409.
	ErrConflict = &goproxy.Error{Status: 409, Message: "conflict: the version is kept with other content"}

	// ErrLost: a file was kept, and its bytes are not there any more, or not all. Who asks is
	// told what it is told of a file that was never kept, so that it is fetched again; a Put of
	// the same bytes keeps them again.
	ErrLost = &goproxy.Error{Status: 404, Message: "not found: the file was kept, and its bytes are lost", NoStore: true}

	// ErrLeaseLost: the job is no longer the caller's: its lease ran out, or it
	// was ended by another worker. It maps to 409.
	ErrLeaseLost = &goproxy.Error{Status: 409, Message: "lease lost: the job is no longer this worker's"}

	// ErrSwapped: the value to be replaced is not the one that was expected.
	ErrSwapped = &goproxy.Error{Status: 409, Message: "swapped: the value has changed since it was read"}

	// ErrQueueFull: the queue holds as many jobs as it may. It maps to 503.
	ErrQueueFull = &goproxy.Error{Status: 503, Message: "the queue of fetches is full", RetryAfter: 5 * time.Second}
)

// FullDisk makes "no space left on device" a bound that was hit; other errors are as
// they were.
func FullDisk(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return goproxy.Busy(time.Minute, "storage is full: %w", err)
	}
	return err
}

// Files are the files of one version. A nil file is left as it is; a Zip comes with its Mod,
// which Server takes from the zip where it was sent none.
type Files struct {
	Info []byte
	Mod  []byte
	Zip  io.Reader // streamed; read once, or as often as is needed if it is an io.Seeker; not closed; an *os.File may be kept itself (a hard link), and is not written to any more

	// ZipH1 is the hash of Zip when the caller has it from CheckZip:
	// nobody behind Put reads all of the zip to check it again.
	ZipH1 string
}

// Store keeps immutable files of module versions. It is safe for concurrent
// use. As a goproxy.Source it answers from what is kept and nothing else: List
// holds the complete versions (all three files kept) and is empty, not an
// error, for a module it does not know; Resolve answers canonical versions,
// and "latest" from the list; an absent file is fs.ErrNotExist, even when
// others of its version are kept.
type Store interface {
	goproxy.Source

	// Put keeps the given files, each whole or not at all. Bytes that are kept
	// already are a success; other bytes are ErrConflict, and the first stay.
	// After an error any of the files may have been kept, each whole; a version of
	// which all are is complete. A Delete comes before a Put or behind it, and takes none of
	// its files or all.
	// Put checks no content; see CheckZip and goproxy.ParseInfo for that.
	Put(ctx context.Context, m module.Version, f Files) error

	// ZipH1 is the h1: hash with which a version's zip was put first, for who reads the zip
	// again: "" where none was given, or nothing is kept.
	ZipH1(ctx context.Context, m module.Version) (string, error)

	// Delete removes all files of a version, and then leaves a tombstone that
	// Deleted reports: who reads it and asks again does not get them. A version of
	// which nothing is kept is fs.ErrNotExist.
	// The version may be put again, with other bytes. What one that failed has left
	// undone, another call does, or the backend by itself before long.
	Delete(ctx context.Context, m module.Version) error

	// Deleted returns the tombstones with Time at or after since, oldest
	// first, at most limit. They are kept for TombstoneTTL at least.
	Deleted(ctx context.Context, since time.Time, limit int) ([]IndexEntry, error)

	// Catalog returns complete versions, ordered by path and then version as
	// strings, that come after the token; "" starts. A page may have fewer than limit,
	// even none: the last one is that without Next. A token that is not one is
	// an error with status 400. limit below 1 is an error with status 400.
	Catalog(ctx context.Context, after string, limit int) (Page, error)

	// Index returns complete versions with Timestamp at or after since, oldest
	// first, at most limit. No two entries have the same Timestamp, and no
	// entry appears later with an earlier Timestamp than one already returned.
	Index(ctx context.Context, since time.Time, limit int) ([]IndexEntry, error)
}

// TombstoneTTL is how long a deletion stays visible in Deleted.
const TombstoneTTL = 24 * time.Hour

// Page is one page of the catalog.
type Page struct {
	Versions []module.Version
	Next     string // the token of the next page; "" at the end
}

// IndexEntry is one line of the index feed.
// Source: https://index.golang.org.
type IndexEntry struct {
	Path      string
	Version   string
	Timestamp time.Time // when it became complete, UTC
}

// Key names one thing that can be fetched from upstream: a list, the answer to
// a query, or one file of a version. It is also the name of the fetch's job.
type Key struct {
	Path  string
	Query string // a version, "latest", a branch, a commit; "" with FileList
	File  File
}

// File is which of a module's answers a Key means.
type File = goproxy.File

// The files of the GOPROXY protocol.
const (
	FileList = goproxy.FileList
	FileInfo = goproxy.FileInfo
	FileMod  = goproxy.FileMod
	FileZip  = goproxy.FileZip
)

// String is path@query#file.
func (k Key) String() string { return k.Path + "@" + k.Query + "#" + string(k.File) }

// Known is what upstream is known to have answered for a Key: a list, a
// query's answer, or that there is no such thing.
type Known struct {
	Checked  time.Time // when upstream answered that; the zero time is never fresh
	Outdated bool      `json:",omitempty"` // upstream has said since that it has changed: not fresh, however young
	Versions []string  `json:",omitempty"` // FileList
	// Validator is VersionList's, to ask upstream again with.
	Validator string `json:",omitempty"`
	Info      []byte `json:",omitempty"` // FileInfo of a query that is not a canonical version: the .info answer

	// RefusedStatus is not 0 when upstream has no such thing, or it can't be had: 404, 410, 403, 501, or 502 where upstream forbids it.
	RefusedStatus int    `json:",omitempty"`
	Refused       string `json:",omitempty"` // with RefusedStatus: what was looked for and where
}

// ClocksDiffer is by how much the clocks of a fleet may be apart.
const ClocksDiffer = 5 * time.Minute

// Age is how long ago something was said, now. What is still to come, by more than
// ClocksDiffer, was noted by a clock that has been set back since: nobody knows how old it
// is, and it is older than anything.
func Age(said, now time.Time) time.Duration {
	age := now.Sub(said)
	if age < -ClocksDiffer {
		return math.MaxInt64
	}
	return age
}

// Priority orders the queue: a lower number is claimed first.
type Priority int

// The priorities.
const (
	Demand Priority = 0 // somebody waits
	Ahead  Priority = 1 // brought in ahead of demand
)

// Job is one fetch from upstream, to be done once in the whole fleet.
type Job struct {
	Key      Key
	Priority Priority
	Created  time.Time
	Attempts int    // how often it was claimed
	LastErr  string // of the last attempt that failed

	// Trace is the trace context of who made the job, or made it more urgent, as a
	// traceparent; "": there was none. Source: https://www.w3.org/TR/trace-context/.
	Trace string `json:",omitempty"`

	// Parked: it has failed too often. Until NotBefore nobody's demand makes it due,
	// and Wait returns its last error at once.
	Parked     bool `json:",omitempty"`
	LastStatus int  `json:",omitempty"` // of LastErr

	NotBefore time.Time // not claimed before
	Worker    string    // who holds it; "" when nobody does
	LeaseEnds time.Time // when it may be claimed by another
	Fence     uint64    // grows with each claim; a stale holder's is lower
}

// Ledger is what the fleet knows besides artifacts. It is safe for concurrent
// use, by any number of processes where the backend says so.
type Ledger interface {
	// Known returns what upstream last answered; fs.ErrNotExist when it was
	// never asked or the answer was dropped.
	Known(ctx context.Context, k Key) (*Known, error)
	// SetKnown replaces what is known. A list, and the answer to "latest", stay until
	// another is set: they are served while upstream is down. A refusal may be forgotten
	// an hour after it was set, any other answer after 30 days, and what was known
	// before has no part in that.
	SetKnown(ctx context.Context, k Key, a *Known) error

	// Enqueue adds a job unless one with its key is queued or claimed; added
	// says which. An existing job takes the more urgent priority of the two, with the
	// Trace that belongs to it, and the earlier NotBefore, unless it is parked. A new job
	// for which there is no room is ErrQueueFull; see QueueCounts.
	Enqueue(ctx context.Context, j Job) (added bool, err error)
	// Start is Enqueue and Claim in one step: a job with that key that was not
	// there is returned, leased to the worker. There was one already: nil, nil,
	// and Enqueue's changes to it are made. One that this worker has is returned again:
	// who got no answer may ask once more. No two calls that mean other jobs, or come from
	// other processes, have the same worker.
	Start(ctx context.Context, j Job, worker string, lease time.Duration) (*Job, error)
	// Claim leases the job that should be done next: by priority, then by when
	// it became due; of those that were put in at another storage process, roughly. None is
	// due: nil, nil. A job whose lease has ended is due.
	Claim(ctx context.Context, worker string, lease time.Duration) (*Job, error)
	// Extend makes the lease end that much from now. Stale: ErrLeaseLost.
	Extend(ctx context.Context, j *Job, lease time.Duration) error
	// Done ends the job; Wait returns cause (which may be nil: it went well).
	// Only the latest holder can, before its lease ends or after as long as nobody
	// has claimed the job; else ErrLeaseLost.
	Done(ctx context.Context, j *Job, cause error) error
	// Retry gives the job back, with its Attempts and Parked as they are in j, to be
	// claimed after delay; Wait returns cause. One that may not be parked for want of
	// room ends, as with Done; see QueueCounts.
	Retry(ctx context.Context, j *Job, delay time.Duration, cause error) error
	// Wait waits until the job's present or next attempt ends, whichever
	// worker ends it, and returns that attempt's error: nil when it went well.
	// There is no such job: nil at once; then look for the result. An attempt
	// that ended before the call is not seen, but for that of a job that is parked.
	// Status, message, RetryAfter and NoStore of a *goproxy.Error survive.
	Wait(ctx context.Context, k Key) error
	// Jobs returns up to limit jobs of the queue, in no order.
	Jobs(ctx context.Context, limit int) ([]Job, error)
	// Drop takes a job out of the queue, whoever works on it; fs.ErrNotExist. Who
	// waits for it is told that it was dropped.
	Drop(ctx context.Context, k Key) error
	// Queue describes the queue for metrics.
	Queue(ctx context.Context) (QueueStats, error)

	// Load returns a small value (at most 64 KiB), nil when there is none.
	Load(ctx context.Context, key string) ([]byte, error)
	// CompareAndSwap sets key to new if its value is old; nil is no value, as
	// old and as new. Otherwise ErrSwapped.
	CompareAndSwap(ctx context.Context, key string, old, new []byte) error
}

// Cause is the error of an attempt as it is kept and sent: what survives of it is
// its status, its message, its RetryAfter and its NoStore.
type Cause struct {
	Status     int
	Message    string
	RetryAfter time.Duration `json:",omitempty"`
	NoStore    bool          `json:",omitempty"`
}

// CauseOf is nil for nil.
func CauseOf(err error) *Cause {
	if err == nil {
		return nil
	}
	c := &Cause{Status: goproxy.Status(err), Message: err.Error()}
	var e *goproxy.Error
	if errors.As(err, &e) {
		c.RetryAfter, c.NoStore = e.RetryAfter, e.NoStore
	}
	return c
}

// Err is nil for nil.
func (c *Cause) Err() error {
	if c == nil {
		return nil
	}
	return &goproxy.Error{Status: c.Status, Message: c.Message, RetryAfter: c.RetryAfter, NoStore: c.NoStore}
}

// maxLastErr bounds what a job says of its last attempt: upstream may have written some KB, and
// all jobs are in memory.
const maxLastErr = 600

// Failed notes how an attempt ended.
func (j *Job) Failed(cause error) {
	if cause == nil {
		return
	}
	j.LastErr, j.LastStatus = cause.Error(), goproxy.Status(cause)
	if len(j.LastErr) > maxLastErr {
		j.LastErr = strings.ToValidUTF8(j.LastErr[:maxLastErr], "") + "…"
	}
}

// ParkedErr is what who wants a parked job's result is told at time now; nil when it
// is not parked.
func (j *Job) ParkedErr(now time.Time) error {
	if !j.Parked || !j.NotBefore.After(now) {
		return nil
	}
	return &goproxy.Error{
		Status: j.LastStatus, RetryAfter: j.NotBefore.Sub(now),
		Message: fmt.Sprintf("%s (failed %d times, not tried again before %s)", j.LastErr, j.Attempts, j.NotBefore.UTC().Format(time.RFC3339)),
	}
}

// ErrDropped is what Wait returns for a job that was dropped.
var ErrDropped = goproxy.Errorf(http.StatusServiceUnavailable, "the job was dropped by an operator")

// QueueCounts are the jobs of a queue, as its bound counts them. The bound is on jobs that
// are not parked. Those ahead of demand, parked ones too, take half of it at most: what a
// feed names when a host is away leaves room for somebody who waits for another. And half
// as many as the bound may be parked that somebody has waited for; one more is forgotten
// in place of being parked, and made anew when somebody asks again.
type QueueCounts struct {
	Demand, Ahead             int // not parked
	ParkedDemand, ParkedAhead int
}

// Change counts that old became new; nil is no job.
func (n *QueueCounts) Change(old, new *Job) {
	if old != nil {
		p := n.of(old)
		*p = max(0, *p-1)
	}
	if new != nil {
		*n.of(new)++
	}
}

func (n *QueueCounts) of(j *Job) *int {
	switch {
	case j.Parked && j.Priority == Demand:
		return &n.ParkedDemand
	case j.Parked:
		return &n.ParkedAhead
	case j.Priority == Demand:
		return &n.Demand
	}
	return &n.Ahead
}

// Room reports whether there is room for another job of that priority, with this bound;
// 0: no bound.
func (n QueueCounts) Room(p Priority, bound int) bool {
	switch {
	case bound <= 0:
		return true
	case n.Demand+n.Ahead >= bound:
		return false
	}
	return p == Demand || n.Ahead+n.ParkedAhead < (bound+1)/2
}

// MayPark reports whether a job that is in the queue may be parked.
func (n QueueCounts) MayPark(j *Job, bound int) bool {
	return bound <= 0 || j.Priority != Demand || n.ParkedDemand < (bound+1)/2
}

// QueueStats describes the queue.
type QueueStats struct {
	Jobs    int           // queued, claimed or parked
	Claimed int           // claimed, with a lease that has not ended
	Parked  int           // failed too often, and wait for a later try
	Oldest  time.Duration // since the Created of the oldest job that is not parked; 0: none
}

// Add counts a job.
func (s *QueueStats) Add(j *Job, now time.Time) {
	s.Jobs++
	switch {
	case j.ParkedErr(now) != nil:
		s.Parked++
		return
	case j.Worker != "" && j.LeaseEnds.After(now):
		s.Claimed++
	}
	s.Oldest = max(s.Oldest, now.Sub(j.Created))
}
