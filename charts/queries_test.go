package charts

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// asked is one use of a metric in a query: its name, and the labels that the query names.
type asked struct {
	name   string
	labels []string
}

// metricsAsked reads the queries in a text: name{label="…"}, by (label) and on (label)
// belong to the metrics of their line.
func metricsAsked(text string) (list []asked) {
	name := regexp.MustCompile(`athensctl_[a-z_]+`)
	label := regexp.MustCompile(`([a-z_]+) *(?:=~|!~|!=|=)`)
	grouped := regexp.MustCompile(`\b(?:by|on|without) *\(([^)]*)\)`)
	for line := range strings.Lines(strings.ReplaceAll(text, `\"`, `"`)) {
		var common []string
		for _, m := range grouped.FindAllStringSubmatch(line, -1) {
			for l := range strings.SplitSeq(m[1], ",") {
				common = append(common, strings.TrimSpace(l))
			}
		}
		for _, at := range name.FindAllStringIndex(line, -1) {
			a := asked{line[at[0]:at[1]], slices.Clone(common)}
			if rest := line[at[1]:]; strings.HasPrefix(rest, "{") {
				matchers, _, _ := strings.Cut(regexp.MustCompile(`{{.*?}}`).ReplaceAllString(rest[1:], ""), "}")
				for _, m := range label.FindAllStringSubmatch(matchers, -1) {
					a.labels = append(a.labels, m[1])
				}
			}
			list = append(list, a)
		}
	}
	return list
}

// What alerts, the dashboard, KEDA and the pages ask of metrics, there is: docs/metrics.md
// has them, and internal/cli compares that page with the program. Each alert's runbook is a section of
// docs/slo.md, and each section of an alert's has one.
func TestQueries(t *testing.T) {
	page, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	have := map[string][]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(athensctl_[a-z_]+)` \\|([^|]*)\\|(.*)").FindAllStringSubmatch(string(page), -1) {
		labels := append(regexp.MustCompile(`[a-z_]+`).FindAllString(m[2], -1), "namespace", "pod") // those that a scrape adds
		if strings.HasPrefix(strings.TrimSpace(m[3]), "histogram:") {
			have[m[1]+"_bucket"], have[m[1]+"_sum"], have[m[1]+"_count"] = append(labels, "le"), labels, labels
		}
		have[m[1]] = labels
	}
	texts, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	uses := map[string]int{}
	for _, file := range append(texts, chart+"/files/rules.yaml", chart+"/files/dashboard.json", chart+"/templates/scaling.yaml", chart+"/templates/_validate.tpl") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range metricsAsked(string(text)) {
			labels, ok := have[a.name]
			if !ok {
				t.Errorf("%s: there is no metric %s", file, a.name)
				continue
			}
			uses[filepath.Base(file)]++
			for _, l := range a.labels {
				if !slices.Contains(labels, l) {
					t.Errorf("%s: %s has no label %s, but %v", file, a.name, l, labels)
				}
			}
		}
	}
	for _, file := range []string{"rules.yaml", "dashboard.json", "scaling.yaml", "slo.md"} {
		if uses[file] == 0 {
			t.Errorf("%s asks of no metric: this test does not see how", file)
		}
	}
	// What the test sees, and what it would say.
	for text, want := range map[string]string{
		`sum by (tier) (rate(athensctl_x_total{ {{- $ns }},tier="stale",file=~"a|b"}[5m]))`: "[{athensctl_x_total [tier tier file]}]",
		`"expr": "max(athensctl_y{namespace=\"$namespace\"})"`:                              "[{athensctl_y [namespace]}]",
	} {
		if got := fmt.Sprint(metricsAsked(text)); got != want {
			t.Errorf("%s: read as %s, want %s", text, got, want)
		}
	}

	slo, err := os.ReadFile("../docs/slo.md")
	if err != nil {
		t.Fatal(err)
	}
	rules, err := os.ReadFile(chart + "/files/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	alerts := regexp.MustCompile(`(?m)^- alert: `).FindAllString(string(rules), -1)
	books := regexp.MustCompile(`runbook_url: {{ \$runbook }}#(\S+)`).FindAllStringSubmatch(string(rules), -1)
	if len(alerts) == 0 || len(alerts) != len(books) {
		t.Errorf("%d alerts have %d runbooks", len(alerts), len(books))
	}
	for _, b := range books {
		if !strings.Contains(string(slo), "\n## "+b[1]+"\n") {
			t.Errorf("docs/slo.md has no section %s", b[1])
		}
	}
}

// Each role that runs has an alert for its absence, and no other: without a crawler there is
// nothing to miss. What an alert of rates says while there are no series is nothing.
func TestAbsence(t *testing.T) {
	for networkMode, want := range map[string]string{"fallback": "crawler proxy storage", "offline": "proxy storage"} {
		text, err := render(t, "--set", "metrics.rules.enabled=true,networkMode="+networkMode)
		if err != nil {
			t.Fatal(err)
		}
		var roles []string
		for _, o := range objects(t, text) {
			if o["kind"] != "PrometheusRule" {
				continue
			}
			rules, _ := at(o, "spec", "groups", 0, "rules").([]any)
			for _, r := range rules {
				if m := regexp.MustCompile(`^absent\(athensctl_requests_in_flight{namespace="modules",role="([a-z]+)"}\)$`).FindStringSubmatch(fmt.Sprint(at(r, "expr"))); m != nil {
					roles = append(roles, m[1])
				}
			}
		}
		slices.Sort(roles)
		if got := strings.Join(roles, " "); got != want {
			t.Errorf("%s: the absence of %q is seen, want %q", networkMode, got, want)
		}
	}
}
