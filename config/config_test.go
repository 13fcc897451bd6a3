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
	if c.Upstream != DefaultUpstream {
		t.Errorf("upstream: got %q", c.Upstream)
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
		{"--job-lease=2ns", "", `job-lease: 2ns is below 1s`},
		{"--zip-workers=257", "", `zip-workers: 257 is above workers`},
		{"--cache-max-bytes=big", "", `cache-max-bytes (flag): "big"`},
		{"--upstream=ftp://x", "", `upstream: "ftp://x"`},
		{"--upstream=,", "", `upstream: it is empty`},
		{"--private=[", "", `private: "["`},
		{"--vcs-insecure=[", "", `vcs-insecure: "["`},
		{"--internal-token=short", "", `internal-token: it has 5 characters`},
		{"--role=proxy", "", `storage-url: role proxy needs it|crawler-url: role proxy needs it`},
		{"--role=crawler", "", `storage-url: role crawler needs it`},
		{"--role=storage --listen=0.0.0.0:1", "", `internal-token: the storage role listens on 0.0.0.0:1`},
		{"--crawler-listen=:1", "", `internal-token: the crawler role listens on :1`},
		{"--storage-url=x", "", `storage-url: "x"`},
		{"--storage-url=http://h:1", "", `storage-url: role all has the storage role in it`},
		{"", "ATHENSCTL_CRAWLER_URL=http://h:1", `crawler-url: role all has the crawler role in it`},
		{"--role=storage --storage-listen=127.0.0.1:1", "", `storage-listen: role storage: it is for a process with the storage role and others`},
		{"--role=proxy --storage-url=http://h:1 --crawler-url=http://h:2 --crawler-listen=127.0.0.1:1", "", `crawler-listen: role proxy`},
		{"--role=crawler --storage-url=http://h:1 --network-mode=offline", "", `network-mode: offline: the crawler has nothing to do`},
		{"", "ATHENSCTL_LISTENS=x", `unknown setting ATHENSCTL_LISTENS`},
		{"", "ATHENSCTL_PUBLIC_FEEDS=x", `public-feeds (environment ATHENSCTL_PUBLIC_FEEDS): "x"`},
		{"--sumdb= ", "", `sumdb: " "`},
		{"--sumdb=example.com", "", `sumdb: "example.com"`},
		{"--sumdb=off https://example.com", "", `sumdb: "off https://example.com"`},
		{"--sumdb=example.com https://me:hunter2@example.com", "", `sumdb: "example.com https://********@example.com"`},
		{"--listen=127.0.0.1:99999", "", `listen: "127.0.0.1:99999"`},
		{"--storage-url=http://h:99999", "", `storage-url: "http://h:99999"`},
		{"--storage-url=http://h/#x", "", `storage-url: "http://h/#x"`},
		{"--storage-url=http://me:hun@ter2@h:x", "", `storage-url: "…@h:x"`},
		{"--role=crawler --storage-url=,", "", `storage-url: "," has no URL`},
		{"--role=storage,crawler", "", `role: storage,crawler: nobody can reach`},
		{"--internal-token=0123456789abcdef\n", "", `internal-token: it has a space, a newline`},
		{"--private=https://git.example.com/*", "", `private: "https://git.example.com/*"`},
		{"--otlp-endpoint=collector:4318", "", `otlp-endpoint: "collector:4318" is not an http or https URL`},
		{"--otlp-endpoint=https://me:hunter2@c", "", `otlp-endpoint: it has a user or a password in it`},
		{"--otlp-endpoint=http://c:4318/v1/traces", "", `leave /v1/traces out`},
		{"--otlp-endpoint=http://c --otlp-headers=a=b,hunter2", "", `otlp-headers: entry 2 is not NAME=VALUE`},
		{"--otlp-headers=a=b", "", `otlp-headers: there is no otlp-endpoint`},
		{"--trace-sample=1.5", "", `trace-sample: 1.5 is above 1`},
		{"--trace-sample=-0.1", "", `trace-sample (flag): "-0.1" is not a number`},
		{"--trace-sample=NaN", "", `trace-sample (flag): "NaN" is not a number`},
		{"--trace-sample=half", "", `trace-sample (flag): "half" is not a number`},
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
	if _, err := load(t, []string{"--config", file}, nil); err == nil || !strings.Contains(err.Error(), "listen (file "+file+"): a string is needed") {
		t.Errorf("a list in a file: got %v", err)
	}
}

func TestFileIsStrict(t *testing.T) {
	for _, tc := range []struct{ ext, content, want string }{ // want "": accepted
		{"json", `{"workers": 9, "cache-max-bytes": 10737418240}`, ""},
		{"toml", "workers = 9\nfreshness = \"30s\"\n", ""},
		{"yml", "workers: 9\nlisten:\nsumdb: off\ncache-max-bytes: 1024\n", ""},
		{"toml", "workers = 9\ntrace-sample = 0.05\n", ""},
		{"json", `{"workers": 9, "trace-sample": 0}`, ""},
		{"yaml", "trace-sample: \"0.5\"\n", "trace-sample (file FILE): a number is needed"},
		{"json", `{"workers": 9.5}`, `workers (file FILE): "9.5" is not a number`},
		{"yaml", "workers: \"9\"\n", "workers (file FILE): a number is needed"},
		{"yaml", "listen: 3\n", "listen (file FILE): a string is needed"},
		{"yaml", "private: true\n", "private (file FILE): a string is needed"},
		{"yaml", "public-feeds: \"yes\"\n", "public-feeds (file FILE): true or false is needed"},
		{"yaml", "freshness: 60\n", "freshness (file FILE): a string such as 30s is needed"},
		{"yaml", "cache-max-bytes: [1]\n", "cache-max-bytes (file FILE): a number of bytes, or"},
		{"yaml", "internal-token: 12345678901234567\n", "internal-token (file FILE): a string is needed"},
		{"yaml", "bogus: {}\n", `FILE: unknown key "bogus"`},
		{"yaml", "log: {level: debug}\n", `FILE: unknown key "log"`},
		{"yaml", "workers: 70\nWorkers: 80\n", `FILE: unknown key "Workers"`},
		{"yaml", "listen: [\n", "FILE: yaml: "},
		{"conf", "listen: x\n", "FILE: its name has to end in"},
	} {
		file := filepath.Join(t.TempDir(), "c."+tc.ext)
		if err := os.WriteFile(file, []byte(tc.content), 0o600); err != nil {
			t.Fatal(err)
		}
		want := strings.ReplaceAll(tc.want, "FILE", file)
		c, err := load(t, []string{"--config", file}, nil)
		switch {
		case want == "" && (err != nil || c.Workers != 9):
			t.Errorf("%s %q: got %v", tc.ext, tc.content, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s %q: got %v, want %q", tc.ext, tc.content, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "12345678901234567") {
			t.Errorf("the error shows a secret: %v", err)
		}
	}
}

// What is not matched is told to the public checksum database.
func TestPrivateToleratesSpaces(t *testing.T) {
	c, err := load(t, []string{"--private= a.example, b.example/*,", "--vcs-insecure=a.example, b.example/*"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.VCSInsecure != "a.example,b.example/*" {
		t.Errorf("vcs-insecure is %q", c.VCSInsecure)
	}
	for path, want := range map[string]bool{"a.example/x": true, "b.example/x": true, "b.example/x/y": true, "c.example/x": false} {
		if got := c.IsPrivate(path); got != want {
			t.Errorf("IsPrivate(%s) = %v", path, got)
		}
	}
}

// What goes through a storage role that runs takes the settings of that role's own process:
// of an air-gapped site, of one in Azure.
func TestForStore(t *testing.T) {
	const url = "--storage-url=http://127.0.0.1:3001"
	for _, args := range [][]string{
		{url, "--listen=:3000"}, // as the image has it
		{url, "--role=storage"},
		{url, "--role=storage", "--network-mode=offline"},
		{url, "--role=storage", "--store=cosmos", "--cosmos-endpoint=https://a.example.com", "--blob-endpoint=https://b.example.com"},
	} {
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		Flags(flags)
		if err := flags.Parse(append(args, "--data-dir="+t.TempDir())); err != nil {
			t.Fatal(err)
		}
		if c, err := LoadForStore(flags, nil); err != nil || c.Has("storage") || c.StorageURL == "" {
			t.Errorf("%q: %v", args, err)
		}
		if _, err := Load(flags, nil); err == nil {
			t.Errorf("%q: serve would take it", args)
		}
	}
}

func TestNoHomeFolder(t *testing.T) {
	for _, name := range []string{"HOME", "XDG_DATA_HOME", "USERPROFILE", "LocalAppData"} {
		t.Setenv(name, "")
	}
	if _, err := load(t, nil, nil); err == nil || !strings.Contains(err.Error(), "data-dir: no home folder") {
		t.Errorf("got %v", err)
	}
	if c, err := load(t, []string{"--data-dir=/x"}, nil); err != nil || c.CacheDir != filepath.Join("/x", "cache") {
		t.Errorf("got %v", err)
	}
}

func TestKubernetesServiceLinksAreIgnored(t *testing.T) {
	if _, err := load(t, nil, []string{"ATHENSCTL_PROXY_SERVICE_HOST=10.0.0.1", "ATHENSCTL_PROXY_PORT=tcp://10.0.0.1:80", "ATHENSCTL_PROXY_PORT_80_TCP_ADDR=10.0.0.1"}); err != nil {
		t.Error(err)
	}
}

func TestSecretsAreMasked(t *testing.T) {
	c, err := load(t, []string{"--internal-token=0123456789abcdef", "--upstream=https://me:hunter2@example.com|https://hunter2@example.com/x@v1|direct",
		"--role=crawler", "--storage-url=http://a.example,http://:hunter2@b.example", "--sumdb=sum.golang.org https://me:hunter2@example.com", "--otlp-endpoint=http://c", "--otlp-headers=Authorization=Basic hunter2=="}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range c.Settings() {
		if strings.Contains(s.Value, "0123456789abcdef") || strings.Contains(s.Value, "hunter2") {
			t.Errorf("%s shows a secret: %s", s.Key, s.Value)
		}
		if want := "https://********@example.com|https://********@example.com/x@v1|direct"; s.Key == "upstream" && s.Value != want {
			t.Errorf("upstream: got %s, want %s", s.Value, want)
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
