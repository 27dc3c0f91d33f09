"""Seam decoding -> output and metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TimedToken:
    """One token of a hypothesis with its CIF times: seconds from the start of the recording; confidence in 0..1 or None."""

    text: str
    start_sec: float
    end_sec: float
    confidence: float | None = None


@dataclass
class Hypothesis:
    """What was recognised in one utterance.

    id: utterance id. text: the transcript, possibly empty. tokens: with times, in order. score: log probability, None
    where the search gives none. recording, start_sec, duration_sec: where the utterance lies. error: why nothing could
    be recognised (unreadable audio), else None; its text is then empty.
    """

    id: str
    text: str
    tokens: list[TimedToken] = field(default_factory=list)
    score: float | None = None
    recording: str | None = None
    start_sec: float = 0.0
    duration_sec: float | None = None
    channel: int = 0
    error: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
