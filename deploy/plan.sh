#!/usr/bin/env bash
# plan.sh ROOT [FLAG...]: inits and plans the Terraform root ROOT, and leaves there
# tfplan, tfplan.txt (as people read it) and tfplan.sha256 (of what would change: two plans
# that would do the same have the same). STATE_RESOURCE_GROUP and STATE_ACCOUNT are where the
# state is, TFVARS the content of a file of variables. FLAGs are terraform plan's.
set -euo pipefail
root=$1
shift
: "${STATE_RESOURCE_GROUP:?the resource group of the state}" "${STATE_ACCOUNT:?the storage account of the state}" "${TFVARS:?variables of the root}"
export TF_IN_AUTOMATION=1 TF_INPUT=0
cd "$root"
printf '%s\n' "$TFVARS" >pipeline.auto.tfvars
terraform init -no-color -backend-config="resource_group_name=$STATE_RESOURCE_GROUP" -backend-config="storage_account_name=$STATE_ACCOUNT"
terraform plan -no-color -out=tfplan "$@"
terraform show -no-color tfplan >tfplan.txt
terraform show -json tfplan | jq -cS '[.resource_changes[]? | select(.change.actions != ["no-op"]) | {address, change}], [.output_changes // {} | to_entries[] | select(.value.actions != ["no-op"])]' |
	sha256sum | cut -d' ' -f1 >tfplan.sha256
if [ -n "${GITHUB_STEP_SUMMARY:-}" ]; then # of 1 MiB at most
	{
		# shellcheck disable=SC2016 # a code block's fence
		printf '### terraform plan: %s\n\n```\n' "$root"
		head -c 900000 tfplan.txt
		# shellcheck disable=SC2016
		printf '\n```\n'
	} >>"$GITHUB_STEP_SUMMARY"
fi
if [ -n "${GITHUB_OUTPUT:-}" ]; then
	echo "plan=$(cat tfplan.sha256)" >>"$GITHUB_OUTPUT"
fi
