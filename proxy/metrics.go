package proxy

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/athensctl/athensctl/storage"
)

// Tiers: where an answer came from.
const (
	fromMemory  = "memory"
	fromDisk    = "disk"
	fromStorage = "storage"
	fromCrawler = "crawler"
	fromOld     = "stale" // upstream did not answer: what was there before
)

// metrics of the answers. Each is looked up once: an answer costs no label.
type metrics struct {
	answers map[tierFile]prometheus.Counter
	seconds map[string]prometheus.Observer       // by tier
	age     map[storage.File]prometheus.Observer // of what changes
	gaveUp  *prometheus.CounterVec
	// uncached counts what was served and could not be kept in the disk cache.
	uncached prometheus.Counter
}

type tierFile struct {
	tier string
	file storage.File
}

func newMetrics(r prometheus.Registerer) *metrics {
	answers := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "athensctl_proxy_answers_total",
		Help: "Answers of the proxy, that there is no such thing too, by where they came from (memory, disk, storage, crawler, stale) and file.",
	}, []string{"tier", "file"})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "athensctl_proxy_answer_seconds",
		Help:    "Time until the proxy had an answer, which is before any of it is sent, by where it came from.",
		Buckets: []float64{.001, .01, .1, 1, 10, 60},
	}, []string{"tier"})
	age := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "athensctl_proxy_list_age_seconds",
		Help:    "Age of the version lists (list), and of the answers for latest, branches and commits (info), that were served: since upstream said so.",
		Buckets: []float64{1, 10, 60, 120, 300, 900, 1800, 3600, 7200, 21600, 86400},
	}, []string{"file"})
	m := &metrics{
		answers: map[tierFile]prometheus.Counter{}, seconds: map[string]prometheus.Observer{}, age: map[storage.File]prometheus.Observer{},
		gaveUp: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "athensctl_proxy_gave_up_total",
			Help: "Requests that were not answered: waiting (too many waited already), timeout (the fetch takes longer than fetch-timeout and goes on).",
		}, []string{"bound"}),
		uncached: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "athensctl_proxy_uncached_total",
			Help: "Files that the disk cache could not take (no room, a full or broken disk); they were served all the same.",
		}),
	}
	for _, tier := range []string{fromMemory, fromDisk, fromStorage, fromCrawler, fromOld} {
		for _, f := range []storage.File{storage.FileList, storage.FileInfo, storage.FileMod, storage.FileZip} {
			m.answers[tierFile{tier, f}] = answers.WithLabelValues(tier, string(f))
		}
		m.seconds[tier] = seconds.WithLabelValues(tier)
	}
	for _, f := range []storage.File{storage.FileList, storage.FileInfo} {
		m.age[f] = age.WithLabelValues(string(f))
	}
	if r != nil {
		r.MustRegister(answers, seconds, age, m.gaveUp, m.uncached)
	}
	return m
}

// answered counts an answer that a request got from a tier, now; "": it got none.
func (m *metrics) answered(ctx context.Context, start time.Time, tier string, f storage.File) (now time.Time) {
	took := time.Since(start)
	now = start.Add(took)
	if tier == "" {
		return now
	}
	m.answers[tierFile{tier, f}].Inc()
	m.seconds[tier].Observe(took.Seconds())
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		span.SetAttributes(attribute.String("athensctl.tier", tier))
	}
	return now
}

// served notes the age of a list, or of what a query stands for.
func (m *metrics) served(f storage.File, age time.Duration) {
	m.age[f].Observe(max(0, age.Seconds()))
}
