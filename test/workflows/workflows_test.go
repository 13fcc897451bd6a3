// Package workflows has the tests of .github: what actionlint does not hold. Actions are
// pinned by commit with the version beside it; a job has the permissions that it names, and
// an end; scripts get what events say as environment variables, never as text; nothing is
// stored as a secret; a pull request from a fork gets no identity and no environment.
package workflows

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/template"

	"go.yaml.in/yaml/v3"
)

const root = "../.."

type object = map[string]any

// files are the workflows and the actions of this repository, by their paths in it.
func files(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := fs.WalkDir(os.DirFS(root), ".github", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !(strings.HasPrefix(path, ".github/workflows/") || strings.HasPrefix(path, ".github/actions/")) {
			return err
		}
		b, err := os.ReadFile(filepath.Join(root, path))
		all[path] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 6 {
		t.Fatalf("only %d files", len(all))
	}
	return all
}

func TestWorkflows(t *testing.T) {
	all := files(t)
	for path, text := range all {
		if err := check(path, text); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := samePins(all); err != nil {
		t.Error(err)
	}
}

// The notes of a release name the image as image.yml does, which leaves the v off.
func TestReleaseNotes(t *testing.T) {
	text, err := os.ReadFile(root + "/.goreleaser.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var release struct{ Release struct{ Footer string } }
	if err := yaml.Unmarshal(text, &release); err != nil {
		t.Fatal(err)
	}
	var footer strings.Builder
	// Source: https://goreleaser.com/customization/templates: Version is Tag without the v.
	err = template.Must(template.New("").Parse(release.Release.Footer)).Execute(&footer, map[string]string{"Tag": "v1.2.3", "Version": "1.2.3"})
	if err != nil || !strings.Contains(files(t)[".github/workflows/image.yml"], "$NAME:${TAG#v}") {
		t.Fatal("the footer or image.yml is not what this test knows", err)
	}
	for _, want := range []string{"`ghcr.io/athensctl/athensctl:1.2.3`", "/blob/v1.2.3/docs/delivery.md"} {
		if !strings.Contains(footer.String(), want) {
			t.Errorf("the footer is without %s:\n%s", want, &footer)
		}
	}
}

var (
	uses   = regexp.MustCompile(`(?m)^\s*(?:- )?uses:\s*(\S+)(.*)$`)
	pinned = regexp.MustCompile(`^([\w.-]+/[\w./-]+)@([0-9a-f]{40})$`)
	tagged = regexp.MustCompile(`^ # v\d+\.\d+\.\d+$`)
)

func samePins(all map[string]string) error {
	var errs []error
	pins := map[string]string{}
	for path, text := range all {
		for _, m := range uses.FindAllStringSubmatch(text, -1) {
			name, _, _ := strings.Cut(m[1], "@")
			if pin := m[1] + m[2]; pins[name] == "" {
				pins[name] = pin
			} else if pins[name] != pin {
				errs = append(errs, fmt.Errorf("%s: %s, elsewhere %s", path, pin, pins[name]))
			}
		}
	}
	return errors.Join(errs...)
}

// check returns all that is wrong with one file.
func check(path, text string) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	found := 0
	for _, m := range uses.FindAllStringSubmatch(text, -1) {
		found++
		if local, ok := strings.CutPrefix(m[1], "./"); ok {
			if _, err := os.Stat(filepath.Join(root, local)); err != nil {
				bad("uses: %s: %w", m[1], err)
			}
		} else if !pinned.MatchString(m[1]) {
			bad("uses: %s is not pinned by a commit", m[1])
		} else if !tagged.MatchString(m[2]) {
			bad("uses: %s has no comment with its version, but %q", m[1], m[2])
		}
	}
	if strings.Contains(text, "secrets.") {
		bad("a stored secret is used")
	}
	var w object
	if err := yaml.Unmarshal([]byte(text), &w); err != nil {
		return errors.Join(append(errs, err)...)
	}
	steps := 0
	eachStep := func(name string, list any) {
		for _, s := range asList(list) {
			step, _ := s.(object)
			if _, ok := step["uses"]; ok {
				steps++
			}
			if run, _ := step["run"].(string); strings.Contains(run, "${{") {
				bad("%s: a script has an expression in its text: %s", name, run)
			}
			action, _ := step["uses"].(string)
			with, _ := step["with"].(object)
			if strings.HasPrefix(action, "actions/checkout@") && with["persist-credentials"] != false {
				bad("%s: checkout leaves its token behind", name)
			}
		}
	}
	if runs, ok := w["runs"].(object); ok { // an action
		eachStep("runs", runs["steps"])
		return errors.Join(errs...)
	}

	on := triggers(w)
	for _, t := range on {
		if t == "pull_request_target" || t == "workflow_run" {
			bad("%s runs strangers' text with this repository's rights", t)
		}
	}
	if p, ok := w["permissions"].(object); !ok || len(p) != 0 {
		bad("permissions are %v, not {} with each job naming its own", w["permissions"])
	}
	if defaults, _ := w["defaults"].(object); defaults == nil || fmt.Sprint(defaults["run"]) != "map[shell:bash]" {
		bad("the shell is not bash with pipefail: defaults are %v", defaults)
	}
	// GitHub keeps one run of a group waiting, and cancels the one that waited before: that must
	// not be one which has yet to be tested. A run that is called has the event of its caller.
	if group, _ := w["concurrency"].(object); group != nil && (slices.Contains(on, "push") || slices.Contains(on, "workflow_call")) {
		if name := fmt.Sprint(group["group"]); !strings.Contains(name, "github.run_id") && !onlyTags(w) {
			bad("concurrency: pushes share the group %s: some would be cancelled before they are tested", name)
		}
		if c := fmt.Sprint(group["cancel-in-progress"]); c != "false" && c != "${{ github.event_name == 'pull_request' }}" {
			bad("concurrency: a push may be cancelled by the next: cancel-in-progress is %s", c)
		}
	}
	jobs, _ := w["jobs"].(object)
	if len(jobs) == 0 {
		bad("no jobs")
	}
	for name, j := range jobs {
		job, _ := j.(object)
		permissions, ok := job["permissions"].(object)
		if !ok {
			bad("%s: permissions are %v", name, job["permissions"])
		}
		if _, called := job["uses"]; called {
			steps++
		} else if job["timeout-minutes"] == nil {
			bad("%s: no timeout-minutes", name)
		}
		if job["concurrency"] != nil && fmt.Sprint(job["uses"]) == "./.github/workflows/ci.yml" {
			bad("%s: tests wait for each other: some would be cancelled", name)
		}
		eachStep(name, job["steps"])
		identity := permissions["id-token"] != nil || job["environment"] != nil
		if slices.Contains(on, "pull_request") && identity && !ours(jobs, name) {
			bad("%s: a pull request from a fork gets an identity or an environment", name)
		}
	}
	if found != steps {
		bad("%d lines with uses:, but %d steps and jobs have one", found, steps)
	}
	return errors.Join(errs...)
}

// ours says whether a job is skipped for a pull request from a fork, or needs one that is.
func ours(jobs object, name string) bool {
	job, _ := jobs[name].(object)
	condition, _ := job["if"].(string)
	if strings.Contains(condition, "always()") || strings.Contains(condition, "failure()") || strings.Contains(condition, "||") {
		return false
	}
	for _, part := range strings.Split(condition, "&&") {
		if strings.TrimSpace(part) == "github.event.pull_request.head.repo.full_name == github.repository" {
			return true
		}
	}
	for _, need := range asList(job["needs"]) {
		if ours(jobs, fmt.Sprint(need)) {
			return true
		}
	}
	return false
}

// onlyTags says whether all pushes that start a workflow are of tags: each is its own ref.
func onlyTags(w object) bool {
	on, _ := w["on"].(object)
	push, _ := on["push"].(object)
	return len(on) == 1 && push["tags"] != nil && push["branches"] == nil && push["branches-ignore"] == nil
}

func triggers(w object) (list []string) {
	switch on := w["on"].(type) {
	case object:
		for name := range on {
			list = append(list, name)
		}
	default:
		for _, name := range asList(on) {
			list = append(list, fmt.Sprint(name))
		}
	}
	return list
}

// asList is a YAML value that may be one, a list, or absent.
func asList(v any) []any {
	switch v := v.(type) {
	case nil:
		return nil
	case []any:
		return v
	}
	return []any{v}
}

func TestRefused(t *testing.T) {
	const staging, ci, production = ".github/workflows/deploy-staging.yml", ".github/workflows/ci.yml", ".github/workflows/deploy-production.yml"
	const checkout = "actions/checkout@de0fac2e4500dabe0009e67214ff5f5447ce83dd # v6.0.2"
	all := files(t)
	for _, c := range []struct{ path, from, to, want string }{
		{ci, checkout, "actions/checkout@v6 # v6.0.2", "not pinned by a commit"},
		{ci, checkout, "actions/checkout@de0fac2 # v6.0.2", "not pinned by a commit"},
		{ci, checkout, "actions/checkout@de0fac2e4500dabe0009e67214ff5f5447ce83dd", "no comment with its version"},
		{ci, checkout, "actions/checkout@de0fac2e4500dabe0009e67214ff5f5447ce83dd # v6", "no comment with its version"},
		{ci, checkout, "docker://busybox:latest", "not pinned by a commit"},
		{ci, "uses: " + checkout, `"uses": actions/checkout@v6`, "lines with uses:"},
		{production, "uses: ./.github/workflows/image.yml", "uses: ./.github/workflows/images.yml", "no such file"},
		{ci, "persist-credentials: false", "persist-credentials: true", "checkout leaves its token"},
		{ci, "permissions: {}", "permissions: write-all", "not {}"},
		{ci, "permissions: {}\n", "", "not {}"},
		{ci, "    permissions:\n      contents: read\n", "", "permissions are <nil>"},
		{ci, "    timeout-minutes: 60\n", "", "no timeout-minutes"},
		{ci, "    shell: bash # with pipefail", "    shell: sh", "not bash"},
		{ci, "make test-kind", `make test-kind NAME="${{ github.event.pull_request.title }}"`, "a script has an expression"},
		{ci, "  pull_request:\n", "  pull_request_target:\n", "strangers' text"},
		{ci, "contents: read\n", "contents: read\n      id-token: write\n", "a fork gets an identity"},
		{ci, "github.ref || github.run_id", "github.ref || github.ref_name", "pushes share the group"},
		{ci, "  cancel-in-progress: ${{ github.event_name == 'pull_request' }}", "  cancel-in-progress: true", "a push may be cancelled"},
		{production, "jobs:\n", "concurrency:\n  group: deploy-production\n  cancel-in-progress: false\njobs:\n", "pushes share the group"},
		{production, "    uses: ./.github/workflows/ci.yml\n", "    uses: ./.github/workflows/ci.yml\n    concurrency: tests\n", "tests wait for each other"},
		{staging, "vars.AZURE_CLIENT_ID", "secrets.AZURE_CLIENT_ID", "a stored secret"},
		{staging, "'closed' && github.event.pull_request.head.repo.full_name == github.repository", "'closed'", "a fork gets an identity"},
		{staging, "'closed' && github.event.pull_request.head.repo.full_name == github.repository", "'closed' || github.event.pull_request.head.repo.full_name == github.repository", "a fork gets an identity"},
		{staging, "    needs: plan\n", "    needs: plan\n    if: always()\n", "preview: a pull request from a fork"},
	} {
		t.Run(c.to, func(t *testing.T) {
			if !strings.Contains(all[c.path], c.from) {
				t.Fatalf("%s has no %q", c.path, c.from)
			}
			err := check(c.path, strings.Replace(all[c.path], c.from, c.to, 1))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	all[ci] = strings.Replace(all[ci], checkout, "actions/checkout@11bd71901bbe5b1630ceea73d27597364c9af683 # v4.2.2", 1)
	if err := samePins(all); err == nil || !strings.Contains(err.Error(), "v4.2.2") {
		t.Errorf("two versions of an action: %v", err)
	}
}
