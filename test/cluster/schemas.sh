#!/usr/bin/env bash
# schemas.sh VERSION OUT: the JSON schemas of Kubernetes' kinds, for kubeconform, from
# the API description that is in the Go module of that version.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
dir=$(go mod download -json "k8s.io/kubernetes@$1" | python3 -c 'import json, sys; print(json.load(sys.stdin)["Dir"])')
rm -rf "$2.tmp"
python3 mkschema.py "$dir/api/openapi-spec/swagger.json" "$2.tmp"
mv "$2.tmp" "$2"
