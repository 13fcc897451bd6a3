#!/usr/bin/env bash
# run.sh: everything that can be known of deploy/terraform without Azure: format,
# validation against the real provider's schema, terraform test with a mock of it, tflint,
# and the Go test here. It needs what `make test-terraform` builds: TERRAFORM, AZURERM,
# TFLINT and HELM. Nothing is asked of the network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

"$TERRAFORM" fmt -check -diff -recursive deploy/terraform

# The work is done in a copy: init writes beside the files.
git ls-files -z --cached --others --exclude-standard deploy charts/athensctl/files | xargs -0 cp --parents -t "$tmp"
cd "$tmp/deploy/terraform"

# The provider comes from a folder laid out by its address, which Terraform tells.
export TF_CLI_CONFIG_FILE=$tmp/terraformrc TF_IN_AUTOMATION=1 CHECKPOINT_DISABLE=1
echo "provider_installation { filesystem_mirror { path = \"$tmp/mirror\" } }" >"$TF_CLI_CONFIG_FILE"
address=$("$TERRAFORM" -chdir=modules/network providers | sed -n 's/.*provider\[\([^]]*\)\].*/\1/p')
version=$(basename "$(dirname "$AZURERM")")
version=${version##*-v}
mirror=$tmp/mirror/$address/$version/$(go env GOOS)_$(go env GOARCH)
mkdir -p "$mirror"
ln -s "$AZURERM" "$mirror/terraform-provider-azurerm_v$version"

for dir in modules/* staging production; do
	echo "-- $dir"
	"$TERRAFORM" -chdir="$dir" init -backend=false -input=false -no-color >"$tmp/init.log" || { cat "$tmp/init.log"; exit 1; }
	"$TERRAFORM" -chdir="$dir" validate -no-color
	[ ! -d "$dir/tests" ] || "$TERRAFORM" -chdir="$dir" test -no-color
done
"$TFLINT" --recursive --config "$PWD/.tflint.hcl" --no-color
echo "-- tflint: clean"

cd "$OLDPWD"
TERRAFORM_DIR=$tmp/deploy/terraform go test -count=1 -tags terraform -timeout 20m -v ./test/terraform
