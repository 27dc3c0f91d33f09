"""What the loop needs from a task. The loop knows nothing of speech: a task brings the model, its batches and its metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn


class Batch(Protocol):
    """One batch of one process. ids: for messages. seconds: of audio, padding not counted."""

    @property
    def ids(self) -> list[str]:
        """Utterance or conversation ids."""
        ...

    @property
    def seconds(self) -> float:
        """Seconds of audio, padding not counted."""
        ...

    def to(self, device: torch.device | str) -> Any:
        """The same batch on `device`."""
        ...


class Losses(Protocol):
    """What `model(batch)` returns, e.g. `records.AsrLosses`: sums over the batch, never means."""

    @property
    def total(self) -> torch.Tensor:
        """Weighted sum over the batch, with gradient."""
        ...

    @property
    def parts(self) -> Mapping[str, torch.Tensor]:
        """Detached sums by name; the same names in every batch."""
        ...

    @property
    def tokens(self) -> int:
        """Target tokens in the batch."""
        ...

    @property
    def correct(self) -> int:
        """Tokens that teacher forcing got right."""
        ...


AnyBatch = TypeVar("AnyBatch", bound=Batch)


class Task(Protocol[AnyBatch]):
    """A model with its data. The loop calls `model(batch)` inside Fabric's wrapper, so forward must return `Losses`.

    For a resumed run to equal an undisturbed one, batches must be a function of (settings, epoch, position): no use of
    global random state in `train_batches`, and `prepare_batch` may use the global generators (they are reseeded from
    `step_seed` just before) or its own.
    """

    @property
    def model(self) -> nn.Module:
        """The bare module; the same object always."""
        ...

    @property
    def best_key(self) -> str:
        """Key of `evaluate`'s result that the best checkpoint minimises, e.g. `cer`."""
        ...

    @property
    def harmless_keys(self) -> frozenset[str]:
        """Dotted keys (or whole sections) of `settings` that may change between a run and its resumption."""
        ...

    def settings(self) -> dict[str, Any]:
        """All that shapes the run beside `optim` and `train`, as plain nested data; compared when a run is resumed."""
        ...

    def train_batches(self, epoch: int, skip: int, rank: int, world_size: int) -> Iterable[AnyBatch]:
        """Batches of one process in one epoch, without the first `skip`; every rank gets equally many."""
        ...

    def token_count(self, batch: AnyBatch) -> int:
        """Target tokens, by which losses are divided; equals `model(batch).tokens`. Must not read from the device."""
        ...

    def prepare_batch(self, batch: AnyBatch, step_seed: int) -> AnyBatch:
        """What training does to a batch that is already on the device (SpecAugment, frozen encoders); may return it as is."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Metrics on the development data, {} where there is none. `model` is the bare module in eval mode, gradients
        off. Called on every rank; rank 0's numbers count.
        """
        ...

    def save_model(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        """Write a model directory into `folder` (it exists, empty): `model.safetensors` with `state` unrounded, without
        the tensors of frozen modules if wished, and whatever else is needed to load it. `state` is the bare module's.
        """
        ...
