package git

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/athensctl/athensctl/goproxy"
)

// kind is what a packet is.
type kind int

const (
	flush     kind = iota // 0000: the end of a message
	delim                 // 0001: the end of a section
	endOfConn             // 0002
	data
)

// maxPacket is the largest packet, its length of 4 digits included.
// Source: https://git-scm.com/docs/protocol-common.
const maxPacket = 65520

// reader reads packets. Its buffer is used again for each.
type reader struct {
	r    io.Reader
	left int64 // bytes that may still be read
	buf  [maxPacket]byte
}

// next returns the next packet; its content is valid until the next call. An ERR
// packet is an error.
func (r *reader) next() (kind, []byte, error) {
	head := r.buf[:4]
	if err := r.fill(head); err != nil {
		return 0, nil, err
	}
	n := 0
	for _, c := range head {
		d := strings.IndexByte("0123456789abcdef", c|0x20)
		if d < 0 || c < '0' {
			return 0, nil, fmt.Errorf("%.20q is not the length of a packet", head)
		}
		n = n<<4 | d
	}
	if r.left -= int64(max(n, 4)); r.left < 0 {
		return 0, nil, errTooLarge
	}
	switch {
	case n < 3:
		return kind(n), nil, nil
	case n < 4 || n > maxPacket:
		return 0, nil, fmt.Errorf("a packet of %d bytes", n)
	}
	body := r.buf[4:n]
	if err := r.fill(body); err != nil {
		return 0, nil, err
	}
	if text, ok := strings.CutPrefix(string(body[:min(len(body), 600)]), "ERR "); ok {
		return 0, nil, fmt.Errorf("%w: %s", errSaid, printable(text))
	}
	return data, body, nil
}

func (r *reader) fill(b []byte) error {
	_, err := io.ReadFull(r.r, b)
	var e *goproxy.Error
	switch {
	case err == nil, errors.As(err, &e): // the transport knows why
		return err
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("the answer is cut: %w", err)
}

var (
	errTooLarge = errors.New("the answer is too large")
	errSaid     = errors.New("the server says") // in an ERR packet
)

// line returns the next packet as a line without its end; ok is false when it is
// no data packet, and k says which.
func (r *reader) line() (text string, k kind, err error) {
	k, body, err := r.next()
	return strings.TrimSuffix(string(body), "\n"), k, err
}

// printable is text from a server, short enough and clean enough for an error.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	return strings.TrimSpace(s[:min(len(s), 500)])
}

// request is the packets of a request.
type request struct{ b []byte }

func (r *request) line(format string, args ...any) {
	s := fmt.Sprintf(format, args...) + "\n"
	r.b = fmt.Appendf(r.b, "%04x%s", len(s)+4, s)
}

func (r *request) delim() { r.b = append(r.b, "0001"...) }
func (r *request) flush() { r.b = append(r.b, "0000"...) }
