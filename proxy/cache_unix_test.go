//go:build unix

package proxy

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Very many small files take more of a disk than what is in them: it is the disk that the
// bound is about, also after a restart.
func TestCacheSmallFiles(t *testing.T) {
	const bound = 1 << 20
	dir := t.TempDir()
	for range 2 {
		c, err := openDiskCache(dir, bound)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 1000 {
			if err := c.put(fmt.Sprint("hash", i), strings.NewReader("x"), 1, time.Time{}); err != nil {
				t.Fatal(err)
			}
		}
		var taken int64 // as du counts it
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			var st syscall.Stat_t
			if err := syscall.Stat(name, &st); err != nil {
				t.Fatal(err)
			}
			taken += st.Blocks * 512
		}
		if taken > bound || len(files) < 100 {
			t.Errorf("%d files take %d bytes of the disk, of %d", len(files), taken, bound)
		}
		c.close()
	}
}
