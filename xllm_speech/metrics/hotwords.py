"""How well hotwords were recognised: recall and precision by phrase, and the error rate of the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from xllm_speech.base.errors import DataError
from xllm_speech.metrics.alignment import Counts, align
from xllm_speech.metrics.score_file import NormalForm
from xllm_speech.metrics.transcripts import pair_transcripts, read_transcripts


@dataclass
class PhraseCount:
    """One phrase: said in references, written in hypotheses, and written where it was said."""

    said: int = 0
    written: int = 0
    right: int = 0

    @property
    def recall(self) -> float | None:
        """Share of what was said that was written; None where it was never said."""
        return self.right / self.said if self.said else None

    @property
    def precision(self) -> float | None:
        """Share of what was written that was said; None where it was never written."""
        return self.right / self.written if self.written else None


@dataclass
class HotwordReport:
    """Counts by phrase and in all. inside, outside: token errors in and out of the phrases of the references.

    An inserted token counts where the reference token before it stands.
    """

    phrases: dict[str, PhraseCount] = field(default_factory=dict)
    total: PhraseCount = field(default_factory=PhraseCount)
    inside: Counts = field(default_factory=Counts)
    outside: Counts = field(default_factory=Counts)


def score_hotwords(
    phrases: Mapping[str, Sequence[str]], pairs: Iterable[tuple[Sequence[str], Sequence[str]]]
) -> HotwordReport:
    """Count hotwords in (reference, hypothesis) pairs.

    An occurrence is right where all its reference tokens are aligned, in order and without anything between, with the same
    tokens of the hypothesis.

    Args:
        phrases: name -> its tokens (of the same kind as in the pairs). pairs: tokens of reference and hypothesis.

    Raises:
        DataError: a phrase without tokens.
    """
    empty = next((name for name, tokens in phrases.items() if not tokens), None)
    if empty is not None:
        raise DataError(f"hotword `{empty}` has no token that is scored")
    report = HotwordReport({name: PhraseCount() for name in phrases})
    for reference, hypothesis in pairs:
        letters, first_of = _walk(reference, hypothesis)
        covered = [False] * len(reference)
        for name, tokens in phrases.items():
            count = report.phrases[name]
            count.written += len(_places(hypothesis, tokens))
            for place in _places(reference, tokens):
                count.said += 1
                covered[place : place + len(tokens)] = [True] * len(tokens)
                begin = first_of[place]
                count.right += letters[begin : begin + len(tokens)] == "C" * len(tokens)
        at = -1
        for letter in letters:
            at += letter != "I"
            one = Counts(letter != "I", letter == "S", letter == "D", letter == "I")
            if at >= 0 and covered[at]:
                report.inside += one
            else:
                report.outside += one
    for count in report.phrases.values():
        report.total.said += count.said
        report.total.written += count.written
        report.total.right += count.right
    return report


def score_hotword_files(ref: str | Path, hyp: str | Path, phrases: Iterable[str], form: NormalForm) -> dict[str, Any]:
    """Hotwords in a hypothesis file, for the score file; phrases are compared in normal form, character by character.

    Keys: said, written, right, recall, precision, f1, phrases {phrase: the same}, inside and outside {counts {N, S, D, I},
    cer}: errors in and out of the phrases. Rates are percentages, null where nothing can be divided by.

    Raises:
        DataError: a phrase of which nothing is left in normal form, or files that do not fit each other.
    """
    tokens = {phrase: form.cer_tokens(form.normalise(phrase)) for phrase in phrases}
    pairs = pair_transcripts(read_transcripts(ref), read_transcripts(hyp), ref, hyp)
    report = score_hotwords(tokens, (
        (form.cer_tokens(form.normalise(asked.text)), form.cer_tokens(form.normalise(answer.text))) for asked, answer in pairs
    ))
    parts = {"inside": report.inside, "outside": report.outside}
    return {
        **_describe(report.total), "phrases": {name: _describe(count) for name, count in report.phrases.items()},
        **{name: {"counts": asdict(counts), "cer": counts.percent} for name, counts in parts.items()},
    }


def _describe(count: PhraseCount) -> dict[str, Any]:
    either = count.said + count.written
    rates = {"recall": count.recall, "precision": count.precision, "f1": 2 * count.right / either if either else None}
    return asdict(count) | {name: None if rate is None else 100 * rate for name, rate in rates.items()}


def _walk(reference: Sequence[str], hypothesis: Sequence[str]) -> tuple[str, list[int]]:
    """The letters of the alignment, and for each reference token the place of its letter."""
    letters = align(reference, hypothesis).operations
    return letters, [place for place, letter in enumerate(letters) if letter != "I"]


def _places(tokens: Sequence[str], phrase: Sequence[str]) -> list[int]:
    """Where the phrase begins; occurrences may overlap."""
    phrase, length = list(phrase), len(phrase)
    return [i for i in range(len(tokens) - length + 1) if list(tokens[i : i + length]) == phrase]
