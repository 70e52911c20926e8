#!/usr/bin/env bash
# One model's heavy stages on this machine: clone, run what is stale, push. What `lensmith fleet` does, without Ray.
#
#     chain.sh URL COMMIT MODEL        such as: chain.sh git@github.com:you/lab.git "$(git rev-parse HEAD)" atlas
#
# Needs git and an environment with lensmith on the path, and whatever credentials DVC's remote asks for. A clone is kept
# under LENSMITH_HOME; run again after a failure, it goes on from DVC's cache and the checkpoints of the fit.
set -euo pipefail

main() {
  local url=$1 commit=$2 model=$3
  local home=${LENSMITH_HOME:-$HOME/.cache/lensmith}
  local clone=$home/chain/$model
  mkdir -p "$clone"
  exec 9> "$clone.lock"
  flock 9 # two at once would work in one folder

  [ -d "$clone/.git" ] || git clone --quiet "$url" "$clone"
  cd "$clone"
  git fetch --quiet origin
  git checkout --quiet --force --detach "$commit"
  lensmith fleet only "$model" # DVC's own time grows with the models of a lab
  dvc --wait-for-lock repro --pull "prefetch@$model"
  lensmith fetch "$model" # which prefetch does where it runs, and here a remote may have its corpus
  dvc --wait-for-lock repro --pull "sweep@$model" "suite-eval@$model"
  dvc push --run-cache "prefetch@$model" "fit@$model" "sweep@$model" "suite-eval@$model"
}

# bash may be reading this file from stdin, which git and ssh would empty.
main "$@" < /dev/null
