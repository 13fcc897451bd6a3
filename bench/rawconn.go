package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

// rawConn is a keep-alive HTTP/1.1 connection that reads answers and throws
// their bodies away. It knows just enough of HTTP to take less of the machine
// than the servers it loads.
type rawConn struct {
	addr    string
	conn    net.Conn
	br      *bufio.Reader
	scratch []byte
	closing bool // the server has said that this answer was the last
}

func dialRaw(addr string, timeout time.Duration) (*rawConn, error) {
	conn, err := net.DialTimeout("tcp", addr, timeout)
	if err != nil {
		return nil, err
	}
	return newRawConn(addr, conn), nil
}

func newRawConn(addr string, conn net.Conn) *rawConn {
	return &rawConn{addr: addr, conn: conn, br: bufio.NewReaderSize(conn, 8<<10)}
}

func (c *rawConn) close() { c.conn.Close() }

// do sends a request and reads the answer to its end. After an error the
// connection is of no more use.
func (c *rawConn) do(request []byte, timeout time.Duration) (status int, length int64, err error) {
	if err := c.conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return 0, 0, err
	}
	if _, err := c.conn.Write(request); err != nil {
		return 0, 0, err
	}
	line, err := c.line()
	if err != nil {
		return 0, 0, err
	}
	// "HTTP/1.1 200 OK"
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.")) {
		return 0, 0, fmt.Errorf("not HTTP: %q", line)
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, 0, fmt.Errorf("not HTTP: %q", line)
	}
	c.closing = line[7] == '0'

	length, chunked := int64(-1), false
	for {
		line, err := c.line()
		if err != nil {
			return 0, 0, err
		}
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch {
		case is(name, "content-length"):
			if length, err = strconv.ParseInt(string(value), 10, 64); err != nil || length < 0 {
				return 0, 0, fmt.Errorf("bad Content-Length %q", value)
			}
		case is(name, "transfer-encoding"):
			chunked = is(value, "chunked")
		case is(name, "connection"):
			c.closing = c.closing || is(value, "close")
		}
	}
	switch {
	case chunked:
		length, err = c.discardChunks()
	case length >= 0:
		err = c.discard(length)
	default:
		c.closing = true
		length, err = io.Copy(io.Discard, c.br)
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return 0, 0, fmt.Errorf("cut answer: %w", err)
	}
	return status, length, nil
}

// is says whether b is s, which is in lower case, in any case.
func is(b []byte, s string) bool { return len(b) == len(s) && bytes.EqualFold(b, []byte(s)) }

// line reads a line and takes its end off. It is valid until the next read.
func (c *rawConn) line() ([]byte, error) {
	line, err := c.br.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	return bytes.TrimRight(line, "\r\n"), nil
}

func (c *rawConn) discardChunks() (total int64, err error) {
	for {
		line, err := c.line()
		if err != nil {
			return 0, err
		}
		digits, _, _ := bytes.Cut(line, []byte(";"))
		n, err := strconv.ParseInt(string(bytes.TrimSpace(digits)), 16, 64)
		if err != nil || n < 0 {
			return 0, fmt.Errorf("bad chunk %q", line)
		}
		if n == 0 {
			for { // trailers
				if line, err := c.line(); err != nil || len(line) == 0 {
					return total, err
				}
			}
		}
		if err := c.discard(n + 2); err != nil {
			return 0, err
		}
		total += n
	}
}

// discard reads n bytes. What the buffer does not hold goes past it, in pieces
// large enough for a 5 MB zip to be cheap.
func (c *rawConn) discard(n int64) error {
	k, err := c.br.Discard(int(min(n, int64(c.br.Buffered()))))
	if err != nil {
		return err
	}
	n -= int64(k)
	if n > 0 && c.scratch == nil {
		c.scratch = make([]byte, 128<<10)
	}
	for n > 0 {
		k, err := c.conn.Read(c.scratch[:min(n, int64(len(c.scratch)))])
		n -= int64(k)
		if err != nil && n > 0 {
			return err
		}
	}
	return nil
}
