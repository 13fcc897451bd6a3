package fleet

import (
	"errors"
	"syscall"
)

// tcpUserTimeout is TCP_USER_TIMEOUT of linux/tcp.h, which package syscall lacks.
const tcpUserTimeout = 18

// unacknowledged bounds how long a connection may be without an answer of the other
// machine's network to what was sent: that of a machine that is gone ends then, and what was
// asked there can be asked again. Else it would take a quarter of an hour, in which a
// request of the connections that were kept open waits as long as it may. How long the
// other process takes is nothing to it. Source: RFC 5482, tcp(7).
func unacknowledged(_, _ string, c syscall.RawConn) error {
	var err error
	controlErr := c.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(silentFor.Milliseconds()))
	})
	return errors.Join(controlErr, err)
}
