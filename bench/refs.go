package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// The references: what the same bytes cost when nothing is done besides sending
// them.
const (
	nameBare         = "bare"
	nameServeContent = "servecontent"
	nameNginx        = "nginx"
)

// bareMain serves ADDR from the files below TREE, all in memory, with no
// headers besides Content-Type, Content-Length and net/http's own Date.
func bareMain(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("want ADDR TREE")
	}
	type answer struct {
		body                []byte
		contentType, length []string
	}
	answers := map[string]answer{}
	err := filepath.WalkDir(args[1], func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		body, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(args[1], name)
		if err != nil {
			return err
		}
		p := "/" + filepath.ToSlash(rel)
		answers[p] = answer{body, []string{typeOfPath(p)}, []string{strconv.Itoa(len(body))}}
		return nil
	})
	if err != nil {
		return err
	}
	return listenAndServe(args[0], func(w http.ResponseWriter, r *http.Request) {
		a, ok := answers[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		h := w.Header()
		h["Content-Type"], h["Content-Length"] = a.contentType, a.length
		_, _ = w.Write(a.body) // an error is the client's
	})
}

// serveContentMain serves ADDR from the files below TREE with http.ServeContent.
func serveContentMain(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("want ADDR TREE")
	}
	return listenAndServe(args[0], func(w http.ResponseWriter, r *http.Request) {
		f, err := os.Open(filepath.Join(args[1], filepath.FromSlash(path.Clean(r.URL.Path))))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", typeOfPath(r.URL.Path))
		http.ServeContent(w, r, "", st.ModTime(), f)
	})
}

func listenAndServe(addr string, h http.HandlerFunc) error {
	srv := &http.Server{Addr: addr, Handler: h, ReadHeaderTimeout: 10 * time.Second}
	return srv.ListenAndServe()
}

func typeOfPath(p string) string {
	kind, _, _, _ := splitPath(p)
	return contentType(kind)
}

// writeTree writes the warm files as a GOPROXY file tree.
func writeTree(dir string, files []warmFile) error {
	for _, f := range files {
		name := filepath.Join(dir, filepath.FromSlash(f.path))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, f.body, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// nginxConf has no access log: the references do no more than they must. It
// serves what keeps a connection open as long as the load does.
const nginxConf = `daemon off;
worker_processes auto;
pid nginx.pid;
error_log stderr;
events { worker_connections 4096; }
http {
	access_log off;
	sendfile on;
	tcp_nopush on;
	keepalive_requests 1000000000;
	default_type application/octet-stream;
	types { application/json info; application/zip zip; text/plain mod; }
	client_body_temp_path tmp/body;
	proxy_temp_path tmp/proxy;
	fastcgi_temp_path tmp/fastcgi;
	uwsgi_temp_path tmp/uwsgi;
	scgi_temp_path tmp/scgi;
	server {
		listen {{addr}};
		root {{root}};
	}
}
`

// findNginx is "" when it is not installed. Debian keeps it in /usr/sbin, which
// is not in everybody's PATH.
func findNginx() string {
	for _, name := range []string{"nginx", "/usr/sbin/nginx", "/usr/local/sbin/nginx"} {
		if p, err := exec.LookPath(name); err == nil {
			return p
		}
	}
	return ""
}

// startNginx serves root on addr, from a prefix of its own and without root's
// rights.
func startNginx(bin, dir, addr, root string) (*child, error) {
	prefix := filepath.Join(dir, "nginx")
	if err := os.MkdirAll(filepath.Join(prefix, "tmp"), 0o755); err != nil {
		return nil, err
	}
	conf := strings.NewReplacer("{{addr}}", addr, "{{root}}", root).Replace(nginxConf)
	if err := os.WriteFile(filepath.Join(prefix, "nginx.conf"), bytes.TrimSpace([]byte(conf)), 0o644); err != nil {
		return nil, err
	}
	attr := childAttr()
	if os.Geteuid() == 0 {
		const nobody = 65534
		attr = unprivileged(nobody, nobody)
		if err := os.Chmod(dir, 0o755); err != nil { // what is there is no secret
			return nil, err
		}
		for _, d := range []string{prefix, filepath.Join(prefix, "tmp")} {
			if err := os.Chown(d, nobody, nobody); err != nil {
				return nil, err
			}
		}
	}
	return startChild(dir, nameNginx, attr, bin, "-p", prefix, "-c", filepath.Join(prefix, "nginx.conf"), "-e", "stderr")
}
