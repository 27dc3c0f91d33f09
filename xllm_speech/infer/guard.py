"""A guard over transcripts: silence gives no text; of an LLM, a transcript as long as what was said, no loops, no inventions.

CIF counts how much was said and its decoder says roughly what. A transcript that cannot come from that is replaced by the
CIF model's own; every decision is recorded with the numbers it rests on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from rapidfuzz.distance import Levenshtein

from xllm_speech.base.config import require
from xllm_speech.infer.listening import Heard
from xllm_speech.metrics.rates import loops
from xllm_speech.text.normalise import cer_tokens, normalise
from xllm_speech.text.tokens import TokenTable

KEPT, EMPTY, FALLBACK = "kept", "empty", "cif"


@dataclass(frozen=True)
class GuardConfig:
    """When a transcript is not believed.

    quiet: no tenth of a second with a mean log mel energy above this is silence (16-bit samples; about -84 dB below full
    scale). heard_per_unit: fewer steps per unit that CTC takes for speech are no speech either; real speech has 1 to 3.
    doubtful: with fewer than this voice activity is asked, where it can be; without it, a sound whose log energy swings by
    less than `steady` is no speech. shortest, longest: tokens of the transcript (by the ASR model's table) per unit, `slack`
    tokens more or less being allowed in any case. furthest: edit distance between the LLM's and the CIF model's text in normal
    form, as a share of the longer one, beyond which the CIF model's is taken.

    Raises:
        ConfigError: a number out of its range.
    """

    quiet: float = 6.0
    heard_per_unit: float = 0.5
    doubtful: float = 0.9
    steady: float = 0.4
    shortest: float = 0.5
    longest: float = 1.6
    slack: int = 3
    furthest: float = 0.7

    def __post_init__(self) -> None:
        require(self.heard_per_unit >= 0, f"guard.heard_per_unit {self.heard_per_unit} must not be negative")
        require(
            self.doubtful >= self.heard_per_unit,
            f"guard.doubtful {self.doubtful} must not be below heard_per_unit {self.heard_per_unit}",
        )
        require(0 <= self.shortest <= 1 <= self.longest, f"guard: shortest {self.shortest} <= 1 <= longest {self.longest}")
        require(self.slack >= 0, f"guard.slack {self.slack} must not be negative")
        require(0 < self.furthest <= 1, f"guard.furthest {self.furthest} must lie in (0, 1]")


@dataclass(frozen=True)
class Verdict:
    """What becomes of a transcript.

    decision: kept | empty | cif (the CIF model's text stands in its place). reason: empty for kept. text: what counts now.
    numbers: what the decision rests on.
    """

    decision: str
    reason: str
    text: str
    numbers: dict[str, float]

    def record(self, refused: str | None = None) -> dict[str, Any]:
        """For `Hypothesis.extra["guard"]`; refused: the LLM's text, if it was asked, which stands there if it was not taken."""
        found: dict[str, Any] = {"decision": self.decision}
        if self.reason:
            found["reason"] = self.reason
        if refused and self.decision != KEPT:
            found["llm_text"] = refused
        return {**found, **{name: round(value, 3) for name, value in self.numbers.items()}}


class Guard:
    """Judges transcripts.

    Args:
        table: of the ASR model, whose tokens are counted. config: the bounds.
    """

    def __init__(self, table: TokenTable, config: GuardConfig | None = None) -> None:
        self.table, self.config = table, config or GuardConfig()

    def measure_sound(self, heard: Heard) -> dict[str, float]:
        """Signs of speech."""
        numbers: dict[str, float] = {"units": heard.units, "log_energy": heard.log_energy}
        if heard.heard is not None and heard.units:
            numbers["heard_per_unit"] = heard.heard / heard.units
        if math.isfinite(heard.swing):
            numbers["swing"] = heard.swing
        return numbers

    def judge_sound(self, heard: Heard, has_voice: Callable[[], bool | None] | None = None) -> Verdict | None:
        """The verdict on an utterance in which nobody speaks: an empty text, before any LLM is asked. None: somebody does.

        has_voice: asks voice activity (`infer.voice`), which is done in doubt only; it has the last word where it has one.
        """
        config, numbers = self.config, self.measure_sound(heard)
        if not heard.units:
            return Verdict(EMPTY, "no unit", "", numbers)
        if heard.log_energy <= config.quiet:
            return Verdict(EMPTY, f"nothing louder than {config.quiet:g}", "", numbers)
        share = numbers.get("heard_per_unit", -math.inf)  # a model without CTC is always in doubt
        if share >= config.doubtful:
            return None
        voice = None if has_voice is None else has_voice()
        if voice is not None:
            return None if voice else Verdict(EMPTY, "voice activity hears nobody", "", numbers)
        if math.isfinite(share) and share < config.heard_per_unit:
            return Verdict(EMPTY, f"CTC hears less than {config.heard_per_unit:g} steps per unit", "", numbers)
        if math.isfinite(share) and heard.swing < config.steady:
            return Verdict(EMPTY, f"a steady sound, and CTC hears less than {config.doubtful:g} steps per unit", "", numbers)
        return None

    def judge(self, heard: Heard, text: str) -> Verdict:
        """The verdict on the LLM's transcript of an utterance with speech."""
        config, length = self.config, len(self.table.encode(text))
        ours, theirs = (cer_tokens(normalise(side, numbers=True)) for side in (heard.text, text))
        distance = Levenshtein.normalized_distance(ours, theirs)
        numbers = {**self.measure_sound(heard), "tokens": length, "distance": distance}
        fewest = min(heard.units * config.shortest, heard.units - config.slack)
        most = max(heard.units * config.longest, heard.units + config.slack)
        reason = ""
        if loops("".join(ours), "".join(theirs)):
            reason = "a loop"
        elif length < fewest:
            reason = f"{length} tokens for {heard.units} units, fewer than {fewest:g}"
        elif length > most:
            reason = f"{length} tokens for {heard.units} units, more than {most:g}"
        elif distance > config.furthest:
            reason = f"further than {config.furthest:g} from the CIF model's text"
        return Verdict(FALLBACK, reason, heard.text, numbers) if reason else Verdict(KEPT, "", text, numbers)


def count_decisions(records: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Number of utterances by decision, from `Verdict.record`."""
    return dict(sorted(Counter(str(record["decision"]) for record in records).items()))
