# shellcheck shell=bash
# Command line options for bash scripts, to be sourced:
#
#     stage=0        # first stage to run
#     dry_run=false  # show what would run
#     . ../../utils/parse_options.sh
#     parse_options "$@"
#
# An option is a lower-case variable assigned at the start of a line above the `parse_options` call, and its comment is
# its help. `stop_stage` is given as --stop-stage VALUE, --stop-stage=VALUE or with `_`. A variable whose default is
# true or false is a flag (--dry-run, --dry-run false); one whose default is a whole number takes whole numbers only.
# A value that begins with `--` is written with `=`. `--options FILE` reads `name=value` lines; later words win.
# `--help` prints the script's leading comment and the options. Nothing that a user types is evaluated.
# Words that are no options go to the array `arguments` where the script has set `arguments=()`, else they are errors.
# Afterwards the array `given_options` holds the options as given, for messages that repeat the command.

options_fail() {
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  exit 2
}

# Fills the associative arrays option_default and option_help, and the list option_names, from a script's text.
options_of_script() {
  local option_line option_name
  local -r option_pattern='^([a-z][a-z0-9_]*)=([^#]*)(#[[:space:]]*(.*))?$'
  while IFS= read -r option_line || [ -n "$option_line" ]; do
    if [[ $option_line =~ ^[[:space:]]*parse_options([[:space:]]|$) ]]; then break; fi
    if [[ $option_line =~ $option_pattern ]]; then
      option_name=${BASH_REMATCH[1]}
      if [ "$option_name" = arguments ]; then continue; fi
      if [ -z "${option_default[$option_name]+set}" ]; then option_names+=("$option_name"); fi
      option_help[$option_name]=${BASH_REMATCH[4]:-}
      option_default[$option_name]=${!option_name-}
    fi
  done <"$1"
}

# The smallest number of single-letter changes between two words.
options_distance() {
  local -r a=$1 b=$2
  local i j cost best
  local -a row=() last=()
  for ((j = 0; j <= ${#b}; j++)); do last[j]=$j; done
  for ((i = 1; i <= ${#a}; i++)); do
    row=("$i")
    for ((j = 1; j <= ${#b}; j++)); do
      cost=1
      if [ "${a:i-1:1}" = "${b:j-1:1}" ]; then cost=0; fi
      best=$((last[j - 1] + cost))
      if ((last[j] + 1 < best)); then best=$((last[j] + 1)); fi
      if ((row[j - 1] + 1 < best)); then best=$((row[j - 1] + 1)); fi
      row[j]=$best
    done
    last=("${row[@]}")
  done
  printf '%s\n' "${last[${#b}]}"
}

options_unknown() {
  local -r given=${1//_/-}
  local name word distance nearest="" least=99 known=""
  for name in "${option_names[@]}"; do
    word=${name//_/-}
    known+=" --$word"
    distance=$(options_distance "$given" "$word")
    if [[ ${#given} -ge 3 && ($word == *"$given"* || $given == *"$word"*) ]]; then distance=1; fi
    if ((distance < least)); then
      least=$distance
      nearest=$word
    fi
  done
  if ((least <= 2 || 3 * least <= ${#given})); then
    options_fail "unknown option --$1; did you mean --$nearest? (all options: --help)"
  fi
  options_fail "unknown option --$1; known here:$known"
}

options_assign() { # name value where
  local -r name=$1 value=$2 where=$3
  case ${option_default[$name]} in
    true | false)
      if [ "$value" != true ] && [ "$value" != false ]; then
        options_fail "$where: --${name//_/-} is true or false, not \`$value\`"
      fi
      ;;
    *)
      if [[ ${option_default[$name]} =~ ^-?[0-9]+$ && ! $value =~ ^-?[0-9]+$ ]]; then
        options_fail "$where: --${name//_/-} takes a whole number, not \`$value\`"
      fi
      ;;
  esac
  declare -g -- "$name=$value"
}

options_from_file() {
  local -r file=$1
  local line name value number=0
  if [ ! -f "$file" ] || [ ! -r "$file" ]; then options_fail "--options $file: no such file"; fi
  while IFS= read -r line || [ -n "$line" ]; do
    number=$((number + 1))
    line=${line%$'\r'}
    if [[ $line =~ ^[[:space:]]*(#.*)?$ ]]; then continue; fi
    if [[ ! $line =~ ^[[:space:]]*(--)?([A-Za-z][A-Za-z0-9_-]*)[[:space:]]*=(.*)$ ]]; then
      options_fail "$file:$number: expected name=value, found \`$line\`"
    fi
    name=${BASH_REMATCH[2]//-/_}
    value=${BASH_REMATCH[3]}
    value=${value#"${value%%[![:space:]]*}"}
    value=${value%"${value##*[![:space:]]}"}
    if [[ $value =~ ^\"(.*)\"$ || $value =~ ^\'(.*)\'$ ]]; then value=${BASH_REMATCH[1]}; fi
    if [ -z "${option_default[$name]+set}" ]; then options_fail "$file:$number: unknown option \`$name\` (see --help)"; fi
    options_assign "$name" "$value" "$file:$number"
  done <"$file"
}

options_print_help() {
  local line name
  while IFS= read -r line; do
    if [[ $line == '#!'* ]]; then continue; fi
    if [[ $line != '#'* ]]; then break; fi
    line=${line#\#}
    printf '%s\n' "${line# }"
  done <"$1"
  printf '\nOptions (with their defaults):\n'
  for name in "${option_names[@]}"; do
    printf '  --%-16s %s [%s]\n' "${name//_/-}" "${option_help[$name]}" "${option_default[$name]}"
  done
  printf '  --%-16s %s\n' options "FILE with name=value lines" help "this text"
}

parse_options() {
  local -A option_default=() option_help=()
  local -a option_names=()
  local option_word option_name option_value
  given_options=()
  options_of_script "${BASH_SOURCE[1]}"
  while [ $# -gt 0 ]; do
    option_word=$1
    shift
    case $option_word in
      --help | -h)
        options_print_help "${BASH_SOURCE[1]}"
        exit 0
        ;;
      --) break ;;
      --*)
        option_name=${option_word#--}
        option_name=${option_name%%=*}
        option_name=${option_name//-/_}
        if [[ ! $option_name =~ ^[A-Za-z0-9_]+$ ]] ||
          [[ $option_name != options && -z "${option_default[$option_name]+set}" ]]; then
          option_word=${option_word#--}
          options_unknown "${option_word%%=*}"
        fi
        if [[ $option_word == *=* ]]; then
          option_value=${option_word#*=}
        elif [[ ${option_default[$option_name]-} =~ ^(true|false)$ ]]; then
          option_value=true
          if [[ ${1-} =~ ^(true|false)$ ]]; then
            option_value=$1
            shift
          fi
        elif [ $# -eq 0 ] || [[ $1 == --* ]]; then
          options_fail "${option_word} needs a value (one that begins with -- is written ${option_word}=VALUE)"
        else
          option_value=$1
          shift
        fi
        given_options+=("--${option_name//_/-}=$option_value")
        if [ "$option_name" = options ]; then
          options_from_file "$option_value"
        else
          options_assign "$option_name" "$option_value" "command line"
        fi
        ;;
      *)
        if [[ $(declare -p arguments 2>/dev/null) != 'declare -a'* ]]; then
          options_fail "unexpected word \`$option_word\`; options begin with -- (all options: --help)"
        fi
        arguments+=("$option_word")
        ;;
    esac
  done
  if [ $# -gt 0 ]; then
    if [[ $(declare -p arguments 2>/dev/null) != 'declare -a'* ]]; then
      options_fail "unexpected word \`$1\`; options begin with -- (all options: --help)"
    fi
    arguments+=("$@")
  fi
}
