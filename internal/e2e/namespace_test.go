//go:build linux

package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/athensctl/athensctl/internal/testupstream"
)

// network is a namespace for each role, with a link to each other one and to this
// host, and with no route but those links: no forwarding, no default route.
type network struct {
	t      *testing.T
	prefix string // of addresses and of names
	names  map[string]string
	links  int
}

func newNetwork(t *testing.T, roles ...string) *network {
	t.Helper()
	need(t, "ip")
	needRoot(t, "making network namespaces")
	n := &network{t: t, prefix: fmt.Sprintf("10.%d", 64+os.Getpid()%64), names: map[string]string{}}
	for _, role := range roles {
		name := fmt.Sprintf("athensctl-%d-%s", os.Getpid(), role)
		n.names[role] = name
		n.ip("netns", "add", name)
		t.Cleanup(func() { exec.Command("ip", "netns", "delete", name).Run() })
		n.ip("-n", name, "link", "set", "lo", "up")
	}
	return n
}

func (n *network) ip(args ...string) {
	n.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		n.t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// link connects two namespaces ("" is this host) and returns their addresses on it.
func (n *network) link(a, b string) (string, string) {
	n.t.Helper()
	n.links++
	addresses := [2]string{fmt.Sprintf("%s.%d.1", n.prefix, n.links), fmt.Sprintf("%s.%d.2", n.prefix, n.links)}
	var devices [2]string
	for i := range devices {
		devices[i] = fmt.Sprintf("ac%d-%d%c", os.Getpid()%100000, n.links, 'a'+i)
	}
	n.ip("link", "add", devices[0], "type", "veth", "peer", "name", devices[1])
	n.t.Cleanup(func() { exec.Command("ip", "link", "delete", devices[0]).Run() })
	for i, role := range []string{a, b} {
		var in []string
		if role != "" {
			n.ip("link", "set", devices[i], "netns", n.names[role])
			in = []string{"-n", n.names[role]}
		}
		n.ip(append(in, "addr", "add", addresses[i]+"/30", "dev", devices[i])...)
		n.ip(append(in, "link", "set", devices[i], "up")...)
	}
	return addresses[0], addresses[1]
}

// reaches reports whether a process in the namespace of a role can connect.
func (n *network) reaches(role, address string) (bool, string) {
	n.t.Helper()
	host, port, _ := net.SplitHostPort(address)
	out, err := exec.Command("ip", "netns", "exec", n.names[role], "timeout", "5", "bash", "-c", "exec 3<>/dev/tcp/"+host+"/"+port).CombinedOutput()
	return err == nil, string(out)
}

// The design's table as the network sees it: proxy and storage work where nothing but the other
// roles can be reached, and the crawler alone reaches upstream.
func TestNoRouteOut(t *testing.T) {
	n := newNetwork(t, "proxy", "storage", "crawler")
	_, proxyHost := n.link("", "proxy")
	_, storageHost := n.link("", "storage")
	upstreamHost, crawlerHost := n.link("", "crawler")
	_, storageOfProxy := n.link("proxy", "storage")
	_, crawlerOfProxy := n.link("proxy", "crawler")
	_, storageOfCrawler := n.link("crawler", "storage")

	u, err := testupstream.NewUpstream()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.Close)
	if err := u.Listen(upstreamHost + ":0"); err != nil {
		t.Fatal(err)
	}
	j := newMainJob(t, u, 20)
	serve := func(role, host string, args ...string) *process {
		p := prepare(t, append([]string{"--role", role, "--listen", "0.0.0.0:3000", "--internal-token", token, "--data-dir", t.TempDir()}, args...)...)
		p.url = "http://" + host + ":3000"
		p.wrap = []string{"ip", "netns", "exec", n.names[role]}
		p.start()
		return p
	}
	storage := serve("storage", storageHost)
	crawler := serve("crawler", crawlerHost, "--storage-url", "http://"+storageOfCrawler+":3000", "--upstream", u.URL(), "--sumdb", u.VerifierKey())
	p := serve("proxy", proxyHost, "--storage-url", "http://"+storageOfProxy+":3000", "--crawler-url", "http://"+crawlerOfProxy+":3000", "--sumdb", u.VerifierKey())

	j.proxy = p.url
	j.updates(t)
	j.download(t)
	j.rest(t)

	upstream := strings.TrimPrefix(u.URL(), "http://")
	for role, want := range map[string]bool{"proxy": false, "storage": false, "crawler": true} {
		if got, out := n.reaches(role, upstream); got != want {
			t.Errorf("the %s reaches upstream: %v, want %v: %s", role, got, want, out)
		} else if !want && !strings.Contains(out, "Network is unreachable") {
			t.Errorf("the %s: %s", role, out)
		}
	}
	// Upstream and its database are gone; all start anew.
	u.Stop()
	restart(t, []*process{storage, crawler, p})
	j.updates(t)
	j.download(t)
	j.rest(t)
}
