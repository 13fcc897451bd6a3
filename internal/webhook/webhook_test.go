package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
)

const secret = "0123456789abcdef"

func sign(body string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(body))
	return hex.EncodeToString(mac.Sum(nil))
}

const (
	github        = `{"ref":"refs/tags/sub/v1.2.3","deleted":false,"repository":{"html_url":"https://github.com/o/r","clone_url":"https://github.com/o/r.git"}}`
	branch        = `{"ref":"refs/heads/feature/x","repository":{"html_url":"https://gitea.example/o/r"}}`
	gitlab        = `{"object_kind":"tag_push","ref":"refs/tags/v1.0.0","project":{"web_url":"https://gitlab.example/g/s/r","git_http_url":"https://gitlab.example/g/s/r.git"}}`
	bitbucketBody = `{"push":{"changes":[{"new":{"type":"tag","name":"v1.0.0"},"old":null},{"new":null,"old":{"type":"branch","name":"old"}},{"new":{"type":"bookmark","name":"b"}}]},"repository":{"links":{"html":{"href":"https://bitbucket.org/o/r"}}}}`
)

// dataCenterBody has what a Bitbucket Data Center sends of a push of two tags and a branch;
// it has more fields than are read.
const dataCenterBody = `{"eventKey":"repo:refs_changed","actor":{"name":"john"},"repository":{"slug":"r","scmId":"git","project":{"key":"P"},"links":{"clone":[` +
	`{"href":"ssh://git@bitbucket.example:7999/p/r.git","name":"ssh"},{"href":"https://bitbucket.example/scm/p/r.git","name":"http"}],"self":[{"href":"https://bitbucket.example/projects/P/repos/r/browse"}]}},` +
	`"changes":[{"ref":{"id":"refs/tags/v1.0.0","displayId":"v1.0.0","type":"TAG"},"refId":"refs/tags/v1.0.0","type":"ADD"},{"ref":{"id":"refs/heads/main","type":"BRANCH"},"type":"UPDATE"},{"ref":{"id":"refs/pull-requests/1/from"}}]}`

var form = "payload=" + url.QueryEscape(github)

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		name   string
		header map[string]string
		body   string
		want   []Push
		err    string
	}{
		{"GitHub's tag", map[string]string{"X-GitHub-Event": "push", "X-Hub-Signature-256": "sha256=" + sign(github)}, github, []Push{{Repo: "https://github.com/o/r", Tag: "sub/v1.2.3"}}, ""},
		{"GitHub's ping", map[string]string{"X-GitHub-Event": "ping", "X-Hub-Signature-256": "sha256=" + sign(`{"zen":"x"}`)}, `{"zen":"x"}`, nil, ""},
		{"Gitea's branch", map[string]string{"X-Gitea-Event": "push", "X-GitHub-Event": "push", "X-Gitea-Signature": sign(branch)}, branch, []Push{{Repo: "https://gitea.example/o/r", Branch: "feature/x"}}, ""},
		{"Forgejo's branch", map[string]string{"X-Forgejo-Event": "push", "X-Forgejo-Signature": sign(branch)}, branch, []Push{{Repo: "https://gitea.example/o/r", Branch: "feature/x"}}, ""},
		{"GitLab's tag", map[string]string{"X-Gitlab-Event": "Tag Push Hook", "X-Gitlab-Token": secret}, gitlab, []Push{{Repo: "https://gitlab.example/g/s/r", Tag: "v1.0.0"}}, ""},
		{"GitLab's issue", map[string]string{"X-Gitlab-Event": "Issue Hook", "X-Gitlab-Token": secret}, `{}`, nil, ""},
		{"Bitbucket", map[string]string{"X-Event-Key": "repo:push", "X-Hub-Signature": "sha256=" + sign(bitbucketBody)}, bitbucketBody, []Push{{Repo: "https://bitbucket.org/o/r", Tag: "v1.0.0"}, {Repo: "https://bitbucket.org/o/r", Branch: "old"}}, ""},
		{"Bitbucket's fork", map[string]string{"X-Event-Key": "repo:fork", "X-Hub-Signature": "sha256=" + sign(`{}`)}, `{}`, nil, ""},
		{"GitHub's form", map[string]string{"X-GitHub-Event": "push", "Content-Type": "application/x-www-form-urlencoded", "X-Hub-Signature-256": "sha256=" + sign(form)}, form, []Push{{Repo: "https://github.com/o/r", Tag: "sub/v1.2.3"}}, ""},
		{"Gitea's form", map[string]string{"X-Gitea-Event": "push", "Content-Type": "application/x-www-form-urlencoded; charset=utf-8", "X-Gitea-Signature": sign(form)}, form, []Push{{Repo: "https://github.com/o/r", Tag: "sub/v1.2.3"}}, ""},
		{"Data Center", map[string]string{"X-Event-Key": "repo:refs_changed", "X-Hub-Signature": "sha256=" + sign(dataCenterBody)}, dataCenterBody, []Push{{Repo: "https://bitbucket.example/scm/p/r", Tag: "v1.0.0"}, {Repo: "https://bitbucket.example/scm/p/r", Branch: "main"}}, ""},
		{"Data Center's test", map[string]string{"X-Event-Key": "diagnostics:ping", "X-Hub-Signature": "sha256=" + sign(`{"test":true}`)}, `{"test":true}`, nil, ""},
		{"a note", map[string]string{"X-GitHub-Event": "push", "X-Hub-Signature-256": "sha256=" + sign(`{"ref":"refs/notes/x"}`)}, `{"ref":"refs/notes/x"}`, nil, ""},

		{"a form that was signed as JSON", map[string]string{"X-GitHub-Event": "push", "Content-Type": "application/x-www-form-urlencoded", "X-Hub-Signature-256": "sha256=" + sign(github)}, form, nil, ErrSignature.Error()},
		{"another form", map[string]string{"X-GitHub-Event": "push", "Content-Type": "application/x-www-form-urlencoded", "X-Hub-Signature-256": "sha256=" + sign("x=1")}, "x=1", nil, "a form without the field payload"},
		{"a form that is none", map[string]string{"X-GitHub-Event": "push", "Content-Type": "application/x-www-form-urlencoded", "X-Hub-Signature-256": "sha256=" + sign("payload=%zz")}, "payload=%zz", nil, "a form without the field payload"},
		{"Data Center over SSH alone", map[string]string{"X-Event-Key": "repo:refs_changed", "X-Hub-Signature": "sha256=" + sign(`{"changes":[]}`)}, `{"changes":[]}`, nil, "names no repository"},
		{"no signature", map[string]string{"X-GitHub-Event": "push"}, github, nil, ErrUnsigned.Error()},
		{"a signature of something else", map[string]string{"X-GitHub-Event": "push", "X-Hub-Signature-256": "sha256=" + sign(github)}, github + " ", nil, ErrSignature.Error()},
		{"SHA-1", map[string]string{"X-GitHub-Event": "push", "X-Hub-Signature": "sha1=" + sign(github)[:40]}, github, nil, ErrSignature.Error()},
		{"no hexadecimal", map[string]string{"X-GitHub-Event": "push", "X-Hub-Signature-256": "sha256=zz"}, github, nil, ErrSignature.Error()},
		{"another token", map[string]string{"X-Gitlab-Event": "Push Hook", "X-Gitlab-Token": "x"}, gitlab, nil, ErrSignature.Error()},
		// A wrong token is wrong although a signature is right: nobody sends both.
		{"a wrong token and a signature", map[string]string{"X-GitHub-Event": "push", "X-Gitlab-Token": "x", "X-Hub-Signature-256": "sha256=" + sign(github)}, github, nil, ErrSignature.Error()},
		{"no JSON", map[string]string{"X-GitHub-Event": "push", "X-Hub-Signature-256": "sha256=" + sign(`x`)}, `x`, nil, "not the event"},
		{"no repository", map[string]string{"X-GitHub-Event": "push", "X-Hub-Signature-256": "sha256=" + sign(`{"ref":"refs/tags/v1"}`)}, `{"ref":"refs/tags/v1"}`, nil, "names no repository"},
		{"a file", map[string]string{"X-Event-Key": "repo:push", "X-Hub-Signature": "sha256=" + sign(`{"repository":{"links":{"html":{"href":"file:///etc"}}}}`)}, `{"repository":{"links":{"html":{"href":"file:///etc"}}}}`, nil, "names no repository"},
	} {
		h := http.Header{}
		for k, v := range tc.header {
			h.Set(k, v)
		}
		got, err := Parse(h, []byte(tc.body), secret)
		switch {
		case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
			t.Errorf("%s: %v, want %q", tc.name, err, tc.err)
		case tc.err == "" && (err != nil || !slices.Equal(got, tc.want)):
			t.Errorf("%s: %v, %v, want %v", tc.name, got, err, tc.want)
		}
	}
	h := http.Header{"X-Gitlab-Token": {""}, "X-Github-Event": {"push"}}
	if _, err := Parse(h, []byte(github), ""); !errors.Is(err, ErrSignature) {
		t.Errorf("without a secret: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{github, branch, gitlab, bitbucketBody, dataCenterBody, form, `{}`, `[]`, `{"push":{"changes":[null]}}`} {
		f.Add("push", s)
		f.Add("repo:push", s)
		f.Add("repo:refs_changed", s)
	}
	f.Fuzz(func(t *testing.T, event, body string) {
		for _, name := range []string{"X-GitHub-Event", "X-Gitlab-Event", "X-Gitea-Event", "X-Event-Key"} {
			h := http.Header{}
			h.Set(name, event)
			if strings.HasPrefix(body, "payload=") {
				h.Set("Content-Type", "application/x-www-form-urlencoded")
			}
			h.Set("X-Hub-Signature-256", "sha256="+sign(body))
			pushes, err := Parse(h, []byte(body), secret)
			for _, p := range pushes {
				if err != nil || p.Repo == "" || strings.HasSuffix(p.Repo, ".git") || p.Tag != "" && p.Branch != "" {
					t.Errorf("%+v, %v", p, err)
				}
			}
			if got, err := Parse(h, []byte(body+" "), secret); err == nil || got != nil {
				t.Errorf("a body that was not signed: %v", got)
			}
		}
	})
}
