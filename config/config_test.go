package config

//go:generate go test -run TestReference -update .

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write docs/configuration.md")

func load(t *testing.T, args, env []string) (*Config, error) {
	t.Helper()
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	Flags(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return Load(fs, env)
}

func writeFile(t *testing.T, content string) string {
	name := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestPrecedence(t *testing.T) {
	file := writeFile(t, "freshness: 2m\nlist-max-stale: 3h\nworkers: 9\npublic-feeds: true\n")
	c, err := load(t, []string{"--config", file, "--freshness=4m"}, []string{"ATHENSCTL_FRESHNESS=3m", "ATHENSCTL_LIST_MAX_STALE=5h", "ATHENSCTL_LISTEN="})
	if err != nil {
		t.Fatal(err)
	}
	if c.Freshness != 4*time.Minute || c.ListMaxStale != 5*time.Hour || c.Workers != 9 || !c.PublicFeeds || c.Listen != "127.0.0.1:3000" {
		t.Errorf("got %+v", c)
	}
	sources := map[string]string{}
	for _, s := range c.Settings() {
		sources[s.Key] = s.Source
	}
	for key, want := range map[string]string{
		"freshness": "flag", "list-max-stale": "environment ATHENSCTL_LIST_MAX_STALE", "workers": "file " + file, "listen": "default",
	} {
		if sources[key] != want {
			t.Errorf("source of %s: %q, want %q", key, sources[key], want)
		}
	}
}

func TestErrorsNameTheKey(t *testing.T) {
	for _, tc := range []struct {
		args, env, want string // want: all of these, separated by |
	}{
		{"--role=prox", "", `role: "prox" is not one of`},
		{"--listen=3000", "", `listen: "3000" is not an address`},
		{"--store=tape", "", `store: "tape"`},
		{"--network-mode=on", "", `network-mode: "on"`},
		{"--log-level=loud", "", `log-level: "loud"`},
		{"--log-format=xml", "", `log-format: "xml"`},
		{"--fetch-timeout-status=500", "", `fetch-timeout-status: 500`},
		{"--fetch-timeout=-1s", "", `fetch-timeout (flag): "-1s"`},
		{"--freshness=0s", "", `freshness (flag): "0s"`},
		{"--freshness=2h", "", `list-max-stale: 1h0m0s is below freshness`},
		{"--workers=0", "", `workers (flag): "0"`},
		{"--zip-workers=65", "", `zip-workers: 65 is above workers`},
		{"--cache-max-bytes=big", "", `cache-max-bytes (flag): "big"`},
		{"--upstream=ftp://x", "", `upstream: "ftp://x"`},
		{"--upstream=,", "", `upstream: it is empty`},
		{"--private=[", "", `private: "["`},
		{"--internal-token=short", "", `internal-token: it has 5 characters`},
		{"--role=proxy", "", `storage-url: role proxy needs it|crawler-url: role proxy needs it`},
		{"--role=crawler", "", `storage-url: role crawler needs it`},
		{"--role=storage --listen=0.0.0.0:1", "", `internal-token: the storage role listens on 0.0.0.0:1`},
		{"--crawler-listen=:1", "", `internal-token: the crawler role listens on :1`},
		{"--storage-url=x", "", `storage-url: "x"`},
		{"", "ATHENSCTL_LISTENS=x", `unknown setting ATHENSCTL_LISTENS`},
		{"", "ATHENSCTL_PUBLIC_FEEDS=x", `public-feeds (environment ATHENSCTL_PUBLIC_FEEDS): "x"`},
		{"--sumdb= ", "", `sumdb: " "`},
	} {
		var args []string
		for a := range strings.SplitSeq(tc.args, " --") {
			if a != "" {
				args = append(args, "--"+strings.TrimPrefix(a, "--"))
			}
		}
		_, err := load(t, args, []string{tc.env})
		for want := range strings.SplitSeq(tc.want, "|") {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s %s: got %v, want %q", tc.args, tc.env, err, want)
			}
		}
	}
	file := writeFile(t, "lisen: x\n")
	if _, err := load(t, []string{"--config", file}, nil); err == nil || !strings.Contains(err.Error(), file+`: unknown key "lisen"`) {
		t.Errorf("unknown key in a file: got %v", err)
	}
	file = writeFile(t, "listen: [a, b]\n")
	if _, err := load(t, []string{"--config", file}, nil); err == nil || !strings.Contains(err.Error(), "listen: a single value") {
		t.Errorf("a list in a file: got %v", err)
	}
}

func TestKubernetesServiceLinksAreIgnored(t *testing.T) {
	if _, err := load(t, nil, []string{"ATHENSCTL_PROXY_SERVICE_HOST=10.0.0.1", "ATHENSCTL_PROXY_PORT=tcp://10.0.0.1:80", "ATHENSCTL_PROXY_PORT_80_TCP_ADDR=10.0.0.1"}); err != nil {
		t.Error(err)
	}
}

func TestSecretsAreMasked(t *testing.T) {
	c, err := load(t, []string{"--internal-token=0123456789abcdef", "--upstream=https://me:hunter2@example.com|direct"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range c.Settings() {
		if strings.Contains(s.Value, "0123456789abcdef") || strings.Contains(s.Value, "hunter2") {
			t.Errorf("%s shows a secret: %s", s.Key, s.Value)
		}
	}
}

func TestReference(t *testing.T) {
	var b bytes.Buffer
	WriteReference(&b)
	const page = "../docs/configuration.md"
	if *update {
		if err := os.WriteFile(page, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, b.Bytes()) {
		t.Errorf("%s is not what the code says: run go generate ./config", page)
	}
}

func FuzzParseUpstream(f *testing.F) {
	f.Add(DefaultUpstream)
	f.Add("https://a|off,direct")
	f.Fuzz(func(t *testing.T, s string) {
		list, err := ParseUpstream(s)
		if err == nil && len(list) == 0 {
			t.Error("no entry and no error")
		}
	})
}
