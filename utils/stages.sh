# shellcheck shell=bash
# shellcheck disable=SC2154 # stage, stop_stage, dry_run, force and given_options come from the script's options
# Stages of a recipe, to be sourced by run.sh after parse_options:
#
#     stage 3 "token table" --needs data/train/cuts.jsonl.gz --makes data/tokens/tokens.txt --with "kind=$kind" -- \
#       xllm-speech tokens --cuts data/train/cuts.jsonl.gz --kind "$kind" --out data/tokens
#     ...
#     end_stages
#
# --needs PATH...    files and folders read; their content is part of the stage's fingerprint
# --makes PATH...    what must stand there afterwards (a later stage that needs it names the same path)
# --with WORD...     option values that the result depends on and the command line does not show
# --resumes DIR...   a folder in which the command takes up interrupted work; when the fingerprint has changed since
#                    that work began, the folder is set aside as DIR.1, DIR.2 ... and the command starts anew
# -- COMMAND...      a program with its words, or a function of run.sh (its text is part of the fingerprint, the
#                    variables in it are not: name in --with those that matter and leave out the number of jobs)
#
# A stage is skipped when its fingerprint is the one of its last success and everything it makes is there. The record is
# written after the command, so a stage that was interrupted or killed runs again. Options read: stage, stop_stage,
# dry_run, force. Folders: exp/.stages (records), exp/log, exp/minutes.tsv.
# A stage runs in a subshell with `set -euo pipefail`; its output goes to the console and to exp/log/stage_N.log.
# `stage` must not stand in an `if`, `&&` or `||`: bash would switch `set -e` off inside the command.

stage_dir=exp/.stages
stage_log_dir=exp/log
stage_minutes=exp/minutes.tsv
stage_summary=()
stage_bad_plan=false
stage_selected=0
stage_current=""
declare -A stage_of_file=() # file -> the stage that makes it
declare -A stage_will_make=() # file -> the stage that would make it anew, in a dry run

stage_say() {
  printf '%s\n' "$*"
}

stage_die() { # message [exit status]
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  exit "${2:-1}"
}

# The command line that takes up the work at stage $1, with the options as they were given.
stage_retry() {
  local word text
  text=$(printf '%q' "$0")
  if [[ $0 != */* ]]; then text="bash $text"; fi
  text+=" --stage $1"
  for word in "${given_options[@]}"; do
    case $word in
      --stage=* | --force=* | --dry-run=*) ;;
      *) text+=" $(printf '%q' "$word")" ;;
    esac
  done
  printf '%s\n' "$text"
}

# One line per file or folder: its path and what its content is. What is larger than 64 MiB counts by size and time.
stage_content() {
  local file sum
  for file in "$@"; do
    if [ ! -e "$file" ]; then
      sum=missing
    elif [ "$(du -sbL "$file" | cut -f 1)" -gt 67108864 ]; then
      sum=$(find -L "$file" -type f -printf '%P %s %T@\n' | LC_ALL=C sort | sha256sum)
    elif [ -d "$file" ]; then
      sum=$(cd "$file" && find -L . -type f -not -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum | sha256sum)
    else
      sum=$(sha256sum <"$file")
    fi
    printf 'needs %s %s\n' "$file" "${sum:0:16}"
  done
}

# A configuration file and the files that its `base:` lines lead to, one a line: what a stage that reads it needs.
config_with_bases() {
  local file=$1 base depth
  for ((depth = 0; depth < 20; depth++)); do
    printf '%s\n' "$file"
    if [ ! -f "$file" ]; then return 0; fi
    base=$(sed -n 's/^base:[[:space:]]*//p' "$file" | sed "s/[[:space:]]*\(#.*\)\{0,1\}\$//; s/^[\"']//; s/[\"']\$//" | head -n 1)
    if [ -z "$base" ]; then return 0; fi
    if [[ $base == /* ]]; then file=$base; else file=$(dirname "$file")/$base; fi
  done
}

# The first difference between the recorded fingerprint (file $1) and the present one (text $2), in words.
stage_difference() {
  local line
  while IFS= read -r line; do
    if ! grep -qxF -e "$line" "$1"; then
      case $line in
        needs\ *)
          line=${line#needs }
          printf '%s changed\n' "${line% *}"
          ;;
        with\ *) printf '%s (it was %s)\n' "${line#with }" "$(stage_old_value "$1" "${line#with }")" ;;
        *) printf 'its command changed\n' ;;
      esac
      return
    fi
  done <<<"$2"
  printf 'it needs or depends on less than before\n'
}

# What the record held for `key=value`: the value of the same key, or "another".
stage_old_value() {
  local line
  while IFS= read -r line; do
    if [[ $2 == *=* && $line == "with ${2%%=*}="* ]]; then
      printf '%s\n' "${line#*=}"
      return
    fi
  done <"$1"
  printf 'another\n'
}

stage_interrupted() {
  trap - INT
  printf '\n%s: interrupted in stage %s; go on with: %s\n' "${0##*/}" "$stage_current" "$(stage_retry "$stage_current")" >&2
  exit 130
}

# One run at a time in a recipe folder. The lock is inherited by the commands: a stage that outlived a killed run.sh
# holds it until it ends.
stage_lock() {
  mkdir -p "$stage_dir" "$stage_log_dir"
  if ! command -v flock >/dev/null; then return 0; fi
  exec {stage_lock_handle}>>"$stage_dir/lock"
  if ! flock -n "$stage_lock_handle"; then
    stage_say "another run is still at work in $PWD; waiting for it to end (Ctrl-C gives up)"
    flock "$stage_lock_handle"
  fi
}

stage_note_minutes() { # number title minutes
  local line
  {
    printf 'stage\ttitle\tminutes\n'
    {
      if [ -f "$stage_minutes" ]; then
        while IFS= read -r line; do
          if [[ $line != "$1"$'\t'* && $line != stage$'\t'* ]]; then printf '%s\n' "$line"; fi
        done <"$stage_minutes"
      fi
      printf '%s\t%s\t%s\n' "$1" "$2" "$3"
    } | sort -n
  } >"$stage_minutes.part"
  mv "$stage_minutes.part" "$stage_minutes"
}

stage_minutes_since() { # EPOCHREALTIME of the start
  local -r micro=$((${EPOCHREALTIME//[!0-9]/} - ${1//[!0-9]/}))
  printf '%d.%02d\n' $((micro / 60000000)) $((micro % 60000000 / 600000))
}

# Moves a folder out of the way: DIR -> DIR.1, or the next free number.
stage_set_aside() {
  local number=1
  while [ -e "$1.$number" ]; do number=$((number + 1)); done
  mv "$1" "$1.$number"
  stage_say "stage $stage_current starts anew: $1 is set aside as $1.$number"
}

stage() {
  local -r number=$1 title=$2
  shift 2
  local -a needs=() makes=() with=() resumes=() states=()
  local list="" word file fingerprint reason="" failure="" record began status started minutes
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    case $1 in
      --needs | --makes | --with | --resumes) list=${1#--} ;;
      --*) stage_die "stage $number: unknown word $1; known: --needs --makes --with --resumes -- COMMAND" ;;
      *)
        case $list in
          needs) needs+=("$1") ;;
          makes) makes+=("$1") ;;
          with) with+=("${1//$'\n'/ }") ;;
          resumes) resumes+=("$1") ;;
          *) stage_die "stage $number: \`$1\` stands before --needs, --makes, --with or --resumes" ;;
        esac
        ;;
    esac
    shift
  done
  if [ $# -lt 2 ]; then stage_die "stage $number ($title) has no command after --"; fi
  shift
  for file in "${makes[@]}"; do stage_of_file[$file]=$number; done
  if ((number < stage || number > stop_stage)); then return 0; fi
  stage_selected=$((stage_selected + 1))
  stage_current=$number
  record=$stage_dir/$number
  began=$stage_dir/$number.began
  if [ "$dry_run" != true ] && [ -z "${stage_lock_handle-}" ]; then stage_lock; fi

  # What is needed must be there, or be made by an earlier stage of the same dry run.
  for file in "${needs[@]}"; do
    if [ -n "${stage_will_make[$file]-}" ]; then
      if [ -z "$reason" ]; then reason="stage ${stage_will_make[$file]} would make $file anew"; fi
    elif [ ! -e "$file" ]; then
      failure="$file is missing"
      if [ -n "${stage_of_file[$file]-}" ]; then
        failure+="; stage ${stage_of_file[$file]} makes it: $(stage_retry "${stage_of_file[$file]}")"
      fi
    fi
  done
  if [ -n "$failure" ]; then
    if [ "$dry_run" != true ]; then stage_die "stage $number ($title) cannot run: $failure"; fi
    stage_say "$(printf 'stage %2d  %-34s cannot run: %s' "$number" "$title" "$failure")"
    stage_bad_plan=true
    for file in "${makes[@]}"; do stage_will_make[$file]=$number; done
    return 0
  fi

  fingerprint="command $(printf '%q ' "$@")"
  if [ "$(type -t "$1")" = function ]; then fingerprint+=$'\n'$(declare -f "$1" | sed 's/^/text /'); fi
  for word in "${with[@]}"; do fingerprint+=$'\n'"with $word"; done
  for file in "${makes[@]}"; do fingerprint+=$'\n'"makes $file"; done
  if [ ${#needs[@]} -gt 0 ]; then fingerprint+=$'\n'$(stage_content "${needs[@]}"); fi

  if [ -z "$reason" ]; then
    if [ "$force" = true ]; then
      reason="--force"
    elif [ ! -f "$record" ]; then
      reason="not done yet"
      if [ -f "$began" ]; then reason="unfinished last time"; fi
    elif [ "$(<"$record")" != "$fingerprint" ]; then
      reason=$(stage_difference "$record" "$fingerprint")
    else
      for file in "${makes[@]}"; do
        if [ ! -e "$file" ]; then
          reason="$file is missing"
          break
        fi
      done
    fi
  fi

  if [ "$dry_run" = true ]; then
    if [ -z "$reason" ]; then
      stage_say "$(printf 'stage %2d  %-34s up to date' "$number" "$title")"
    else
      stage_say "$(printf 'stage %2d  %-34s would run: %s' "$number" "$title" "$reason")"
      for file in "${makes[@]}"; do stage_will_make[$file]=$number; done
    fi
    return 0
  fi
  if [ -z "$reason" ]; then
    stage_say "stage $number: $title: up to date"
    stage_summary+=("$number"$'\t'"$title"$'\t'"up to date"$'\t'"")
    return 0
  fi

  # `false` ends this subshell where `set -e` works; in an `if`, `&&` or `||` it does not, and 9 comes back.
  set +e
  (
    set -e
    false
    exit 9
  )
  status=$?
  set -e
  if [ $status -eq 9 ]; then stage_die "stage $number is called in an if, && or ||, where bash ignores set -e; call it plainly"; fi

  for file in "${resumes[@]}"; do
    if [ -e "$file" ] && [ -f "$began" ] && { [ "$force" = true ] || [ "$(<"$began")" != "$fingerprint" ]; }; then
      stage_set_aside "$file"
    fi
  done
  rm -f "$record"
  printf '%s\n' "$fingerprint" >"$began.part"
  mv "$began.part" "$began"
  stage_say "stage $number: $title ($reason)"
  local -r log=$stage_log_dir/stage_$number.log
  printf '== %s  stage %s: %s\n== %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$number" "$title" "$(printf '%q ' "$@")" >>"$log"
  started=$EPOCHREALTIME
  trap stage_interrupted INT
  set +e
  (
    set -euo pipefail
    "$@"
  ) 2>&1 | tee -a "$log"
  states=("${PIPESTATUS[@]}")
  set -e
  trap - INT
  status=${states[0]}
  minutes=$(stage_minutes_since "$started")
  if [ "$status" -eq 0 ]; then
    for file in "${makes[@]}"; do
      if [ ! -e "$file" ]; then
        printf '%s: stage %s (%s) ended without an error but did not make %s\n' "${0##*/}" "$number" "$title" "$file" | tee -a "$log" >&2
        status=1
      fi
    done
  fi
  if [ "$status" -ne 0 ]; then
    stage_die "stage $number ($title) failed with exit status $status after $minutes min; log: $PWD/$log; to retry: $(stage_retry "$number")" "$status"
  fi
  stage_note_minutes "$number" "$title" "$minutes"
  printf '%s\n' "$fingerprint" >"$record.part"
  mv "$record.part" "$record"
  stage_summary+=("$number"$'\t'"$title"$'\t'"done"$'\t'"$minutes")
}

# The last line of run.sh: says what was done, and refuses a range that holds no stage.
end_stages() {
  local row number title state minutes
  if [ "$stage_selected" -eq 0 ]; then stage_die "no stage lies between --stage $stage and --stop-stage $stop_stage" 2; fi
  if [ "$dry_run" = true ]; then
    if [ "$stage_bad_plan" = true ]; then stage_die "not every stage could run"; fi
    return 0
  fi
  printf '\n%5s  %-36s %-12s %8s\n' stage title result minutes
  for row in "${stage_summary[@]}"; do
    IFS=$'\t' read -r number title state minutes <<<"$row"
    printf '%5s  %-36s %-12s %8s\n' "$number" "$title" "$state" "$minutes"
  done
}
