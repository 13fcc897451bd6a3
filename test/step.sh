#!/usr/bin/env bash
# step.sh NAME COMMAND...: runs the command, says how long it took, and that it
# still runs once a minute.
set -uo pipefail
name=$1
shift
echo "== $name"
SECONDS=0
# The loop ends with this shell, and its sleep holds nothing open.
# shellcheck disable=SC2217
(while sleep 60 </dev/null >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
	echo "   $name: ${SECONDS} s so far"
done) &
beat=$!
"$@"
status=$?
kill "$beat" 2>/dev/null
wait "$beat" 2>/dev/null
if [ "$status" = 0 ]; then
	echo "   $name: done, ${SECONDS} s"
else
	echo "   $name: FAILED (exit $status), ${SECONDS} s" >&2
fi
exit "$status"
