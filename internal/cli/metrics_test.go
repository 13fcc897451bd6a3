package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"github.com/spf13/pflag"

	"github.com/athensctl/athensctl/config"
	"github.com/athensctl/athensctl/internal/cosmosfake"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/cosmos"
)

// docs/metrics.md has every metric of a process with all roles, with its labels, and no
// other. What is asked of metrics elsewhere (alerts, the dashboard, docs/slo.md) is
// compared with that page in charts.
func TestMetricsPage(t *testing.T) {
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	config.Flags(flags)
	srv := httptest.NewServer(&cosmosfake.Server{})
	defer srv.Close()
	cfg, err := config.Load(flags, []string{
		"ATHENSCTL_STORE=cosmos", "ATHENSCTL_COSMOS_ENDPOINT=" + srv.URL, "ATHENSCTL_COSMOS_KEY=a2V5", "ATHENSCTL_DATA_DIR=" + t.TempDir(), "ATHENSCTL_LISTEN=127.0.0.1:0",
		"ATHENSCTL_STORAGE_LISTEN=127.0.0.1:0", "ATHENSCTL_CRAWLER_LISTEN=127.0.0.1:0",
		"ATHENSCTL_OTLP_ENDPOINT=" + srv.URL,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := cosmos.Init(t.Context(), azureOf(cfg).cosmos, cosmos.Throughput{}, func(string) {}); err != nil {
		t.Fatal(err)
	}
	p := newProcess(cfg, slog.New(slog.NewTextHandler(io.Discard, nil)))
	for _, role := range []func() error{func() error { return p.addStorage(t.Context()) }, p.addCrawler, p.addProxy} {
		if err := role(); err != nil {
			t.Fatal(err)
		}
	}
	ch := make(chan *prometheus.Desc, 1000)
	p.registry.Describe(ch)
	close(ch)
	desc := regexp.MustCompile(`^Desc{fqName: "(athensctl_[a-z_]+)".*constLabels: {([^}]*)}, variableLabels: {([^}]*)}}$`)
	name := regexp.MustCompile(`[a-z_]+`)
	var have []string
	for d := range ch {
		m := desc.FindStringSubmatch(d.String())
		if m == nil && strings.Contains(d.String(), "athensctl_") {
			t.Errorf("%s is not of the form that this test knows", d)
		} else if m != nil {
			labels := name.FindAllString(regexp.MustCompile(`="[^"]*"`).ReplaceAllString(m[2], "")+" "+m[3], -1)
			slices.Sort(labels)
			have = append(have, m[1]+" "+strings.Join(labels, " "))
		}
	}
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(athensctl_[a-z_]+)` \\|([^|]*)\\|").FindAllStringSubmatch(string(page), -1) {
		labels := name.FindAllString(m[2], -1)
		slices.Sort(labels)
		want = append(want, m[1]+" "+strings.Join(labels, " "))
	}
	slices.Sort(have)
	slices.Sort(want)
	if have = slices.Compact(have); !slices.Equal(have, want) {
		t.Errorf("the program has\n%s\ndocs/metrics.md has\n%s", strings.Join(have, "\n"), strings.Join(want, "\n"))
	}
	families, err := p.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "athensctl_limit" {
			continue
		}
		for _, setting := range []string{"list-wait", "host-connections", "job-lease", "drain-timeout", "fetch-timeout", "max-waiting", "queue-max"} {
			if !slices.ContainsFunc(f.GetMetric(), func(m *dto.Metric) bool { return m.GetLabel()[0].GetValue() == setting }) {
				t.Errorf("athensctl_limit has not %s", setting)
			}
		}
		for _, m := range f.GetMetric() {
			if setting := m.GetLabel()[0].GetValue(); !slices.ContainsFunc(cfg.Settings(), func(s config.Setting) bool { return s.Key == setting }) || m.GetGauge().GetValue() <= 0 {
				t.Errorf("athensctl_limit{setting=%q} %v: no such setting, or no limit", setting, m.GetGauge().GetValue())
			}
		}
	}
}

// away is a ledger that does not answer.
type away struct{ storage.Ledger }

func (away) Queue(context.Context) (storage.QueueStats, error) {
	return storage.QueueStats{}, errors.New("the database is away")
}

// What the process can say of itself, it says while its database is away: that is when
// somebody looks.
func TestMetricsWithoutQueue(t *testing.T) {
	var log bytes.Buffer
	registry := prometheus.NewRegistry()
	registry.MustRegister(limits(&config.Config{Workers: 7}), newQueueMetrics(away{}, slog.New(slog.NewTextHandler(&log, nil))))
	for i := 1; i <= 2; i++ {
		w := httptest.NewRecorder()
		promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		text := w.Body.String()
		if w.Code != http.StatusOK || !strings.Contains(text, `athensctl_limit{setting="workers"} 7`) {
			t.Fatalf("%d: %s", w.Code, text)
		}
		if want := "\nathensctl_queue_unknown_total " + string(rune('0'+i)) + "\n"; !strings.Contains(text, want) || strings.Contains(text, "athensctl_queue_jobs") {
			t.Errorf("want %q, and nothing of the queue:\n%s", want, text)
		}
	}
	if n := strings.Count(log.String(), "the database is away"); n != 2 {
		t.Errorf("said %d times: %s", n, log.String())
	}
}
