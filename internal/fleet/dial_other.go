//go:build !linux

package fleet

import "syscall"

// unacknowledged is for Linux alone.
func unacknowledged(string, string, syscall.RawConn) error { return nil }
