#!/usr/bin/env bash
# Fails on files that gofmt would change, and on those it cannot read.
set -euo pipefail
files=$(gofmt -l .)
[ -z "$files" ] || { printf 'gofmt -w is due for:\n%s\n' "$files" >&2; exit 1; }
