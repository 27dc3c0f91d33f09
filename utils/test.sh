#!/usr/bin/env bash
# Every check of this repository: ruff, mypy, shellcheck and the tests. Sets up what it needs by itself.
#
#   ./utils/test.sh                       everything, as .ci/run does
#   ./utils/test.sh tests/unit/cif -x     only pytest, with these words
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./utils/setup_env.sh
if [ "${XLLM_ENV:-}" != none ]; then export PATH="$PWD/.venv/bin:$PATH"; fi
export LC_ALL=C.UTF-8 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TOKENIZERS_PARALLELISM=false
if [ "${XLLM_ENV:-}" = none ]; then export PYTHONPATH="$PWD"; else unset PYTHONPATH; fi

if [ $# -gt 0 ]; then exec python3 -m pytest "$@"; fi

failed=()

# Runs one check; what fails is named at the end, so that one run shows everything.
check() { # name, command...
  local -r name=$1 start=$SECONDS
  shift
  printf '== %s\n' "$name"
  if "$@"; then
    if [ "$name" != tests ]; then printf '== %s: good, %d s\n' "$name" $((SECONDS - start)); fi
  else
    failed+=("$name")
    printf '== %s: FAILED, %d s\n' "$name" $((SECONDS - start))
  fi
}

mapfile -t scripts < <(find utils local egs .ci -type f \( -name '*.sh' -o -path '.ci/run' -o -path 'utils/bin/*' \) -not -path '*/exp/*' -not -path '*/data/*' -not -path '*/dump/*')
check ruff ruff check .
check mypy mypy
check shellcheck shellcheck --external-sources --source-path=SCRIPTDIR "${scripts[@]}"
check tests python3 -m pytest -n "${XLLM_TEST_JOBS:-2}"

if [ ${#failed[@]} -gt 0 ]; then
  printf 'failed: %s\n' "${failed[*]}"
  exit 1
fi
