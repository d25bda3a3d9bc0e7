#!/bin/sh
# Makes the given targets one after the other up to the first failure, and says how long each took.
set -u
cd "$(dirname "$0")/.." || exit 1

began=$(date +%s)
table=''
row() { table="$table$(printf '%3dm %02ds  %s' $(($1 / 60)) $(($1 % 60)) "$2")
"; }

for stage in "$@"; do
  printf '\n== %s\n' "$stage"
  start=$(date +%s)
  status=0
  make --no-print-directory "$stage" || status=$?
  spent=$(($(date +%s) - start))
  if [ "$status" != 0 ]; then
    row "$spent" "$stage: FAILED"
    break
  fi
  row "$spent" "$stage"
done
row $(($(date +%s) - began)) "in all"
printf '\n%s' "$table"
if [ "$status" != 0 ]; then
  printf 'stage %s failed; run it alone: make %s\n' "$stage" "$stage" >&2
  exit 1
fi
