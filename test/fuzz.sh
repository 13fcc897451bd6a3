#!/usr/bin/env bash
# fuzz.sh TIME: runs each fuzz target of the module for TIME.
set -euo pipefail
here=$(dirname "$0")
found=0
dirs=$(go list -f '{{.Dir}}' ./...)
for dir in $dirs; do
	for target in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$dir"/*_test.go 2>/dev/null); do
		found=$((found + 1))
		"$here/step.sh" "${dir#"$PWD"/} $target" go test -run '^$' -fuzz "^$target\$" -fuzztime "$1" "$dir"
	done
done
[ "$found" -gt 0 ] || { echo "no fuzz target found" >&2; exit 1; }
echo "$found fuzz targets, $1 each"
