#!/usr/bin/env bash
# site.sh release ROOT IMAGE    installs or upgrades the release of a site
# site.sh preview ROOT pr-N IMAGE   puts a pull request into a namespace of its own
# site.sh remove ROOT pr-N          removes that namespace, and all in it
#
# ROOT is a Terraform root (deploy/terraform/staging, say) that has been applied, and inited
# here: its outputs say which cluster and registry. IMAGE is NAME@sha256:DIGEST. az is logged
# in. A release's image is verified (it was signed by this repository's pipeline) and copied
# to the site's registry; a preview's is in it already. What is deployed is the digest. HELM_VALUES
# is the content of one more file of values.
set -euo pipefail
verb=${1:?release, preview or remove} root=${2:?a Terraform root}
shift 2
chart=$(cd "$(dirname "${BASH_SOURCE[0]}")/../charts/athensctl" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export KUBECONFIG=$work/kubeconfig
repository=${GITHUB_REPOSITORY:-athensctl/athensctl}

terraform -chdir="$root" output -json >"$work/outputs.json"
output() { jq -er "$1" "$work/outputs.json"; }

connect() {
	az aks get-credentials --only-show-errors --resource-group "$(output .cluster.value.resource_group)" --name "$(output .cluster.value.name)" --file "$KUBECONFIG"
	kubelogin convert-kubeconfig --login azurecli
}

digest_of() { # IMAGE
	[[ $1 =~ ^[a-z0-9.:/_-]+@sha256:[0-9a-f]{64}$ ]] || { echo "$1 is no NAME@sha256:DIGEST" >&2; exit 1; }
	echo "${1#*@}"
}

upgrade() { # RELEASE NAMESPACE DIGEST HELM-FLAGS...
	local release=$1 namespace=$2 digest=$3
	shift 3
	if [ -n "${HELM_VALUES:-}" ]; then
		printf '%s\n' "$HELM_VALUES" >"$work/more.yaml"
		set -- "$@" --values "$work/more.yaml"
	fi
	helm upgrade "$release" "$chart" --install --namespace "$namespace" --rollback-on-failure --wait --timeout 10m \
		"$@" --set-string "image.digest=$digest"
	if ! helm test "$release" --namespace "$namespace" --timeout 5m --logs; then
		echo "helm test failed: back to the revision before" >&2
		helm rollback "$release" --namespace "$namespace" --wait --timeout 10m
		exit 1
	fi
}

case $verb in
release)
	image=${1:?an image}
	digest=$(digest_of "$image")
	cosign verify "$image" --output text \
		--certificate-oidc-issuer https://token.actions.githubusercontent.com \
		--certificate-identity-regexp "^https://github\.com/$repository/\.github/workflows/image\.yml@refs/(heads/main|tags/v[0-9].*)$" >/dev/null
	registry=$(output .registry.value)
	namespace=$(output .cluster.value.namespace)
	az acr login --only-show-errors --name "${registry%%.*}"
	# One source that is an index is copied as it is: the digest stays.
	docker buildx imagetools create --tag "$registry/athensctl:${digest:7:12}" "$image"
	connect
	kubectl --namespace "$namespace" create secret generic athensctl-front-door \
		--from-literal=header="$(output .require_header.value)" --dry-run=client --output yaml |
		kubectl --namespace "$namespace" apply --filename -
	output .helm_values.value >"$work/values.yaml"
	upgrade athensctl "$namespace" "$digest" --values "$chart/ci/aks-values.yaml" --values "$work/values.yaml"
	;;
preview | remove)
	name=${1:?pr-N}
	[[ $name =~ ^pr-[0-9]+$ ]] || { echo "$name is no pr-N" >&2; exit 1; }
	if [ "$verb" = remove ]; then
		connect
		helm uninstall "$name" --namespace "$name" --ignore-not-found --wait
		kubectl delete namespace "$name" --ignore-not-found --wait --timeout=10m
		exit
	fi
	image=${2:?an image}
	digest=$(digest_of "$image")
	connect
	kubectl create namespace "$name" --dry-run=client --output yaml | kubectl apply --filename -
	kubectl label namespace "$name" --overwrite pod-security.kubernetes.io/enforce=restricted
	upgrade "$name" "$name" "$digest" --values "$(dirname "$chart")/../deploy/preview-values.yaml" --set-string "image.repository=${image%@*}"
	;;
*)
	echo "$verb is neither release nor preview nor remove" >&2
	exit 1
	;;
esac
