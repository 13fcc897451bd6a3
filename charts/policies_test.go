package charts

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// rule writes a rule of a NetworkPolicy as a line: "443 80 > 0.0.0.0/0 but 169.254.0.0/16".
// Pods of the release are named by their role; a port without a protocol is TCP.
func rule(r any, key string) string {
	var ports, peers []string
	list, _ := at(r, "ports").([]any)
	for _, p := range list {
		text := fmt.Sprint(at(p, "port"))
		if protocol := at(p, "protocol"); protocol != nil {
			text = fmt.Sprintf("%v/%v", text, protocol)
		}
		if end := at(p, "endPort"); end != nil {
			text = fmt.Sprintf("%v-%v", text, end)
		}
		ports = append(ports, text)
	}
	if list == nil {
		ports = []string{"all ports"}
	}
	labels := func(selector any) string {
		m, _ := at(selector, "matchLabels").(object)
		if m["app.kubernetes.io/name"] == "athensctl" && m["app.kubernetes.io/instance"] == "site" && len(m) == 3 && at(selector, "matchExpressions") == nil {
			return fmt.Sprint(m["app.kubernetes.io/component"])
		}
		return fmt.Sprint(selector)
	}
	list, given := at(r, key).([]any)
	for _, p := range list {
		switch block, space, pod := at(p, "ipBlock"), at(p, "namespaceSelector"), at(p, "podSelector"); {
		case block != nil:
			text := fmt.Sprint(at(block, "cidr"))
			if except := at(block, "except"); except != nil {
				text += " but " + strings.Trim(fmt.Sprint(except), "[]")
			}
			peers = append(peers, text)
		case space != nil && pod != nil:
			peers = append(peers, labels(space)+" "+labels(pod))
		case space != nil:
			peers = append(peers, labels(space))
		default:
			peers = append(peers, labels(pod))
		}
	}
	if !given {
		peers = []string{"anywhere"}
	}
	return strings.Join(ports, " ") + " > " + strings.Join(peers, ", ")
}

// The NetworkPolicies are the design's table of who may talk to whom, with every port and
// every address that is left out.
func TestNetworkPolicies(t *testing.T) {
	const (
		dns      = "53/UDP 53/TCP > map[matchLabels:map[kubernetes.io/metadata.name:kube-system]] map[matchLabels:map[k8s-app:kube-dns]]"
		internet = "443 80 22 > 0.0.0.0/0 but 169.254.0.0/16, ::/0 but fe80::/10"
		traces   = "4318 > map[matchLabels:map[kubernetes.io/metadata.name:monitoring]] map[matchLabels:map[app.kubernetes.io/name:opentelemetry-collector]]"
		anybody  = "http > anywhere"
	)
	type table map[string]string // egress of each role, and ingress as "ROLE from"
	roles := func(egress, ingress [3]string) table {
		return table{
			"proxy": egress[0], "storage": egress[1], "crawler": egress[2],
			"proxy from": ingress[0], "storage from": ingress[1], "crawler from": ingress[2],
		}
	}
	plain := roles([3]string{dns + "; http > storage; http > crawler", dns, dns + "; http > storage; " + internet},
		[3]string{anybody, "http > crawler, proxy", "http > proxy"})
	watched := func(w table, by string) table {
		w = maps.Clone(w)
		w["storage from"], w["crawler from"] = w["storage from"]+", "+by, w["crawler from"]+", "+by
		return w
	}
	sites := sites(t)
	sites["crawlerTo"] = []string{"--set", "networkPolicy.crawlerTo[0].ports[0].port=7999,networkPolicy.crawlerTo[0].ports[1].port=8443,networkPolicy.crawlerTo[0].to[0].ipBlock.cidr=10.1.2.3/32"}
	sites["proxyFrom"] = []string{"--set", "networkPolicy.proxyFrom[0].namespaceSelector.matchLabels.name=entrance"}
	// Storage reaches the ports of what it is told, whatever they are; where a Secret may say
	// more, the one that Azure has, or what storageTo says.
	asked := map[string][2]string{
		"identity":     {"store.cosmos.endpoint=https://a.example.com," + `storage.serviceAccount.annotations.azure\.workload\.identity/client-id=x`, "443 > anywhere"},
		"other ports":  {"store.cosmos.endpoint=http://10.1.2.3:8081/,store.blob.endpoint=http://10.1.2.3:10000/account," + `storage.serviceAccount.annotations.azure\.workload\.identity/client-id=x`, "443 8081 10000 > anywhere"},
		"IPv6":         {"store.cosmos.endpoint=http://[fd00::1]:8081,store.blob.endpoint=http://[fd00::1],store.existingSecret=s", "443 8081 80 > anywhere"},
		"Secret alone": {"store.existingSecret=s", "443 > anywhere"},
		"Secret, which leads elsewhere": {"store.existingSecret=s,networkPolicy.storageTo[0].to[0].ipBlock.cidr=10.1.2.3/32,networkPolicy.storageTo[0].ports[0].port=10000",
			"10000 > 10.1.2.3/32"},
		"Secret and another port": {"store.existingSecret=s,store.cosmos.endpoint=http://10.1.2.3:8081,networkPolicy.storageTo[0].to[0].ipBlock.cidr=10.1.2.3/32,networkPolicy.storageTo[0].ports[0].port=10000",
			"8081 > anywhere; 10000 > 10.1.2.3/32"},
		"identity and more": {"store.cosmos.endpoint=https://a.example.com,networkPolicy.storageTo[0].to[0].ipBlock.cidr=10.1.2.3/32," + `storage.serviceAccount.annotations.azure\.workload\.identity/client-id=x`,
			"443 > anywhere; all ports > 10.1.2.3/32"},
	}
	// Where not everybody may reach the proxy, who reads metrics has to.
	sites["proxyFrom and metricsFrom"] = []string{"--set", "networkPolicy.proxyFrom[0].namespaceSelector.matchLabels.name=entrance,networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.name=monitoring"}
	wants := map[string]table{}
	for name, c := range asked {
		sites[name] = []string{"--set", "store.type=cosmos," + c[0]}
		wants[name] = maps.Clone(plain)
		wants[name]["storage"] += "; " + c[1]
	}
	sites["dnsTo"] = []string{"--set-json", `networkPolicy.dnsTo=[{"to":[{"ipBlock":{"cidr":"169.254.20.10/32"}}],"ports":[{"port":53,"protocol":"UDP"},{"port":5353}]}]`}
	wants["dnsTo"] = maps.Clone(plain)
	for _, role := range []string{"proxy", "storage", "crawler"} {
		wants["dnsTo"][role] = strings.Replace(plain[role], dns, "53/UDP 5353 > 169.254.20.10/32", 1)
	}
	to := maps.Clone(plain)
	to["crawler"] += "; 7999 8443 > 10.1.2.3/32"
	from := maps.Clone(plain)
	from["proxy from"] = "http > map[matchLabels:map[name:entrance]], test"
	wants["proxyFrom and metricsFrom"] = watched(from, "map[matchLabels:map[name:monitoring]]")
	wants["proxyFrom and metricsFrom"]["proxy from"] = "http > map[matchLabels:map[name:entrance]], map[matchLabels:map[name:monitoring]], test"
	maps.Copy(wants, map[string]table{
		"default": plain, "laptop": plain, "private": plain, "crawlerTo": to, "proxyFrom": from,
		"operators": watched(roles([3]string{dns + "; http > storage; http > crawler; " + traces, dns + "; " + traces, dns + "; http > storage; " + traces + "; " + internet},
			[3]string{anybody, "http > crawler, proxy", "http > proxy"}), "map[matchLabels:map[kubernetes.io/metadata.name:monitoring]]"),
		"aks": watched(roles([3]string{dns + "; http > storage; http > crawler", dns + "; 443 > anywhere", dns + "; http > storage; " + internet},
			[3]string{anybody, "http > crawler, proxy", "http > proxy"}), "map[matchLabels:map[kubernetes.io/metadata.name:kube-system]]"),
		"airgapped": {"proxy": dns + "; http > storage", "storage": dns, "proxy from": anybody, "storage from": "http > proxy"},
	})
	for name, args := range sites {
		text, err := render(t, args...)
		if err != nil {
			t.Fatal(err)
		}
		got := table{}
		for _, o := range objects(t, text) {
			if o["kind"] != "NetworkPolicy" {
				continue
			}
			selector, _ := at(o, "spec", "podSelector", "matchLabels").(object)
			role := fmt.Sprint(selector["app.kubernetes.io/component"])
			if len(selector) != 3 || selector["app.kubernetes.io/instance"] != "site" || fmt.Sprint(at(o, "spec", "policyTypes")) != "[Ingress Egress]" {
				t.Errorf("%s: %s: pods %v, %v", name, role, selector, at(o, "spec", "policyTypes"))
			}
			for suffix, keys := range map[string][2]string{"": {"egress", "to"}, " from": {"ingress", "from"}} {
				var lines []string
				list, _ := at(o, "spec", keys[0]).([]any)
				for _, r := range list {
					lines = append(lines, rule(r, keys[1]))
				}
				got[role+suffix] = strings.Join(lines, "; ")
			}
		}
		want, ok := wants[name]
		if !ok {
			t.Errorf("%s: this test does not say what its policies are", name)
		}
		for _, k := range slices.Sorted(maps.Keys(want)) {
			if want[k] != got[k] {
				t.Errorf("%s: %s:\n%s\nwant\n%s", name, k, got[k], want[k])
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: policies of %v", name, slices.Sorted(maps.Keys(got)))
		}
	}
}
