// Command crds makes of CustomResourceDefinitions what the tests of the chart need of kinds
// that are not Kubernetes' own:
//
//	crds OUT FILE[=GROUP]...
//
// For each definition in a FILE, OUT/KIND-GROUP-VERSION.json is the schema of each version
// that is served, strict, named as kubeconform asks for it, and OUT/crds/NAME.json is the
// definition, for a cluster to install. With =GROUP the kind is another group's.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: crds OUT FILE[=GROUP]...")
		os.Exit(2)
	}
	for _, arg := range os.Args[2:] {
		if err := convert(os.Args[1], arg); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", arg, err)
			os.Exit(1)
		}
	}
}

type object = map[string]any

func convert(out, arg string) error {
	file, group, renamed := strings.Cut(arg, "=")
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	d := yaml.NewDecoder(f)
	for found := 0; ; {
		var o object
		if err := d.Decode(&o); err == io.EOF && found > 0 {
			return nil
		} else if err != nil {
			return err
		}
		if o == nil {
			continue
		}
		spec, _ := o["spec"].(object)
		meta, _ := o["metadata"].(object)
		names, _ := spec["names"].(object)
		versions, _ := spec["versions"].([]any)
		if o["kind"] != "CustomResourceDefinition" || meta == nil || names == nil || len(versions) == 0 {
			return fmt.Errorf("kind %v is no CustomResourceDefinition of apiextensions.k8s.io/v1", o["kind"])
		}
		found++
		if renamed {
			spec["group"], meta["name"] = group, fmt.Sprintf("%v.%s", names["plural"], group)
		}
		if err := write(filepath.Join(out, "crds", fmt.Sprintf("%v.json", meta["name"])), o); err != nil {
			return err
		}
		for _, v := range versions {
			v, _ := v.(object)
			schema, _ := v["schema"].(object)
			if v["served"] != true {
				continue
			}
			if schema["openAPIV3Schema"] == nil {
				return fmt.Errorf("version %v has no schema", v["name"])
			}
			short, _, _ := strings.Cut(fmt.Sprint(spec["group"]), ".")
			name := strings.ToLower(fmt.Sprintf("%v-%s-%v.json", names["kind"], short, v["name"]))
			if err := write(filepath.Join(out, name), strict(schema["openAPIV3Schema"])); err != nil {
				return err
			}
		}
	}
}

// strict refuses keys that the schema does not name, as Kubernetes drops them, where it
// does not say that others are kept.
func strict(v any) any {
	switch v := v.(type) {
	case object:
		o := object{}
		for k, x := range v {
			o[k] = strict(x)
		}
		_, others := o["additionalProperties"]
		// A schema of an object, and not a part of one below allOf or not, which has no type.
		if _, ok := o["properties"].(object); ok && o["type"] == "object" && !others && o["x-kubernetes-preserve-unknown-fields"] != true {
			o["additionalProperties"] = false
		}
		return o
	case []any:
		list := make([]any, len(v))
		for i, x := range v {
			list[i] = strict(x)
		}
		return list
	}
	return v
}

func write(file string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, b, 0o644))
}
