#!/usr/bin/env bash
# report.sh OUT: builds the image of the Dockerfile for this machine and for the other of
# amd64 and arm64, and for this machine once more, which must give the same digest; lists what
# is in each and fails if anything is there that should not be, compares each binary with one
# built outside of the image, measures the start, and asks
# govulncheck (the variable GOVULNCHECK) about the binary. Needs root, and what
# `make cluster-tools` installs.
set -euo pipefail
out=$(realpath -m "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
[ "$(id -u)" = 0 ] || { echo "to build and start the image needs root" >&2; exit 1; }
VERSION=$(git describe --tags --always 2>/dev/null || echo devel)
export VERSION
host=$(go env GOHOSTARCH) other=arm64
[ "$host" = amd64 ] || other=amd64
test/cluster/image.sh "$out" "$other"
test/cluster/image.sh "$out/again"
go build -o "$out/image" ./test/image
for arch in "$host" "$other"; do
	echo
	# The Dockerfile's command, in another folder, with this machine's Go and build cache.
	CGO_ENABLED=0 GOFLAGS='' GOOS=linux GOARCH=$arch go build -trimpath -buildvcs=false \
		-ldflags "-s -w -buildid= -X github.com/athensctl/athensctl/internal/cli.version=$VERSION" -o "$out/athensctl-$arch" .
	if [ "$arch" = "$host" ]; then
		"$out/image" --same "$out/again/app.oci.tar" --binary "$out/athensctl-$arch" --extract "$out/athensctl" --starts 15 "$out/app.oci.tar"
	else
		"$out/image" --binary "$out/athensctl-$arch" "$out/app-$arch.oci.tar"
	fi
done
echo
test/govulncheck.sh "$GOVULNCHECK" -mode=binary "$out/athensctl"
