# shellcheck shell=bash
# shellcheck disable=SC2034 # run.sh uses these
# Where this recipe's commands run: local, "torchrun N" (N processes here) or "srun OPTIONS" (SLURM); utils/run_cmd.sh
# tells more. Set one for a single run: train_cmd="torchrun 2" ./run.sh --device cuda
. ../../utils/run_cmd.sh
train_cmd=${train_cmd:-local}
decode_cmd=${decode_cmd:-local}
