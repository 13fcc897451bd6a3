//go:build unix

package e2e

import (
	"encoding/base64"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/athensctl/athensctl/internal/testupstream"
)

// Roles are spread over processes in every way: the go command's work is done, and storage
// and crawler are a GOPROXY too. With a token, they want it from whoever asks; the go command
// sends none over http, so it is tried by hand.
func TestLayouts(t *testing.T) {
	t.Parallel()
	for _, layout := range [][]string{{"all"}, {"proxy,storage", "crawler"}, {"storage,crawler", "proxy"}, {"proxy,crawler", "storage"}} {
		t.Run(strings.Join(layout, "+"), func(t *testing.T) {
			t.Parallel()
			u := testupstream.Start(t)
			j := newMainJob(t, u, 10)
			secret := len(layout) == 1
			address := map[string]string{"proxy": freeAddress(t), "storage": freeAddress(t), "crawler": freeAddress(t)}
			var all []*process
			for _, roles := range layout {
				// --listen is the proxy's, or that of the only role.
				args := []string{"--role", roles, "--data-dir", t.TempDir(), "--upstream", u.URL(), "--sumdb", u.VerifierKey(), "--public-feeds"}
				if secret {
					args = append(args, "--internal-token", token)
				}
				ready := ""
				for _, role := range []string{"proxy", "storage", "crawler"} {
					switch has := roles == "all" || strings.Contains(roles, role); {
					case !has && role != "proxy":
						args = append(args, "--"+role+"-url", "http://"+address[role])
					case has && (role == "proxy" || roles == role):
						args = append(args, "--listen", address[role])
						ready = address[role]
					case has:
						args = append(args, "--"+role+"-listen", address[role])
						if ready == "" {
							ready = address[role]
						}
					}
				}
				p := prepare(t, args...)
				p.url = "http://" + ready
				all = append(all, p)
			}
			// A proxy is ready once storage is: where that is the other's, that one starts first.
			if layout[0] == "proxy,crawler" {
				all[0], all[1] = all[1], all[0]
			}
			for _, p := range all {
				p.start()
			}
			j.proxy = "http://" + address["proxy"]
			j.download(t)
			j.rest(t)
			for _, role := range []string{"storage", "crawler"} {
				url := "http://" + address[role]
				if secret {
					const target = "/graph.test/m0001/@v/list"
					basic := base64.StdEncoding.EncodeToString([]byte("anyone:" + token))
					for header, want := range map[string]int{"": 401, "Authorization: Basic " + basic + "\r\n": 200, "Authorization: Bearer " + token + "\r\n": 200, "Authorization: Basic eDp5\r\n": 401} {
						if status, body := raw(t, url, "GET", target, header, ""); status != want {
							t.Errorf("the %s with %q: %d %s, want %d", role, header, status, body, want)
						}
					}
					continue
				}
				if out := goCommand(t, j.dir, url, "mod", "download", "-json", "all"); strings.Count(out, `"Zip":`) != len(j.root.Requires) {
					t.Errorf("the %s as GOPROXY: %s", role, out)
				}
				if out := goCommand(t, t.TempDir(), url, "list", "-m", "-versions", "graph.test/m0004"); !strings.HasPrefix(out, "graph.test/m0004 v1.") {
					t.Errorf("the %s as GOPROXY: %s", role, out)
				}
			}
			// The feeds through the proxy are storage's, to be read and no more.
			for _, feed := range []string{"/catalog", "/catalog?pagesize=3", "/index", "/index?limit=2", "/catalog?pagesize=0", "/index?since=x"} {
				status, body, _ := get(t, j.proxy+feed)
				if wantStatus, want, _ := get(t, "http://"+address["storage"]+feed); status != wantStatus || body != want || len(body) == 0 {
					t.Errorf("%s through the proxy: %d %s; storage: %d %s", feed, status, body, wantStatus, want)
				}
			}
			_, before, _ := get(t, j.proxy+"/index")
			auth := "Authorization: Bearer " + token + "\r\nContent-Length: 0\r\n"
			for _, request := range []string{"POST /catalog", "PUT /catalog", "DELETE /index", "POST /index", "POST /graph.test/m0001/@v/v1.1.0.save", "DELETE /graph.test/m0001/@v/v1.1.0.delete"} {
				method, target, _ := strings.Cut(request, " ")
				if status, body := raw(t, j.proxy, method, target, auth, ""); status != 404 && status != 405 {
					t.Errorf("%s at the proxy: %d %s", request, status, body)
				}
			}
			if _, after, _ := get(t, j.proxy+"/index"); after != before {
				t.Errorf("the index has changed:\n%s%s", before, after)
			}
		})
	}
}

// What the binary says of itself, and what a browser and a robot see.
func TestCommands(t *testing.T) {
	t.Parallel()
	version, err := athensctl(t, "version")
	if err != nil || !regexp.MustCompile(`^athensctl \S+ go1\.\S+ \w+/\w+\n$`).MatchString(version) {
		t.Errorf("version: %q, %v", version, err)
	}
	const secret = "a-secret-of-24-characters"
	file := filepath.Join(t.TempDir(), "athensctl.yaml")
	if err := os.WriteFile(file, []byte("freshness: 7s\ninternal-token: "+secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "config", "--config", file, "--list-wait=3s")
	cmd.Env = append(os.Environ(), "ATHENSCTL_NETWORK_MODE=strict")
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(out), secret) {
		t.Errorf("config: %v, and the secret in %s", err, out)
	}
	for _, want := range []string{`freshness +7s +\(file\b.*\)`, `internal-token +\*+ +\(file\b.*\)`, `list-wait +3s +\(flag\)`, `network-mode +strict +\(environment.*\)`, `listen +127\.0\.0\.1:3000 +\(default\)`} {
		if !regexp.MustCompile("(?m)^" + want + "$").Match(out) {
			t.Errorf("config has no line %s:\n%s", want, out)
		}
	}
	for want, args := range map[string][]string{
		"--nonsense":                         {"serve", "--nonsense=1"},
		`"nonsense" is not one of all, prox`: {"serve", "--role=storage,nonsense"},
		"network-mode":                       {"serve", "--network-mode=maybe"},
		"freshness":                          {"config", "--freshness=soon"},
		"no-such-key":                        {"config", "--config", unknownKey(t)},
		"internal-token":                     {"serve", "--role=storage", "--listen=0.0.0.0:0", "--data-dir", t.TempDir()},
	} {
		if _, err := athensctl(t, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want an error with %s", args, err, want)
		}
	}
	script, err := athensctl(t, "completion", "bash")
	if err != nil {
		t.Fatalf("completion: %v", err)
	}
	bash := exec.Command(need(t, "bash"), "-c", "source /dev/stdin && complete -p athensctl")
	bash.Stdin = strings.NewReader(script)
	if out, err := bash.CombinedOutput(); err != nil || !strings.Contains(string(out), "athensctl") {
		t.Errorf("bash with the completion: %s, %v", out, err)
	}
	if out, err := athensctl(t, "__complete", "serve", "--network-"); err != nil || !strings.Contains(out, "--network-mode") {
		t.Errorf("what serve --network- completes to: %s, %v", out, err)
	}

	p := start(t, "--upstream=off", "--data-dir", t.TempDir())
	for _, method := range []string{"GET", "HEAD"} {
		req, _ := http.NewRequest(method, p.url+"/", nil)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/html; charset=utf-8" {
			t.Errorf("%s /: %d, %s", method, resp.StatusCode, resp.Header.Get("Content-Type"))
		}
		for _, want := range []string{"A Go module proxy", "athensctl " + strings.Fields(version)[1], "<pre>go env -w GOPROXY=" + p.url + "</pre>"} {
			if method == "GET" && !strings.Contains(string(body), want) {
				t.Errorf("/ has no %q:\n%s", want, body)
			}
		}
	}
	for path, want := range map[string]string{"/robots.txt": "User-agent: *\nDisallow: /\n", "/version": strings.Fields(version)[1] + "\n", "/healthz": "ok\n", "/readyz": "ok\n"} {
		if status, body, _ := get(t, p.url+path); status != 200 || body != want {
			t.Errorf("%s: %d %q, want %q", path, status, body, want)
		}
	}
}

func unknownKey(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "athensctl.yaml")
	if err := os.WriteFile(file, []byte("no-such-key: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// The three network modes, with lists that are older than list-max-stale: strict hands
// upstream's failure on, fallback serves what is kept, marked stale, and says of what upstream
// did not have that it is not there, and offline asks nobody and works @latest out from what is kept. Files that never change are served by all.
func TestNetworkModes(t *testing.T) {
	t.Parallel()
	for mode, want := range map[string]struct {
		list, latest, absent int    // absent: what upstream said that it does not have
		version              string // that @latest is
		asks                 bool
	}{
		"strict":   {502, 502, 502, "", true},
		"fallback": {200, 200, 404, "v1.2.0", true},
		"offline":  {200, 200, 404, "v1.1.0", false}, // v1.2.0 is known, and not kept
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			u := testupstream.Start(t)
			for _, v := range []string{"v1.0.0", "v1.1.0", "v1.2.0"} {
				if err := u.Add(testupstream.Module{Path: "example.com/m", Version: v}); err != nil {
					t.Fatal(err)
				}
			}
			p := start(t, "--upstream", u.URL(), "--data-dir", t.TempDir(), "--host-failures=0", "--refresh-ahead=0s")
			for _, file := range []string{"@v/list", "@latest", "@v/v1.1.0.info", "@v/v1.1.0.mod", "@v/v1.1.0.zip"} {
				if status, body, h := get(t, p.url+"/example.com/m/"+file); status != 200 || h.Get("Athensctl-Stale") != "" {
					t.Fatalf("%s: %d %s, stale: %q", file, status, body, h.Get("Athensctl-Stale"))
				}
			}
			// Every path in front of a package's module is asked for.
			absent := []string{"example.com/m/cmd/x/@v/v1.1.0.info", "example.com/m/cmd/@v/list", "example.com/m/cmd/@latest"}
			for _, file := range absent {
				if status, body, _ := get(t, p.url+"/"+file); status != 404 {
					t.Fatalf("%s: %d %s", file, status, body)
				}
			}
			p.terminate()
			u.Fault(testupstream.Match{}, testupstream.Fault{Status: 500})
			u.Reset()
			p.args = append(p.args, "--network-mode", mode, "--freshness=1ms", "--list-max-stale=1ms", "--list-wait=5s", "--job-attempts=1")
			p.start()
			for _, ext := range []string{"info", "mod", "zip"} {
				if status, body, _ := get(t, p.url+"/example.com/m/@v/v1.1.0."+ext); status != 200 {
					t.Errorf(".%s: %d %s", ext, status, body)
				}
			}
			status, body, h := get(t, p.url+"/example.com/m/@v/list")
			if status != want.list || status == 200 && !strings.Contains(body, "v1.1.0\n") {
				t.Errorf("list: %d %q, want %d", status, body, want.list)
			}
			if stale := h.Get("Athensctl-Stale") == "true"; stale != (mode == "fallback") {
				t.Errorf("list: marked stale: %v", stale)
			}
			if status, body, _ = get(t, p.url+"/example.com/m/@latest"); status != want.latest || !strings.Contains(body, want.version) {
				t.Errorf("@latest: %d %q, want %d with %s", status, body, want.latest, want.version)
			}
			for _, file := range absent {
				if status, body, h := get(t, p.url+"/"+file); status != want.absent || want.asks && h.Get("Cache-Control") != "no-store" {
					t.Errorf("%s: %d %s, %q; want %d, no-store", file, status, body, h.Get("Cache-Control"), want.absent)
				}
			}
			status, body, _ = get(t, p.url+"/example.com/unknown/@v/list")
			if want.asks && status != 502 || !want.asks && status != 404 {
				t.Errorf("an unknown module: %d %s", status, body)
			}
			if n := u.Requests("", ""); (n > 0) != want.asks {
				t.Errorf("upstream was asked %d times", n)
			}
		})
	}
}
