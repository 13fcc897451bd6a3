package main

import (
	"archive/zip"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"
	modzip "golang.org/x/mod/zip"
)

func TestPercentile(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = i + 1
	}
	for _, tc := range []struct {
		sorted []int
		p      float64
		want   int
	}{
		{nil, 50, 0},
		{[]int{7}, 0, 7},
		{[]int{7}, 99, 7},
		{[]int{1, 2}, 50, 1},
		{[]int{1, 2, 3}, 50, 2},
		{hundred, 0, 1},
		{hundred, 50, 50},
		{hundred, 99, 99},
		{hundred, 99.5, 100},
		{hundred, 100, 100},
	} {
		if got := percentile(tc.sorted, tc.p); got != tc.want {
			t.Errorf("percentile(%d values, %v) = %d, want %d", len(tc.sorted), tc.p, got, tc.want)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		xs   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := median(tc.xs); got != tc.want {
			t.Errorf("median(%v) = %v, want %v", tc.xs, got, tc.want)
		}
	}
	for _, tc := range []struct {
		a, b []float64
		want float64
	}{
		{[]float64{2, 30, 8}, []float64{1, 10, 2}, 3},
		{[]float64{2}, []float64{0}, 0},
		{[]float64{2}, nil, 0},
	} {
		if got := medianRatio(tc.a, tc.b); got != tc.want {
			t.Errorf("medianRatio(%v, %v) = %v, want %v", tc.a, tc.b, got, tc.want)
		}
	}
}

func TestParseStat(t *testing.T) {
	const line = "4242 (a) b (c)) S 17 4242 4242 0 -1 4194304 900 77 0 0 120 30 5 4 20 0 9 0 100 1000 200 18446744073709551615\n"
	got, err := parseStat(line)
	want := procStat{ppid: 17, cpu: 1590 * time.Millisecond, cminflts: 77}
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for _, bad := range []string{"", "1 (x) S 1", strings.Replace(line, " 120 ", " ? ", 1)} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestParsePeak(t *testing.T) {
	got, err := parsePeakKiB("Name:\tx\nVmPeak:\t  9 kB\nVmHWM:\t   12345 kB\nVmRSS:\t 1 kB\n")
	if got != 12345 || err != nil {
		t.Errorf("got %d, %v", got, err)
	}
	if _, err := parsePeakKiB("Name:\tx\n"); err == nil {
		t.Error("no error")
	}
}

func TestSnapshotTree(t *testing.T) {
	s := snapshot{
		1: {ppid: 0, cpu: 1000}, 10: {ppid: 1, cpu: 1}, 11: {ppid: 10, cpu: 20},
		12: {ppid: 11, cpu: 300}, 20: {ppid: 1, cpu: 5000},
	}
	tree := s.tree(10)
	slices.Sort(tree)
	if !slices.Equal(tree, []int{10, 11, 12}) {
		t.Errorf("tree %v", tree)
	}
	if got := s.cpu(10, 99); got != 321 {
		t.Errorf("cpu %d", got)
	}
}

// The watch sees a process that lives, and knows of one that is gone.
func TestWatchChildren(t *testing.T) {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		if os.Getenv("ATHENSCTL_TEST_REQUIRE") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	quiet := watchChildren([]int{os.Getpid()})
	if seen, reaped := quiet(); seen != 0 || reaped {
		t.Errorf("quiet: %d, %v", seen, reaped)
	}
	stop := watchChildren([]int{os.Getpid()})
	if err := exec.CommandContext(t.Context(), "sleep", "0.2").Run(); err != nil {
		t.Fatal(err)
	}
	if seen, reaped := stop(); seen != 1 || !reaped {
		t.Errorf("seen %d, reaped %v", seen, reaped)
	}
}

func TestTable(t *testing.T) {
	tab := table{{"File", "CPU µs"}}
	tab.add("zip", "12.5", "beyond")
	tab.add("a|b")
	const want = "" +
		"| File | CPU µs |\n" +
		"| ---- | ------ |\n" +
		"| zip  | 12.5   |\n" +
		"| a\\|b |        |\n"
	if got := tab.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if got := (table{}).String(); got != "" {
		t.Errorf("empty: %q", got)
	}
}

func TestSplitPath(t *testing.T) {
	for _, tc := range []struct {
		in            string
		kind          fileKind
		path, version string
		ok            bool
	}{
		{"/a.b/c/@v/list", kindList, "a.b/c", "", true},
		{"/a.b/c/@latest", kindLatest, "a.b/c", "", true},
		{"/a.b/c/@v/v1.2.3-rc.1.info", kindInfo, "a.b/c", "v1.2.3-rc.1", true},
		{"/a.b/c/@v/v1.2.3.zip", kindZip, "a.b/c", "v1.2.3", true},
		{"/a.b/c/@v/v1.2.3.exe", "", "", "", false},
		{"/a.b/c", "", "", "", false},
	} {
		kind, path, version, ok := splitPath(tc.in)
		if ok != tc.ok || ok && (kind != tc.kind || path != tc.path || version != tc.version) {
			t.Errorf("%s: %v %v %v %v", tc.in, kind, path, version, ok)
		}
	}
}

// What the bench makes up are modules by x/mod's rules, and as large as said.
func TestGenerated(t *testing.T) {
	ms, goMod := graph("bench.example/x", 20)
	if n := bytes.Count(goMod, []byte(" v1.1.0\n")); n != 20 {
		t.Errorf("%d requirements", n)
	}
	large := sized("bench.example/large", 5<<20, 1)
	if n := len(large.zip("v1.0.0")); n < 5<<20 || n > 5<<20+1024 {
		t.Errorf("5 MB zip has %d bytes", n)
	}
	for _, m := range append(ms, large) {
		version := m.versions[min(1, len(m.versions)-1)]
		name := filepath.Join(t.TempDir(), "m.zip")
		if err := os.WriteFile(name, m.zip(version), 0o600); err != nil {
			t.Fatal(err)
		}
		checked, err := modzip.CheckZip(module.Version{Path: m.path, Version: version}, name)
		if err == nil {
			err = checked.Err()
		}
		if err != nil {
			t.Errorf("%s@%s: %v", m.path, version, err)
		}
		zr, err := zip.OpenReader(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range zr.File {
			r, err := f.Open()
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			if _, err := b.ReadFrom(r); err != nil { // checks the sum too
				t.Errorf("%s: %v", f.Name, err)
			}
			if strings.HasSuffix(f.Name, "/go.mod") && !bytes.Equal(b.Bytes(), m.goMod(version)) {
				t.Errorf("%s is not the .mod", f.Name)
			}
		}
		zr.Close()
	}
}

func TestCorpus(t *testing.T) {
	dir := t.TempDir()
	base := filepath.Join(dir, "example.com", "!a", "@v")
	if err := os.MkdirAll(base, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(base, "v1.0.0-!r!c.mod"), []byte("module example.com/A\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	u, err := startUpstream("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.close)
	u.setCorpus(dir)
	for path, want := range map[string]string{
		"/example.com/!a/@v/v1.0.0-!r!c.mod":  "module example.com/A\n",
		"/example.com/!a/@v/v1.0.0-!r!c.info": `{"Version":"v1.0.0-RC"}`,
		"/example.com/!a/@v/v1.0.1.info":      "",
		"/example.com/!a/@latest":             "",
	} {
		body, err := get(t.Context(), u.url+path)
		if string(body) != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", path, body, err)
		}
	}
	if n := u.count(kindInfo, "example.com/"); n != 2 {
		t.Errorf("%d .info requests counted", n)
	}
}

func TestOptions(t *testing.T) {
	opt, err := parseOptions([]string{"--only=warm,herd", "--peer", "a=http://127.0.0.1:1/", "--peer-pid", "a=7"}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(opt.peers, []peerOption{{"a", "http://127.0.0.1:1", 7}}) || opt.only["cold"] || !opt.only["herd"] {
		t.Errorf("%+v", opt)
	}
	for _, args := range [][]string{
		{"--only=hot"}, {"--peer=a"}, {"--peer=bare=http://127.0.0.1:1"}, {"--peer-pid=a=1"}, {"--peer-pid=a=x"},
		{"--nginx=maybe"}, {"--passes=0"}, {"more"},
	} {
		if _, err := parseOptions(args, t.Output()); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}

// Every budget of a section that ran is listed, and missed when nothing was
// measured.
func TestBudgetsWithoutFigures(t *testing.T) {
	opt, err := parseOptions(nil, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	rep := newReport(opt)
	rep.Budgets = budgets(opt, rep)
	if len(rep.Budgets) != 23 || rep.passed() {
		t.Errorf("%d budgets, passed %v", len(rep.Budgets), rep.passed())
	}
	for _, b := range rep.Budgets {
		if b.OK || b.Measured != notMeasured {
			t.Errorf("%+v", b)
		}
	}
	if md := rep.Markdown(); strings.Count(md, "**missed**") != 23 {
		t.Error(md)
	}
}
