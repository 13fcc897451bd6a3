package cli

import (
	"context"
	"net/url"
	"time"

	"github.com/athensctl/athensctl/config"
	"github.com/athensctl/athensctl/internal/tracing"
)

// flushTimeout bounds the sending of the last traces, within what a drain may take.
const flushTimeout = 3 * time.Second

// openTraces sees to it that the process traces, where a receiver is set.
func (p *process) openTraces() {
	if p.cfg.OTLPEndpoint == "" {
		return
	}
	t := tracing.New(tracing.Options{
		Receiver: receiver(p.cfg), Sample: p.cfg.TraceSample, Service: service(p.cfg), Version: Version(), Instance: p.name,
		Metrics: p.registry, Log: p.log,
	})
	p.tracer = t.Tracer()
	p.closers = append(p.closers, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), min(flushTimeout, p.cfg.DrainTimeout))
		defer cancel()
		if err := t.Close(ctx); err != nil {
			p.log.Warn("the last traces are not sent", "err", err)
		}
		return nil
	})
}

func receiver(cfg *config.Config) tracing.Receiver {
	u, _ := url.Parse(cfg.OTLPEndpoint) // Load has checked it
	return tracing.Receiver{URL: u, Headers: cfg.OTLPHeaders}
}

// service is what the process is called: athensctl-proxy; athensctl where it has several
// roles.
func service(cfg *config.Config) string {
	var roles []string
	for _, r := range config.Roles {
		if cfg.Has(r) {
			roles = append(roles, r)
		}
	}
	if len(roles) > 1 {
		return "athensctl"
	}
	return "athensctl-" + roles[0]
}
