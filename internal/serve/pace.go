package serve

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
)

// listener's connections set a write deadline when something is written, and then only
// when it is another by more than apart: net/http sets one before and after each request,
// which costs more than a look at a cache.
type listener struct {
	net.Listener
	apart    time.Duration
	tooLarge prometheus.Counter // requests whose header net/http refused
}

// Accept implements net.Listener.
func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if tcp, ok := c.(*net.TCPConn); ok && err == nil {
		return &conn{TCPConn: tcp, apart: l.apart, tooLarge: l.tooLarge}, nil
	}
	return c, err
}

// conn is written to by one goroutine at a time, which is the one that sets the deadline.
type conn struct {
	*net.TCPConn
	apart         time.Duration
	tooLarge      prometheus.Counter
	wanted, inUse time.Time
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.wanted = t
	return nil
}

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	c.wanted, c.inUse = t, t
	return c.TCPConn.SetDeadline(t)
}

// status431 begins the answer of net/http itself to a request whose header is too large.
var status431 = []byte("HTTP/1.1 431 ")

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	if bytes.HasPrefix(p, status431) {
		c.tooLarge.Inc()
	}
	if err := c.setWriteDeadline(); err != nil {
		return 0, err
	}
	return c.TCPConn.Write(p)
}

// ReadFrom implements io.ReaderFrom: by sendfile where r is a file.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	if err := c.setWriteDeadline(); err != nil {
		return 0, err
	}
	return c.TCPConn.ReadFrom(r)
}

func (c *conn) setWriteDeadline() error {
	later := c.wanted.Sub(c.inUse)
	if c.wanted.IsZero() == c.inUse.IsZero() && later >= 0 && later < c.apart {
		return nil
	}
	c.inUse = c.wanted
	return c.TCPConn.SetWriteDeadline(c.wanted)
}

// pace bounds the pauses in a request's body: each read may take BodyTimeout, that of
// net/http too, which reads what the handler has left before the answer goes out.
func (s *Servers) pace(c echo.Context) {
	req := c.Request()
	if req.Body == nil || req.Body == http.NoBody || s.o.BodyTimeout <= 0 {
		return
	}
	conn := http.NewResponseController(c.Response().Writer)
	conn.SetReadDeadline(time.Now().Add(s.o.BodyTimeout))
	req.Body = &pacedBody{req.Body, conn, s.o.BodyTimeout}
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

// outcome is what many requests have in common.
type outcome struct {
	method string
	status int
}

// book is where the requests of one outcome are written down.
type book struct {
	seconds prometheus.Observer
	log     slog.Handler // has the outcome's attributes
}

// books saves making a label set and the same part of a log line for each request.
type books struct {
	mu  sync.RWMutex
	all map[outcome]book
}

func (b *books) get(o outcome, make func() book) book {
	b.mu.RLock()
	got, ok := b.all[o]
	b.mu.RUnlock()
	if !ok {
		got = make()
		b.mu.Lock()
		b.all[o] = got
		b.mu.Unlock()
	}
	return got
}
