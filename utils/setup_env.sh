#!/usr/bin/env bash
# Makes the Python environment .venv in the clone: Python 3.11 or 3.12, the pinned packages of requirements.txt, and
# the package itself, editable. A second run finds it up to date and returns at once; an installation that was
# interrupted is made anew. Run it by hand or let run.sh and utils/test.sh do so.
#
#   XLLM_PYTHON=PROGRAM   the Python to build with (default: python3.11, python3.12 or python3, the first that serves)
#   XLLM_ENV=none         use the Python environment that is active and install nothing
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$top/.venv
done_file=$venv/.xllm_env        # fingerprint of a finished installation
begun_file=$venv/.xllm_env.begun # present while an installation is under way
start=$SECONDS
python=python3 # the Python to build with; choose_python settles it

say() {
  printf 'setup [%3d s] %s\n' $((SECONDS - start)) "$*"
}

fail() {
  printf 'setup: %s\n' "$@" >&2
  exit 1
}

if [ "${XLLM_ENV:-}" = none ]; then
  if ! command -v python3 >/dev/null; then fail "XLLM_ENV=none, but there is no python3 on the PATH"; fi
  exit 0
elif [ -n "${XLLM_ENV:-}" ]; then
  fail "XLLM_ENV is \`$XLLM_ENV\`; the only value is none (use the active environment)"
fi

# Byte code is wanted: without it every later start compiles some thousand modules again.
unset PYTHONDONTWRITEBYTECODE PYTHONPATH PYTHONHOME VIRTUAL_ENV

venv_version() {
  sed -n 's/^version\(_info\)\? *= *//p' "$venv/pyvenv.cfg" 2>/dev/null | cut -d . -f 1-2 || true
}

# What the installation depends on: the pins, the package's metadata, Python's version and the place of the clone.
fingerprint() {
  printf 'requirements %s\n' "$(sha256sum <"$top/requirements.txt" | cut -c 1-16)"
  printf 'package %s\n' "$(cat "$top/pyproject.toml" "$top/setup.py" | sha256sum | cut -c 1-16)"
  printf 'python %s\n' "$(venv_version)"
  printf 'place %s\n' "$venv"
}

# The minor version of a Python program, such as 3.11.
version_of() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

other_python_wanted() {
  [ -n "${XLLM_PYTHON:-}" ] && [ -f "$venv/pyvenv.cfg" ] && [ "$(version_of "$XLLM_PYTHON")" != "$(venv_version)" ]
}

up_to_date() {
  if other_python_wanted; then return 1; fi
  [ -x "$venv/bin/python" ] && [ ! -e "$begun_file" ] && [ -f "$done_file" ] && [ "$(<"$done_file")" = "$(fingerprint)" ]
}

if up_to_date; then
  say "environment up to date: .venv (Python $(venv_version))"
  exit 0
fi

# One installation at a time; where the file system cannot lock, go on without.
if command -v flock >/dev/null && exec {lock}<"$top" && ! flock -n "$lock" 2>/dev/null; then
  say "another installation is at work in this clone, or its file system has no locks; waiting up to 30 minutes"
  flock -w 1800 "$lock" 2>/dev/null || true
  if up_to_date; then
    say "environment up to date: .venv (Python $(venv_version))"
    exit 0
  fi
fi

serves() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' >/dev/null 2>&1
}

# Runs apt-get where that is possible without a password; otherwise says what to run.
apt_install() { # reason, packages...
  local reason=$1
  shift
  local -a prefix=()
  if [ "$(id -u)" -ne 0 ]; then prefix=(sudo -n); fi
  if command -v apt-get >/dev/null && "${prefix[@]}" true 2>/dev/null; then
    say "$reason; running apt-get install $*"
    if "${prefix[@]}" apt-get update -qq && "${prefix[@]}" apt-get install -y -qq --no-install-recommends "$@"; then return 0; fi
  fi
  fail "$reason. Run this, then run me again:" "  sudo apt-get update && sudo apt-get install --no-install-recommends $*"
}

choose_python() {
  local candidate
  if [ -n "${XLLM_PYTHON:-}" ]; then
    if ! serves "$XLLM_PYTHON"; then fail "XLLM_PYTHON=$XLLM_PYTHON is not a Python 3.11 or 3.12 that runs"; fi
    python=$XLLM_PYTHON
    return
  fi
  for candidate in python3.11 python3.12 python3; do
    if command -v "$candidate" >/dev/null && serves "$candidate"; then
      python=$candidate
      return
    fi
  done
  apt_install "no Python 3.11 or 3.12 was found" python3 python3-venv
  if ! serves python3; then
    fail "python3 is $(python3 --version 2>&1 | cut -d ' ' -f 2); 3.11 or 3.12 is needed: install one and name it with XLLM_PYTHON=PROGRAM"
  fi
  python=python3
}

make_venv() {
  choose_python
  say "making .venv with $("$python" --version 2>&1) ($python)"
  mkdir -p "$venv"
  touch "$begun_file" # before anything else, so that a half-made environment is known as one
  if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    "$python" -m venv "$venv"
  elif command -v uv >/dev/null; then
    uv venv --quiet --seed --allow-existing --python "$python" "$venv"
  elif "$python" -m pip --version >/dev/null 2>&1; then
    "$python" -m venv --without-pip "$venv"
    "$python" -m pip --disable-pip-version-check --python "$venv/bin/python" install --quiet pip
  else
    apt_install "$python has no venv module (Debian keeps it in a package of its own)" \
      "python$(version_of "$python")-venv"
    "$python" -m venv "$venv"
  fi
}

# One of pip's settings (index-url ...), from its files or the environment; values of several lines become one line.
pip_setting() {
  local name value
  for name in ":env:.$1" "install.$1" "global.$1"; do
    value=$(sed -n "s/^${name//./\\.}='\(.*\)'\$/\1/p" <<<"$pip_settings" | head -n 1)
    if [ -n "$value" ]; then
      value=${value//\\n/ }
      printf '%s\n' "${value# }"
      return
    fi
  done
}

# uv does not read pip's settings: hand them over.
export_pip_settings() {
  local value
  pip_settings=$("$venv/bin/python" -m pip config list 2>/dev/null || "$python" -m pip config list 2>/dev/null || true)
  value=$(pip_setting index-url)
  if [ -n "$value" ]; then export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$value}"; fi
  value=$(pip_setting extra-index-url)
  if [ -n "$value" ]; then export UV_INDEX="${UV_INDEX:-$value}" UV_INDEX_STRATEGY=unsafe-best-match; fi
  value=$(pip_setting find-links)
  if [ -n "$value" ]; then export UV_FIND_LINKS="${UV_FIND_LINKS:-${value// /,}}"; fi
  value=$(pip_setting cert)
  if [ -n "$value" ]; then export SSL_CERT_FILE="${SSL_CERT_FILE:-$value}"; fi
}

have_uv() {
  if "$venv/bin/python" -m uv --version >/dev/null 2>&1; then
    uv=("$venv/bin/python" -m uv)
  elif command -v uv >/dev/null && uv --version >/dev/null 2>&1; then
    uv=(uv)
  elif "$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv; then
    uv=("$venv/bin/python" -m uv)
  else
    return 1
  fi
}

install_packages() {
  if have_uv; then
    say "installing the pinned packages with uv (1 to 2 minutes and 6 GB when none is cached)"
    export_pip_settings
    if "${uv[@]}" pip install --python "$venv/bin/python" --compile-bytecode --no-deps -r "$top/requirements.txt"; then return 0; fi
    say "uv did not succeed; trying pip"
  fi
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then "$venv/bin/python" -m ensurepip -q; fi
  say "installing the pinned packages with pip (3 to 5 minutes and 6 GB when none is cached)"
  "$venv/bin/python" -m pip install --disable-pip-version-check --no-deps -r "$top/requirements.txt"
}

# soundfile has wheels with libsndfile and one without; of several indexes uv looks into the first that has the version,
# pip into all.
mend_soundfile() {
  local pin
  pin=$(grep '^soundfile==' "$top/requirements.txt" || true)
  if [ -z "$pin" ] || "$venv/bin/python" -c 'import soundfile' 2>/dev/null; then return; fi
  say "soundfile came without its library; installing $pin with pip"
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then "$venv/bin/python" -m ensurepip -q; fi
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall "$pin"
  if ! "$venv/bin/python" -c 'import soundfile' 2>/dev/null; then
    apt_install "soundfile needs libsndfile, and no wheel brought it" libsndfile1
  fi
}

# `--no-build-isolation`: setuptools is among the pins, so that the build needs no index.
install_self() {
  say "installing xllm_speech itself, editable"
  if have_uv; then
    "${uv[@]}" pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation --editable "$top"
  else
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable "$top"
  fi
  rm -rf "$top/xllm_speech.egg-info" # a by-product of the build, which would be found before the installed metadata and grow stale
  "$venv/bin/python" -m compileall -q "$top/xllm_speech"
}

if other_python_wanted && ! serves "$XLLM_PYTHON"; then choose_python; fi # says what is wrong with it

trap 'printf "setup: interrupted; the next run begins the environment anew\n" >&2; exit 130' INT TERM

if [ -e "$begun_file" ]; then
  say "the last installation was interrupted: removing .venv and beginning anew"
  rm -rf "$venv"
elif [ -e "$venv" ] && ! serves "$venv/bin/python"; then
  if [ ! -f "$venv/pyvenv.cfg" ]; then fail "$venv is there but is no Python environment; move it away and run me again"; fi
  say "the Python of .venv does not run or is neither 3.11 nor 3.12: beginning anew"
  rm -rf "$venv"
elif other_python_wanted; then
  say ".venv has Python $(venv_version) and XLLM_PYTHON is $(version_of "$XLLM_PYTHON"): beginning anew"
  rm -rf "$venv"
elif [ -f "$done_file" ] && ! grep -qxF "place $venv" "$done_file"; then
  say "the clone was moved: beginning .venv anew"
  rm -rf "$venv"
fi
free_kib=$(df -Pk "$top" | awk 'NR == 2 { print $4 }')
if [ ! -e "$venv" ] && [ "${free_kib:-0}" -lt 8000000 ] 2>/dev/null; then
  say "only $((free_kib / 1000000)) GB are free at $top; the environment takes 6 GB"
fi
if [ ! -e "$venv" ]; then make_venv; fi

same_pins=false
if [ -f "$done_file" ] && diff <(grep -v '^package ' "$done_file") <(fingerprint | grep -v '^package ') >/dev/null; then same_pins=true; fi
rm -f "$done_file"
touch "$begun_file"
if [ "$same_pins" = true ]; then
  say "only the package's own metadata changed"
elif ! install_packages; then
  rm -f "$begun_file" # what pip has installed whole is kept, and the next run goes on from there
  fail "the packages could not be installed (the messages above tell why: often no package index is reachable, or the disk is full)." \
    "When that is mended run it again: $0"
fi
if ! mend_soundfile; then
  fail "soundfile could not be installed whole; the messages above tell why. Run it again: $0"
fi
if ! install_self; then
  fail "the package itself could not be installed; the messages above tell why. Run it again: $0"
fi
fingerprint >"$done_file.part"
mv "$done_file.part" "$done_file"
rm -f "$begun_file"
say "environment ready: .venv (Python $(venv_version)), in $((SECONDS - start)) s"
