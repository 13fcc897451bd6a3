package remote

import (
	"errors"
	"net/url"
	"strings"
)

// credential is a user and a secret for URLs whose host/path begins with prefix.
type credential struct{ prefix, user, secret string }

// parseToken reads PREFIX=SECRET or PREFIX=USER:SECRET. Without a user it is the one
// that GitHub takes with any token, and GitLab, Gitea and Bitbucket do not look at.
func parseToken(s string) (credential, error) {
	prefix, secret, ok := strings.Cut(s, "=")
	if !ok || prefix == "" || secret == "" || strings.Contains(prefix, "://") {
		return credential{}, errors.New("it is not HOST=SECRET, HOST/PATH=SECRET or HOST/PATH=USER:SECRET")
	}
	c := credential{prefix: strings.TrimSuffix(prefix, "/"), user: "x-access-token", secret: secret}
	if user, secret, ok := strings.Cut(secret, ":"); ok {
		c.user, c.secret = user, secret
	}
	return c, nil
}

// parseNetrc reads the machines of a netrc file that have a login and a password.
// "default" is not read, as the go command does not.
// Source: https://www.gnu.org/software/inetutils/manual/html_node/The-_002enetrc-file.html.
func parseNetrc(text string) []credential {
	var all []credential
	var c credential
	keep := func() {
		if c.prefix != "" && c.user != "" && c.secret != "" {
			all = append(all, c)
		}
		c = credential{}
	}
	inMacro := false
	for line := range strings.Lines(text) {
		if inMacro {
			inMacro = strings.TrimSpace(line) != ""
			continue
		}
		f := strings.Fields(line)
		for i := 0; i < len(f); i++ {
			if f[i] == "default" {
				keep()
				return all // the file ends with it
			}
			if i+1 == len(f) {
				break
			}
			switch f[i] {
			case "machine":
				keep()
				c.prefix = f[i+1]
			case "login":
				c.user = f[i+1]
			case "password":
				c.secret = f[i+1]
			case "macdef":
				inMacro = true
			default:
				continue
			}
			i++
		}
	}
	keep()
	return all
}

// credential is what is set for a URL; nil when nothing is. Nothing secret goes
// over http but to where the operator said so, with http:// in vcs-instead-of.
func (r *Remote) credential(u *url.URL) *credential {
	if u.User != nil || u.Scheme != "https" && !(u.Scheme == "http" && r.plain[u.Host]) {
		return nil
	}
	for i, c := range r.creds {
		if hasPrefix(u, c.prefix) {
			return &r.creds[i]
		}
	}
	return nil
}

// hasPrefix reports whether a URL's host/path, the host with or without its port, is
// the prefix or below it.
func hasPrefix(u *url.URL, prefix string) bool {
	below := webPath(u)
	for _, at := range []string{u.Host + below, u.Hostname() + below} {
		if rest, ok := strings.CutPrefix(at, prefix); ok && (rest == "" || rest[0] == '/') {
			return true
		}
	}
	return false
}
