package config

import (
	"fmt"
	"net"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/mod/sumdb/note"
)

// validate says what can't be. elsewhere: the store is that of another process, whose
// settings are here too, and nobody listens.
func (c *Config) validate(elsewhere bool) (errs []error) {
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %w", key, fmt.Errorf(format, args...)))
	}
	oneOf := func(key, value string, accepted ...string) {
		if !slices.Contains(accepted, value) {
			bad(key, "%q is not one of %s", value, strings.Join(accepted, ", "))
		}
	}
	for r := range strings.SplitSeq(c.Role, ",") {
		oneOf("role", strings.TrimSpace(r), "all", "proxy", "storage", "crawler")
	}
	for key, addr := range map[string]string{"listen": c.Listen, "storage-listen": c.StorageListen, "crawler-listen": c.CrawlerListen} {
		if _, port, err := net.SplitHostPort(addr); addr != "" && (err != nil || !isPort(port)) || addr == "" && key == "listen" {
			bad(key, "%q is not an address such as 127.0.0.1:3000", addr)
		}
	}
	if c.Address("proxy") == "" && c.Address("storage") == "" && c.Address("crawler") == "" {
		bad("role", "%s: nobody can reach this process without storage-listen or crawler-listen", c.Role)
	}
	for role, own := range map[string]struct{ listen, url string }{"storage": {c.StorageListen, c.StorageURL}, "crawler": {c.CrawlerListen, c.CrawlerURL}} {
		if own.listen != "" && c.Address(role) != own.listen {
			bad(role+"-listen", "role %s: it is for a process with the %s role and others; the address of an only one is listen", c.Role, role)
		}
		if own.url != "" && c.Has(role) {
			bad(role+"-url", "role %s has the %s role in it, and would not ask another: leave it out, or say in role what this process does", c.Role, role)
		}
	}
	for _, role := range []string{"storage", "crawler"} {
		if a := c.Address(role); a != "" && !loopback(a) && c.InternalToken == "" && !elsewhere {
			bad("internal-token", "the %s role listens on %s, beyond loopback: a token is needed", role, a)
		}
	}
	if n := len(c.InternalToken); n > 0 && n < 16 {
		bad("internal-token", "it has %d characters; at least 16 are needed", n)
	}
	if strings.ContainsFunc(c.InternalToken, func(r rune) bool { return r <= ' ' || r > '~' }) {
		bad("internal-token", "it has a space, a newline or what is not ASCII, which a header can't carry")
	}
	if name, value, ok := strings.Cut(c.RequireHeader, "="); c.RequireHeader != "" && (!ok || !headerName.MatchString(name) || value == "") {
		bad("require-header", "it is not NAME=VALUE")
	}
	if c.DataDir == "" {
		bad("data-dir", "no home folder is known to put it in: name one")
	}
	oneOf("store", c.Store, "disk", "cosmos", "memory")
	if !elsewhere {
		c.validateAzure(bad)
	}
	oneOf("network-mode", c.NetworkMode, "strict", "fallback", "offline")
	if c.NetworkMode == "offline" && !c.Has("proxy") && c.Has("crawler") && !elsewhere {
		bad("network-mode", "offline: the crawler has nothing to do then; role is %s", c.Role)
	}
	oneOf("log-level", c.LogLevel, "debug", "info", "warn", "error")
	oneOf("log-format", c.LogFormat, "text", "json")
	if c.FetchTimeoutStatus != 504 && c.FetchTimeoutStatus != 404 {
		bad("fetch-timeout-status", "%d is not one of 504, 404", c.FetchTimeoutStatus)
	}
	if c.ListMaxStale < c.Freshness {
		bad("list-max-stale", "%v is below freshness, %v", c.ListMaxStale, c.Freshness)
	}
	if c.JobLease < time.Second {
		bad("job-lease", "%v is below 1s", c.JobLease)
	}
	if c.ZipWorkers > c.Workers {
		bad("zip-workers", "%d is above workers, %d", c.ZipWorkers, c.Workers)
	}
	for key, list := range map[string]string{"storage-url": c.StorageURL, "crawler-url": c.CrawlerURL} {
		if urls, err := ParseURLs(list); err != nil {
			bad(key, "%w", err)
		} else if list != "" && len(urls) == 0 {
			bad(key, "%q has no URL", list)
		}
	}
	if !c.Has("storage") && c.StorageURL == "" {
		bad("storage-url", "role %s needs it: this process has no storage", c.Role)
	}
	if c.Has("proxy") && !c.Has("crawler") && c.CrawlerURL == "" && c.NetworkMode != "offline" {
		bad("crawler-url", "role %s needs it: this process has no crawler, and network-mode is not offline", c.Role)
	}
	if _, err := ParseUpstream(c.Upstream); err != nil {
		bad("upstream", "%w", err)
	}
	for key, patterns := range map[string]string{"private": c.Private, "crawl-match": c.CrawlMatch, "vcs-insecure": c.VCSInsecure} {
		for p := range strings.SplitSeq(patterns, ",") {
			if _, err := path.Match(p, ""); err != nil || strings.Contains(p, "://") {
				bad(key, "%q is not a pattern of module paths such as git.example.com/*", p)
			}
		}
	}
	for key, list := range map[string]List{"crawl-index": c.CrawlIndex, "crawl-catalog": c.CrawlCatalog} {
		for _, u := range list {
			if _, err := parseURL(u); err != nil && (key == "crawl-index" || u != "store") {
				bad(key, "%w", err)
			}
		}
	}
	if _, err := c.IndexSince(time.Time{}); err != nil {
		bad("crawl-index-since", "%w", err)
	}
	if n, err := strconv.Atoi(c.CrawlVersions); c.CrawlVersions != "all" && c.CrawlVersions != "minor" && (err != nil || n < 0) {
		bad("crawl-versions", "%q is not a number, minor or all", c.CrawlVersions)
	}
	if n := len(c.WebhookSecret); n > 0 && n < 16 {
		bad("webhook-secret", "it has %d characters; at least 16 are needed", n)
	}
	c.validateTraces(bad)
	if !validSumDB(c.SumDB) {
		bad("sumdb", "%q is not sum.golang.org or name+hash+key, and perhaps a URL after a space, nor off", userinfo.ReplaceAllString(c.SumDB, "://********@"))
	}
	return errs
}

func (c *Config) validateTraces(bad func(key, format string, args ...any)) {
	u, err := parseURL(c.OTLPEndpoint)
	switch {
	case c.OTLPEndpoint == "":
	case err != nil:
		bad("otlp-endpoint", "%w", err)
	case u.User != nil:
		bad("otlp-endpoint", "it has a user or a password in it: otlp-headers is for that")
	case strings.HasSuffix(strings.TrimSuffix(u.Path, "/"), "/v1/traces"):
		bad("otlp-endpoint", "%q: leave /v1/traces out, it is added", c.OTLPEndpoint)
	}
	for i, h := range c.OTLPHeaders {
		if name, value, ok := strings.Cut(h, "="); !ok || !headerName.MatchString(name) || value == "" || strings.ContainsFunc(value, unicode.IsControl) {
			bad("otlp-headers", "entry %d is not NAME=VALUE", i+1)
		}
	}
	if len(c.OTLPHeaders) > 0 && c.OTLPEndpoint == "" {
		bad("otlp-headers", "there is no otlp-endpoint to send them to")
	}
	if c.TraceSample > 1 {
		bad("trace-sample", "%v is above 1, which is all", c.TraceSample)
	}
}

// validateAzure: a setting of Azure's that has no effect is an error too; a store
// that is not the one that was meant would be found empty.
func (c *Config) validateAzure(bad func(key, format string, args ...any)) {
	cosmos := c.Has("storage") && c.Store == "cosmos"
	for key, value := range map[string]string{
		"cosmos-endpoint": c.CosmosEndpoint, "cosmos-key": c.CosmosKey, "cosmos-connection-string": c.CosmosConnectionString,
		"blob-endpoint": c.BlobEndpoint, "blob-connection-string": c.BlobConnectionString,
	} {
		if value != "" && !cosmos {
			bad(key, "it is for the storage role with store cosmos; here role is %s and store %s", c.Role, c.Store)
		}
	}
	if !cosmos {
		return
	}
	if c.CosmosEndpoint == "" && c.CosmosConnectionString == "" {
		bad("cosmos-endpoint", "store cosmos needs it, or cosmos-connection-string")
	}
	if c.CosmosConnectionString != "" && (c.CosmosEndpoint != "" || c.CosmosKey != "") {
		bad("cosmos-connection-string", "it has the endpoint and the key: leave cosmos-endpoint and cosmos-key out")
	}
	if c.BlobConnectionString != "" && c.BlobEndpoint != "" {
		bad("blob-connection-string", "it has the endpoint: leave blob-endpoint out")
	}
	for key, value := range map[string]string{"cosmos-endpoint": c.CosmosEndpoint, "blob-endpoint": c.BlobEndpoint} {
		if _, err := parseURL(value); value != "" && err != nil {
			bad(key, "%w", err)
		}
	}
	if !containerName.MatchString(c.BlobContainer) {
		bad("blob-container", "%q is not a container's name: 3 to 63 small letters, digits and single hyphens", c.BlobContainer)
	}
	if strings.ContainsAny(c.CosmosDatabase, `/\?#`) || c.CosmosDatabase == "" {
		bad("cosmos-database", "%q is not a database's name", c.CosmosDatabase)
	}
}

var headerName = regexp.MustCompile(`^[A-Za-z0-9-]+$`)

// Source: "Naming and referencing containers, blobs, and metadata", Microsoft.
var containerName = regexp.MustCompile(`^[a-z0-9](-?[a-z0-9]){2,62}$`)

func validSumDB(s string) bool {
	f := strings.Fields(s)
	switch {
	case len(f) == 1 && f[0] == "off":
		return true
	case len(f) == 2:
		if _, err := parseURL(f[1]); err != nil {
			return false
		}
	case len(f) != 1:
		return false
	}
	_, err := note.NewVerifier(f[0])
	return err == nil || f[0] == "sum.golang.org"
}

func isPort(s string) bool {
	_, err := strconv.ParseUint(s, 10, 16)
	return err == nil
}

func loopback(addr string) bool {
	host, _, _ := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
