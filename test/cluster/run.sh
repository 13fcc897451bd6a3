#!/usr/bin/env bash
# run.sh: builds the image of the Dockerfile, starts a real one-node Kubernetes, and
# runs the tests of this folder in it. Needs root, and what `make cluster-tools`
# installs: KUBE_BIN (kube, kubectl) and HELM.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
[ "$(id -u)" = 0 ] || { echo "the test cluster needs root" >&2; exit 1; }
export CLUSTER_DIR=${CLUSTER_DIR:-/var/tmp/athensctl-cluster} PATH=$KUBE_BIN:$PATH:/usr/sbin:/sbin
images=$(mktemp -d)
trap 'rm -rf "$images" "$CLUSTER_DIR"' EXIT
./image.sh "$images"
go mod download
go run ../image --starts 5 "$images/app.oci.tar"
go test -c -tags cluster -o "$images/cluster.test" .
export PAUSE_TAR=$images/pause.oci.tar IMAGES=$images/app.oci.tar GOFLAGS=-mod=mod
./cluster.sh "$images/cluster.test" -test.v -test.timeout 25m
