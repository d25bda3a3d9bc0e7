#!/bin/sh
# Runs every linter, even after one has failed, so that all findings are seen at once; zero findings pass.
set -u
cd "$(dirname "$0")/.." || exit 1

failed=''
run() {
  start=$(date +%s)
  "$@" || failed="$failed $1"
  printf '%-14s %3ds\n' "$1" $(($(date +%s) - start))
}

# What runs before there is an environment must be right on any shell.
run shellcheck -x scripts/*.sh scripts/vault-client .ci/run roles/*/files/*.sh
run yamllint --strict --config-file .config/yamllint.yml .
run ruff check --quiet .
run ruff format --check --quiet .
run mypy --no-error-summary
run ansible-lint -q --nocolor --yamllint-file .config/yamllint.yml
run antsibull-changelog lint
[ -z "$failed" ] || { echo "findings from:$failed" >&2; exit 1; }
