"""Times and confidences for an LLM's transcript, which has none of its own: from the CIF units that it was read from.

The LLM's characters are aligned with those of the CIF model's hypothesis by edit distance; every token of that hypothesis
is one unit and knows when it began and fired. Where the LLM wrote another character it takes the unit's time; characters
that it wrote between two units share the time of the unit before them (of the one behind at the very start).

Confidence is the geometric mean of two probabilities: that of the LLM for the tokens of the character, and the CIF model's
for the same character: its own where both agree, what it leaves to others where they differ, one half where it has no unit
for it. Without the LLM's (beam search) the second stands alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from xllm_speech.infer.draft import INCOMPLETE
from xllm_speech.infer.listening import Heard
from xllm_speech.llm.loaded import LoadedLlm
from xllm_speech.metrics.alignment import align
from xllm_speech.records import TimedToken
from xllm_speech.text.normalise import mer_tokens
from xllm_speech.text.tokens import join_tokens

NO_UNIT = 0.5  # the CIF model's word on a character for which it has no unit


@dataclass(frozen=True)
class _Letter:
    """A character with its time and the CIF model's probability for it."""

    start_sec: float
    end_sec: float
    probability: float


def time_text(text: str, heard: Heard, letter_log_probs: Sequence[float] | None = None) -> list[TimedToken]:
    """The words of `text` (Chinese characters, and runs of others without a space) with seconds from the utterance's start.

    Args:
        letter_log_probs: of the LLM, for each character of `text` that is no white space (`letter_log_probs`).

    No token comes of a text without characters, or where nothing was heard.
    """
    letters = [letter for letter in text if not letter.isspace()]
    if not letters or not heard.tokens:
        return []
    placed = _place(letters, heard)
    found, position = [], 0
    for word in mer_tokens(text):
        span = placed[position : position + len(word)]
        chances = [letter.probability for letter in span]
        if letter_log_probs is not None:
            inside = letter_log_probs[position : position + len(word)]
            chances = [math.sqrt(own * math.exp(log_prob)) for own, log_prob in zip(chances, inside, strict=True)]
        found.append(TimedToken(word, span[0].start_sec, max(span[0].start_sec, span[-1].end_sec), min(chances)))
        position += len(word)
    return found


def letter_log_probs(llm: LoadedLlm, ids: Sequence[int], log_probs: Sequence[float]) -> list[float]:
    """The LLM's log probability of each character of its text, white space left out: that of the tokens it is made of."""
    found: list[float] = []
    pending = 0.0
    for count, log_prob in enumerate(log_probs, 1):
        known = len("".join(llm.decode(list(ids[:count])).rstrip(INCOMPLETE).split()))
        pending += log_prob
        if known > len(found):
            found += [pending] * (known - len(found))
            pending = 0.0
    total = len("".join(llm.decode(list(ids)).split()))
    return (found + [pending] * (total - len(found)))[:total]


def _place(letters: list[str], heard: Heard) -> list[_Letter]:
    spelt = [join_tokens([token.text]).replace(" ", "") for token in heard.tokens]
    owners = [unit for unit, piece in enumerate(spelt) for _ in piece]
    if not owners:
        return [_Letter(heard.tokens[0].start_sec, heard.tokens[-1].end_sec, NO_UNIT)] * len(letters)
    # Runs of letters that share the time of one place of the hypothesis.
    groups: list[tuple[int | None, list[float]]] = []
    position = 0
    for step in align("".join(spelt), "".join(letters)).steps:
        if step.hypothesis is not None:
            unit = None if step.reference is None else owners[position]
            own = NO_UNIT if unit is None else heard.tokens[unit].confidence or 0.0
            chance = own if step.operation != "S" else 1 - own
            if groups and unit in (None, groups[-1][0]):
                groups[-1][1].append(chance)
            elif groups and groups[-1][0] is None:  # letters before the first unit
                groups[-1] = unit, [*groups[-1][1], chance]
            else:
                groups.append((unit, [chance]))
        position += step.reference is not None
    placed: list[_Letter] = []
    for unit, chances in groups:
        token = heard.tokens[unit or 0]
        width = (token.end_sec - token.start_sec) / len(chances)
        placed += [
            _Letter(token.start_sec + width * place, token.start_sec + width * (place + 1), chance)
            for place, chance in enumerate(chances)
        ]
    return placed
