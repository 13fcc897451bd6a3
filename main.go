// Command athensctl is a Go module proxy in three roles: see README.md.
package main

import (
	"os"

	"github.com/athensctl/athensctl/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], os.Environ(), os.Stdout, os.Stderr)) }
