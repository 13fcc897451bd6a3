#!/usr/bin/env bash
# snapshot.sh GORELEASER: checks .goreleaser.yaml and builds in dist/ what a tag would
# release, but for SBOMs and signatures; then that all files are there, with their checksums,
# and that the binary for this machine says which version it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
"$1" check
"$1" release --snapshot --clean --skip=publish,sign,sbom
cd dist
sha256sum --check --strict checksums.txt
for platform in linux_amd64.tar.gz linux_arm64.tar.gz darwin_amd64.tar.gz darwin_arm64.tar.gz windows_amd64.zip windows_arm64.zip; do
	grep -q "_$platform\$" checksums.txt || { echo "nothing for $platform" >&2; exit 1; }
done
[ "$(wc -l <checksums.txt)" = 6 ] || { echo "more in checksums.txt than is expected" >&2; exit 1; }
for program in "athensctl_linux_$(go env GOHOSTARCH)"*/athensctl; do
	"$program" version
done
