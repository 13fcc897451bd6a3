package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// `make image` builds with docker where its engine answers, else with buildah, with the same
// arguments; without both it says so. The programs are stood in for: each writes how it was called.
func TestImageScript(t *testing.T) {
	const version = "v1.2.3"
	for _, tc := range []struct {
		name, docker string // what the docker program does; "": there is none
		buildah      bool
		want         string
	}{
		{"docker", "exit 0", true, `^docker info\ndocker build ARGS\n$`},
		{"docker without an engine", `[ "$1" != info ]`, true, `^docker info\nbuildah bud --timestamp \d+ ARGS\n$`},
		{"buildah", "", true, `^buildah bud --timestamp \d+ ARGS\n$`},
		{"nothing", `[ "$1" != info ]`, false, `^docker info\n$`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bin := t.TempDir()
			log := filepath.Join(bin, "log")
			for _, name := range []string{"bash", "git", "dirname"} {
				path, err := exec.LookPath(name)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(path, filepath.Join(bin, name)); err != nil {
					t.Fatal(err)
				}
			}
			standIn := func(name, does string) {
				text := fmt.Sprintf("#!/usr/bin/env bash\necho \"%s $*\" >>%q\n%s\n", name, log, does)
				if err := os.WriteFile(filepath.Join(bin, name), []byte(text), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if tc.docker != "" {
				standIn("docker", tc.docker)
			}
			if tc.buildah {
				standIn("buildah", "exit 0")
			}
			cmd := exec.Command("bash", "../image.sh", "athensctl:test", version)
			cmd.Env = append(os.Environ(), "PATH="+bin)
			out, err := cmd.CombinedOutput()
			if built := tc.name != "nothing"; built != (err == nil) || !built && !strings.Contains(string(out), "neither a docker engine nor buildah is here") {
				t.Errorf("%v: %s", err, out)
			}
			said, err := os.ReadFile(log)
			if err != nil {
				t.Fatal(err)
			}
			args := `--build-arg VERSION=` + regexp.QuoteMeta(version) + ` --build-arg REVISION=[0-9a-f]{40} --build-arg SOURCE_DATE_EPOCH=\d+ -t athensctl:test \.`
			if !regexp.MustCompile(strings.ReplaceAll(tc.want, "ARGS", args)).Match(said) {
				t.Errorf("called:\n%swant %s", said, tc.want)
			}
		})
	}
}
