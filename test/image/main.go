// Command image says what is in an image, and fails where that is not what the Dockerfile
// promises:
//
//	image [--same ARCHIVE] [--binary FILE] [--extract FILE] [--starts N] ARCHIVE
//
// ARCHIVE is an image as `docker save` and `buildah push oci-archive:` write it: a tar of
// an OCI layout, with one image. Printed are its configuration, history, layers and every
// file. No file may be there but the known ones, each with its mode and owner; the binary is
// static, for the image's architecture, without paths of the machine that built it, and
// equal to --binary byte for byte where that is given. --same is another build of the image,
// which must have the same digest. --extract writes the binary out. --starts
// starts it N times, in nothing but the image's files and as its user, which needs root, and
// prints how long it took to the first 200 of /healthz.
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"
)

func main() {
	same := flag.String("same", "", "another build of the image, that must have the same digest")
	binary := flag.String("binary", "", "another build of the binary, that must be equal")
	extract := flag.String("extract", "", "where the binary is written")
	starts := flag.Int("starts", 0, "how often it is started")
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(os.Stdout, flag.Arg(0), *same, *binary, *extract, *starts); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(w io.Writer, archive, same, binary, extract string, starts int) error {
	img, err := open(archive)
	if err != nil {
		return err
	}
	img.print(w)
	errs := []error{img.checkConfig(), checkFiles(img.files), img.checkBinary()}
	if same != "" {
		other, err := open(same)
		if err != nil {
			return err
		}
		if other.digest != img.digest {
			errs = append(errs, fmt.Errorf("%s is another image: %s, not %s", same, other.digest, img.digest))
		} else {
			fmt.Fprintln(w, "\nthe image built again: the same digest")
		}
	}
	program := img.file("athensctl")
	if program == nil {
		return errors.Join(errs...)
	}
	fmt.Fprintf(w, "\nsha256 of athensctl: %s\n", sum(program.content))
	if binary != "" {
		other, err := os.ReadFile(binary)
		if err != nil {
			return err
		}
		if !bytes.Equal(other, program.content) {
			errs = append(errs, fmt.Errorf("%s is another binary: %s", binary, sum(other)))
		} else {
			fmt.Fprintln(w, "a build of the same sources elsewhere: the same")
		}
	}
	if extract != "" {
		if err := os.WriteFile(extract, program.content, 0o755); err != nil {
			return err
		}
	}
	if starts > 0 && errors.Join(errs...) == nil {
		times, err := img.start(starts)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "from exec to 200 of /healthz, %d times: median %s, fastest %s, slowest %s\n",
			starts, times[len(times)/2].Round(time.Millisecond), times[0].Round(time.Millisecond), times[len(times)-1].Round(time.Millisecond))
	}
	return errors.Join(errs...)
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
}

type image struct {
	digest string // of the manifest
	config struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
		Config       struct {
			User       string
			Env        []string
			Entrypoint []string
			Cmd        []string
			WorkingDir string
			Labels     map[string]string
		} `json:"config"`
		History []struct {
			CreatedBy string `json:"created_by"`
			Empty     bool   `json:"empty_layer"`
		} `json:"history"`
	}
	layers []layer
	files  []file // of all layers
}

type layer struct {
	descriptor
	bytes int64 // as a tar, not compressed
}

type file struct {
	tar.Header
	content []byte
}

func open(archive string) (*image, error) {
	f, err := os.Open(archive)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	img, err := read(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", archive, err)
	}
	return img, nil
}

// read reads the archive of an image. What is above a GB is refused.
func read(r io.Reader) (*image, error) {
	blobs := map[string][]byte{}
	archive := tar.NewReader(io.LimitReader(r, 1<<30))
	for {
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeReg {
			if blobs[path.Clean(h.Name)], err = io.ReadAll(archive); err != nil {
				return nil, err
			}
		}
	}
	get := func(d descriptor) ([]byte, error) {
		algorithm, hash, _ := strings.Cut(d.Digest, ":")
		b, ok := blobs[path.Join("blobs", algorithm, hash)]
		if !ok || sum(b) != hash {
			return nil, fmt.Errorf("no blob %s, or not with that hash", d.Digest)
		}
		return b, nil
	}
	var index struct{ Manifests []descriptor }
	if err := json.Unmarshal(blobs["index.json"], &index); err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	if len(index.Manifests) != 1 {
		return nil, fmt.Errorf("%d images, not 1", len(index.Manifests))
	}
	b, err := get(index.Manifests[0])
	if err != nil {
		return nil, err
	}
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	if err := json.Unmarshal(b, &manifest); err != nil {
		return nil, err
	}
	img := &image{digest: index.Manifests[0].Digest}
	if b, err = get(manifest.Config); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &img.config); err != nil {
		return nil, err
	}
	for _, d := range manifest.Layers {
		b, err := get(d)
		if err != nil {
			return nil, err
		}
		if err := img.addLayer(d, b); err != nil {
			return nil, fmt.Errorf("layer %s: %w", d.Digest, err)
		}
	}
	return img, nil
}

func (img *image) addLayer(d descriptor, b []byte) error {
	r := io.Reader(bytes.NewReader(b))
	if strings.HasSuffix(d.MediaType, "gzip") {
		z, err := gzip.NewReader(r)
		if err != nil {
			return err
		}
		r = z
	}
	count := &counter{r: io.LimitReader(r, 1<<30)}
	files := tar.NewReader(count)
	for {
		h, err := files.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		content, err := io.ReadAll(files)
		if err != nil {
			return err
		}
		h.Name = strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		img.files = append(img.files, file{*h, content})
	}
	if _, err := io.Copy(io.Discard, count); err != nil {
		return err
	}
	img.layers = append(img.layers, layer{d, count.n})
	return nil
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func (img *image) file(name string) *file {
	for i := range img.files {
		if img.files[i].Name == name {
			return &img.files[i]
		}
	}
	return nil
}

func (img *image) print(w io.Writer) {
	c := img.config
	fmt.Fprintln(w, img.digest)
	fmt.Fprintf(w, "%s/%s, user %s, entrypoint %q, command %q, environment %q\n", c.OS, c.Architecture, c.Config.User, c.Config.Entrypoint, c.Config.Cmd, c.Config.Env)
	var compressed, bytes int64
	for _, l := range img.layers {
		compressed += l.Size
		bytes += l.bytes
		fmt.Fprintf(w, "layer %s: %d bytes, %d compressed\n", l.Digest, l.bytes, l.Size)
	}
	fmt.Fprintf(w, "%d layers: %.1f MB, %.1f MB compressed\n\nhistory:\n", len(img.layers), float64(bytes)/1e6, float64(compressed)/1e6)
	for _, h := range c.History {
		fmt.Fprintln(w, " ", strings.Join(strings.Fields(h.CreatedBy), " "))
	}
	fmt.Fprintln(w, "\nfiles:")
	for _, f := range img.files {
		fmt.Fprintf(w, "  %s %5d:%-5d %9d  /%s\n", f.FileInfo().Mode(), f.Uid, f.Gid, f.Size, f.Name)
	}
}

func (img *image) checkConfig() error {
	var errs []error
	c := img.config.Config
	if img.config.OS != "linux" {
		errs = append(errs, fmt.Errorf("the image is for %s", img.config.OS))
	}
	if c.User != "65532:65532" {
		errs = append(errs, fmt.Errorf("user is %q", c.User))
	}
	if len(c.Entrypoint) != 1 || c.Entrypoint[0] != "/athensctl" {
		errs = append(errs, fmt.Errorf("entrypoint is %q", c.Entrypoint))
	}
	for _, label := range []string{"org.opencontainers.image.version", "org.opencontainers.image.revision"} {
		if v := c.Labels[label]; v == "" || v == "devel" || v == "unknown" {
			errs = append(errs, fmt.Errorf("label %s is %q", label, v))
		}
	}
	return errors.Join(errs...)
}

// known are all files of the image: as ls -l writes the mode, and the owner of both kinds.
var known = map[string]struct {
	mode  string
	owner int
}{
	"athensctl":                         {"-rwxr-xr-x", 0},
	"etc":                               {"drwxr-xr-x", 0},
	"etc/passwd":                        {"-rw-r--r--", 0},
	"etc/ssl":                           {"drwxr-xr-x", 0},
	"etc/ssl/certs":                     {"drwxr-xr-x", 0},
	"etc/ssl/certs/ca-certificates.crt": {"-rw-r--r--", 0},
	"tmp":                               {"dtrwxrwxrwx", 0},
	"var":                               {"drwxr-xr-x", 0},
	"var/lib":                           {"drwxr-xr-x", 0},
	"var/lib/athensctl":                 {"drwxr-xr-x", 65532},
}

// checkFiles fails for each file that is not known, is there twice, or is missing. Known
// modes have no setuid or setgid bit.
func checkFiles(files []file) error {
	var errs []error
	seen := map[string]bool{}
	for _, f := range files {
		if f.Name == "" { // the root folder itself
			continue
		}
		k, ok := known[f.Name]
		mode := f.FileInfo().Mode()
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("/%s does not belong in the image", f.Name))
		case mode.String() != k.mode || f.Uid != k.owner || f.Gid != k.owner:
			errs = append(errs, fmt.Errorf("/%s is %s %d:%d, not %s %d:%d", f.Name, mode, f.Uid, f.Gid, k.mode, k.owner, k.owner))
		case f.Size == 0 && mode.IsRegular():
			errs = append(errs, fmt.Errorf("/%s is empty", f.Name))
		case seen[f.Name]:
			errs = append(errs, fmt.Errorf("/%s is in two layers: the first is dead weight", f.Name))
		}
		seen[f.Name] = true
	}
	for name := range known {
		if !seen[name] {
			errs = append(errs, fmt.Errorf("/%s is missing", name))
		}
	}
	return errors.Join(errs...)
}

var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

func (img *image) checkBinary() error {
	f := img.file("athensctl")
	if f == nil {
		return nil
	}
	program, err := elf.NewFile(bytes.NewReader(f.content))
	if err != nil {
		return fmt.Errorf("/athensctl: %w", err)
	}
	var errs []error
	if want, ok := machines[img.config.Architecture]; !ok || program.Machine != want {
		errs = append(errs, fmt.Errorf("/athensctl is for %s in an image for %s", program.Machine, img.config.Architecture))
	}
	if libraries, err := program.ImportedLibraries(); err != nil || len(libraries) > 0 {
		errs = append(errs, fmt.Errorf("/athensctl needs %q: %v", libraries, err))
	}
	for _, p := range program.Progs {
		if p.Type == elf.PT_INTERP {
			errs = append(errs, errors.New("/athensctl is not static: it names an interpreter"))
		}
	}
	info, err := buildinfo.Read(bytes.NewReader(f.content))
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("/athensctl: %w", err))...)
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	for key, want := range map[string]string{"-trimpath": "true", "CGO_ENABLED": "0", "vcs.revision": ""} {
		if settings[key] != want {
			errs = append(errs, fmt.Errorf("/athensctl was built with %s=%q, not %q", key, settings[key], want))
		}
	}
	return errors.Join(errs...)
}
