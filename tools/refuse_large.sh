#!/usr/bin/env bash
# A commit hook: refuse files beyond one mebibyte. Models live elsewhere.
set -euo pipefail
status=0
for path in "$@"; do
  if (($(stat -c %s -- "$path") > 1048576)); then
    echo "$path is larger than 1 MiB" >&2
    status=1
  fi
done
exit "$status"
