"""Levenshtein alignment of two token sequences, with counts N, S, D, I and one operation per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rapidfuzz.distance import Levenshtein


@dataclass(frozen=True)
class Counts:
    """N reference tokens, S substitutions, D deletions, I insertions; counts add up over utterances."""

    N: int = 0
    S: int = 0
    D: int = 0
    I: int = 0  # noqa: E741 - the name the literature uses

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.N + other.N, self.S + other.S, self.D + other.D, self.I + other.I)

    @property
    def errors(self) -> int:
        """S + D + I."""
        return self.S + self.D + self.I

    @property
    def percent(self) -> float | None:
        """Error rate in percent, above 100 where there are many insertions; None without reference tokens."""
        return 100 * self.errors / self.N if self.N else None


class Step(NamedTuple):
    """One operation: `C` correct, `S`, `D` (hypothesis None) or `I` (reference None)."""

    operation: str
    reference: str | None
    hypothesis: str | None


@dataclass(frozen=True)
class Alignment:
    """A cheapest alignment, every operation at cost 1, the same one each time."""

    steps: tuple[Step, ...]

    @property
    def operations(self) -> str:
        """One letter per step, C, S, D or I: with both token sequences it says the whole alignment."""
        return "".join(step.operation for step in self.steps)

    @property
    def counts(self) -> Counts:
        """Counts of this utterance."""
        letters = self.operations
        return Counts(len(letters) - letters.count("I"), letters.count("S"), letters.count("D"), letters.count("I"))


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> Alignment:
    """Align two sequences of tokens; either may be empty."""
    steps: list[Step] = []
    for block in Levenshtein.opcodes(reference, hypothesis):
        ours = reference[block.src_start : block.src_end]
        theirs = hypothesis[block.dest_start : block.dest_end]
        match block.tag:
            case "equal":
                steps.extend(Step("C", token, token) for token in ours)
            case "replace":
                steps.extend(Step("S", token, other) for token, other in zip(ours, theirs, strict=True))
            case "delete":
                steps.extend(Step("D", token, None) for token in ours)
            case _:
                steps.extend(Step("I", None, other) for other in theirs)
    return Alignment(tuple(steps))
