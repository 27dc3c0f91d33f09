# shellcheck shell=bash
# Where a command of a recipe runs, to be sourced (a recipe's cmd.sh chooses, this file does).
#
#     run_cmd BACKEND COMMAND...     BACKEND is one word list:
#         local                      here, as it stands
#         torchrun N                 N processes on this machine (one a GPU, or N on the CPU)
#         srun OPTIONS...            SLURM; the options go to srun as they stand
#
#     for_each JOBS FUNCTION ITEM... runs `FUNCTION ITEM` for every item, JOBS at a time, each line of output marked
#                                    with its item; fails, naming the items, when one of them failed.

run_cmd() {
  local -a words
  read -r -a words <<<"$1"
  shift
  case ${words[0]-} in
    local)
      "$@"
      ;;
    torchrun)
      if [[ ! ${words[1]-} =~ ^[1-9][0-9]*$ ]] || [ ${#words[@]} -ne 2 ]; then
        printf 'run_cmd: "%s": torchrun takes the number of processes, for example "torchrun 4"\n' "${words[*]}" >&2
        return 2
      fi
      torchrun --standalone --nproc-per-node "${words[1]}" --no-python "$@"
      ;;
    srun)
      srun "${words[@]:1}" "$@"
      ;;
    *)
      printf 'run_cmd: unknown backend "%s"; choose local, "torchrun N" or "srun OPTIONS"\n' "${words[*]-}" >&2
      return 2
      ;;
  esac
}

for_each() {
  local -r jobs=$1 function=$2
  shift 2
  local -A item_of=()
  local -a failed=()
  local item pid="" status running=0
  wait_for_one() {
    status=0
    # `wait` may stand in a condition: the job behind it runs in its own subshell, where `set -e` holds.
    wait -n -p pid "${!item_of[@]}" || status=$?
    if [ "$status" -ne 0 ]; then failed+=("${item_of[$pid]} (exit status $status)"); fi
    unset "item_of[$pid]"
    running=$((running - 1))
  }
  for item in "$@"; do
    if [ "$running" -ge "$jobs" ]; then wait_for_one; fi
    # Background jobs of a script ignore Ctrl-C; the trap line gives it back to them.
    (
      trap - INT QUIT
      set -euo pipefail
      ("$function" "$item") 2>&1 | sed -u "s|^|[${item//|/ }] |"
    ) &
    item_of[$!]=$item
    running=$((running + 1))
  done
  while [ "$running" -gt 0 ]; do wait_for_one; done
  if [ ${#failed[@]} -gt 0 ]; then
    printf '%s failed for: %s\n' "$function" "${failed[*]}" >&2
    return 1
  fi
}
