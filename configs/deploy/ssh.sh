#!/usr/bin/env bash
# One service on several hosts, started over ssh:
#
#   configs/deploy/ssh.sh LAUNCH_FILE HOST0 HOST1 … [-- --set SECTION.KEY=VALUE …]
#
# Every host has this checkout, set up, at the same path. HOST0 is reached by the others under that name and takes the
# requests; it uses COORDINATOR_PORT (29500) and the two ports that follow. Ctrl-C drains the service.
set -euo pipefail

(($# >= 3)) || { sed -n 's/^# \?//; 2,7p' "${BASH_SOURCE[0]}" >&2; exit 2; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
radjax=${RADJAX:-$root/.venv/bin/radjax}
launch_file=$(realpath "$1")
shift
hosts=()
while (($#)) && [[ $1 != -- ]]; do
  hosts+=("$1")
  shift
done
(($# == 0)) || shift

serve() { # RANK, then what overrides the launch file
  local rank=$1
  shift
  local command=(
    "$radjax" serve "$launch_file"
    --set "distributed.hosts=${#hosts[@]}"
    --set "distributed.rank=$rank"
    --set "distributed.coordinator=${hosts[0]}:${COORDINATOR_PORT:-29500}"
    "$@"
  )
  printf 'cd %q && exec %s' "$root" "$(printf '%q ' "${command[@]}")"
}

for ((rank = 1; rank < ${#hosts[@]}; rank++)); do
  ssh -n "${hosts[rank]}" "$(serve "$rank" "$@")" &
done
status=0
ssh -t "${hosts[0]}" "$(serve 0 "$@")" || status=$?
wait # the others end with host 0
exit "$status"
