#!/usr/bin/env bash
# Fails on what shellcheck warns of, in every script of the repository.
set -euo pipefail
mapfile -t scripts < <(git ls-files --cached --others --exclude-standard '*.sh' .ci/run)
shellcheck --severity=warning "${scripts[@]}"
echo "${#scripts[@]} scripts"
