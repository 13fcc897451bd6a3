package charts

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// values walks values.yaml: each leaf, its default and the comment that describes it.
func values(t *testing.T) (rows [][3]string) {
	data, err := os.ReadFile(chart + "/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	describe := func(nodes ...*yaml.Node) string {
		for _, n := range nodes {
			for _, c := range []string{n.LineComment, n.HeadComment} {
				if i := strings.LastIndex(c, "# -- "); i >= 0 {
					return strings.TrimSpace(c[i+len("# -- "):])
				}
			}
		}
		return ""
	}
	var walk func(prefix string, n *yaml.Node)
	walk = func(prefix string, n *yaml.Node) {
		for i := 0; i < len(n.Content); i += 2 {
			k, v := n.Content[i], n.Content[i+1]
			path := prefix + k.Value
			text := describe(k, v)
			if text == "" && v.Kind == yaml.MappingNode && len(v.Content) > 0 {
				walk(path+".", v)
				continue
			}
			if text == "" {
				t.Errorf("values.yaml: %s has no line that says what it is", path)
			}
			if v.Kind != yaml.ScalarNode {
				v.Style = yaml.FlowStyle
			}
			v.LineComment, v.HeadComment, v.FootComment = "", "", ""
			for _, c := range v.Content {
				c.LineComment, c.HeadComment, c.FootComment = "", "", ""
			}
			def, err := yaml.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			rows = append(rows, [3]string{path, strings.Join(strings.Fields(string(def)), " "), text})
		}
	}
	walk("", doc.Content[0])
	return rows
}

func TestReadme(t *testing.T) {
	var b strings.Builder
	b.WriteString("| value | default | what |\n|---|---|---|\n")
	for _, r := range values(t) {
		fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", r[0], r[1], strings.ReplaceAll(r[2], "|", `\|`))
	}
	const file = chart + "/README.md"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const begin = "<!-- values: made by go test ./charts -update -->\n"
	before, have, ok := strings.Cut(string(text), begin)
	if !ok {
		t.Fatalf("%s has no place for the values", file)
	}
	if *update {
		if err := os.WriteFile(file, []byte(before+begin+b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if have != b.String() {
		t.Errorf("%s is not true: run go test ./charts -update", file)
	}
}

// The schema knows every value, and no other.
func TestSchema(t *testing.T) {
	data, err := os.ReadFile(chart + "/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	schemaData, err := os.ReadFile(chart + "/values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var v, s object
	if err := yaml.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(schemaData, &s); err != nil {
		t.Fatal(err)
	}
	var walk func(path string, v, s object)
	walk = func(path string, v, s object) {
		props, _ := s["properties"].(object)
		if s["additionalProperties"] != false {
			t.Errorf("%s: the schema takes what it does not know", path)
		}
		for k := range props {
			if _, ok := v[k]; !ok && !(path == "" && k == "global") && !strings.HasSuffix(path, ".resources") {
				t.Errorf("%s.%s is in the schema, and not in values.yaml", path, k)
			}
		}
		for k, x := range v {
			p, ok := props[k].(object)
			if !ok {
				t.Errorf("%s.%s is not in the schema", path, k)
				continue
			}
			if m, ok := x.(object); ok && p["properties"] != nil {
				walk(path+"."+k, m, p)
			}
		}
	}
	walk("", v, s)
}

// What the guides say to give the chart, the chart takes, after the values for AKS too; and
// the objects that they apply are Kubernetes'.
func TestGuides(t *testing.T) {
	values := regexp.MustCompile("(?s)```yaml\n(.*?)```")
	applied := regexp.MustCompile(`(?s)\n( *)kubectl [^\n]*apply [^\n]*<<'END'\n(.*?)\n *END\n`)
	plain, err := render(t)
	if err != nil {
		t.Fatal(err)
	}
	taken, held := 0, 0
	for _, name := range []string{"aks", "kubernetes", "tracing"} {
		text, err := os.ReadFile("../docs/" + name + ".md")
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range values.FindAllStringSubmatch(string(text), -1) {
			if strings.HasPrefix(m[1], "apiVersion: keda.sh/") { // TriggerAuthentication, whose schema is not among those that make test makes
				continue
			}
			file := filepath.Join(t.TempDir(), "values.yaml")
			if err := os.WriteFile(file, []byte(m[1]), 0o644); err != nil {
				t.Fatal(err)
			}
			for _, args := range [][]string{{"-f", file}, {"-f", chart + "/ci/aks-values.yaml", "-f", file}} {
				got, err := render(t, args...)
				if err != nil {
					t.Errorf("%s.md: %v\n%s", name, err, m[1])
				} else if out, err := conform(t, got); err != nil {
					t.Errorf("%s.md: %s\n%s", name, out, m[1])
				} else if got == plain {
					t.Errorf("%s.md: these values change nothing:\n%s", name, m[1])
				}
			}
			taken++
		}
		for _, m := range applied.FindAllStringSubmatch(string(text), -1) {
			if out, err := conform(t, strings.ReplaceAll("\n"+m[2], "\n"+m[1], "\n")); err != nil {
				t.Errorf("%s.md: %s\n%s", name, out, m[2])
			}
			held++
		}
	}
	if taken < 5 || held < 2 {
		t.Errorf("%d values and %d objects of the guides: this test does not see them", taken, held)
	}
}
