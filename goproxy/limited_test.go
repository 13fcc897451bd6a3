package goproxy

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"
)

// What an answer says of when to come again: to all who read it, and to each what its
// status makes of it.
func TestLimited(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	const late, past, reset = "Fri, 02 Jan 2026 03:05:05 GMT", "Fri, 02 Jan 2026 03:04:04 GMT", "1767323165" // now is 1767323045
	for _, tc := range []struct {
		status                       int
		retry, remaining, reset      string
		retryAfter, pause, limitedBy time.Duration // limitedBy: -1: it is not
	}{
		{429, "7", "", "", 7 * time.Second, 7 * time.Second, 7 * time.Second},
		{503, late, "", "", time.Minute, time.Minute, time.Minute},
		{403, late, "", "", time.Minute, time.Minute, time.Minute},
		{502, "7", "", "", 7 * time.Second, 0, -1},
		{301, late, "", "", time.Minute, 0, -1},
		{429, "", "", "", 0, 0, 10 * time.Second},
		{429, past, "", "", 0, 0, 10 * time.Second},
		{429, "0", "", "", 0, 0, 10 * time.Second},
		{429, "-7", "", "", 0, 0, 10 * time.Second},
		{429, "soon", "", "", 0, 0, 10 * time.Second},
		{429, "86400", "", "", time.Hour, time.Hour, time.Hour},
		{429, "9223372037", "", "", time.Hour, time.Hour, time.Hour}, // of which the nanoseconds are no int64
		{429, "Sat, 02 Jan 2027 03:04:05 GMT", "", "", time.Hour, time.Hour, time.Hour},
		{403, "", "12", reset, 0, 0, -1},
		{403, "", "0", "", 0, 0, 10 * time.Second},
		{403, "", "0", reset, 0, 2 * time.Minute, 2 * time.Minute},
		{403, "7", "0", reset, 7 * time.Second, 7 * time.Second, 7 * time.Second},
		{403, past, "0", reset, 0, 2 * time.Minute, 2 * time.Minute},
		{429, "", "0", "1767323044", 0, 0, 10 * time.Second},
		{429, "", "0", "1798859045", 0, time.Hour, time.Hour},
		{200, "7", "0", reset, 7 * time.Second, 2 * time.Minute, -1},
		{200, "", "1", reset, 0, 0, -1},
	} {
		h := http.Header{}
		for name, value := range map[string]string{"Retry-After": tc.retry, "X-RateLimit-Remaining": tc.remaining, "X-RateLimit-Reset": tc.reset} {
			if value != "" {
				h.Set(name, value)
			}
		}
		resp := &http.Response{StatusCode: tc.status, Header: h}
		limitedBy, limited := Limited(resp, now)
		if !limited {
			limitedBy--
		}
		if retryAfter, pause := RetryAfter(h, now), Pause(resp, now); retryAfter != tc.retryAfter || pause != tc.pause || limitedBy != tc.limitedBy {
			t.Errorf("%d %v: retry after %v, a pause of %v, limited by %v; want %v, %v, %v", tc.status, h, retryAfter, pause, limitedBy, tc.retryAfter, tc.pause, tc.limitedBy)
		}
	}
}

// An upstream that names a time is left alone as long as one that names seconds, and none
// for longer than an hour.
func TestClientRetryAfter(t *testing.T) {
	var says string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", says)
		w.WriteHeader(http.StatusBadGateway)
	}))
	defer srv.Close()
	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	in := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(http.TimeFormat) }
	for header, want := range map[string]time.Duration{"90": 90 * time.Second, in(10 * time.Minute): 10 * time.Minute, in(-time.Minute): 0, "9223372037": time.Hour, "": 0} {
		says = header
		_, err := (&Client{Base: u, HTTP: srv.Client()}).List(t.Context(), "example.com/m")
		var e *Error
		if !errors.As(err, &e) || e.Status != 502 || (e.RetryAfter-want).Abs() > time.Minute || (e.RetryAfter == 0) != (want == 0) {
			t.Errorf("%q: %+v, want %v", header, err, want)
		}
	}
}
