// Package webhook reads what git hosts post when somebody pushes: GitHub, GitLab,
// Gitea, Forgejo and Bitbucket, the cloud's and Data Center.
//
// Sources: https://docs.github.com/en/webhooks/webhook-events-and-payloads#push,
// https://docs.gitlab.com/user/project/integrations/webhook_events/,
// https://docs.gitea.com/usage/webhooks,
// https://support.atlassian.com/bitbucket-cloud/docs/event-payloads/,
// https://confluence.atlassian.com/bitbucketserver/event-payload-938025882.html.
package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strings"
)

// MaxBytes is the largest body that is read. GitHub's are up to 25 MB, with the
// commits; the largest that say something of tags are far below this.
const MaxBytes = 8 << 20

// Push is one branch or tag that was set, moved or removed.
type Push struct {
	Repo   string // the URL of the repository, without .git: https://github.com/o/r
	Tag    string // "v1.2.3", "sub/v1.2.3"; or
	Branch string // "main"
}

// Errors of Parse.
var (
	ErrUnsigned  = errors.New("the request has no signature or token that is known here (X-Hub-Signature-256, X-Gitlab-Token, X-Gitea-Signature, X-Hub-Signature)")
	ErrSignature = errors.New("the signature, or the token, is not the one of webhook-secret")
)

// Parse checks that the sender knows the secret, and returns what was pushed. Other
// events are none: pings, and pushes of what is neither a branch nor a tag. The body is
// JSON, or a form whose field payload is, as GitHub and Gitea send it where they are told to;
// what is signed is the body as it came.
func Parse(h http.Header, body []byte, secret string) ([]Push, error) {
	if err := check(h, body, secret); err != nil {
		return nil, err
	}
	if kind, _, _ := mime.ParseMediaType(h.Get("Content-Type")); kind == "application/x-www-form-urlencoded" {
		form, err := url.ParseQuery(string(body))
		if err != nil || !form.Has("payload") {
			return nil, errors.New("the body is a form without the field payload")
		}
		body = []byte(form.Get("payload"))
	}
	switch event := h.Get("X-Event-Key"); event {
	case "":
	case "repo:push":
		return bitbucket(body)
	case "repo:refs_changed":
		return dataCenter(body)
	default:
		return nil, nil
	}
	switch event := first(h, "X-Gitea-Event", "X-Forgejo-Event", "X-GitHub-Event", "X-Gitlab-Event"); event {
	case "push", "Push Hook", "Tag Push Hook", "System Hook":
	default:
		return nil, nil
	}
	var p struct {
		Ref        string
		Repository struct {
			HTMLURL  string `json:"html_url"`
			CloneURL string `json:"clone_url"`
		}
		Project struct {
			HTTP string `json:"git_http_url"`
			Web  string `json:"web_url"`
		}
	}
	if err := json.Unmarshal(body, &p); err != nil {
		return nil, fmt.Errorf("the body is not the event that its header says: %w", err)
	}
	repo := ""
	for _, s := range []string{p.Repository.CloneURL, p.Repository.HTMLURL, p.Project.HTTP, p.Project.Web} {
		if repo == "" {
			repo = s
		}
	}
	push := Push{}
	var tag, branch bool
	push.Tag, tag = strings.CutPrefix(p.Ref, "refs/tags/")
	push.Branch, branch = strings.CutPrefix(p.Ref, "refs/heads/")
	switch {
	case tag:
		push.Branch = ""
	case branch:
		push.Tag = ""
	default:
		return nil, nil
	}
	var err error
	if push.Repo, err = repoOf(repo); err != nil {
		return nil, err
	}
	return []Push{push}, nil
}

func bitbucket(body []byte) ([]Push, error) {
	type ref struct{ Type, Name string }
	var p struct {
		Push struct {
			Changes []struct{ New, Old *ref }
		}
		Repository struct {
			Links struct {
				HTML struct{ Href string } `json:"html"`
			}
		}
	}
	if err := json.Unmarshal(body, &p); err != nil {
		return nil, fmt.Errorf("the body is not the event that its header says: %w", err)
	}
	repo, err := repoOf(p.Repository.Links.HTML.Href)
	if err != nil {
		return nil, err
	}
	var pushes []Push
	for _, c := range p.Push.Changes {
		r := c.New
		if r == nil {
			r = c.Old
		}
		switch {
		case r == nil:
		case r.Type == "tag":
			pushes = append(pushes, Push{Repo: repo, Tag: r.Name})
		case r.Type == "branch":
			pushes = append(pushes, Push{Repo: repo, Branch: r.Name})
		}
	}
	return pushes, nil
}

// dataCenter reads what a Bitbucket of one's own sends. Its module paths are those of the
// clone URL: bitbucket.example.com/scm/project/repo.git.
func dataCenter(body []byte) ([]Push, error) {
	var p struct {
		Changes    []struct{ Ref struct{ ID string } }
		Repository struct {
			Links struct {
				Clone []struct{ Href, Name string }
			}
		}
	}
	if err := json.Unmarshal(body, &p); err != nil {
		return nil, fmt.Errorf("the body is not the event that its header says: %w", err)
	}
	raw := ""
	for _, l := range p.Repository.Links.Clone {
		if l.Name == "http" { // https too
			raw = l.Href
		}
	}
	repo, err := repoOf(raw)
	if err != nil {
		return nil, err
	}
	var pushes []Push
	for _, c := range p.Changes {
		if tag, ok := strings.CutPrefix(c.Ref.ID, "refs/tags/"); ok {
			pushes = append(pushes, Push{Repo: repo, Tag: tag})
		} else if branch, ok := strings.CutPrefix(c.Ref.ID, "refs/heads/"); ok {
			pushes = append(pushes, Push{Repo: repo, Branch: branch})
		}
	}
	return pushes, nil
}

func repoOf(raw string) (string, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return "", fmt.Errorf("the event names no repository: %.100q", raw)
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return strings.TrimSuffix(strings.TrimSuffix(u.String(), "/"), ".git"), nil
}

// Signed reports whether a request has a signature or a token, right or wrong: one without
// need not be read.
func Signed(h http.Header) bool { return first(h, "X-Gitlab-Token") != "" || signature(h) != "" }

func signature(h http.Header) string {
	return first(h, "X-Hub-Signature-256", "X-Gitea-Signature", "X-Forgejo-Signature", "X-Hub-Signature")
}

// check compares one signature, or GitLab's token: the first that is there.
func check(h http.Header, body []byte, secret string) error {
	if secret == "" {
		return ErrSignature
	}
	if token := h.Get("X-Gitlab-Token"); token != "" {
		if subtle.ConstantTimeCompare([]byte(token), []byte(secret)) != 1 {
			return ErrSignature
		}
		return nil
	}
	said := signature(h)
	if said == "" {
		return ErrUnsigned
	}
	sum, err := hex.DecodeString(strings.TrimPrefix(said, "sha256="))
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(body)
	if err != nil || !hmac.Equal(sum, mac.Sum(nil)) {
		return ErrSignature
	}
	return nil
}

func first(h http.Header, names ...string) string {
	for _, n := range names {
		if v := h.Get(n); v != "" {
			return v
		}
	}
	return ""
}
