// Package dockerfile has the test of the image's Dockerfile, by the parser, the linter and
// the compiler of BuildKit, without an engine or a registry: no rule of the linter is
// broken, experimental ones included; both platforms are compiled, for the platform that
// was asked for, by a toolchain of the building machine; the image is FROM scratch, has a
// numeric user that is not root, and labels with the version and revision given; the base
// image names the exact Go of go.mod. It is a module of its own, so that BuildKit is no
// requirement of athensctl.
package dockerfile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerui"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

func read(t *testing.T) (dockerfile, gomod string) {
	t.Helper()
	d, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	m, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	return string(d), string(m)
}

func TestDockerfile(t *testing.T) {
	dockerfile, gomod := read(t)
	if err := check(t.Context(), []byte(dockerfile), []byte(gomod)); err != nil {
		t.Fatal(err)
	}
}

// What each change breaks is found.
func TestRefused(t *testing.T) {
	for _, c := range []struct{ from, to, want string }{
		{"FROM scratch\n", "FROM docker.io/library/busybox:1.37.0\n", "not FROM scratch"},
		{"FROM scratch\n", "FROM --platform=linux/amd64 scratch\n", "FromPlatformFlagConstDisallowed"},
		{"FROM scratch\n", "FROM $BASE\n", "the image is FROM $BASE, not FROM scratch"},
		{"USER 65532:65532", "USER athensctl", `user "athensctl" is no number above 0`},
		{"USER 65532:65532", "USER 0:65532", `user "0:65532" is no number above 0`},
		{"USER 65532:65532\n", "", `user "" is no number above 0`},
		{"ARG TARGETARCH\n", "ARG TARGETARCH=amd64\n", "linux/arm64 on linux/amd64: go build runs without TARGETARCH=arm64"},
		{"ARG TARGETARCH\n", "", "go build runs without TARGETARCH=amd64"},
		{"FROM --platform=$BUILDPLATFORM ", "FROM ", "linux/arm64 on linux/amd64: RUN is emulated"},
		{"FROM --platform=$BUILDPLATFORM ", "ARG BUILDPLATFORM=linux/amd64\nFROM --platform=$BUILDPLATFORM ", "linux/arm64 on linux/arm64: RUN is emulated"},
		{"FROM --platform=$BUILDPLATFORM ", "FROM --platform=linux/amd64 ", "FromPlatformFlagConstDisallowed"},
		{"ENTRYPOINT [\"/athensctl\"]", "ENTRYPOINT /athensctl", "JSONArgsRecommended"},
		{"org.opencontainers.image.revision=\"$REVISION\"", "org.opencontainers.image.revision=\"$REVISON\"", "UndefinedVar"},
		{"ARG VERSION=devel\nARG REVISION", "ARG REVISION", "label org.opencontainers.image.version"},
		{" AS build", " as build", "FromAsCasing"},
		{"-bookworm AS", " AS", "is not docker.io/library/golang:MAJOR.MINOR.PATCH-DISTRIBUTION"},
		{"golang:1.", "golang:1.9", "go.mod's toolchain is"},
		{"COPY . .", "COPPY . .", "unknown instruction"},
	} {
		t.Run(c.to, func(t *testing.T) {
			dockerfile, gomod := read(t)
			if !strings.Contains(dockerfile, c.from) {
				t.Fatalf("the Dockerfile has no %q", c.from)
			}
			err := check(t.Context(), []byte(strings.Replace(dockerfile, c.from, c.to, 1)), []byte(gomod))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// check returns all that is wrong.
func check(ctx context.Context, text, gomod []byte) error {
	errs := []error{lint(ctx, text), stages(text, gomod)}
	// A machine of each kind builds for each kind.
	for _, build := range []string{"amd64", "arm64"} {
		for _, target := range []string{"amd64", "arm64"} {
			if err := compile(ctx, text, build, target); err != nil {
				errs = append(errs, fmt.Errorf("linux/%s on linux/%s: %w", target, build, err))
			}
		}
	}
	return errors.Join(errs...)
}

func lint(ctx context.Context, text []byte) error {
	var errs []error
	opt := options("amd64", "amd64")
	opt.AllStages = true
	opt.Warn = func(rule, _, _, what string, at []parser.Range) {
		line := 0
		if len(at) > 0 {
			line = at[0].Start.Line
		}
		errs = append(errs, fmt.Errorf("line %d: %s: %s", line, rule, what))
	}
	if _, err := dockerfile2llb.Dockerfile2LLB(ctx, text, opt); err != nil {
		return err
	}
	return errors.Join(errs...)
}

var (
	base   = regexp.MustCompile(`^docker\.io/library/golang:(\d+\.\d+\.\d+)-\w+(@sha256:[0-9a-f]{64})?$`)
	golang = regexp.MustCompile(`(?m)^toolchain go(\d+\.\d+\.\d+)$`)
)

// stages checks the stages as they are written.
func stages(text, gomod []byte) error {
	file, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return err
	}
	all, _, err := instructions.Parse(file.AST, linter.New(&linter.Config{SkipAll: true}))
	if err != nil {
		return err
	}
	if len(all) < 2 {
		return fmt.Errorf("%d stage: the toolchain would be in the image", len(all))
	}
	var errs []error
	if last := all[len(all)-1]; last.OrigCmd+" "+last.BaseName != "FROM scratch" {
		errs = append(errs, fmt.Errorf("the image is FROM %s, not FROM scratch", last.BaseName))
	}
	image, mod := base.FindStringSubmatch(all[0].BaseName), golang.FindSubmatch(gomod)
	switch {
	case image == nil:
		errs = append(errs, fmt.Errorf("base image %s is not docker.io/library/golang:MAJOR.MINOR.PATCH-DISTRIBUTION", all[0].BaseName))
	case mod == nil:
		errs = append(errs, errors.New("go.mod has no toolchain line"))
	case image[1] != string(mod[1]):
		errs = append(errs, fmt.Errorf("base image has Go %s, go.mod's toolchain is %s", image[1], mod[1]))
	}
	return errors.Join(errs...)
}

const version, revision = "v1.2.3-check", "0123456789abcdef0123456789abcdef01234567"

// compile makes of the Dockerfile what BuildKit would run, and the image's configuration.
func compile(ctx context.Context, text []byte, build, target string) error {
	res, err := dockerfile2llb.Dockerfile2LLB(ctx, text, options(build, target))
	if err != nil {
		return err
	}
	def, err := res.State.Marshal(ctx)
	if err != nil {
		return err
	}
	var errs []error
	builds := 0
	for _, b := range def.Def {
		var op pb.Op
		if err := op.UnmarshalVT(b); err != nil {
			return err
		}
		exec := op.GetExec()
		if exec == nil {
			continue
		}
		if on := op.GetPlatform().GetArchitecture(); on != build {
			errs = append(errs, fmt.Errorf("RUN is emulated: its platform is %s", on))
		}
		if !strings.Contains(strings.Join(exec.GetMeta().GetArgs(), " "), "go build ") {
			continue
		}
		builds++
		for _, want := range []string{"TARGETOS=linux", "TARGETARCH=" + target, "VERSION=" + version} {
			if !slices.Contains(exec.GetMeta().GetEnv(), want) {
				errs = append(errs, fmt.Errorf("go build runs without %s in %v", want, exec.GetMeta().GetEnv()))
			}
		}
	}
	if builds != 1 {
		errs = append(errs, fmt.Errorf("go build runs %d times", builds))
	}
	img := res.Image
	if img.OS != "linux" || img.Architecture != target {
		errs = append(errs, fmt.Errorf("the image is for %s/%s", img.OS, img.Architecture))
	}
	user, _, _ := strings.Cut(img.Config.User, ":")
	if uid, err := strconv.Atoi(user); err != nil || uid == 0 {
		errs = append(errs, fmt.Errorf("user %q is no number above 0", img.Config.User))
	}
	for label, want := range map[string]string{"org.opencontainers.image.version": version, "org.opencontainers.image.revision": revision} {
		if got := img.Config.Labels[label]; got != want {
			errs = append(errs, fmt.Errorf("label %s is %q, of %q", label, got, want))
		}
	}
	if len(img.Config.Entrypoint) != 1 {
		errs = append(errs, fmt.Errorf("entrypoint is %q: there is no shell that could start it", img.Config.Entrypoint))
	}
	return errors.Join(errs...)
}

func platform(arch string) ocispecs.Platform {
	return ocispecs.Platform{OS: "linux", Architecture: arch}
}

func options(build, target string) dockerfile2llb.ConvertOpt {
	t := platform(target)
	return dockerfile2llb.ConvertOpt{
		Config: dockerui.Config{
			BuildArgs:              map[string]string{"VERSION": version, "REVISION": revision, "SOURCE_DATE_EPOCH": "1700000000"},
			BuildPlatforms:         []ocispecs.Platform{platform(build)},
			MultiPlatformRequested: true,
			LinterConfig:           &linter.Config{ExperimentalAll: true},
		},
		TargetPlatform: &t,
		MetaResolver:   registry{},
	}
}

// registry is one in which every image is there, for the platform that is asked for.
type registry struct{}

func (registry) ResolveImageConfig(_ context.Context, ref string, opt sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	img := ocispecs.Image{Platform: platform("amd64"), RootFS: ocispecs.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromString("a layer")}}}
	if opt.ImageOpt != nil && opt.ImageOpt.Platform != nil {
		img.Platform = *opt.ImageOpt.Platform
	}
	b, err := json.Marshal(img)
	return ref, digest.FromBytes(b), b, err
}
