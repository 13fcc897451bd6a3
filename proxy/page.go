package proxy

import (
	"html/template"
	"net/http"

	"github.com/labstack/echo/v4"

	"github.com/athensctl/athensctl/goproxy"
)

var page = template.Must(template.New("").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>athensctl: a Go module proxy</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:44em;margin:3em auto;padding:0 1em}pre{background:#eee;color:#111;padding:1em;overflow:auto}</style>
<h1>A Go module proxy</h1>
<p>This is athensctl {{.Version}}. To have the go command use it:</p>
<pre>go env -w GOPROXY={{.URL}}</pre>
<p>To go back: <code>go env -u GOPROXY</code>. What a proxy is: <a href="https://go.dev/ref/mod#goproxy-protocol">the Go modules reference</a>.</p>
</html>
`))

// ServePage answers / with what this is and the line to paste.
func ServePage(version string) echo.HandlerFunc {
	return func(c echo.Context) error {
		h := c.Response().Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Cache-Control", goproxy.CacheBriefly)
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		c.Response().WriteHeader(http.StatusOK)
		return page.Execute(c.Response(), map[string]string{"Version": version, "URL": c.Scheme() + "://" + c.Request().Host})
	}
}
