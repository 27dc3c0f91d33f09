# shellcheck shell=bash
# shellcheck disable=SC2034 # run.sh uses these
# Where this recipe's commands run: local, "torchrun N" (N processes here) or "srun OPTIONS" (SLURM); utils/run_cmd.sh
# tells more. Set one for a single run, and say with --gpus how many processes it starts in all, on how many --nodes:
#
#     train_cmd="torchrun 8" ./run.sh --gpus 8
#     train_cmd="srun --nodes 2 --ntasks-per-node 8 --gpus-per-node 8" decode_cmd="srun --gpus 1" ./run.sh --gpus 16 --nodes 2
#
# With `local` a training takes the GPUs by itself, and the --nj parts of a decoding go round them.
. ../../utils/run_cmd.sh
train_cmd=${train_cmd:-local}
decode_cmd=${decode_cmd:-local}
