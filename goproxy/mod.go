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

// CheckMod says why a go.mod file cannot be used: too large, or not in the
// go.mod syntax. It may declare another path than m's: forks behind a replace
// directive do.
func CheckMod(m module.Version, mod []byte) error {
	if len(mod) > MaxModBytes {
		return fmt.Errorf("%s: go.mod is larger than %d bytes", m, MaxModBytes)
	}
	f, err := modfile.ParseLax(m.String()+"/go.mod", mod, nil)
	if err != nil && modfile.ModulePath(mod) != "" {
		// The go command finds a path in raw quotes, which its parser refuses:
		// https://go.dev/ref/mod#go-mod-file-lexical.
		f, err = modfile.ParseLax(m.String()+"/go.mod", bytes.ReplaceAll(mod, []byte("`"), []byte(`"`)), nil)
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
