#!/usr/bin/env bash
# image.sh TAG VERSION: builds the image of the Dockerfile with docker, or with buildah
# where there is no docker engine. It needs a registry for the base image.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
epoch=$(git log -1 --format=%ct)
args=(--build-arg "VERSION=$2" --build-arg "REVISION=$(git rev-parse HEAD)" --build-arg "SOURCE_DATE_EPOCH=$epoch" -t "$1" .)
if docker info >/dev/null 2>&1; then
	exec docker build "${args[@]}"
elif command -v buildah >/dev/null; then
	exec buildah bud --timestamp "$epoch" "${args[@]}"
fi
echo "neither a docker engine nor buildah is here" >&2
exit 1
