#!/usr/bin/env bash
# schemas.sh VERSION OUT: the JSON schemas of Kubernetes' kinds, for kubeconform, from the
# API description that is in the Go module of that version; and those of the kinds of others
# that the chart may make, from the modules of their projects, with their definitions in
# OUT/crds. Azure's managed Prometheus has the operator's kinds under a group of its own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
module() { # MODULE@VERSION: its folder
	go mod download -json "$1" | python3 -c 'import json, sys; print(json.load(sys.stdin)["Dir"])'
}
dir=$(module "k8s.io/kubernetes@$1")
gateway=$(module sigs.k8s.io/gateway-api@v1.6.3)
prometheus=$(module github.com/prometheus-operator/prometheus-operator@v0.85.0)
keda=$(module github.com/kedacore/keda/v2@v2.21.0)
rm -rf "$2.tmp"
python3 mkschema.py "$dir/api/openapi-spec/swagger.json" "$2.tmp"
monitors=$prometheus/example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml
go run ./crds "$2.tmp" \
	"$gateway/config/crd/standard/gateway.networking.k8s.io_httproutes.yaml" \
	"$monitors" "$monitors=azmonitoring.coreos.com" \
	"$prometheus/example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml" \
	"$keda/config/crd/bases/keda.sh_scaledobjects.yaml"
mv "$2.tmp" "$2"
