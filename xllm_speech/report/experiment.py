"""What an experiment folder holds, as plain records: scores, trainings, answers, verdicts, stages, models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from xllm_speech.base.errors import UserError, first_line
from xllm_speech.infer.phase_tree import Node

Value = TypeVar("Value")


@dataclass(frozen=True)
class ScoredUtterance:
    """One line of a score file; operations: C, S, D, I over the characters of reference and hypothesis."""

    id: str
    reference: str
    hypothesis: str
    operations: str
    errors: int
    length: int


@dataclass(frozen=True)
class Score:
    """A score file. model: cif_asr, llm_asr, or what the file calls it; set without `test_`; condition: S, S+V ..."""

    path: str
    model: str
    set: str
    condition: str
    cer: float | None
    interval: tuple[float, float] | None
    counts: dict[str, int]
    ser: float | None
    rtfx: float | None
    loop_rate: float | None
    hallucination_rate: float | None
    undecoded: int
    normaliser: str
    set_sha256: str
    reference: str
    decoded_by: str
    checkpoint_sha256: str
    utterances: list[ScoredUtterance]


@dataclass(frozen=True)
class Gap:
    """A paired difference: points, their 95 % interval, and p."""

    points: float | None
    interval: tuple[float, float] | None
    p: float | None


@dataclass(frozen=True)
class ConditionRow:
    """One condition of `score --conditions`: difference to the first (None for itself), beside: to the second baseline.

    title: in words. grounded, other: CER of what the caption could have told, and of the rest.
    """

    name: str
    title: str
    cer: float | None
    interval: tuple[float, float] | None
    difference: Gap | None
    beside: Gap | None
    grounded: float | None
    other: float | None


@dataclass(frozen=True)
class Conditions:
    """The same utterances under several conditions, or wordings (worded: the condition that they are of).

    model: cif_asr, llm_asr or "" where that is not told; decoded_by, checkpoint_sha256: where it lay, and its weights then.
    left_out: (condition, why). notes: what is to be known.
    """

    path: str
    set: str
    rows: list[ConditionRow]
    utterances: int
    same_text: float | None
    baseline: str
    second: str | None = None
    model: str = ""
    worded: str = ""
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    decoded_by: str = ""
    checkpoint_sha256: str = ""


@dataclass(frozen=True)
class TextScore:
    """A file of `score --metrics`: kind caption, answer or translation; scores with intervals, and of other texts the gaps."""

    path: str
    kind: str
    set: str
    items: int
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float] | None]
    other: str = ""
    others: dict[str, float] = field(default_factory=dict)
    gaps: dict[str, Gap] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """A training: header.json, and the rows of train.log by kind."""

    path: str
    folder: Path
    header: dict[str, Any]
    train: list[dict[str, Any]]
    dev: list[dict[str, Any]]
    skipped: int
    finished: bool

    @property
    def task(self) -> str:
        """What was trained: asr, lm, or the task with its kind of media."""
        settings = self.header.get("settings", {})
        return " ".join(str(settings[key]) for key in ("task", "kind") if settings.get(key)) or "training"


@dataclass(frozen=True)
class Answers:
    """A file of `xllm-speech answer`; without: media left out, as a baseline. rows: as they stand there.

    wording, instructions: what media without a text of their own were asked by, None where that is not told.
    """

    path: str
    conversations: str
    without: tuple[str, ...]
    rows: list[dict[str, Any]]
    wording: int | None = None
    instructions: dict[str, list[str]] | None = None
    model: str = ""
    checkpoint_sha256: str = ""


@dataclass(frozen=True)
class Judged:
    """A file of verdicts, summed up (metrics.judged.summarise) under every policy for verdicts without stored scores."""

    path: str
    summaries: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Stage:
    """A stage of the recipe; minutes None where it has not run."""

    number: int
    title: str
    minutes: float | None


@dataclass
class Experiment:
    """All that the report tells. metrics: numbers of metrics.json by their path of keys; intervals: of them, where it has any.
    problems: (file, what is wrong)."""

    root: Path
    name: str
    scores: list[Score] = field(default_factory=list)
    conditions: list[Conditions] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    answers: list[Answers] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    metrics: dict[tuple[str, ...], float | None] = field(default_factory=dict)
    intervals: dict[tuple[str, ...], tuple[float, float] | None] = field(default_factory=dict)
    texts: list[TextScore] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def attempt(self, path: str | Path, read: Callable[[], Value]) -> Value | None:
        """What `read` gives; where it fails the file is named among the problems, and only it is missing."""
        try:
            return read()
        except UserError as error:
            self.note(path, str(error))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            self.note(path, f"not in a form that is known ({type(error).__name__}: {first_line(error)})")
        except OSError as error:
            self.note(path, f"cannot be read ({error.strerror})")
        return None

    def note(self, path: str | Path, what: str) -> None:
        """Add to the problems; a message that begins with the file is not to name it twice."""
        rest = what.removeprefix(str(path))
        if rest != what and rest.startswith(":"):
            what = rest.removeprefix(": ") if rest.startswith(": ") else f"line {rest[1:]}"
        self.problems.append((str(path), what))
