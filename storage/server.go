package storage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/labstack/echo/v4"
	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
)

// Sizes of pages of the catalog and the index, in entries.
const (
	catalogPage = 1000
	indexPage   = 2000
	maxPage     = 10_000
)

// waitSlice is how long the server holds one question of a Wait.
const waitSlice = 20 * time.Second

// Server answers for a store and its ledger over HTTP: the GOPROXY protocol,
// Athens' external storage protocol, /catalog and /index, and the ledger below
// /internal/ledger/, which Client speaks.
type Server struct {
	Store  Store
	Ledger Ledger
	// TempDir takes zips while they are checked; "" is the system's.
	TempDir string
	// MaxBodyBytes bounds the body of a save.
	MaxBodyBytes int64
	// Ending ends when the process does: who waits for a job is told to ask again, since it
	// will not end here any more. nil: that never is.
	Ending context.Context

	checks Checks
	large  sync.Mutex // held while a .mod file of more than largePart is in memory
}

// Handler is for one catch-all route, all methods.
func (s *Server) Handler() echo.HandlerFunc {
	files := goproxy.Handler(s.Store)
	return func(c echo.Context) error {
		path, method := c.Request().URL.Path, c.Request().Method
		read := method == http.MethodGet || method == http.MethodHead
		switch {
		case read && path == "/catalog":
			return ServeCatalog(c, s.Store)
		case read && path == "/index":
			return ServeIndex(c, s.Store)
		case read && path == "/toolchains/v1":
			return goproxy.NotFound("Go release archives are not kept here")
		case strings.HasPrefix(path, "/internal/ledger/"):
			return s.rpc(c)
		case method == http.MethodPost && strings.HasSuffix(path, ".save"):
			return s.save(c)
		case method == http.MethodDelete && strings.HasSuffix(path, ".delete"):
			return s.delete(c)
		default:
			return files(c)
		}
	}
}

// ServeCatalog answers GET /catalog?token=&pagesize=.
func ServeCatalog(c echo.Context, s Store) error {
	limit, err := pageSize(c, "pagesize", catalogPage)
	if err != nil {
		return err
	}
	page, err := s.Catalog(c.Request().Context(), c.QueryParam("token"), limit)
	if err != nil {
		return err
	}
	type pair struct {
		Module  string `json:"module"`
		Version string `json:"version"`
	}
	answer := struct {
		Modules []pair `json:"modules"`
		Next    string `json:"next,omitempty"`
	}{Modules: []pair{}, Next: page.Next}
	for _, m := range page.Versions {
		answer.Modules = append(answer.Modules, pair{m.Path, m.Version})
	}
	c.Response().Header().Set("Cache-Control", goproxy.CacheNever)
	return c.JSON(http.StatusOK, answer)
}

// ServeIndex answers GET /index?since=&limit=, one JSON object a line.
func ServeIndex(c echo.Context, s Store) error {
	limit, err := pageSize(c, "limit", indexPage)
	if err != nil {
		return err
	}
	var since time.Time
	if q := c.QueryParam("since"); q != "" {
		if since, err = time.Parse(time.RFC3339, q); err != nil {
			return goproxy.Errorf(http.StatusBadRequest, "bad request: since=%.60q is not an RFC 3339 time", q)
		}
	}
	entries, err := s.Index(c.Request().Context(), since, limit)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for _, e := range entries {
		enc.Encode(e)
	}
	c.Response().Header().Set("Cache-Control", goproxy.CacheNever)
	return c.Blob(http.StatusOK, "application/json", b.Bytes())
}

func pageSize(c echo.Context, name string, standard int) (int, error) {
	q := c.QueryParam(name)
	if q == "" {
		return standard, nil
	}
	n, err := strconv.Atoi(q)
	if err != nil || n < 1 {
		return 0, goproxy.Errorf(http.StatusBadRequest, "bad request: %s=%.60q is not a number above 0", name, q)
	}
	return min(n, maxPage), nil
}

func versionOf(c echo.Context, suffix string) (module.Version, error) {
	if err := goproxy.CheckURL(c.Request()); err != nil {
		return module.Version{}, err
	}
	req, err := goproxy.ParseRequest(strings.TrimSuffix(c.Request().URL.Path, suffix) + ".zip")
	return module.Version{Path: req.Path, Version: req.Query}, err
}

// save answers Athens' POST: any of mod.info, mod.mod and mod.zip, each checked
// before anything is kept.
func (s *Server) save(c echo.Context) error {
	m, err := versionOf(c, ".save")
	if err != nil {
		return err
	}
	r := c.Request()
	if s.MaxBodyBytes > 0 {
		r.Body = http.MaxBytesReader(c.Response().Writer, r.Body, s.MaxBodyBytes)
	}
	parts, err := r.MultipartReader()
	if err != nil {
		return goproxy.Errorf(http.StatusBadRequest, "bad request: save %s: %w", m, err)
	}
	locked := false
	defer func() {
		if locked {
			s.large.Unlock()
		}
	}()
	files, zip, err := s.readParts(m, parts, r.Header.Get(headerZipH1), func() { s.large.Lock(); locked = true })
	if zip != nil {
		defer os.Remove(zip.Name())
		defer zip.Close()
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return goproxy.Errorf(http.StatusRequestEntityTooLarge, "save %s: the body is larger than %d bytes", m, tooLarge.Limit)
	} else if err != nil {
		return err
	}
	if err := s.Store.Put(r.Context(), m, files); err != nil {
		return err
	}
	c.Response().Header().Set("Cache-Control", goproxy.CacheNever)
	return c.NoContent(http.StatusOK)
}

// readParts reads and checks the files of a save. A zip brings its go.mod along, also where
// the form has none, so that no other can be kept beside it. zipH1 is not "" when the
// client, a crawler, has checked the zip and its go.mod, and sends both. large is called once
// where a file that is held in memory is a large one.
func (s *Server) readParts(m module.Version, parts *multipart.Reader, zipH1 string, large func()) (f Files, zip *os.File, err error) {
	bad := func(what string, err error) error {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return err
		}
		if full := FullDisk(err); full != err {
			return full
		}
		status := http.StatusBadRequest
		var known *goproxy.Error
		if errors.As(err, &known) {
			status = known.Status
		} else if goproxy.IsLocal(err) {
			return fmt.Errorf("save %s: %w", m, err) // of this server
		}
		return goproxy.Errorf(status, "bad request: save %s: %s: %w", m, what, err)
	}
	for {
		part, err := parts.NextPart()
		if err == io.EOF {
			break
		} else if errors.Is(err, io.ErrUnexpectedEOF) {
			return f, zip, bad("multipart form", errCutBody)
		} else if err != nil {
			return f, zip, bad("multipart form", err)
		}
		name := part.FormName()
		switch {
		case name == "mod.info" && f.Info == nil:
			f.Info, err = readPart(part, goproxy.MaxInfoBytes, large)
			if err == nil {
				_, err = goproxy.ParseInfo(m.Path, m.Version, f.Info)
			}
		case name == "mod.mod" && f.Mod == nil:
			f.Mod, err = readPart(part, goproxy.MaxModBytes, large)
			if err == nil {
				err = goproxy.CheckMod(m, f.Mod)
			}
		case name == "mod.zip" && zip == nil:
			if zip, err = os.CreateTemp(s.TempDir, "save-"); err != nil {
				return f, nil, FullDisk(err)
			}
			err = copyPart(zip, part, goproxy.MaxZipBytes)
		default:
			err = errors.New("not one of mod.info, mod.mod, mod.zip, each once")
		}
		if err != nil {
			return f, zip, bad(fmt.Sprintf("%.40q", name), err)
		}
	}
	if f.Info == nil && f.Mod == nil && zip == nil {
		return f, zip, bad("multipart form", errors.New("none of mod.info, mod.mod, mod.zip is in it"))
	}
	if zip == nil {
		return f, nil, nil
	}
	switch {
	case zipH1 == "":
		var mod []byte
		zipH1, mod, err = s.checks.CheckZip(m, zip.Name())
		if err == nil && f.Mod == nil {
			f.Mod = mod
		} else if err == nil && !SameMod(mod, f.Mod) {
			err = fmt.Errorf("%s: the go.mod in the zip is not the .mod file", m)
		}
	case isEmpty(zip):
		err = errors.New("it is empty")
	case !isH1(zipH1):
		err = fmt.Errorf("%s: %.80q is not an h1: hash", headerZipH1, zipH1)
	case f.Mod == nil:
		err = fmt.Errorf("a zip with %s comes with its mod.mod", headerZipH1)
	}
	if err != nil {
		return f, zip, bad("mod.zip", err)
	}
	if _, err := zip.Seek(0, io.SeekStart); err != nil {
		return f, zip, err
	}
	f.Zip, f.ZipH1 = zip, zipH1
	return f, zip, nil
}

func isEmpty(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Size() == 0
}

// isH1 reports whether a hash has the form of dirhash.Hash1: "h1:" and 32 bytes in base64.
func isH1(s string) bool {
	sum, ok := strings.CutPrefix(s, "h1:")
	b, err := base64.StdEncoding.DecodeString(sum)
	return ok && err == nil && len(b) == sha256.Size
}

// largePart is larger than almost any go.mod file. One of MaxModBytes takes three times that
// while it is read: of those there is one at a time.
const largePart = 256 << 10

func readPart(r io.Reader, limit int64, large func()) ([]byte, error) {
	var first, b bytes.Buffer
	if err := copyPart(&first, io.LimitReader(r, largePart), limit); err != nil || first.Len() < largePart {
		return first.Bytes(), err
	}
	large()
	err := copyPart(&b, io.MultiReader(&first, r), limit)
	return b.Bytes(), err
}

var errCutBody = errors.New("the body ends too early")

func copyPart(w io.Writer, r io.Reader, limit int64) error {
	n, err := io.Copy(w, io.LimitReader(r, limit+1))
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = errCutBody
	} else if err == nil && n > limit {
		err = goproxy.Errorf(http.StatusRequestEntityTooLarge, "larger than %d bytes", limit)
	}
	return err
}

func (s *Server) delete(c echo.Context) error {
	m, err := versionOf(c, ".delete")
	if err != nil {
		return err
	}
	if err := s.Store.Delete(c.Request().Context(), m); err != nil {
		return err
	}
	c.Response().Header().Set("Cache-Control", goproxy.CacheNever)
	return c.NoContent(http.StatusOK)
}

// message is the one shape of a question to the ledger and of its answer.
type message struct {
	Key    *Key          `json:",omitempty"`
	Known  *Known        `json:",omitempty"`
	Job    *Job          `json:",omitempty"`
	Worker string        `json:",omitempty"`
	Time   time.Duration `json:",omitempty"` // lease or delay
	Cause  *Cause        `json:",omitempty"`
	Name   string        `json:",omitempty"`
	Old    *[]byte       `json:",omitempty"`
	New    *[]byte       `json:",omitempty"`
	Since  time.Time
	Limit  int          `json:",omitempty"`
	Stats  *QueueStats  `json:",omitempty"`
	Jobs   []Job        `json:",omitempty"`
	Feed   []IndexEntry `json:",omitempty"`
	Yes    bool         `json:",omitempty"` // Enqueue: added; Wait: ask again
}

func bytesOf(p *[]byte) []byte {
	if p == nil {
		return nil
	}
	if *p == nil {
		return []byte{}
	}
	return *p
}

func pointerTo(b []byte) *[]byte {
	if b == nil {
		return nil
	}
	return &b
}

// noMethod begins what a server says to a question that it does not know.
const noMethod = "the ledger has no method "

// maxJobs bounds one answer: some MB.
const maxJobs = 10_000

func (s *Server) rpc(c echo.Context) error {
	r := c.Request()
	if r.Method != http.MethodPost {
		return goproxy.Errorf(http.StatusMethodNotAllowed, "%s is not allowed here: POST is", r.Method)
	}
	var q, a message
	body := http.MaxBytesReader(c.Response().Writer, r.Body, goproxy.MaxListBytes+1<<20)
	if err := json.NewDecoder(body).Decode(&q); err != nil {
		return goproxy.Errorf(http.StatusBadRequest, "bad request: %w", err)
	}
	if q.Key == nil {
		q.Key = &Key{}
	}
	if q.Job == nil {
		q.Job = &Job{}
	}
	ctx := r.Context()
	var err error
	switch method := strings.TrimPrefix(r.URL.Path, "/internal/ledger/"); method {
	case "known":
		a.Known, err = s.Ledger.Known(ctx, *q.Key)
	case "set-known":
		if q.Known == nil {
			return goproxy.Errorf(http.StatusBadRequest, "bad request: set-known without an answer")
		}
		err = s.Ledger.SetKnown(ctx, *q.Key, q.Known)
	case "enqueue":
		a.Yes, err = s.Ledger.Enqueue(ctx, *q.Job)
	case "start":
		a.Job, err = s.Ledger.Start(ctx, *q.Job, q.Worker, q.Time)
	case "claim":
		a.Job, err = s.Ledger.Claim(ctx, q.Worker, q.Time)
	case "extend":
		err = s.Ledger.Extend(ctx, q.Job, q.Time)
	case "done":
		err = s.Ledger.Done(ctx, q.Job, q.Cause.Err())
	case "retry":
		err = s.Ledger.Retry(ctx, q.Job, q.Time, q.Cause.Err())
	case "wait":
		slice, cancel := context.WithTimeout(ctx, waitSlice)
		defer cancel()
		if s.Ending != nil {
			defer context.AfterFunc(s.Ending, cancel)()
		}
		waited := s.Ledger.Wait(slice, *q.Key)
		if slice.Err() != nil && ctx.Err() == nil {
			a.Yes = true
		} else if ctx.Err() != nil {
			err = ctx.Err()
		} else {
			a.Cause = CauseOf(waited)
		}
	case "queue":
		var stats QueueStats
		stats, err = s.Ledger.Queue(ctx)
		a.Stats = &stats
	case "jobs":
		a.Jobs, err = s.Ledger.Jobs(ctx, min(q.Limit, maxJobs))
	case "drop":
		err = s.Ledger.Drop(ctx, *q.Key)
	case "load":
		var b []byte
		b, err = s.Ledger.Load(ctx, q.Name)
		a.New = pointerTo(b)
	case "swap":
		err = s.Ledger.CompareAndSwap(ctx, q.Name, bytesOf(q.Old), bytesOf(q.New))
	case "zip-h1":
		a.Name, err = s.Store.ZipH1(ctx, module.Version{Path: q.Key.Path, Version: q.Key.Query})
	case "deleted":
		a.Feed, err = s.Store.Deleted(ctx, q.Since, q.Limit)
	default:
		return goproxy.NotFound(noMethod+"%.40q", method)
	}
	if err != nil {
		return err
	}
	c.Response().Header().Set("Cache-Control", goproxy.CacheNever)
	return c.JSON(http.StatusOK, a)
}
