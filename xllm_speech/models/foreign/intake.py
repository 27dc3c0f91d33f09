"""Taking tensors out of a foreign checkpoint one by one, with an account of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from xllm_speech.base.errors import CheckpointError, UserError, first_line
from xllm_speech.models.foreign.report import ForeignReport

Module = TypeVar("Module", bound=nn.Module)
Convert = Callable[[torch.Tensor], torch.Tensor]


class Intake:
    """The tensors of one source on their way to our names.

    Args:
        source: file or folder, for messages. tensors: by foreign names. report: filled on the way.

    Attributes:
        state: our names -> tensors, so far.
    """

    def __init__(self, source: str, tensors: Mapping[str, torch.Tensor], report: ForeignReport) -> None:
        self.source, self.tensors, self.report = source, dict(tensors), report
        self.state: dict[str, torch.Tensor] = {}

    def __contains__(self, foreign: str) -> bool:
        return foreign in self.tensors

    def has(self, prefix: str) -> bool:
        """Whether a name begins so."""
        return any(name.startswith(prefix) for name in self.tensors)

    def shape(self, foreign: str, dimensions: int) -> list[int]:
        """Sizes of a tensor that is needed; `CheckpointError` where it is missing or has other dimensions."""
        shape = list(self._get(foreign, "its sizes are needed").shape)
        if len(shape) != dimensions:
            raise CheckpointError(f"{self.source}: {foreign} is {shape}, expected {dimensions} dimensions")
        return shape

    def count(self, pattern: str) -> int:
        """One more than the greatest number that the pattern's group finds at the start of a name; 0 without any.

        Raises:
            CheckpointError: it is more than there are tensors, so that building as many layers is out of the question.
        """
        found = (re.match(pattern, name) for name in self.tensors)
        count = 1 + max((int(match[1]) for match in found if match), default=-1)
        if count > len(self.tensors):
            raise CheckpointError(f"{self.source}: names a layer {count - 1}, but holds {len(self.tensors)} tensors in all")
        return count

    def build(self, make: Callable[[], Module]) -> Module:
        """A module of the file's sizes without values, on the meta device; `CheckpointError` where they make none."""
        try:
            with torch.device("meta"):
                return make()
        except UserError as error:
            raise CheckpointError(f"{self.source}: {error}") from error
        except Exception as error:  # sizes of zero, or too large to multiply, fail in many ways
            raise CheckpointError(f"{self.source}: its sizes make no network ({first_line(error)})") from error

    def take(
        self, ours: str, foreign: str | Iterable[str], expected: torch.Size | None = None, convert: Convert | None = None
    ) -> None:
        """One tensor under our name, several stacked over one another; they must be there and of the expected shape.

        Raises:
            CheckpointError: a tensor is missing, or of another shape.
        """
        names = [foreign] if isinstance(foreign, str) else list(foreign)
        parts = [self._get(name, f"{ours} is made of it") for name in names]
        if convert is not None:
            parts = [convert(part) for part in parts]
        if expected is not None:
            rest, rows = parts[0].shape[1:], sum(part.shape[0] if part.dim() else 0 for part in parts)
            whole = parts[0].shape if len(parts) == 1 else (rows, *rest)
            if tuple(whole) != tuple(expected) or any(part.shape[1:] != rest for part in parts):
                shapes = ", ".join(f"{name} {list(self.tensors[name].shape)}" for name in names)
                raise CheckpointError(f"{self.source}: {shapes}: {ours} needs {list(expected)}, by the file's other sizes")
        self.state[ours] = parts[0] if len(parts) == 1 else torch.cat(parts)
        for name in names:
            taken = self.report.used.setdefault(name, [])
            if ours not in taken:
                taken.append(ours)

    def take_module(
        self, prefix: str, module: nn.Module, name_of: Callable[[str], Any], skip: Callable[[str], bool] = lambda name: False,
        convert: Callable[[str], Convert | None] = lambda name: None,
    ) -> None:
        """Every entry of a module's state dict (the module may be on the meta device) under `prefix`.

        Args:
            name_of: our name without prefix -> foreign name or names. skip: entries that are not taken. convert: what is
                done to the tensors of an entry before their shape is compared.
        """
        for name, tensor in module.state_dict().items():
            if not skip(name):
                self.take(prefix + name, name_of(name), tensor.shape, convert(name))

    def ignore(self, reason: str, *patterns: str) -> None:
        """Note why tensors whose whole names fit one of the patterns, and which nothing took, are left aside."""
        for name in self.tensors:
            left = name not in self.report.used and name not in self.report.ignored
            if left and any(re.fullmatch(pattern, name) for pattern in patterns):
                self.report.ignored[name] = reason

    def finish(self) -> dict[str, torch.Tensor]:
        """The state; what nobody took or named is noted as unknown."""
        self.ignore("not known in this layout", ".*")
        return self.state

    def _get(self, foreign: str, why: str) -> torch.Tensor:
        if foreign not in self.tensors:
            raise CheckpointError(
                f"{self.source}: {foreign} is missing ({why}); layout {self.report.layout} must hold it: "
                "get the file anew, or name another layout"
            )
        return self.tensors[foreign]
