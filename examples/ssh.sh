#!/usr/bin/env bash
# Models over machines by ssh, one at a time on each:
#
#     examples/ssh.sh "gpu1 gpu2" atlas atlas-reference
#
# Each machine has an environment with lensmith in ~/.venv, or in LENSMITH_ENV. Models that fail are named.
set -euo pipefail
read -ra hosts <<< "$1"
shift
models=("$@")
url=$(git remote get-url origin)
commit=$(git rev-parse HEAD)
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
environment=${LENSMITH_ENV:-\$HOME/.venv} # expanded on the other machine

work() { # HOST MODEL...
  local host=$1 failed=0
  shift
  for model in "$@"; do
    ssh "$host" "PATH=$environment/bin:\$PATH bash -s -- '$url' '$commit' '$model'" < "$folder/chain.sh" \
      || { echo "$model failed on $host" >&2; failed=1; }
  done
  return "$failed"
}

jobs=()
for i in "${!hosts[@]}"; do
  mine=()
  for ((j = i; j < ${#models[@]}; j += ${#hosts[@]})); do mine+=("${models[j]}"); done
  [ "${#mine[@]}" = 0 ] || { work "${hosts[i]}" "${mine[@]}" & jobs+=("$!"); }
done
status=0
for job in "${jobs[@]}"; do wait "$job" || status=1; done
exit "$status"
