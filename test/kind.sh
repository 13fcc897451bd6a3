#!/usr/bin/env bash
# kind.sh: builds the image with docker, looks at what is in it, and on a new kind cluster
# installs the chart with no values (kind has a provisioner of volumes) under the Pod Security
# Standard "restricted", downloads a module through it from the public mirror (helm test),
# upgrades, rolls back and uninstalls. Needs docker, kubectl and the internet, and HELM and
# KIND, as `make test-kind` sets them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
docker info >/dev/null 2>&1 || { echo "no docker engine is here: kind needs one" >&2; exit 1; }
: "${HELM:?}" "${KIND:?}"
work=$(mktemp -d)
cluster=athensctl-$$
export KUBECONFIG=$work/kubeconfig
created=
finish() {
	status=$?
	if [ -n "$created" ]; then
		if [ "$status" != 0 ]; then
			kubectl --namespace modules get all,pvc,events || true
			kubectl --namespace modules logs --selector app.kubernetes.io/name=athensctl --tail 50 --prefix || true
		fi
		"$KIND" delete cluster --name "$cluster" || true
	fi
	rm -rf "$work"
}
trap finish EXIT

image=localhost/athensctl:kind
test/image.sh "$image" "$(git describe --tags --always)"
docker save --output "$work/image.tar" "$image"
go run ./test/image "$work/image.tar"

for values in charts/athensctl/ci/*-values.yaml; do
	"$HELM" lint --strict charts/athensctl --values "$values"
	"$HELM" template site charts/athensctl --values "$values" >/dev/null
done

created=yes
"$KIND" create cluster --name "$cluster" --wait 180s
"$KIND" load docker-image "$image" --name "$cluster"
kubectl create namespace modules
kubectl label namespace modules pod-security.kubernetes.io/enforce=restricted

helm() { "$HELM" "$@" --namespace modules; }
ours=(--set image.repository=localhost/athensctl --set image.tag=kind --set image.pullPolicy=Never)
helm install site charts/athensctl "${ours[@]}" --wait --timeout 5m
helm test site --logs
helm upgrade site charts/athensctl "${ours[@]}" --set settings.freshness=30s --wait --timeout 5m
helm test site --logs
helm rollback site 1 --wait --timeout 5m
helm test site --logs
helm uninstall site --wait
left=$(kubectl --namespace modules get deployments,services,configmaps,secrets,pods,persistentvolumeclaims \
	--selector app.kubernetes.io/instance=site --output name)
echo "left after uninstall: $left"
[ "$left" = persistentvolumeclaim/site-athensctl-storage ] || { echo "more or less than the volume is left" >&2; exit 1; }
