package serve

import (
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
)

// pace bounds the pauses in a request's body: each read may take BodyTimeout.
func (s *Servers) pace(c echo.Context) {
	req := c.Request()
	if req.Body == nil || req.Body == http.NoBody || s.o.BodyTimeout <= 0 {
		return
	}
	req.Body = &pacedBody{req.Body, http.NewResponseController(c.Response().Writer), s.o.BodyTimeout}
}

type pacedBody struct {
	io.ReadCloser
	conn    *http.ResponseController
	timeout time.Duration
}

func (b *pacedBody) Read(p []byte) (int, error) {
	b.conn.SetReadDeadline(time.Now().Add(b.timeout))
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF { // after a failure the server shall not wait for the rest of the body
		b.conn.SetReadDeadline(time.Time{})
	}
	return n, err
}

// observers saves looking up a label set for each request.
type observers[K comparable] struct {
	mu  sync.RWMutex
	all map[K]prometheus.Observer
}

func newObservers[K comparable]() *observers[K] {
	return &observers[K]{all: map[K]prometheus.Observer{}}
}

func (o *observers[K]) get(k K, make func() prometheus.Observer) prometheus.Observer {
	o.mu.RLock()
	got := o.all[k]
	o.mu.RUnlock()
	if got == nil {
		got = make()
		o.mu.Lock()
		if len(o.all) < 1000 {
			o.all[k] = got
		}
		o.mu.Unlock()
	}
	return got
}
