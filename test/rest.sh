#!/usr/bin/env bash
# rest.sh [SECONDS]: what each role takes of memory when nobody asks for anything: the three
# roles as processes with an empty store, for a minute or SECONDS, and then the most that was
# resident (VmHWM) and what is (VmRSS). docs/kubernetes.md has what it printed. Linux alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
port=${REST_PORT:-39480} # the first of three free ports
dir=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait; rm -rf "$dir"' EXIT
CGO_ENABLED=0 go build -trimpath -o "$dir/athensctl" .
export ATHENSCTL_INTERNAL_TOKEN=0123456789abcdef
roles=(storage crawler proxy)
for i in 0 1 2; do
	flags=(--role="${roles[i]}" --listen="127.0.0.1:$((port + i))" --data-dir="$dir/${roles[i]}")
	[ "$i" = 0 ] || flags+=(--storage-url="http://127.0.0.1:$port")
	[ "$i" != 2 ] || flags+=(--crawler-url="http://127.0.0.1:$((port + 1))")
	"$dir/athensctl" serve "${flags[@]}" 2>"$dir/${roles[i]}.log" &
	pids+=($!)
done
sleep "${1:-60}"
for i in 0 1 2; do
	curl --fail --silent --show-error --output /dev/null "http://127.0.0.1:$((port + i))/readyz"
	awk -v role="${roles[i]}" '/^Vm(HWM|RSS)/ {kb[$1] = $2} END {printf "%-8s most %.1f MiB, now %.1f MiB\n", role, kb["VmHWM:"] / 1024, kb["VmRSS:"] / 1024}' "/proc/${pids[i]}/status"
done
