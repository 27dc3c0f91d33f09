"""Checkpoints on disk. Each is a whole model directory with the optimiser and the place in the data beside it.

    OUT/checkpoints/step_00000500/   what the task writes (model.safetensors, ...), optimizer.pt, state.json
    OUT/best  OUT/final              the same without optimizer.pt

Every directory appears whole, by renaming, or not at all; a kill at any moment leaves the previous ones usable.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xllm_speech.base.errors import CheckpointError, ConfigError, DataError, UserError
from xllm_speech.base.files import atomic_dir, read_json, write_json
from xllm_speech.version import __version__

FORMAT = "xllm_speech.train/1"
STATE = "state.json"
WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.pt"


@dataclass
class Progress:
    """Where a run stands. step: optimiser steps done. batch: batches of this epoch that each process has drawn.

    best, best_step: smallest value of the task's `best_key` so far. nonfinite: steps skipped so far.
    epoch_steps: optimiser steps of the last whole epoch, 0 before.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best: float | None = None
    best_step: int = 0
    nonfinite: int = 0
    epoch_steps: int = 0
    epoch_start: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint. metrics: of the development data at its step, {} when it was not evaluated."""

    path: Path
    progress: Progress
    metrics: dict[str, float]
    best_key: str
    settings: dict[str, Any]
    world_size: int

    @property
    def metric(self) -> float | None:
        """The number by which checkpoints are ranked, smaller is better; None where there is none."""
        value = self.metrics.get(self.best_key)
        return None if value is None or value != value else value


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the state of one checkpoint and check that its files are whole.

    Raises:
        CheckpointError: it is not one of ours, or a file is missing or has another size than was written.
    """
    try:
        state = read_json(path / STATE)
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise CheckpointError(f"{path}: {STATE} is not of format {FORMAT}")
        checkpoint = Checkpoint(
            path, Progress(**state["progress"]), state["metrics"], state["best_key"], state["settings"], state["world_size"]
        )
        files = state["files"].items()
    except DataError as error:
        raise CheckpointError(f"{path}: no usable {STATE} ({error})") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: {STATE} lacks something ({error})") from error
    for name, size in files:
        found = (path / name).stat().st_size if (path / name).is_file() else None
        if found != size:
            what = "missing" if found is None else f"{found} bytes"
            raise CheckpointError(f"{path}: {name} is {what}, {size} bytes were written")
    return checkpoint


def list_checkpoints(out: Path, say: Callable[[str], None]) -> list[Checkpoint]:
    """The usable checkpoints of a run, oldest first; the others are named through `say` and left where they are."""
    found = []
    for path in sorted((out / "checkpoints").glob("step_*")):
        try:
            found.append(read_checkpoint(path))
        except CheckpointError as error:
            say(f"checkpoint passed over: {error}")
    return sorted(found, key=lambda checkpoint: checkpoint.progress.step)


def write_checkpoint(
    path: Path,
    write_model: Callable[[Path], None],
    write_optimizer: Callable[[Path], None] | None,
    checkpoint: Checkpoint,
) -> None:
    """Write one directory atomically; without `write_optimizer` a plain model directory (best, final).

    Raises:
        UserError: the disk is full or the folder cannot be written; nothing half-written remains.
    """
    try:
        with atomic_dir(path) as part:
            write_model(part)
            if write_optimizer is not None:
                write_optimizer(part / OPTIMIZER)
            _write_state(part, checkpoint)
    except OSError as error:
        raise UserError(
            f"{path}: the checkpoint of step {checkpoint.progress.step} could not be written ({error.strerror or error}); "
            "make room and start the same command again: it resumes from the checkpoint before"
        ) from error


def _write_state(folder: Path, checkpoint: Checkpoint) -> None:
    files = {
        str(name.relative_to(folder)): name.stat().st_size for name in sorted(folder.rglob("*")) if name.is_file()
    }
    state = {
        "format": FORMAT, "version": __version__, "progress": asdict(checkpoint.progress), "metrics": checkpoint.metrics,
        "best_key": checkpoint.best_key, "world_size": checkpoint.world_size, "files": files, "settings": checkpoint.settings,
    }
    write_json(folder / STATE, state)


def copy_folder(source: Path, target: Path, without: tuple[str, ...]) -> None:
    """Copy a model directory into `target`; the names in `without` are left out at its top only, not in folders inside."""

    def ignore(folder: str, names: list[str]) -> set[str]:
        return set(without) & set(names) if Path(folder) == source else set()

    shutil.copytree(source, target, dirs_exist_ok=True, ignore=ignore)


def copy_model(source: Checkpoint, target: Path) -> None:
    """Copy a checkpoint's model directory to `target`, without the optimiser, atomically. A copy, so that it can be moved."""

    def write_model(part: Path) -> None:
        copy_folder(source.path, part, without=(OPTIMIZER, STATE))

    write_checkpoint(target, write_model, None, source)


def prune(checkpoints: list[Checkpoint], keep_last: int, keep_best: int) -> None:
    """Delete all but the last `keep_last` and the best `keep_best` of `checkpoints` (oldest first)."""
    kept = {checkpoint.path for checkpoint in [*checkpoints[-keep_last:], *best_checkpoints(checkpoints)[:keep_best]]}
    for checkpoint in checkpoints:
        if checkpoint.path not in kept:
            # Renamed first: a half-deleted directory must not pass for a checkpoint.
            doomed = checkpoint.path.with_name(f".{checkpoint.path.name}.doomed")
            os.replace(checkpoint.path, doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def best_checkpoints(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """Those that were evaluated, best first; of equal ones the later first."""
    ranked = [(c.metric, -c.progress.step, c) for c in checkpoints if c.metric is not None]
    return [checkpoint for _, _, checkpoint in sorted(ranked, key=lambda row: row[:2])]


def clean_leftovers(out: Path) -> None:
    """Undo what a killed process left: part directories go; a directory that was being replaced comes back."""
    for folder in (out, out / "checkpoints"):
        for old in folder.glob(".*.old"):
            target = folder / old.name[1:].rsplit(".", 2)[0]
            if not target.exists() and any(old.iterdir()):
                os.replace(old, target)
        for pattern in (".*.old", ".*.part", ".*.doomed"):
            for path in folder.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def move_aside(out: Path) -> Path | None:
    """Rename a run's directory to the first free `NAME.old-N` beside it; None when there is none."""
    if not out.exists():
        return None
    number = 1
    while (aside := out.with_name(f"{out.name}.old-{number}")).exists():
        number += 1
    os.replace(out, aside)
    return aside


@contextlib.contextmanager
def lock(out: Path) -> Iterator[None]:
    """Hold a run's directory for this process; released by the system when the process ends, however it ends.

    Raises:
        UserError: another process trains there now.
    """
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{out}: another training run is writing here; wait for it or use another --out") from error
        except OSError:
            pass  # a file system without locks: go on as if alone
        yield


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def check_settings(saved: Checkpoint, settings: dict[str, Any], harmless: frozenset[str]) -> None:
    """Refuse to resume with other settings; `harmless` names dotted keys, or whole sections, that may differ.

    Raises:
        ConfigError: names the keys with both values.
    """
    before, now = flatten(saved.settings), flatten(settings)
    changed = [
        key for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not any(key == name or key.startswith(f"{name}.") for name in harmless)
    ]
    if changed:
        shown = "; ".join(f"{key}: {before.get(key)} -> {now.get(key)}" for key in changed[:5])
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ConfigError(
            f"{saved.path}: made with other settings ({shown}{more}); put them back to resume, "
            "use another --out, or start anew with --restart"
        )
