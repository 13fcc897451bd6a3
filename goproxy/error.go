package goproxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"time"
)

// Error is an error with an HTTP status. Its text is the body a client is
// shown. A status of 404 or 410 matches fs.ErrNotExist.
type Error struct {
	Status     int
	Message    string
	RetryAfter time.Duration // for 503 and 429: when to come again; 0: not said
	NoStore    bool          // a negative answer that must not be cached: a fetch goes on, or was refused
	Checked    time.Time     // when upstream said so, of an answer that was remembered; zero: just now, or it did not
	Err        error         // the cause; may be nil
}

// Errorf makes an Error; %w sets its cause.
func Errorf(status int, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Status: status, Message: err.Error(), Err: errors.Unwrap(err)}
}

// NotFound says what was looked for and where.
func NotFound(format string, args ...any) *Error {
	e := Errorf(http.StatusNotFound, format, args...)
	e.Message = "not found: " + strings.TrimPrefix(e.Message, "not found: ")
	return e
}

// Busy says that a bound was hit: 503 with Retry-After.
func Busy(retryAfter time.Duration, format string, args ...any) *Error {
	e := Errorf(http.StatusServiceUnavailable, format, args...)
	e.RetryAfter = retryAfter
	return e
}

func (e *Error) Error() string { return e.Message }

func (e *Error) Unwrap() error { return e.Err }

func (e *Error) Is(target error) bool {
	return target == fs.ErrNotExist && (e.Status == http.StatusNotFound || e.Status == http.StatusGone)
}

// IsAbsent reports whether an error says that there is no such thing. One of this machine's
// file system does not, though it may match fs.ErrNotExist: a folder of ours that is gone
// says nothing of a module.
func IsAbsent(err error) bool { return errors.Is(err, fs.ErrNotExist) && !IsLocal(err) }

// IsLocal reports whether an error is one of this machine's file system.
func IsLocal(err error) bool {
	var path *fs.PathError
	var link *os.LinkError
	return errors.As(err, &path) || errors.As(err, &link)
}

// Status maps any error to its HTTP status: the one place where that is
// decided. nil is 200.
func Status(err error) int {
	var e *Error
	switch {
	case err == nil:
		return http.StatusOK
	case errors.As(err, &e):
		return e.Status
	case IsAbsent(err):
		return http.StatusNotFound
	case errors.Is(err, context.DeadlineExceeded):
		return http.StatusGatewayTimeout
	case errors.Is(err, context.Canceled):
		return 499 // the client left; nobody reads it but the log
	default:
		return http.StatusInternalServerError
	}
}
