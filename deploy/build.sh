#!/usr/bin/env bash
# build.sh IMAGE:TAG PLATFORMS: builds the image of the Dockerfile with docker buildx for
# linux/amd64, linux/arm64 or both (with a comma), pushes it with an SBOM and provenance
# attached, and prints its digest.
set -euo pipefail
tag=$1 platforms=$2
cd "$(dirname "${BASH_SOURCE[0]}")/.."
meta=$(mktemp)
trap 'rm -f "$meta"' EXIT
# A tree without commits of its own (a shallow clone has one) is a mistake of the caller:
# git describe fails rather than name the image after nothing.
version=$(git describe --tags --always)
revision=$(git rev-parse HEAD)
epoch=$(git log -1 --format=%ct)
docker buildx build --platform "$platforms" --pull \
	--build-arg "VERSION=$version" --build-arg "REVISION=$revision" --build-arg "SOURCE_DATE_EPOCH=$epoch" \
	--sbom=true --provenance=mode=max \
	--output "type=image,name=$tag,push=true,oci-mediatypes=true,rewrite-timestamp=true" \
	--metadata-file "$meta" . >&2
jq -er '."containerimage.digest"' "$meta"
