package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"
)

type field struct {
	key, def, help string
	secret, zero   bool
	index          int
	kind           reflect.Type
}

var fields = table()

func table() (t []field) {
	s := reflect.TypeFor[Config]()
	for i := range s.NumField() {
		f := s.Field(i)
		if key, ok := f.Tag.Lookup("key"); ok {
			t = append(t, field{key, f.Tag.Get("default"), f.Tag.Get("help"), f.Tag.Get("secret") != "", f.Tag.Get("zero") != "", i, f.Type})
		}
	}
	return t
}

func (f field) env() string {
	return "ATHENSCTL_" + strings.ToUpper(strings.ReplaceAll(f.key, "-", "_"))
}

// Flags defines a flag for each setting, and --config for the file.
func Flags(fs *pflag.FlagSet) {
	fs.String("config", "", "configuration file: YAML, TOML or JSON (environment: ATHENSCTL_CONFIG)")
	for _, f := range fields {
		switch f.kind {
		case reflect.TypeFor[bool]():
			fs.Bool(f.key, f.def == "true", f.help)
		case reflect.TypeFor[List]():
			fs.Var(&listFlag{f.def}, f.key, f.help)
		default:
			fs.String(f.key, f.def, f.help)
		}
	}
}

// Load reads the settings: flags that were set, the environment ("K=V"), the
// file, the defaults. All errors are returned together.
func Load(flags *pflag.FlagSet, environ []string) (*Config, error) {
	return read(flags, environ, false)
}

// LoadForStore is Load for a command that serves nobody and works on the store: where
// storage-url is set, that of the storage role there, whatever role, network-mode and the
// settings of a store of Azure's say: those of the storage process will do.
func LoadForStore(flags *pflag.FlagSet, environ []string) (*Config, error) {
	return read(flags, environ, true)
}

func read(flags *pflag.FlagSet, environ []string, forStore bool) (*Config, error) {
	c := &Config{}
	env := map[string]string{}
	for _, kv := range environ {
		if k, v, _ := strings.Cut(kv, "="); strings.HasPrefix(k, "ATHENSCTL_") && v != "" {
			env[k] = v
		}
	}
	var errs []error
	file := env["ATHENSCTL_CONFIG"]
	if f := flags.Lookup("config"); f != nil && f.Changed {
		file = f.Value.String()
	}
	inFile, err := readFile(file)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	for k := range inFile {
		if !slices.ContainsFunc(fields, func(f field) bool { return f.key == k }) {
			errs = append(errs, fmt.Errorf("%s: unknown key %q", file, k))
		}
	}
	known := map[string]bool{"ATHENSCTL_CONFIG": true}
	for _, f := range fields {
		known[f.env()] = true
		text, source := f.def, "default"
		if raw := inFile[f.key]; raw != nil { // null is as good as absent
			t, err := f.fromFile(raw)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s (file %s): %w", f.key, file, err))
				continue
			}
			text, source = t, "file "+file
		}
		if e := env[f.env()]; e != "" {
			text, source = e, "environment "+f.env()
		}
		if fl := flags.Lookup(f.key); fl != nil && fl.Changed {
			text, source = fl.Value.String(), "flag"
		}
		switch computed := source == "default" || text == ""; {
		case f.key == "upstream" && source == "default":
			text = DefaultUpstream
		case f.key == "zip-workers" && source == "default":
			text = strconv.Itoa(max(1, min(16, c.Workers)))
		case f.key == "data-dir" && computed:
			text = defaultDataDir()
		case f.key == "cache-dir" && computed:
			text = filepath.Join(c.DataDir, "cache")
		}
		if err := set(reflect.ValueOf(c).Elem().Field(f.index), f, text); err != nil {
			errs = append(errs, fmt.Errorf("%s (%s): %w", f.key, source, err))
		}
		c.settings = append(c.settings, Setting{f.key, mask(f, text), source})
	}
	for k, value := range env {
		if !known[k] && !strings.HasPrefix(k, "ATHENSCTL_TEST_") && !serviceLink(k, value) {
			errs = append(errs, fmt.Errorf("environment: unknown setting %s", k))
		}
	}
	// The matcher takes spaces literally: "a, b" would not cover b.
	for _, p := range []*string{&c.Private, &c.CrawlMatch, &c.VCSInsecure} {
		*p = strings.Join(strings.FieldsFunc(*p, func(r rune) bool { return r == ',' || unicode.IsSpace(r) }), ",")
	}
	elsewhere := forStore && c.StorageURL != "" && c.Has("storage")
	if elsewhere {
		c.Role = "crawler"
	}
	if len(errs) == 0 {
		errs = c.validate(elsewhere)
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return c, nil
}

// readFile decodes a file by its ending. It takes viper's decoders but not its
// store, which folds the case of keys and drops a key whose value is {}.
func readFile(name string) (map[string]any, error) {
	if name == "" {
		return nil, nil
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	format := strings.TrimPrefix(filepath.Ext(name), ".")
	if !slices.Contains([]string{"yaml", "yml", "toml", "json"}, format) {
		return nil, fmt.Errorf("%s: its name has to end in .yaml, .yml, .toml or .json", name)
	}
	decoder, err := viper.NewCodecRegistry().Decoder(format)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	values := map[string]any{}
	if err := decoder.Decode(data, values); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return values, nil
}

// serviceLink: Kubernetes tells a pod of its Services in the environment.
func serviceLink(k, value string) bool {
	return strings.Contains(k, "_SERVICE_HOST") || strings.Contains(k, "_SERVICE_PORT") ||
		strings.HasPrefix(value, "tcp://") || strings.HasPrefix(value, "udp://") || strings.Contains(k, "_PORT_")
}

// defaultDataDir is "" where no home folder is known.
func defaultDataDir() string {
	home, _ := os.UserHomeDir()
	var parent string
	switch xdg := os.Getenv("XDG_DATA_HOME"); {
	case runtime.GOOS == "windows":
		parent = os.Getenv("LocalAppData")
	case runtime.GOOS == "darwin" && home != "":
		parent = filepath.Join(home, "Library", "Application Support")
	case runtime.GOOS != "darwin" && filepath.IsAbs(xdg): // XDG: ignore what is relative
		parent = xdg
	case runtime.GOOS != "darwin" && home != "":
		parent = filepath.Join(home, ".local", "share")
	}
	if parent == "" {
		return ""
	}
	return filepath.Join(parent, "athensctl")
}
