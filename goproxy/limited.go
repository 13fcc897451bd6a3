package goproxy

import (
	"cmp"
	"net/http"
	"strconv"
	"time"
)

// pauseAtMost is for how long a host is believed that it wants to be left alone.
const pauseAtMost = time.Hour

// RetryAfter is how long a header asks to wait, in seconds or with a time
// (https://www.rfc-editor.org/rfc/rfc9110#field.retry-after): an hour at most. 0: it does
// not, or the time is over.
func RetryAfter(h http.Header, now time.Time) time.Duration {
	text := h.Get("Retry-After")
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return time.Duration(min(max(0, n), int64(pauseAtMost/time.Second))) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return min(max(0, at.Sub(now)), pauseAtMost)
	}
	return 0
}

// Pause is how long an answer says that its host is to be left alone, an hour at most: by
// Retry-After where the status is 429, 503 or 403, or by a rate limit that is spent, as GitHub's
// (https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api),
// which may be said with the last good answer too. 0: it does not.
func Pause(resp *http.Response, now time.Time) time.Duration {
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusForbidden:
		if pause := RetryAfter(resp.Header, now); pause > 0 {
			return pause
		}
	}
	if at, err := strconv.ParseInt(resp.Header.Get("X-RateLimit-Reset"), 10, 64); err == nil && spent(resp) {
		return min(max(0, time.Unix(at, 0).Sub(now)), pauseAtMost)
	}
	return 0
}

func spent(resp *http.Response) bool { return resp.Header.Get("X-RateLimit-Remaining") == "0" }

// Limited reports whether an answer says that the host wants to be asked later, and when:
// 429 and 503, and a 403 that has a Retry-After or says that a rate limit is spent. The
// pause is 10 s where none is named.
func Limited(resp *http.Response, now time.Time) (pause time.Duration, limited bool) {
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
	case http.StatusForbidden:
		if resp.Header.Get("Retry-After") == "" && !spent(resp) {
			return 0, false
		}
	default:
		return 0, false
	}
	return cmp.Or(Pause(resp, now), 10*time.Second), true
}
