package fleet

import (
	"context"
	"net"
	"net/http"
	"net/http/httptrace"
	"syscall"
	"testing"
)

// A connection to a machine that is gone ends long before a client gives up.
func TestSilentMachine(t *testing.T) {
	r := newReplica(t)
	asked := false
	ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) {
		raw, err := c.Conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := raw.Control(func(fd uintptr) {
			asked = true
			if ms, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout); err != nil || int64(ms) != silentFor.Milliseconds() {
				t.Errorf("TCP_USER_TIMEOUT %d ms, %v", ms, err)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}})
	if err := do(t, ctx, New(parse(t, r.URL), ""), http.MethodGet, "/", nil); err != nil || !asked {
		t.Errorf("%v, asked %v", err, asked)
	}
}
