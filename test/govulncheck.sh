#!/bin/sh
# Runs govulncheck; that its database cannot be reached is said, not a failure.
out=$("$1" ./... 2>&1) && { echo "govulncheck: nothing found"; exit 0; }
case $out in
*vuln.go.dev*dial*|*vuln.go.dev*"no such host"*|*"fetching vulnerabilities"*)
	echo "govulncheck: its database is out of reach, not run" ;;
*)
	echo "$out"; exit 1 ;;
esac
