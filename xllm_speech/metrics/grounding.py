"""Does the image help? The same utterances under several conditions, compared in pairs (evaluation.md).

Conditions are hypothesis files of one reference: S, S with the right, a wrong or a blank image, S with the caption, or one
wording of the instruction each. With captions, every wrong character is counted as grounded or not: grounded is what the
caption could have told, a stretch of at least two characters, or a Latin word or number, that stands in the caption too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xllm_speech.base.config import require
from xllm_speech.base.errors import DataError
from xllm_speech.base.header import run_header
from xllm_speech.metrics.alignment import Counts, align
from xllm_speech.metrics.rates import bootstrap_interval, paired_bootstrap
from xllm_speech.metrics.score_file import NormalForm, read_decoding, reference_hash
from xllm_speech.metrics.transcripts import pair_transcripts, read_texts, read_transcripts

SHORTEST = 2  # Chinese characters in a row that count as a word: single ones (的, 一) stand everywhere
CLASSES = ("all", "grounded", "other")


@dataclass(frozen=True)
class Split:
    """Wrong characters of one utterance. grounded, other: N reference characters of the class, and errors among them.

    An inserted character belongs to the class that the caption gives it. copied: wrong characters of the hypothesis that
    stand in the caption: put there by it, not by the speech.
    """

    grounded: tuple[int, int]
    other: tuple[int, int]
    copied: int

    def of(self, name: str) -> tuple[int, int]:
        """(N, errors) of `grounded`, `other` or `all`."""
        match name:
            case "grounded":
                return self.grounded
            case "other":
                return self.other
            case _:
                return self.grounded[0] + self.other[0], self.grounded[1] + self.other[1]


def grounded_tokens(tokens: Sequence[str], sources: Sequence[Sequence[str]]) -> list[bool]:
    """For each token whether one of `sources` (captions, as tokens) holds it: as a word of its own, or in a stretch of two.

    tokens: as the mixed error rate counts them, Chinese characters and Latin words. Raises nothing.
    """
    found = [False] * len(tokens)
    for source in sources:
        words = {token for token in source if len(token) > 1}
        stretches = {tuple(source[start : start + SHORTEST]) for start in range(len(source) - SHORTEST + 1)}
        for start, token in enumerate(tokens):
            if token in words:
                found[start] = True
            if tuple(tokens[start : start + SHORTEST]) in stretches:
                found[start : start + SHORTEST] = [True] * SHORTEST
    return found


def split_errors(reference: str, hypothesis: str, captions: Sequence[str], form: NormalForm) -> Split:
    """Split the wrong characters of a hypothesis by what the captions ground; all texts in normal form."""
    sources = [form.mer_tokens(caption) for caption in captions]
    said, heard = _by_character(reference, sources, form), _by_character(hypothesis, sources, form)
    total, wrong, copied = [0, 0], [0, 0], 0
    at_reference = at_hypothesis = 0
    for step in align(form.cer_tokens(reference), form.cer_tokens(hypothesis)).steps:
        in_caption = heard[at_hypothesis] if step.hypothesis is not None else False
        grounded = said[at_reference] if step.reference is not None else in_caption
        total[grounded] += step.reference is not None
        wrong[grounded] += step.operation != "C"
        copied += step.operation in "SI" and in_caption
        at_reference += step.reference is not None
        at_hypothesis += step.hypothesis is not None
    return Split((total[True], wrong[True]), (total[False], wrong[False]), copied)


def _by_character(text: str, sources: Sequence[Sequence[str]], form: NormalForm) -> list[bool]:
    tokens = form.mer_tokens(text)
    flags = grounded_tokens(tokens, sources)
    return [flag for token, flag in zip(tokens, flags, strict=True) for _ in form.cer_tokens(token)]


def compare_conditions(
    ref: str | Path, hypotheses: Mapping[str, str | Path], form: NormalForm, captions: str | Path | None = None,
    set_name: str | None = None, seed: int = 0, beside: str | None = None,
) -> dict[str, Any]:
    """Compare hypothesis files of one reference, each with the first; returns the content of the score file.

    hypotheses: condition or wording -> file. captions: text (one or several) of every utterance's image, in any form that
    `read_texts` knows, or cuts with a field `caption`; an utterance without an image has the empty caption. beside: a second
    condition that all are compared with, such as the right image beside a wrong one.

    Keys: conditions {name: counts, cer, interval, difference to the first, decoding, and with captions grounded and other
    (N, errors, percent, difference) and copied}; a difference has points (below 0: better than the first), its 95 % interval
    and p of the paired bootstrap; baseline; with beside, its name, and in each row `beside`, the difference to it; spread
    (lowest, highest, mean CER and their range: what the wording alone does); same_text (% of utterances that all conditions
    write alike); set, utterances, normaliser, test_set_sha256, header.

    Raises:
        ConfigError: fewer than two conditions.
        DataError: unless every reference id is answered exactly once in each file, and has a caption where they are given.
    """
    require(len(hypotheses) >= 2, "--conditions: expected at least two NAME=FILE, the one to compare with first")
    require(beside is None or beside in hypotheses, f"{beside} is none of the conditions {', '.join(hypotheses)}")
    references = read_transcripts(ref)
    texts = {row.id: form.normalise(row.text) for row in references}
    known = {} if captions is None else _captions(captions, list(texts), form)
    answers: dict[str, dict[str, str]] = {}
    for name, path in hypotheses.items():
        rows = pair_transcripts(references, read_transcripts(path), ref, path)
        answers[name] = {asked.id: form.normalise(answer.text) for asked, answer in rows}
    splits = {
        name: [split_errors(text, given[id], known.get(id, ()), form) for id, text in texts.items()]
        for name, given in answers.items()
    }
    baseline = next(iter(hypotheses))
    table: dict[str, dict[str, Any]] = {}
    for name, given in answers.items():
        counts = sum((align(form.cer_tokens(text), form.cer_tokens(given[id])).counts for id, text in texts.items()), Counts())
        table[name] = {
            "hypothesis": str(hypotheses[name]), "counts": asdict(counts), "cer": counts.percent,
            **{key: row for key, row in _class_row(splits[name], splits[baseline], "all", seed).items() if key in _SHOWN},
            "decoding": read_decoding(hypotheses[name]),
        }
        if beside is not None:
            table[name]["beside"] = _class_row(splits[name], splits[beside], "all", seed)["difference"]
        if captions is not None:
            table[name] |= {part: _class_row(splits[name], splits[baseline], part, seed) for part in ("grounded", "other")}
            table[name]["copied"] = sum(split.copied for split in splits[name])
    rates = [row["cer"] for row in table.values() if row["cer"] is not None]
    alike = sum(len({given[id] for given in answers.values()}) == 1 for id in texts)
    return {
        "set": set_name,
        "reference": str(ref),
        "captions": None if captions is None else str(captions),
        "utterances": len(texts),
        "baseline": baseline,
        "beside": beside,
        "conditions": table,
        "spread": {
            "lowest": min(rates), "highest": max(rates), "range": max(rates) - min(rates), "mean": sum(rates) / len(rates),
        } if rates else None,
        "same_text": 100 * alike / len(texts),
        "normaliser": form.id,
        "test_set_sha256": reference_hash(texts.items()),
        "header": run_header(seed),
    }


_SHOWN = ("interval", "difference")


def _class_row(ours: Sequence[Split], theirs: Sequence[Split], name: str, seed: int) -> dict[str, Any]:
    """N, errors, percent, interval of one class, and the paired difference to the baseline (None for itself)."""
    lengths, errors = zip(*(split.of(name) for split in ours), strict=True)
    interval = bootstrap_interval(errors, lengths, seed=seed)
    paired = None if ours is theirs else paired_bootstrap(errors, [split.of(name)[1] for split in theirs], lengths, seed=seed)
    return {
        "N": sum(lengths),
        "errors": sum(errors),
        "percent": 100 * sum(errors) / sum(lengths) if sum(lengths) else None,
        "interval": None if interval is None else list(interval),
        "difference": None if paired is None else {
            "points": paired.difference, "interval": list(paired.interval), "p": paired.p,
        },
    }


def _captions(path: str | Path, ids: Sequence[str], form: NormalForm) -> dict[str, list[str]]:
    """Captions of every id, in normal form."""
    found = {}
    for row in read_texts(path, several=True):
        # A line of two columns is the caption itself; a cut's text is its transcript, and grounds nothing.
        caption = row.fields.get("caption", row.fields.get("texts", "" if row.fields else row.text))
        several = [caption] if isinstance(caption, str) else caption
        if not isinstance(several, list) or not all(isinstance(text, str) for text in several):
            raise DataError(f"{path}:{row.line}: id {row.id}: expected its caption to be a string, found {caption!r:.60}")
        found[row.id] = [form.normalise(text) for text in several]
    missing = [id for id in ids if id not in found]
    if missing:
        raise DataError(f"{path}: lacks the captions of {len(missing)} of {len(ids)} utterances, {missing[0]} the first; "
                        "write an empty one where there is no image")
    return found
