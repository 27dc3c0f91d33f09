# shellcheck shell=bash
# shellcheck disable=SC2154 # device, gpus, nodes, nj, train_cmd and decode_cmd come from run.sh and its cmd.sh
# What the recipes of the real corpora share, to be sourced by run.sh after utils/stages.sh and cmd.sh.
#
#     words=($(gpu_words 8 16))       devices and accumulation that keep the paper's batch on the GPUs there are
#     transcribe CUTS OUT WORDS...    recognition in $nj parts side by side, put together
#     transcribe_sets CUTS=OUT ... -- WORDS...    several sets at once, so that the model is loaded once for all
#     join_manifests OUT FILE...      gzipped manifests one after the other
#     existing FILE...                those that are there, one a line

# A plan is shown without Python too, then without the list of what is missing.
have_python() {
  command -v python3 >/dev/null
}

existing() {
  local file
  for file in "$@"; do
    if [ -n "$file" ] && [ -e "$file" ]; then printf '%s\n' "$file"; fi
  done
}

# An absolute path, so that manifests hold wherever they are read; nothing of nothing.
absolute() {
  if [ -n "$1" ]; then realpath -m -- "$1"; fi
}

# The words of `xllm-speech train` for a phase that the paper ran on $1 GPUs with $2 batches of one GPU to a step. On fewer GPUs
# more batches make a step, so that a step sees as much as the paper's.
gpu_words() {
  local -r paper=$1 batches=$(($1 * $2))
  local count=$gpus
  if [ "$device" = cpu ]; then count=1; fi
  if [[ $train_cmd == local ]] && ((count > paper)); then count=$paper; fi
  if ((count < 1 || batches % count != 0 || count % nodes != 0)); then
    printf -- '--gpus %s: %s batches make a step of this phase; take a number that divides them, and that --nodes %s divides\n' \
      "$gpus" "$batches" "$nodes" >&2
    return 2
  fi
  printf '%s\n' "train.device=$device" "train.devices=$((count / nodes))" "train.accumulate=$((batches / count))"
}

# Where part $1 of a decoding computes: with `local` the parts go round the GPUs, elsewhere every job has its own.
part_device() {
  if [ "$device" = cuda ] && [ "$decode_cmd" = local ]; then
    printf 'cuda:%d\n' $((($1 - 1) % gpus))
  else
    printf '%s\n' "$device"
  fi
}

transcribe() { # cuts, output, words of xllm-speech transcribe
  local -r cuts=$1 out=$2 parts=$2.parts
  local -ra words=("${@:3}")
  if [ "$nj" -le 1 ]; then
    run_cmd "$decode_cmd" xllm-speech transcribe --cuts "$cuts" --out "$out" --device "$(part_device 1)" "${words[@]}"
    return
  fi
  rm -rf "$parts"
  python3 ../../local/spread.py split "$cuts" "$nj" --out "$parts"
  # shellcheck disable=SC2329 # for_each calls it
  transcribe_part() {
    run_cmd "$decode_cmd" xllm-speech transcribe --cuts "$parts/$1.jsonl.gz" --out "$parts/$1.jsonl" \
      --device "$(part_device "$1")" "${words[@]}"
  }
  local -a numbers=()
  local file
  for file in "$parts"/*.jsonl.gz; do
    file=${file##*/}
    numbers+=("${file%.jsonl.gz}")
  done
  for_each "$nj" transcribe_part "${numbers[@]}"
  python3 ../../local/spread.py merge "$out" "$parts"
  rm -rf "$parts"
}

transcribe_sets() { # manifest=output of each set, --, words of xllm-speech transcribe
  local -a sets=() manifests=()
  while [ "$1" != -- ]; do
    sets+=("$1")
    manifests+=("${1%%=*}")
    shift
  done
  shift
  local -r all=${sets[0]#*=}.all
  join_manifests "$all.cuts.jsonl.gz" "${manifests[@]}"
  transcribe "$all.cuts.jsonl.gz" "$all.jsonl" "$@"
  python3 ../../local/spread.py deal "$all.jsonl" "${sets[@]}"
  rm -f "$all".*
}

join_manifests() { # output, manifests
  mkdir -p "$(dirname "$1")"
  cat "${@:2}" >"$1.part"
  mv "$1.part" "$1"
}
