#!/usr/bin/env bash
# Installs the servers of package.json, at the versions of package-lock.json, in
# the folder $1/azure-HASH, and links node_modules here to it. 420 MB.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
command -v npm >/dev/null || { echo "npm is missing: install Node.js" >&2; exit 1; }
dir="$1/azure-$(sha256sum package-lock.json | cut -c1-16)"
if [ ! -e "$dir/done" ]; then
	rm -rf "$dir"
	mkdir -p "$dir"
	cp package.json package-lock.json .npmrc "$dir"
	(cd "$dir" && npm ci --ignore-scripts --no-progress)
	touch "$dir/done"
fi
rm -rf node_modules
ln -s "$dir/node_modules" node_modules
