"""The average of several checkpoints of one run: usually better than the last one (the recipes average the last 5 or 10)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from xllm_speech.base.errors import CheckpointError, ConfigError
from xllm_speech.base.files import atomic_dir, sha256_file, write_json
from xllm_speech.train.saves import OPTIMIZER, STATE, WEIGHTS, Checkpoint, best_checkpoints, copy_folder, list_checkpoints
from xllm_speech.train.weights import save_weights


@dataclass(frozen=True)
class Average:
    """What `average_checkpoints` made: the model directory, and the checkpoints in it, oldest first."""

    path: Path
    checkpoints: list[Checkpoint]


def average_checkpoints(
    run: Path, last: int = 0, best: int = 0, out: Path | None = None, say: Callable[[str], None] = print
) -> Average:
    """Average the `last` K checkpoints of a run, or its `best` K by development metric, into `out` (default: run/average).

    Floating-point tensors are averaged in float64, and keep their type; integers and all other files of the model
    directory are those of the latest. `averaged.json` names the checkpoints with their metrics and hashes.
    With fewer than K, all are used and `say` tells so.

    Raises:
        ConfigError: not exactly one of `last` and `best`, or below 1.
        CheckpointError: no checkpoint to average, a file cannot be read, or the checkpoints are of different models.
    """
    if (last > 0) == (best > 0):
        raise ConfigError("average: give --last K or --best K, one of them, K at least 1")
    found = list_checkpoints(run, say)
    if not found:
        raise CheckpointError(f"{run}: no checkpoints here (looked for checkpoints/step_*); name the --out of a training run")
    names = ", ".join(checkpoint.path.name for checkpoint in found)
    candidates = found[::-1] if last else best_checkpoints(found)
    if not candidates:
        raise CheckpointError(f"{run}: none of the checkpoints was evaluated ({names}); use --last, or train with a dev set")
    wanted = last or best
    if len(candidates) < wanted:
        kind = "checkpoints" if last else "evaluated checkpoints"
        say(f"{wanted} wanted, {len(candidates)} {kind} exist: averaging all of them")
    chosen = sorted(candidates[:wanted], key=lambda checkpoint: checkpoint.progress.step)
    state = _mean(chosen)
    target = out or run / "average"
    latest = chosen[-1]
    with atomic_dir(target) as part:
        copy_folder(latest.path, part, without=(OPTIMIZER, STATE, WEIGHTS))
        save_weights(part / WEIGHTS, state)
        write_json(part / "averaged.json", {
            "method": "last" if last else "best", "wanted": wanted, "best_key": latest.best_key,
            "checkpoints": [
                {
                    "name": c.path.name, "step": c.progress.step, "metric": c.metric,
                    "sha256": sha256_file(c.path / WEIGHTS),
                }
                for c in chosen
            ],
            "sha256": sha256_file(part / WEIGHTS),
        })
    return Average(target, chosen)


def _mean(checkpoints: list[Checkpoint]) -> dict[str, torch.Tensor]:
    sums: dict[str, torch.Tensor] = {}
    latest: dict[str, torch.Tensor] = {}
    for checkpoint in checkpoints:
        path = checkpoint.path / WEIGHTS
        try:
            state = load_file(str(path))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); move it away and average the others") from error
        if latest:
            other = [name for name in state.keys() | latest.keys() if _shape(state, name) != _shape(latest, name)]
            if other:
                raise CheckpointError(
                    f"{path}: {len(other)} tensors differ in shape from the checkpoint before, first {min(other)}"
                )
        for name, tensor in state.items():
            if tensor.is_floating_point():
                sums[name] = tensor.double() if name not in sums else sums[name].add_(tensor.double())
        latest = state
    count = len(checkpoints)
    return {
        name: sums[name].div_(count).to(tensor.dtype) if name in sums else tensor for name, tensor in latest.items()
    }


def _shape(state: dict[str, torch.Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None
