package cli

import (
	"bufio"
	"io"
	"sync"
	"time"
)

// logWriter gathers lines, so that a request does not cost a system call of its
// own: they are written when 16 KB are there, and after flushEvery at most.
type logWriter struct {
	mu     sync.Mutex
	buf    *bufio.Writer
	timer  *time.Timer
	closed bool
}

const flushEvery = 100 * time.Millisecond

func newLogWriter(w io.Writer) *logWriter {
	return &logWriter{buf: bufio.NewWriterSize(w, 16<<10)}
}

func (w *logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.buf.Write(p)
	if w.closed {
		return n, w.buf.Flush()
	}
	if w.timer == nil && w.buf.Buffered() > 0 {
		w.timer = time.AfterFunc(flushEvery, w.flush)
	}
	return n, err
}

func (w *logWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = nil
	w.buf.Flush()
}

// Close writes what is left; later lines are written at once.
func (w *logWriter) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	return w.buf.Flush()
}
