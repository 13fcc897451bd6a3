package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/athensctl/athensctl/storage"
)

// Jobs that failed come first, with their last error on one line; then by age.
func TestPrintJobs(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	key := func(path string) storage.Key {
		return storage.Key{Path: path, Query: "v1.0.0", File: storage.FileZip}
	}
	var out strings.Builder
	printJobs(&out, []storage.Job{
		{Key: key("example.com/young"), Created: now.Add(-time.Second)},
		{Key: key("example.com/done"), Created: now.Add(-time.Minute), Worker: "c-7/1", LeaseEnds: now.Add(time.Second), Attempts: 1},
		{Key: key("example.com/again"), Created: now.Add(-time.Hour), NotBefore: now.Add(4 * time.Second), Attempts: 2, LastStatus: 504, LastErr: "no answer\nat all"},
		{Key: key("example.com/parked"), Created: now.Add(-2 * time.Hour), NotBefore: now.Add(time.Minute), Parked: true, Attempts: 5, LastStatus: 502, LastErr: "out of order"},
		{Key: key("example.com/due"), Created: now.Add(-3 * time.Hour), NotBefore: now.Add(-time.Minute), Parked: true, Attempts: 6, LastStatus: 502, LastErr: "out of order"},
	}, 5, now)
	var got []string
	for line := range strings.Lines(out.String()) {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	want := []string{
		"JOB STATE AGE TRIES LAST ERROR",
		"example.com/due@v1.0.0#zip waits 3h0m0s 6 out of order",
		"example.com/parked@v1.0.0#zip parked for 1m0s 2h0m0s 5 out of order",
		"example.com/again@v1.0.0#zip again in 4s 1h0m0s 2 no answer at all",
		"example.com/done@v1.0.0#zip is done by c-7/1 1m0s 1",
		"example.com/young@v1.0.0#zip waits 1s 0",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	out.Reset()
	printJobs(&out, []storage.Job{{Key: key("example.com/young"), Created: now}, {Key: key("example.com/old"), Created: now.Add(-time.Hour)}}, 1, now)
	if !strings.Contains(out.String(), "example.com/old") || strings.Contains(out.String(), "example.com/young") {
		t.Errorf("the first of two:\n%s", out.String())
	}
}

func TestParseJob(t *testing.T) {
	for _, k := range []storage.Key{
		{Path: "example.com/m", Query: "v1.0.0", File: storage.FileZip}, {Path: "example.com/m", File: storage.FileList},
		{Path: "example.com/m", Query: "feature#1", File: storage.FileInfo}, {Path: "example.com/m", Query: "latest", File: storage.FileInfo},
	} {
		if got, err := parseJob(k.String()); err != nil || got != k {
			t.Errorf("%s: %+v, %v", k, got, err)
		}
	}
	for _, s := range []string{"", "example.com/m", "example.com/m@v1.0.0", "example.com/m#zip", "@v1.0.0#zip", "example.com/m@v1.0.0#tar"} {
		if k, err := parseJob(s); err == nil || !strings.Contains(err.Error(), "not a job such as") {
			t.Errorf("%q: %+v, %v", s, k, err)
		}
	}
}
