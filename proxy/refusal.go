package proxy

import (
	"errors"
	"net/http"
	"time"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// refusal is a "not found" that is remembered.
type refusal struct {
	err     error
	checked time.Time
}

// isRefusal: there is no such thing, or it can't be had.
func isRefusal(err error) bool {
	switch goproxy.Status(err) {
	case http.StatusNotFound, http.StatusGone, http.StatusForbidden, http.StatusNotImplemented:
		return true
	}
	return false
}

// lasts reports whether a refusal is worth remembering: one while a fetch goes on is not.
func lasts(err error) bool {
	var e *goproxy.Error
	return isRefusal(err) && !(errors.As(err, &e) && e.NoStore)
}

func (p *Proxy) rememberRefusal(k storage.Key, err error) {
	if lasts(err) {
		p.remember(k, &refusal{err, checkedOf(err)}, len(err.Error()))
	}
}

// checkedOf is when upstream refused: one that the crawler remembered is as old as it is
// there.
func checkedOf(err error) time.Time {
	if e := (*goproxy.Error)(nil); errors.As(err, &e) && !e.Checked.IsZero() {
		return e.Checked
	}
	return time.Now()
}
