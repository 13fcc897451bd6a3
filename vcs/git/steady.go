package git

import (
	"fmt"
	"io"
	"time"
)

// leastRate is how many bytes a second an answer brings, on average, once it has taken
// longer than Limits.Slow.
const leastRate = 1 << 10

// steady fails when an answer goes on for long and brings little: the pauses between its
// bytes may be short, and it would still never end.
type steady struct {
	r     io.Reader
	slow  time.Duration
	began time.Time
	n     int64
}

func newReader(r io.Reader, left int64, limits Limits) *reader {
	return &reader{r: &steady{r: r, slow: limits.Slow, began: time.Now()}, left: left}
}

func (s *steady) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	s.n += int64(n)
	if took := time.Since(s.began); err == nil && took > s.slow && float64(s.n) < took.Seconds()*leastRate {
		err = fmt.Errorf("the answer is too slow: %d bytes in %v", s.n, took.Round(time.Second))
	}
	return n, err
}
