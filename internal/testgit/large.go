package testgit

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Large is a repository with a long history of large files.
type Large struct {
	Module string // path in its go.mod
	Tags   int    // v1.0.0, v1.1.0, …
	// Kept is how many bytes of a tag's files are those of the tag before; Changed how
	// many are new. Half of either can be compressed.
	Kept, Changed int
}

const largeFile = 64 << 10

// Write makes the repository in dir, which it creates, in one pack as a host has it. It
// returns the size of the pack, and the commit of each tag.
func (l Large) Write(dir string) (packBytes int64, commits []string, err error) {
	git := func(stdin io.Reader, args ...string) ([]byte, error) {
		cmd := exec.Command("git", append([]string{"-C", dir}, args...)...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "GIT_CONFIG_NOSYSTEM=1"}
		cmd.Stdin = stdin
		out, err := cmd.Output()
		if err != nil {
			err = fmt.Errorf("git %s: %w", strings.Join(args, " "), err)
		}
		return out, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, nil, err
	}
	if _, err := git(nil, "init", "-q", "--bare", "-b", "main"); err != nil {
		return 0, nil, err
	}
	for key, value := range map[string]string{"uploadpack.allowFilter": "true", "fastimport.unpackLimit": "1"} {
		if _, err := git(nil, "config", key, value); err != nil {
			return 0, nil, err
		}
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(l.stream(w)) }()
	if _, err := git(r, "fast-import", "--quiet"); err != nil {
		r.CloseWithError(err)
		return 0, nil, err
	}
	packs, err := filepath.Glob(filepath.Join(dir, "objects/pack/*.pack"))
	if err != nil || len(packs) == 0 {
		return 0, nil, fmt.Errorf("fast-import left no pack: %w", err)
	}
	for _, p := range packs {
		st, err := os.Stat(p)
		if err != nil {
			return 0, nil, err
		}
		packBytes += st.Size()
	}
	for i := range l.Tags {
		out, err := git(nil, "rev-parse", l.Tag(i))
		if err != nil {
			return 0, nil, err
		}
		commits = append(commits, string(bytes.TrimSpace(out)))
	}
	return packBytes, commits, nil
}

// Tag is the i-th tag.
func (l Large) Tag(i int) string { return fmt.Sprintf("v1.%d.0", i) }

// stream is the history as git fast-import reads it; the same at each call.
func (l Large) stream(to io.Writer) error {
	w := bufio.NewWriterSize(to, 1<<20)
	noise := rand.NewChaCha8([32]byte{1})
	file := func(name string) {
		b := make([]byte, largeFile)
		noise.Read(b[:largeFile/2])
		copy(b[largeFile/2:], bytes.Repeat([]byte("// what is in many files\n"), largeFile))
		fmt.Fprintf(w, "M 100644 inline %s\ndata %d\n%s\n", name, len(b), b)
	}
	for i := range l.Tags {
		fmt.Fprintf(w, "commit refs/heads/main\ncommitter c <c@example.org> %d +0000\ndata 1\nc\n", 1_700_000_000+3600*i)
		if i == 0 {
			mod := fmt.Sprintf("module %s\n\ngo 1.20\n", l.Module)
			fmt.Fprintf(w, "M 100644 inline go.mod\ndata %d\n%s\n", len(mod), mod)
			for n := range l.Kept / largeFile {
				file(fmt.Sprintf("kept/d%d/f%d.txt", n%10, n))
			}
		}
		for n := range l.Changed / largeFile {
			file(fmt.Sprintf("changed/f%d.txt", n))
		}
		fmt.Fprintf(w, "\nreset refs/tags/%s\nfrom refs/heads/main\n\n", l.Tag(i))
	}
	return w.Flush()
}
