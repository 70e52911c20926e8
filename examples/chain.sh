#!/usr/bin/env bash
# One model's heavy stages on this machine, as a node of `lensmith fleet` runs them, without Ray: clone, run, push.
#
#     chain.sh URL COMMIT MODEL        such as: chain.sh git@github.com:you/lab.git "$(git rev-parse HEAD)" atlas
#
# It needs git, an environment with lensmith on the path, and the credentials of DVC's remote. The clone stays under
# LENSMITH_HOME, so that a second run after a failure goes on from DVC's cache and the checkpoints of the fit.
set -euo pipefail

main() {
  local url=$1 commit=$2 model=$3
  local home=${LENSMITH_HOME:-$HOME/.cache/lensmith}
  local entry=$home/fleet/$model-chain # `lensmith cache ls` lists it
  local clone=$entry/clone
  mkdir -p "$clone"
  exec 9> "$entry/.lock"
  flock 9 # two runs must not work in one folder, and `lensmith cache prune` deletes none that is in use

  [ -d "$clone/.git" ] || git clone --quiet "$url" "$clone"
  cd "$clone"
  git fetch --quiet origin
  git checkout --quiet --force --detach "$commit"
  lensmith fleet only "$model" # DVC's own time grows with the number of models
  dvc --wait-for-lock repro --pull "prefetch@$model"
  lensmith fetch "$model" # prefetch downloads the weights, but its output may come from the remote instead
  dvc --wait-for-lock repro --pull "sweep@$model" "suite-eval@$model"
  dvc push --run-cache "prefetch@$model" "fit@$model" "sweep@$model" "suite-eval@$model"
}

# ssh.sh sends this file through stdin, from which git and ssh must not read.
main "$@" < /dev/null
