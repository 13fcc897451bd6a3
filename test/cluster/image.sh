#!/usr/bin/env bash
# image.sh OUT [ARCH...]: builds the image of the Dockerfile with buildah, without a
# registry or an engine, as the archive OUT/app.oci.tar (localhost/athensctl:dev), and for
# other machines as OUT/app-ARCH.oci.tar; and the pause image of the test cluster as
# OUT/pause.oci.tar. The Dockerfile's base image is stood in for by busybox and this
# machine's Go. VERSION is the version it gets. Needs root.
set -euo pipefail
out=$(realpath -m "$1")
shift
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
mkdir -p "$out"
work=$(mktemp -d)
export STORAGE_DRIVER=overlay BUILDAH_ISOLATION=chroot
build=(buildah --root "$work/layers" --runroot "$work/run")
trap '"${build[@]}" rm --all >/dev/null 2>&1 || true; umount "$work/layers/overlay" 2>/dev/null || true; rm -rf "$work"' EXIT

base=$(sed -n 's/^FROM .* \(docker.io[^ ]*\) AS build$/\1/p' Dockerfile)
c=$("${build[@]}" from scratch)
mnt=$("${build[@]}" mount "$c")
mkdir -p "$mnt"/{bin,tmp,etc/ssl/certs,usr/local,root,go/pkg/mod,usr/bin}
cp "$(command -v busybox)" "$mnt/bin/busybox"
for a in sh cp mkdir echo chmod chown find touch; do ln -s busybox "$mnt/bin/$a"; done
cp -a "$(go env GOROOT)" "$mnt/usr/local/go"
cp /etc/ssl/certs/ca-certificates.crt "$mnt/etc/ssl/certs/"
cp /etc/resolv.conf "$mnt/etc/" 2>/dev/null || true
"${build[@]}" unmount "$c"
"${build[@]}" config --env PATH=/usr/local/go/bin:/bin --env HOME=/root --env GOPATH=/go --env GOPROXY=off --env GOFLAGS=-mod=mod --env GONOSUMDB=* --env GOSUMDB=off --env GOTOOLCHAIN=local "$c"

go mod download
epoch=$(git log -1 --format=%ct)
image() { # FILE TAG ARCH
	# This buildah wants the base for the platform that is asked for, whatever --platform
	# its FROM has: what runs is this machine's Go all the same, and compiles for ARCH.
	"${build[@]}" config --arch "$3" "$c"
	"${build[@]}" commit -q "$c" "$base"
	"${build[@]}" bud --pull-never --network host -v "$(go env GOMODCACHE):/go/pkg/mod:ro" --platform "linux/$3" --timestamp "$epoch" \
		--build-arg VERSION="${VERSION:-$(git describe --tags --always 2>/dev/null || echo devel)}" \
		--build-arg REVISION="$(git rev-parse HEAD)" --build-arg SOURCE_DATE_EPOCH="$epoch" -t "$2" .
	rm -f "$1"
	"${build[@]}" push -q "$2" "oci-archive:$1:$2"
}
image "$out/app.oci.tar" localhost/athensctl:dev "$(go env GOHOSTARCH)"
for arch; do
	image "$out/app-$arch.oci.tar" "localhost/athensctl:dev-$arch" "$arch"
done

rm -f "$out/pause.oci.tar"
CGO_ENABLED=0 go build -o "$work/pause" ./test/cluster/pause
p=$("${build[@]}" from scratch)
"${build[@]}" copy -q "$p" "$work/pause" /pause
"${build[@]}" config --entrypoint '["/pause"]' "$p"
"${build[@]}" commit -q "$p" localhost/pause:dev
"${build[@]}" push -q localhost/pause:dev "oci-archive:$out/pause.oci.tar:localhost/pause:dev"
ls -l "$out"
