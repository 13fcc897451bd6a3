package remote

import (
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/athensctl/athensctl/goproxy"
)

// scpLike is what git takes for a repository behind SSH besides a URL. The user is
// needed here: host:path may be a mistake for a URL.
var scpLike = regexp.MustCompile(`^([^@/:\s]+)@([^@/:\s\[\]]+|\[[0-9A-Fa-f:.]+\]):(.*)$`)

// parseRepo reads the URL of a repository. user@host:path becomes
// ssh://user@host/~/path: "~" is the home folder of the account, as it is in git's own
// ssh URLs. An ssh URL without a user has the user git, and none has a password.
// Source: https://git-scm.com/docs/git-clone#_git_urls.
func parseRepo(raw string) (*url.URL, error) {
	if m := scpLike.FindStringSubmatch(raw); m != nil && !strings.HasPrefix(m[3], "//") {
		p := m[3]
		switch {
		case strings.HasPrefix(p, "~"):
			p = "/" + p
		case !strings.HasPrefix(p, "/"):
			p = "/~/" + p
		}
		return &url.URL{Scheme: "ssh", User: url.User(m[1]), Host: strings.ToLower(m[2]), Path: p}, nil
	}
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "ssh" && u.Scheme != "git+ssh" {
		return u, err
	}
	u.Scheme, u.Host = "ssh", strings.TrimSuffix(strings.ToLower(u.Host), ":22")
	user := u.User.Username()
	if user == "" {
		user = "git"
	}
	u.User = url.User(user)
	return u, nil
}

// Logins are the URLs of InsteadOf that are reached over SSH, one for each account.
func (r *Remote) Logins() (list []*url.URL) {
	for _, rule := range r.insteadOf {
		u := rule.url
		if u.Scheme == "ssh" && !slices.ContainsFunc(list, func(v *url.URL) bool { return v.Host == u.Host && v.User.Username() == u.User.Username() }) {
			list = append(list, u)
		}
	}
	return list
}

// webPath is a repository's path as its host's web pages have it: of git@host:path it
// is /path.
func webPath(u *url.URL) string {
	if rest, ok := strings.CutPrefix(u.Path, "/~/"); ok && u.Scheme == "ssh" {
		return "/" + rest
	}
	return u.Path
}

// uploadPack is the command for the path of an ssh URL, quoted as git does.
// Source: https://github.com/git/git/blob/v2.39.5/connect.c, parse_connect_url, and
// quote.c.
func uploadPack(p string) (string, error) {
	if rest, ok := strings.CutPrefix(p, "/~/"); ok {
		p = rest
	} else if strings.HasPrefix(p, "/~") {
		p = p[1:]
	}
	if strings.Trim(p, "/") == "" || strings.HasPrefix(p, "-") || p != clean(p) {
		return "", goproxy.Errorf(http.StatusBadGateway, "%.200q is not the path of a repository", p)
	}
	return "git-upload-pack '" + strings.NewReplacer("'", `'\''`, "!", `'\!'`).Replace(p) + "'", nil
}

// clean is text from a host without what a terminal would act on.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

// address is what is connected to for an ssh URL.
func address(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "22"
	}
	return net.JoinHostPort(u.Hostname(), port)
}
