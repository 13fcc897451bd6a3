package remote

import (
	"cmp"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/sync/singleflight"

	"github.com/athensctl/athensctl/goproxy"
)

// Repo is where a module is.
type Repo struct {
	Root      string // the module path of the repository's root: a prefix of the module's
	VCS       string // "git", or "mod": URL is a module proxy
	URL       *url.URL
	PublicURL string // URL before InsteadOf
	SubDir    string // of the repository, that Root stands for
	Insecure  bool   // it may be asked for over http, see Context
}

// hosted are the hosts whose repositories are known from the path alone; a path
// with an element that ends in a version control system's name is one as well.
// Source: cmd/go/internal/vcs, vcsPaths.
var hosted = []struct {
	host  string
	re    *regexp.Regexp
	vcs   string
	plain bool // a name with the ending of a version control system is refused
}{
	{"github.com/", regexp.MustCompile(`^(github\.com/[\w.\-]+/[\w.\-]+)(/[\w.\-]+)*$`), "git", true},
	{"bitbucket.org/", regexp.MustCompile(`^(bitbucket\.org/[\w.\-]+/[\w.\-]+)(/[\w.\-]+)*$`), "git", true},
	{"hub.jazz.net/git/", regexp.MustCompile(`^(hub\.jazz\.net/git/[a-z0-9]+/[\w.\-]+)(/[\w.\-]+)*$`), "git", true},
	{"git.apache.org/", regexp.MustCompile(`^(git\.apache\.org/[a-z0-9_.\-]+\.git)(/[\w.\-]+)*$`), "git", false},
	{"git.openstack.org/", regexp.MustCompile(`^(git\.openstack\.org/[\w.\-]+/[\w.\-]+)(\.git)?(/[\w.\-]+)*$`), "git", false},
	{"chiselapp.com/", regexp.MustCompile(`^(chiselapp\.com/user/[A-Za-z0-9]+/repository/[\w.\-]+)$`), "fossil", false},
}

var suffixed = regexp.MustCompile(`\.(bzr|fossil|git|hg|svn)$`)

var anyHost = regexp.MustCompile(`^((([a-z0-9.\-]+\.)+[a-z0-9.\-]+(:[0-9]+)?(/~?[\w.\-]+)+?)\.(bzr|fossil|git|hg|svn))(/~?[\w.\-]+)*$`)

// Discover finds the repository of a module, as the go command does.
// Source: https://go.dev/ref/mod#vcs-find.
func (r *Remote) Discover(ctx context.Context, modulePath string) (*Repo, error) {
	if err := module.CheckPath(modulePath); err != nil {
		return nil, goproxy.Errorf(http.StatusBadRequest, "bad request: %w", err)
	}
	for _, h := range hosted {
		if !strings.HasPrefix(modulePath, h.host) {
			continue
		}
		m := h.re.FindStringSubmatch(modulePath)
		if m == nil {
			return nil, goproxy.NotFound("%s: %s has no repositories with such a path", modulePath, strings.TrimSuffix(h.host, "/"))
		}
		if h.plain && suffixed.MatchString(m[1]) {
			return nil, goproxy.NotFound("%s: a path of %s has no %s in it", modulePath, strings.TrimSuffix(h.host, "/"), path.Ext(m[1]))
		}
		return r.repo(modulePath, goImport{m[1], h.vcs, "https://" + m[1], ""})
	}
	if m := anyHost.FindStringSubmatch(modulePath); m != nil {
		repo, err := r.repo(modulePath, goImport{m[1], m[6], "https://" + m[2], ""})
		if err != nil || !repo.Insecure || repo.URL.String() != repo.PublicURL {
			return repo, err
		}
		return r.found.do(ctx, modulePath, func(ctx context.Context) (*Repo, error) {
			// As the go command: where it is there over https, or else over http.
			if r.answers(repo.Context(ctx), repo.URL) {
				return repo, nil
			}
			over, err := r.repo(modulePath, goImport{m[1], m[6], "http://" + m[2], ""})
			if err == nil && r.answers(repo.Context(ctx), over.URL) {
				return over, nil
			}
			return repo, nil
		})
	}
	return r.found.do(ctx, modulePath, func(ctx context.Context) (*Repo, error) {
		found, err := r.dynamic(ctx, modulePath)
		if err != nil {
			return nil, err
		}
		return r.repo(modulePath, *found)
	})
}

func (r *Remote) repo(modulePath string, g goImport) (*Repo, error) {
	if g.VCS != "git" && g.VCS != "mod" {
		return nil, goproxy.Errorf(http.StatusNotImplemented,
			"%s is kept in %.20s at %.200s; only git is supported: name an upstream proxy that has it (setting upstream)", modulePath, g.VCS, redact(g.URL))
	}
	u, err := parseRepo(r.rewrite(g.URL, g.VCS == "mod"))
	if err == nil && u.Scheme == "ssh" {
		_, err = uploadPack(u.Path)
	}
	if !strings.Contains(g.URL, "://") || err != nil || u.Host == "" || strings.HasPrefix(u.Path, "-") || g.VCS == "mod" && u.Scheme == "ssh" {
		return nil, goproxy.Errorf(http.StatusBadGateway, "%s: %.200q is not the URL of a repository", modulePath, redact(g.URL))
	}
	insecure := r.insecure(modulePath)
	if u.Scheme == "http" && !insecure && !r.plain[u.Host] {
		return nil, goproxy.Errorf(http.StatusForbidden, "%s: %.200s: only https is allowed (setting vcs-insecure)", modulePath, redact(g.URL))
	}
	return &Repo{Root: g.Prefix, VCS: g.VCS, URL: u, PublicURL: g.URL, SubDir: g.SubDir, Insecure: insecure}, nil
}

// answers reports whether a git repository is served at a URL.
func (r *Remote) answers(ctx context.Context, u *url.URL) bool {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	at := u.JoinPath("info/refs")
	at.RawQuery = "service=git-upload-pack"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return false
	}
	req.Header.Set("Git-Protocol", "version=2")
	req.Header.Set("User-Agent", "git/athensctl")
	resp, err := r.http.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	kind, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return resp.StatusCode == http.StatusOK && strings.EqualFold(strings.TrimSpace(kind), "application/x-git-upload-pack-advertisement")
}

// goImport is a meta tag: <meta name="go-import" content="prefix vcs url [subdir]">.
type goImport struct{ Prefix, VCS, URL, SubDir string }

// dynamic asks the host for its meta tag, and, where that speaks for more than was
// asked, also there: a page speaks for what is below it alone.
func (r *Remote) dynamic(ctx context.Context, modulePath string) (*goImport, error) {
	first, at, err := r.ask(ctx, modulePath, modulePath)
	if err != nil {
		return nil, err
	}
	if first.Prefix == modulePath {
		return first, nil
	}
	second, at2, err := r.ask(ctx, first.Prefix, modulePath)
	if err != nil {
		return nil, err
	}
	if *first != *second {
		return nil, goproxy.Errorf(http.StatusBadGateway, "%s and %s disagree about the go-import of %s", at, at2, first.Prefix)
	}
	return first, nil
}

// maxPageBytes bounds the page that is searched for meta tags.
const maxPageBytes = 1 << 20

// maxTagBytes bounds what is remembered of a page: its tag, with the URL of the repository.
const maxTagBytes = 2048

// ask gets the page of a path and finds the meta tag in it for modulePath.
func (r *Remote) ask(ctx context.Context, pagePath, modulePath string) (*goImport, string, error) {
	if host, _, _ := strings.Cut(pagePath, "/"); !strings.Contains(host, ".") {
		return nil, "", goproxy.NotFound("%s: %q is not the name of a host", modulePath, host)
	}
	schemes := []string{"https"}
	if r.insecure(modulePath) {
		schemes = append(schemes, "http")
		ctx = context.WithValue(ctx, openKey{}, true)
	}
	var errs []error
	for _, scheme := range schemes {
		at := r.rewrite(scheme+"://"+pagePath, true)
		g, err := r.page(ctx, at+"?go-get=1", modulePath)
		if err == nil {
			return g, at, nil
		}
		errs = append(errs, err)
		var e *goproxy.Error
		if errors.As(err, &e) && e.Status == http.StatusForbidden {
			break
		}
	}
	// A host that says that nothing is there is believed, though nobody listens on the
	// other port.
	for _, err := range errs {
		if goproxy.Status(err) == http.StatusNotFound {
			return nil, "", err
		}
	}
	return nil, "", errs[len(errs)-1]
}

func (r *Remote) page(ctx context.Context, at, modulePath string) (*goImport, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, goproxy.Errorf(http.StatusBadRequest, "bad request: %s: %w", modulePath, err)
	}
	name := redact(at)
	resp, err := r.http.Do(req)
	if err != nil {
		var e *goproxy.Error
		if errors.As(err, &e) {
			return nil, goproxy.Errorf(e.Status, "%s: %w", modulePath, e)
		}
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		return nil, goproxy.Errorf(http.StatusBadGateway, "%s: %s: %w", modulePath, name, err)
	}
	defer resp.Body.Close()
	tags, err := parseGoImports(io.LimitReader(resp.Body, maxPageBytes))
	if len(tags) == 0 {
		switch {
		case resp.StatusCode == http.StatusOK && err == nil, resp.StatusCode == http.StatusNotFound, resp.StatusCode == http.StatusGone:
			return nil, goproxy.NotFound("%s: %s has no go-import meta tag (status %d)", modulePath, name, resp.StatusCode)
		case resp.StatusCode == http.StatusOK:
			return nil, goproxy.Errorf(http.StatusBadGateway, "%s: %s: %w", modulePath, name, err)
		}
		if pause, limited := goproxy.Limited(resp, time.Now()); limited {
			return nil, goproxy.Busy(pause, "%s: %s answers %d: it has too much to do", modulePath, name, resp.StatusCode)
		}
		return nil, goproxy.Errorf(http.StatusBadGateway, "%s: %s answers %d", modulePath, name, resp.StatusCode)
	}
	var match *goImport
	for _, t := range tags {
		if t.Prefix != modulePath && !strings.HasPrefix(modulePath, t.Prefix+"/") {
			continue
		}
		if match != nil {
			if match.VCS == "mod" && t.VCS != "mod" {
				break // a proxy goes before a repository
			}
			return nil, goproxy.Errorf(http.StatusBadGateway, "%s: %s has several go-import meta tags for it", modulePath, name)
		}
		match = &t
	}
	if match == nil {
		return nil, goproxy.NotFound("%s: the go-import meta tags of %s are for other paths, %.200s", modulePath, name, tags[0].Prefix)
	}
	if s := match.SubDir; strings.HasPrefix(s, "/") || strings.Contains(s, "..") || strings.Contains(s, "\\") {
		return nil, goproxy.Errorf(http.StatusBadGateway, "%s: %s names the subfolder %.100q", modulePath, name, s)
	}
	return match, nil
}

// parseGoImports finds the go-import meta tags of a page's head; those with "mod"
// come first.
func parseGoImports(r io.Reader) ([]goImport, error) {
	d := xml.NewDecoder(r)
	d.Strict = false
	d.CharsetReader = func(charset string, in io.Reader) (io.Reader, error) {
		switch strings.ToLower(charset) {
		case "utf-8", "ascii":
			return in, nil
		}
		return nil, fmt.Errorf("a page in the charset %.40q", charset)
	}
	var mods, others []goImport
	for {
		t, err := d.RawToken()
		if err != nil {
			if err == io.EOF || len(mods)+len(others) > 0 {
				err = nil
			}
			return append(mods, others...), err
		}
		switch e := t.(type) {
		case xml.EndElement:
			if strings.EqualFold(e.Name.Local, "head") {
				return append(mods, others...), nil
			}
		case xml.StartElement:
			if strings.EqualFold(e.Name.Local, "body") {
				return append(mods, others...), nil
			}
			if !strings.EqualFold(e.Name.Local, "meta") || attr(e, "name") != "go-import" {
				continue
			}
			content := attr(e, "content")
			f := strings.Fields(content)
			if len(f) != 3 && len(f) != 4 || len(content) > maxTagBytes {
				continue
			}
			g := goImport{Prefix: f[0], VCS: f[1], URL: f[2]}
			if len(f) == 4 {
				g.SubDir = f[3]
			}
			if g.VCS == "mod" {
				mods = append(mods, g)
			} else {
				others = append(others, g)
			}
		}
	}
}

func attr(e xml.StartElement, name string) string {
	for _, a := range e.Attr {
		if strings.EqualFold(a.Name.Local, name) {
			return a.Value
		}
	}
	return ""
}

// How long an answer to a discovery is good, and how many are remembered.
const (
	foundFor   = 10 * time.Minute
	missingFor = time.Minute
	maxFound   = 10_000
)

// cache remembers discoveries, and merges those that go on.
type cache struct {
	flights singleflight.Group
	mu      sync.Mutex
	all     map[string]discovery
}

type discovery struct {
	repo  *Repo
	err   error
	until time.Time
}

func (c *cache) do(ctx context.Context, key string, f func(context.Context) (*Repo, error)) (*Repo, error) {
	c.mu.Lock()
	d, ok := c.all[key]
	c.mu.Unlock()
	if ok && time.Now().Before(d.until) {
		return d.repo, d.err
	}
	ch := c.flights.DoChan(key, func() (_ any, err error) {
		defer goproxy.Recover(&err)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		repo, err := f(ctx)
		d := discovery{repo, err, time.Now().Add(foundFor)}
		if s := goproxy.Status(err); err != nil {
			d.until = time.Now().Add(missingFor)
			if s >= 500 && s != http.StatusNotImplemented {
				return repo, err
			}
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.all) >= maxFound || c.all == nil {
			c.all = map[string]discovery{}
		}
		c.all[key] = d
		return repo, err
	})
	select {
	case res := <-ch:
		repo, _ := res.Val.(*Repo)
		return repo, res.Err
	case <-ctx.Done():
		return nil, cmp.Or(context.Cause(ctx), ctx.Err())
	}
}
