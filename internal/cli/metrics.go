package cli

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/athensctl/athensctl/config"
	"github.com/athensctl/athensctl/storage"
)

// limits is the bounds that are set, beside the gauges that say how near they are.
func limits(cfg *config.Config) prometheus.Collector {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "athensctl_limit", Help: "A bound, by the name of its setting; times are in seconds.",
	}, []string{"setting"})
	for setting, v := range map[string]float64{
		"workers": float64(cfg.Workers), "zip-workers": float64(cfg.ZipWorkers), "inflight-max-bytes": float64(cfg.InflightMaxBytes),
		"crawler-max-waiting": float64(cfg.CrawlerMaxWaiting), "queue-max": float64(cfg.QueueMax), "max-waiting": float64(cfg.MaxWaiting), "max-connections": float64(cfg.MaxConnections),
		"max-body-bytes": float64(cfg.MaxBodyBytes), "max-header-bytes": float64(cfg.MaxHeaderBytes),
		"cache-max-bytes": float64(cfg.CacheMaxBytes), "cache-memory-bytes": float64(cfg.CacheMemoryBytes),
		"fetch-timeout": cfg.FetchTimeout.Seconds(), "upstream-timeout": cfg.UpstreamTimeout.Seconds(),
		"read-header-timeout": cfg.ReadHeaderTimeout.Seconds(), "body-timeout": cfg.BodyTimeout.Seconds(),
		"write-timeout": cfg.WriteTimeout.Seconds(), "idle-timeout": cfg.IdleTimeout.Seconds(),
		"list-wait": cfg.ListWait.Seconds(), "host-connections": float64(cfg.HostConnections), "job-lease": cfg.JobLease.Seconds(),
		"drain-timeout": cfg.DrainTimeout.Seconds(),
	} {
		g.WithLabelValues(setting).Set(v)
	}
	return g
}

// gitRefused counts answers of git hosts that a bound has ended which all hosts share. Those
// have no settings.
func gitRefused() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "athensctl_git_refused_total",
		Help: "Answers of git hosts that were given up with a 503, for a bound that all share (memory, disk, repositories).",
	}, []string{"bound"})
}

// queueMetrics describes the queue when it is asked. Where the ledger does not say how
// the queue is, its series are left out, and all others of the process are answered.
type queueMetrics struct {
	ledger storage.Ledger
	failed prometheus.Counter
	log    *slog.Logger
}

func newQueueMetrics(ledger storage.Ledger, log *slog.Logger) queueMetrics {
	return queueMetrics{ledger, prometheus.NewCounter(prometheus.CounterOpts{
		Name: "athensctl_queue_unknown_total", Help: "Looks at the queue, for these metrics, that the ledger did not answer.",
	}), log}
}

var (
	queueJobs    = prometheus.NewDesc("athensctl_queue_jobs", "Jobs in the queue of fetches, claimed ones too.", nil, nil)
	queueParked  = prometheus.NewDesc("athensctl_queue_parked_jobs", "Jobs that have failed too often and wait for a later try.", nil, nil)
	queueClaimed = prometheus.NewDesc("athensctl_queue_claimed_jobs", "Jobs that a crawler works on.", nil, nil)
	queueOldest  = prometheus.NewDesc("athensctl_queue_oldest_seconds", "Age of the oldest job.", nil, nil)
)

func (q queueMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- queueJobs
	ch <- queueClaimed
	ch <- queueParked
	ch <- queueOldest
	q.failed.Describe(ch)
}

func (q queueMetrics) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s, err := q.ledger.Queue(ctx)
	if err != nil {
		q.failed.Inc()
		q.log.Warn("metrics are without the queue", "err", err)
		q.failed.Collect(ch)
		return
	}
	q.failed.Collect(ch)
	for d, v := range map[*prometheus.Desc]float64{
		queueJobs: float64(s.Jobs), queueClaimed: float64(s.Claimed), queueParked: float64(s.Parked), queueOldest: s.Oldest.Seconds(),
	} {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
}
