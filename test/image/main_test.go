package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// entry is a file of a layer.
type entry struct {
	tar.Header
	content []byte
}

func dir(name string, mode int64, owner int) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode, Uid: owner, Gid: owner}}
}

func regular(name string, mode int64, content []byte) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content))}, content}
}

// good is the layer that the Dockerfile makes.
func good(program []byte) []entry {
	return []entry{
		regular("athensctl", 0o755, program),
		dir("etc", 0o755, 0), regular("etc/passwd", 0o644, []byte("athensctl:x:65532:65532::/:/nonexistent\n")),
		dir("etc/ssl", 0o755, 0), dir("etc/ssl/certs", 0o755, 0), regular("etc/ssl/certs/ca-certificates.crt", 0o644, []byte("CERTIFICATE")),
		dir("tmp", 0o1777, 0), dir("var", 0o755, 0), dir("var/lib", 0o755, 0), dir("var/lib/athensctl", 0o755, 65532),
	}
}

func writeTar(t *testing.T, entries []entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func compress(t *testing.T, b []byte) []byte {
	t.Helper()
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(b)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return z.Bytes()
}

type object = map[string]any

func config(arch string) object {
	return object{"architecture": arch, "os": "linux", "config": object{
		"User": "65532:65532", "Entrypoint": []string{"/athensctl"}, "Cmd": []string{"serve"},
		"Labels": object{"org.opencontainers.image.version": "v1.2.3", "org.opencontainers.image.revision": "0123abcd"},
	}}
}

// archive writes the archive of an image.
func archive(t *testing.T, config object, layers ...[]entry) string {
	t.Helper()
	var out []entry
	blob := func(b []byte, mediaType string) object {
		out = append(out, regular("blobs/sha256/"+sum(b), 0o644, b))
		return object{"mediaType": mediaType, "digest": "sha256:" + sum(b), "size": len(b)}
	}
	marshal := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var ls []object
	for _, l := range layers {
		ls = append(ls, blob(compress(t, writeTar(t, l)), "application/vnd.oci.image.layer.v1.tar+gzip"))
	}
	manifest := blob(marshal(object{"config": blob(marshal(config), "application/vnd.oci.image.config.v1+json"), "layers": ls}), "application/vnd.oci.image.manifest.v1+json")
	out = append(out, regular("index.json", 0o644, marshal(object{"manifests": []object{manifest}})))
	name := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(name, writeTar(t, out), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// build compiles a small static program, with the Dockerfile's flags unless others are given.
func build(t *testing.T, arch string, flags ...string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "program")
	if flags == nil {
		flags = []string{"-trimpath"}
	}
	cmd := exec.Command("go", append(append([]string{"build", "-buildvcs=false"}, flags...), "-o", out, "../cluster/pause")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOFLAGS=")
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRun(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		program := build(t, arch)
		same := filepath.Join(t.TempDir(), "same")
		if err := os.WriteFile(same, program, 0o755); err != nil {
			t.Fatal(err)
		}
		extract := filepath.Join(t.TempDir(), "out")
		var out strings.Builder
		if err := run(&out, archive(t, config(arch), good(program)), archive(t, config(arch), good(program)), same, extract, 0); err != nil {
			t.Fatalf("%s: %v", arch, err)
		}
		for _, want := range []string{"linux/" + arch, "1 layers", "/etc/ssl/certs/ca-certificates.crt", sum(program), "elsewhere: the same", "built again: the same digest", fmt.Sprintf("-rwxr-xr-x     0:0     %9d  /athensctl", len(program))} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: no %q in\n%s", arch, want, out.String())
			}
		}
		if b, err := os.ReadFile(extract); err != nil || !bytes.Equal(b, program) {
			t.Errorf("%s: extracted: %v", arch, err)
		}
	}
}

func TestRefused(t *testing.T) {
	program := build(t, "amd64")
	with := func(more ...entry) [][]entry { return [][]entry{append(good(program), more...)} }
	without := func(name string) [][]entry {
		var l []entry
		for _, e := range good(program) {
			if strings.TrimSuffix(e.Name, "/") != name {
				l = append(l, e)
			}
		}
		return [][]entry{l}
	}
	replaced := func(e entry) [][]entry {
		l := without(strings.TrimSuffix(e.Name, "/"))
		return [][]entry{append(l[0], e)}
	}
	changed := func(key string, value any) object {
		c := config("amd64")
		c["config"].(object)[key] = value
		return c
	}
	for name, c := range map[string]struct {
		config object
		layers [][]entry
		want   string
	}{
		"a shell":             {layers: with(regular("bin/sh", 0o755, []byte("x"))), want: "/bin/sh does not belong"},
		"a shell as a link":   {layers: with(entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "sh", Linkname: "athensctl"}}), want: "/sh does not belong"},
		"outside of the root": {layers: with(regular("../../git", 0o755, []byte("x"))), want: "/git does not belong"},
		"setuid":              {layers: replaced(regular("athensctl", 0o4755, program)), want: "/athensctl is urwxr-xr-x 0:0"},
		"setgid folder":       {layers: replaced(dir("var/lib", 0o2755, 0)), want: "/var/lib is dgrwxr-xr-x"},
		"writable by all":     {layers: replaced(regular("etc/passwd", 0o666, []byte("x"))), want: "/etc/passwd is -rw-rw-rw-"},
		"of another owner":    {layers: replaced(dir("var/lib/athensctl", 0o755, 0)), want: "/var/lib/athensctl is drwxr-xr-x 0:0"},
		"a device":            {layers: replaced(entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "etc/passwd", Mode: 0o644}}), want: "/etc/passwd is Dcrw-r--r--"},
		"no certificates":     {layers: without("etc/ssl/certs/ca-certificates.crt"), want: "ca-certificates.crt is missing"},
		"empty certificates":  {layers: replaced(regular("etc/ssl/certs/ca-certificates.crt", 0o644, nil)), want: "ca-certificates.crt is empty"},
		"no program":          {layers: without("athensctl"), want: "/athensctl is missing"},
		"twice":               {layers: append(with(), []entry{regular("athensctl", 0o755, program)}), want: "/athensctl is in two layers"},
		"deleted in a layer":  {layers: append(with(), []entry{regular("etc/.wh.passwd", 0o644, nil)}), want: "/etc/.wh.passwd does not belong"},
		"root":                {config: changed("User", ""), layers: with(), want: `user is ""`},
		"shell form":          {config: changed("Entrypoint", []string{"/bin/sh", "-c", "/athensctl"}), layers: with(), want: "entrypoint is"},
		"no revision":         {config: changed("Labels", object{"org.opencontainers.image.version": "v1.2.3", "org.opencontainers.image.revision": "unknown"}), layers: with(), want: `revision is "unknown"`},
		"another machine's":   {config: config("arm64"), layers: with(), want: "is for EM_X86_64 in an image for arm64"},
		"paths in the binary": {layers: [][]entry{good(build(t, "amd64", "-ldflags=-w"))}, want: `built with -trimpath=""`},
		"no ELF":              {layers: [][]entry{good([]byte("#!/bin/sh\n"))}, want: "/athensctl: "},
	} {
		t.Run(name, func(t *testing.T) {
			if c.config == nil {
				c.config = config("amd64")
			}
			err := run(io.Discard, archive(t, c.config, c.layers...), "", "", "", 0)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	t.Run("another build", func(t *testing.T) {
		other := filepath.Join(t.TempDir(), "other")
		if err := os.WriteFile(other, build(t, "amd64", "-trimpath", "-ldflags=-w"), 0o755); err != nil {
			t.Fatal(err)
		}
		err := run(io.Discard, archive(t, config("amd64"), good(program)), "", other, "", 0)
		if err == nil || !strings.Contains(err.Error(), "is another binary") {
			t.Error(err)
		}
	})
	t.Run("another image", func(t *testing.T) {
		later := good(program)
		later[len(later)-1].ModTime = time.Unix(2, 0)
		err := run(io.Discard, archive(t, config("amd64"), good(program)), archive(t, config("amd64"), later), "", "", 0)
		if err == nil || !strings.Contains(err.Error(), "is another image") {
			t.Error(err)
		}
	})
}

// What is cut or altered is refused.
func TestBroken(t *testing.T) {
	whole, err := os.ReadFile(archive(t, config("amd64"), good([]byte("x"))))
	if err != nil {
		t.Fatal(err)
	}
	altered := bytes.Replace(whole, []byte(`"v1.2.3"`), []byte(`"v1.2.4"`), 1)
	for name, b := range map[string][]byte{"empty": nil, "cut": whole[:len(whole)/2], "altered": altered} {
		if _, err := read(bytes.NewReader(b)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
