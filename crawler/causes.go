package crawler

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"

	"github.com/athensctl/athensctl/goproxy"
)

// causeOf is why there was no answer, in a word: not the error, which may say anything.
func causeOf(err error) string {
	var unsent notSent
	var guarded *goproxy.Error
	var dns *net.DNSError
	var op *net.OpError
	var cert *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	var timeout net.Error
	switch {
	case errors.As(err, &unsent):
		return unsent.cause
	case errors.Is(err, context.Canceled):
		return "left" // who asked
	case errors.As(err, &guarded) && guarded.Status == http.StatusForbidden:
		return "forbidden"
	case errors.As(err, &dns):
		return "dns"
	case errors.As(err, &cert), errors.As(err, &record), errors.As(err, &alert):
		return "tls"
	case errors.As(err, &op) && op.Op == "dial":
		return "connect"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &op):
		return "cut"
	}
	return "other"
}

// statusCause is a status; of those that hosts seldom send the class, since a metric's
// labels are not the host's to choose.
func statusCause(status int) string {
	switch {
	case status >= 400 && http.StatusText(status) != "":
		return strconv.Itoa(status)
	case status >= 500:
		return "5xx"
	}
	return "4xx"
}
