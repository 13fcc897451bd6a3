package goproxy

import (
	"net/http"
	"strconv"
	"time"
)

// Limited reports whether an answer says that the host wants to be asked later, and when:
// 429 and 503, and a 403 that names a time or says that a rate limit is spent, as GitHub's
// do (https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api).
// The pause is 10 s where none is named, an hour at most.
func Limited(resp *http.Response, now time.Time) (pause time.Duration, limited bool) {
	h := resp.Header
	spent := h.Get("X-RateLimit-Remaining") == "0"
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
	case http.StatusForbidden:
		if h.Get("Retry-After") == "" && !spent {
			return 0, false
		}
	default:
		return 0, false
	}
	pause = 10 * time.Second
	if text := h.Get("Retry-After"); text != "" {
		if n, err := strconv.Atoi(text); err == nil && n > 0 {
			pause = time.Duration(min(n, 3600)) * time.Second
		} else if at, err := http.ParseTime(text); err == nil && at.After(now) {
			pause = at.Sub(now)
		}
	} else if at, err := strconv.ParseInt(h.Get("X-RateLimit-Reset"), 10, 64); err == nil && spent && time.Unix(at, 0).After(now) {
		pause = time.Unix(at, 0).Sub(now)
	}
	return min(pause, time.Hour), true
}
