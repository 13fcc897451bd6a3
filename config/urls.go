package config

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// ParseURLs reads http and https URLs, separated by commas.
func ParseURLs(list string) (urls []*url.URL, err error) {
	for s := range strings.SplitSeq(list, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		u, err := parseURL(s)
		if err != nil {
			return nil, err
		}
		urls = append(urls, u)
	}
	return urls, nil
}

func parseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" ||
		u.Port() != "" && !isPort(u.Port()) || strings.ContainsAny(s, "?# ") {
		return nil, fmt.Errorf("%q is not an http or https URL", redact(s))
	}
	return u, nil
}

func redact(s string) string {
	if i := strings.LastIndex(s, "@"); i >= 0 {
		return "…" + s[i:]
	}
	return s
}

// Upstream is one entry of the upstream setting.
type Upstream struct {
	URL      *url.URL // nil with Direct and Off
	Direct   bool
	Off      bool
	AnyError bool // the next entry is asked after any error ("|")
}

// ParseUpstream reads GOPROXY syntax. Source: https://go.dev/ref/mod#environment-variables.
func ParseUpstream(s string) (list []Upstream, err error) {
	for rest := s; rest != ""; {
		entry, sep := rest, ""
		if i := strings.IndexAny(rest, ",|"); i >= 0 {
			entry, sep, rest = rest[:i], rest[i:i+1], rest[i+1:]
		} else {
			rest = ""
		}
		u := Upstream{AnyError: sep == "|"}
		switch entry = strings.TrimSpace(entry); entry {
		case "":
			continue
		case "off":
			u.Off = true
		case "direct":
			u.Direct = true
		default:
			urls, err := ParseURLs(entry)
			if err != nil || len(urls) != 1 {
				return nil, fmt.Errorf("%q is not an http or https URL, direct or off", redact(entry))
			}
			u.URL = urls[0]
		}
		list = append(list, u)
	}
	if len(list) == 0 {
		return nil, errors.New("it is empty: write off for no upstream")
	}
	return list, nil
}
