package cli

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/disk"
)

// A command that is interrupted while somebody does not answer says so, and not that
// something is wrong with what it did not try to the end.
func TestInterrupted(t *testing.T) {
	for _, args := range []string{
		"doctor --upstream=URL,direct --sumdb=off",
		"doctor --role=proxy --storage-url=URL --crawler-url=URL",
		"doctor --store=cosmos --cosmos-endpoint=URL --cosmos-key=" + key + " --upstream=off --sumdb=off",
		"queue list --storage-url=URL",
		"queue drop --storage-url=URL example.com/m@v1.0.0#zip",
		"storage init --store=cosmos --cosmos-endpoint=URL --cosmos-key=" + key,
		"warm --server=URL example.com/m@v1.0.0",
		"warm --upstream=URL --sumdb=off example.com/m@v1.0.0",
		"import URL",
		"verify --storage-url=URL",
		"serve --store=cosmos --cosmos-endpoint=URL --cosmos-key=" + key + " --listen=127.0.0.1:0",
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			ctx, interrupt := context.WithCancel(t.Context())
			url := server(t, func(_ http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body) // or the server does not see that the client leaves
				interrupt()
				<-r.Context().Done()
			})
			line := strings.Fields(strings.ReplaceAll(args, "URL", url))
			var out, errs bytes.Buffer
			start := time.Now()
			status := execute(ctx, append(line, "--data-dir="+t.TempDir()), nil, &out, &errs)
			if status != 130 || !strings.Contains(errs.String(), "interrupted before the end") || strings.Contains(out.String()+errs.String(), "FAIL") || strings.Contains(out.String(), "1 failed") {
				t.Errorf("exit status %d after %v\n%s%s", status, time.Since(start), &out, &errs)
			}
			if ctx.Err() == nil {
				t.Error("nobody was asked")
			}
		})
	}
}

// A number that can't be meant is refused, and not taken for another.
func TestWrongNumbers(t *testing.T) {
	for args, want := range map[string]string{
		"queue list --store=memory --limit=0":     "limit: 0 is not",
		"queue list --store=memory --limit=-1":    "limit: -1 is not",
		"queue list --store=memory --limit=10001": "limit: 10001 is not",
		"storage init --store=cosmos --cosmos-endpoint=http://127.0.0.1:1 --throughput=-5 --cosmos-key=" + key: "not -5",
		"storage init --store=cosmos --cosmos-endpoint=http://127.0.0.1:1 --autoscale=-5 --cosmos-key=" + key:  "not -5",
	} {
		var out, errs bytes.Buffer
		if status := Main(strings.Fields(args), nil, &out, &errs); status != 1 || !strings.Contains(errs.String(), want) {
			t.Errorf("%s: exit status %d, %s%s", args, status, &out, &errs)
		}
	}
}

// What the limit leaves out is not left out in silence.
func TestQueueLimit(t *testing.T) {
	dir := t.TempDir()
	s, err := disk.Open(dir, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"example.com/a", "example.com/b"} {
		if _, err := s.Enqueue(t.Context(), storage.Job{Key: storage.Key{Path: path, File: storage.FileList}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for limit, said := range map[string]string{"1": "1 jobs of 2: see --limit\n", "2": "", "10000": ""} {
		var out, errs bytes.Buffer
		status := Main([]string{"queue", "list", "--data-dir", dir, "--limit", limit}, nil, &out, &errs)
		if status != 0 || errs.String() != said || !strings.Contains(out.String(), "@#list") {
			t.Errorf("limit %s: exit status %d, %s%s", limit, status, &out, &errs)
		}
	}
}

// A name that is no command's is an error, below another command too.
func TestUnknownCommand(t *testing.T) {
	for _, args := range []string{"no", "queue no", "storage no"} {
		var out, errs bytes.Buffer
		if status := Main(strings.Fields(args), nil, &out, &errs); status != 1 || !strings.Contains(errs.String(), `unknown command "no"`) {
			t.Errorf("%s: exit status %d, %s", args, status, &errs)
		}
	}
	for _, args := range []string{"", "queue", "storage"} {
		var out bytes.Buffer
		if status := Main(strings.Fields(args), nil, &out, &out); status != 0 || !strings.Contains(out.String(), "Available Commands") {
			t.Errorf("%s: exit status %d, %s", args, status, &out)
		}
	}
}
