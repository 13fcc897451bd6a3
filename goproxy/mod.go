package goproxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
)

// What of a go.mod file is parsed: more than any has. The syntax tree of a hostile one of
// 16 MiB takes 1.5 GB.
const (
	maxParsedBytes = 256 << 10
	maxParsedLines = 20_000
)

// ErrLargeMod: the file is too large to be parsed.
var ErrLargeMod = errors.New("it is too large to be parsed")

// ParseMod is modfile.ParseLax in little memory: a file of more than 256 KiB or 20,000 lines
// is ErrLargeMod.
func ParseMod(name string, mod []byte) (*modfile.File, error) {
	if len(mod) > maxParsedBytes || bytes.Count(mod, []byte("\n")) > maxParsedLines {
		return nil, ErrLargeMod
	}
	return modfile.ParseLax(name, mod, nil)
}

// CheckMod says why a go.mod file cannot be used: too large, or not in the
// go.mod syntax; of one that is ErrLargeMod, that it declares no module. It may declare
// another path than m's: forks behind a replace directive do.
func CheckMod(m module.Version, mod []byte) error {
	if len(mod) > MaxModBytes {
		return fmt.Errorf("%s: go.mod is larger than %d bytes", m, MaxModBytes)
	}
	f, err := ParseMod(m.String()+"/go.mod", mod)
	switch declared := modfile.ModulePath(mod) != ""; {
	case errors.Is(err, ErrLargeMod) && declared:
		return nil
	case err != nil && declared:
		// The go command finds a path in raw quotes, which its parser refuses:
		// https://go.dev/ref/mod#go-mod-file-lexical.
		f, err = ParseMod(m.String()+"/go.mod", bytes.ReplaceAll(mod, []byte("`"), []byte(`"`)))
	}
	if err == nil && f.Module == nil {
		err = errors.New("it declares no module")
	}
	if err != nil {
		return fmt.Errorf("%s: go.mod cannot be parsed: %w", m, err)
	}
	return nil
}

// SynthesisedMod is the go.mod file of a module that has none.
// Source: https://go.dev/ref/mod#non-module-compat.
func SynthesisedMod(path string) []byte {
	return fmt.Appendf(nil, "module %s\n", modfile.AutoQuote(path))
}

// ModH1 is the h1: hash of a go.mod file as go.sum and the checksum database
// have it.
func ModH1(mod []byte) (string, error) {
	return dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(mod)), nil
	})
}
