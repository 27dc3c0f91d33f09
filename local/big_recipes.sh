# shellcheck shell=bash
# shellcheck disable=SC2154 # the options of run.sh, what its cmd.sh sets, and the folders of utils/stages.sh
# What the recipes of the real corpora share, to be sourced by run.sh after utils/stages.sh and cmd.sh.
#
#     words=($(gpu_words 8 16))       devices and accumulation that keep the paper's batch on the GPUs there are
#     transcribe CUTS OUT WORDS...    recognition in $nj parts side by side, put together
#     transcribe_sets CUTS=OUT ... -- WORDS...    several sets at once, so that the model is loaded once for all
#     join_manifests OUT FILE...      gzipped manifests one after the other
#     existing FILE...                those that are there, one a line
#     export_model MODEL OUT DATA     a trained X-LLM as one folder with its card
#     stage_demo MODEL                stage 65: its web page, where --demo asks for it
#     end_recipe                      the end of run.sh: what is missing in a plan, the table of a run that stops before stage 52

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

# Parts that were finished before a kill are taken up where the stage and these words are the same.
transcribe() { # cuts, output, words of xllm-speech transcribe
  local -r cuts=$1 out=$2 parts=$2.parts count=${decode_parts:-$nj}
  local -ra words=("${@:3}")
  local mark
  if [ "$count" -le 1 ]; then
    run_cmd "$decode_cmd" xllm-speech transcribe --cuts "$cuts" --out "$out" --device "$(part_device 1)" "${words[@]}"
    return
  fi
  mark=$({ printf '%s\n' "${words[@]}"; cat "$stage_dir/$stage_current.began"; } | sha256sum)
  python3 ../../local/spread.py split "$cuts" "$count" --out "$parts" --mark "${mark:0:16}"
  # shellcheck disable=SC2329 # for_each calls it
  transcribe_part() {
    if [ -e "$parts/$1.jsonl.meta.json" ]; then return 0; fi # written last
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

export_model() { # model, folder to write, what it was trained on
  local -a words
  read -r -a words <<<"$export_options"
  xllm-speech export --model "$1" --out "$2" --scores exp/report/metrics.json --data "$3" "${words[@]}"
}

serve_demo() { # model
  exec xllm-speech serve --model "$1" --demo --device "$device" --port "$demo_port"
}

stage_demo() { # exported model
  if [ "$demo" = true ]; then
    if [ "$dry_run" = false ]; then rm -f "$stage_dir/65"; fi # asked for again, it is shown again
    stage 65 "demo: a web page, until Ctrl-C" --needs "$1/model.safetensors" -- serve_demo "$1"
  elif ((stage > 60 && stage <= 65 && stop_stage >= 65)); then
    stage_die "stage 65 shows the demo only with --demo true" 2
  fi
}

end_recipe() {
  end_stages
  if [ "$dry_run" = true ]; then
    if have_python; then check_inputs --plan; fi
  elif [ "$stop_stage" -lt 52 ]; then
    python3 ../../local/show_results.py --minutes exp/minutes.tsv --out exp/report/metrics.json "${results[@]}"
  fi
}
