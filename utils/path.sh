# shellcheck shell=bash
# The environment of a recipe's commands, to be sourced by its path.sh from its folder. Makes it where it is not yet there.
top=$(cd ../.. && pwd)
"$top/utils/setup_env.sh"
if [ "${XLLM_ENV:-}" != none ]; then
  export PATH="$top/.venv/bin:$PATH"
elif ! command -v xllm-speech >/dev/null; then
  export PATH="$top/utils/bin:$PATH" PYTHONPATH="$top${PYTHONPATH:+:$PYTHONPATH}"
fi
# One byte order for sorted lists, and Chinese text that prints everywhere.
export LC_ALL=C.UTF-8 PYTHONUTF8=1 PYTHONUNBUFFERED=1
# Two processes with one thread each do more than one process with two; train.num_threads has its own say.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TOKENIZERS_PARALLELISM=false
