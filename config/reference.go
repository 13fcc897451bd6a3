package config

import (
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"
)

// typeName is what the reference page calls the setting's type.
func (f field) typeName() string {
	switch reflect.Zero(f.kind).Interface().(type) {
	case Bytes:
		return "size"
	case time.Duration:
		return "duration"
	case int, float64:
		return "number"
	}
	if f.secret {
		return "secret"
	}
	return strings.ToLower(f.kind.Name())
}

// WriteReference writes the reference page, docs/configuration.md.
func WriteReference(w io.Writer) {
	fmt.Fprint(w, `# Configuration

Every setting can be a flag, an environment variable or a key of a configuration
file (YAML, TOML or JSON: `+"`--config FILE`"+`). A flag wins over the environment, the
environment over the file. `+"`ATHENSCTL_CONFIG`"+` names the file as well. An unknown key or an impossible value is an error that
names it. `+"`athensctl config`"+` prints what is in force and where it came from.
This page is made from the code: `+"`go generate ./config`"+`.

A flag is `+"`--`"+` and the key. A duration reads like `+"`30s`"+` or `+"`1h30m`"+`, a size like `+"`512MiB`"+` or is a
number of bytes.

| key and flag | environment | type | default | meaning |
|---|---|---|---|---|
`)
	for _, f := range fields {
		def := "`" + f.def + "`"
		switch f.key {
		case "data-dir", "cache-dir", "upstream": // in words, not a value
			def = f.def
		}
		if f.def == "" {
			def = "none"
		}
		fmt.Fprintf(w, "| `%s` | `%s` | %s | %s | %s |\n", f.key, f.env(), f.typeName(), strings.ReplaceAll(def, "|", `\|`), strings.ReplaceAll(f.help, "|", `\|`))
	}
}
