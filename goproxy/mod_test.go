package goproxy

import (
	"errors"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/mod/module"
)

// A go.mod file is one when the go command finds its module in it.
func TestCheckMod(t *testing.T) {
	m := module.Version{Path: "example.com/m", Version: "v1.0.0"}
	for mod, ok := range map[string]bool{
		"module example.com/m\n":                                true,
		"module \"example.com/m\"\n":                            true,
		"module `example.com/m`\n":                              true,
		"module (\n\t`example.com/m`\n)\ngo 1.99\nwhatever x\n": true,
		"module example.com/fork\nretract `v1.0.0`\n":           true,
		"":                               false,
		"go 1.20\n":                      false,
		"<html>module example.com/m\n":   false,
		"module `example.com/m\n":        false,
		"module example.com/m\ngo (\n":   false,
		"module `example.com/m`\ngo (\n": false,
		strings.Repeat("// x\n", MaxModBytes/5) + "module example.com/m\n": false,
	} {
		if err := CheckMod(m, []byte(mod)); (err == nil) != ok {
			t.Errorf("%.60q: %v", mod, err)
		}
	}
}

// A go.mod file of the largest size takes little memory to check, whatever is in it.
func TestCheckModMemory(t *testing.T) {
	m := module.Version{Path: "example.com/m", Version: "v1.0.0"}
	for name, tc := range map[string]struct {
		line string
		size int
		ok   bool
	}{
		"lines": {"a\n", MaxModBytes, true}, "blocks": {"a(\n)\n", MaxModBytes, true}, "words": {"a ", MaxModBytes, true}, "comments": {"//\n", MaxModBytes, true},
		"few enough lines": {"a\n", 2 * maxParsedLines, true}, "too few bytes to leave out": {"a ", maxParsedBytes - 100, true}, "no module": {"a\n", MaxModBytes, false},
	} {
		first := "module example.com/m\n"
		if !tc.ok {
			first = ""
		}
		mod := []byte(first + strings.Repeat(tc.line, (tc.size-len(first))/len(tc.line)))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := CheckMod(m, mod)
		runtime.ReadMemStats(&after)
		if (err == nil) != tc.ok {
			t.Errorf("%s: %.100v", name, err)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 20<<20 {
			t.Errorf("%s: %d MB were allocated", name, n>>20)
		}
	}
	if _, err := ParseMod("go.mod", make([]byte, maxParsedBytes+1)); !errors.Is(err, ErrLargeMod) {
		t.Errorf("%.100v", err)
	}
}
