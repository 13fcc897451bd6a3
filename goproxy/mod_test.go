package goproxy

import (
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
