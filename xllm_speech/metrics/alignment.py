"""Levenshtein alignment of two token sequences, with counts N, S, D, I and one operation per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein

MOST_CELLS = 100_000_000  # of a table, a byte each: two sequences of 10 000 tokens that differ from end to end
_PAIR, _DELETE, _INSERT = range(3)


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
    """An alignment with the fewest errors, the same one each time."""

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
    """Align two sequences of tokens; either may be empty.

    Of the alignments with the fewest errors it is one with the fewest substitutions, so that S, D and I are those of sclite
    (NIST), which weighs a substitution 4 and the others 3. (Where sclite gives up a little of the error rate for more right
    tokens, in hypotheses that have next to nothing in common with their reference, ours keeps the edit distance.)
    """
    begin, end = 0, 0
    shortest = min(len(reference), len(hypothesis))
    while begin < shortest and reference[begin] == hypothesis[begin]:
        begin += 1
    while end < shortest - begin and reference[-1 - end] == hypothesis[-1 - end]:
        end += 1
    ours, theirs = reference[begin : len(reference) - end], hypothesis[begin : len(hypothesis) - end]
    middle = _by_distance(ours, theirs) if len(ours) * len(theirs) > MOST_CELLS else _by_weight(ours, theirs)
    operations = "C" * begin + middle + "C" * end
    left, right = iter(reference), iter(hypothesis)
    return Alignment(tuple(
        Step(letter, None if letter == "I" else next(left), None if letter == "D" else next(right)) for letter in operations
    ))


def _by_weight(reference: Sequence[str], hypothesis: Sequence[str]) -> str:
    """Operations with the fewest errors, and among those the fewest substitutions; a row of the table at a time."""
    if not reference or not hypothesis:
        return "D" * len(reference) + "I" * len(hypothesis)
    numbers: dict[str, int] = {}
    wanted, heard_M = ([numbers.setdefault(token, len(numbers)) for token in tokens] for tokens in (reference, hypothesis))
    heard = np.array(heard_M)
    error = len(reference) + len(hypothesis) + 1  # weighs more than what all substitutions weigh on top
    inserted = np.arange(len(hypothesis) + 1) * error
    cost, choices = inserted, np.empty((len(reference), len(hypothesis) + 1), dtype=np.int8)
    for place, token in enumerate(wanted):
        reached = cost + error
        diagonal = cost[:-1] + (heard != token) * (error + 1)
        paired = diagonal <= reached[1:]
        reached[1:] = np.where(paired, diagonal, reached[1:])
        cost = np.minimum.accumulate(reached - inserted) + inserted
        choices[place, 0] = _DELETE
        choices[place, 1:] = np.where(cost[1:] < reached[1:], _INSERT, np.where(paired, _PAIR, _DELETE))
    letters, row, column = [], len(reference), len(hypothesis)
    while row or column:
        choice = choices[row - 1, column] if row else _INSERT
        row, column = row - (choice != _INSERT), column - (choice != _DELETE)
        if choice == _PAIR:
            letters.append("C" if wanted[row] == heard_M[column] else "S")
        else:
            letters.append("I" if choice == _INSERT else "D")
    return "".join(reversed(letters))


def _by_distance(reference: Sequence[str], hypothesis: Sequence[str]) -> str:
    """Operations with the fewest errors in little memory, for sequences too long for a table."""
    letters = {"equal": "C", "replace": "S", "delete": "D", "insert": "I"}
    return "".join(
        letters[block.tag] * max(block.src_end - block.src_start, block.dest_end - block.dest_start)
        for block in Levenshtein.opcodes(reference, hypothesis)
    )
