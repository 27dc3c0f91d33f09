"""`score.json`: everything known about how a hypothesis file compares with its reference (evaluation.md, Recognition)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from xllm_speech.base.errors import DataError
from xllm_speech.base.files import atomic_write, read_json
from xllm_speech.base.header import run_header
from xllm_speech.metrics.alignment import Alignment, Counts, align
from xllm_speech.metrics.rates import bootstrap_interval, loops, paired_bootstrap
from xllm_speech.metrics.transcripts import Transcript, pair_transcripts, read_field, read_transcripts

GROUP_FIELDS = ("speaker", "group")


@dataclass(frozen=True)
class NormalForm:
    """How both sides are brought into one form and cut into tokens.

    id: name and version, and options that change the form; it stands in the score file. normalise: text to normal form.
    cer_tokens, mer_tokens: normal form to characters, and to characters and Latin words.
    """

    id: str
    normalise: Callable[[str], str]
    cer_tokens: Callable[[str], list[str]]
    mer_tokens: Callable[[str], list[str]]


@dataclass(frozen=True)
class _Utterance:
    id: str
    reference: str
    hypothesis: str
    cer: Alignment
    mer: Alignment
    fields: dict[str, Any]
    error: str | None


def score_files(
    ref: str | Path,
    hyp: str | Path,
    form: NormalForm,
    compare: str | Path | None = None,
    set_name: str | None = None,
    groups: Sequence[str] = GROUP_FIELDS,
    seed: int = 0,
    group_files: Mapping[str, str | Path] | None = None,
) -> dict[str, Any]:
    """Compare a hypothesis file with its reference; returns the content of `score.json`.

    compare: another hypothesis file for the same reference. groups: fields of the reference's JSON lines to break the
    counts down by, where any line has them. group_files: further fields, each from a file of its own (see `read_field`).
    seed: of the bootstrap.

    Keys: set, utterances, counts {N, S, D, I}, cer, interval, ser, mer, mer_counts, mer_interval, loop_rate,
    hallucination_rate, hallucination, undecoded, normaliser, test_set_sha256, decoding, groups, compare, header,
    per_utterance. Rates are percentages, null where nothing can be divided by; hallucination_rate is the number of
    characters per utterance whose reference is empty. `operations` of an utterance (C correct, S, D, I) run over the
    characters of `reference` and `hypothesis`, which are in normal form, spaces left out; `mer_operations` over tokens.
    `decoding` is what stands in `HYP.meta.json`, with rtf and rtfx added from its audio_sec and wall_sec.

    Raises:
        DataError: unless every reference id is answered exactly once, and for every line that cannot be read.
    """
    references = read_transcripts(ref)
    utterances = _align_all(references, ref, hyp, form)
    for name, path in (group_files or {}).items():
        values = read_field(path, name, [utterance.id for utterance in utterances])
        utterances = [replace(item, fields={**item.fields, name: values[item.id]}) for item in utterances]
    groups = (*groups, *(group_files or ()))
    counts = _total(utterance.cer for utterance in utterances)
    mer_counts = _total(utterance.mer for utterance in utterances)
    silent = [utterance for utterance in utterances if utterance.cer.counts.N == 0]
    produced = sum(utterance.cer.counts.I for utterance in silent)
    return {
        "set": set_name,
        "reference": str(ref),
        "hypothesis": str(hyp),
        "utterances": len(utterances),
        "counts": asdict(counts),
        "cer": counts.percent,
        "interval": _interval([utterance.cer for utterance in utterances], seed),
        "ser": _percent(sum(utterance.cer.counts.errors > 0 for utterance in utterances), len(utterances)),
        "mer": mer_counts.percent,
        "mer_counts": asdict(mer_counts),
        "mer_interval": _interval([utterance.mer for utterance in utterances], seed),
        "loop_rate": _percent(sum(loops(item.reference, item.hypothesis) for item in utterances), len(utterances)),
        "hallucination_rate": produced / len(silent) if silent else None,
        "hallucination": {
            "silent_utterances": len(silent),
            "answered": sum(utterance.cer.counts.I > 0 for utterance in silent),
            "characters": produced,
        },
        "undecoded": sum(utterance.error is not None for utterance in utterances),
        "normaliser": form.id,
        "test_set_sha256": reference_hash((item.id, item.reference) for item in utterances),
        "decoding": read_decoding(hyp),
        "groups": {name: table for name in groups if (table := _by_group(utterances, name))},
        "compare": None if compare is None else _compare(utterances, references, ref, compare, form, seed),
        "header": run_header(seed),
        "per_utterance": [_row(utterance) for utterance in utterances],
    }


def write_score(path: str | Path, score: dict[str, Any]) -> None:
    """Write `score.json` atomically: indented, with one line per utterance."""
    head = {key: value for key, value in score.items() if key != "per_utterance"}
    with atomic_write(path) as stream:
        stream.write(json.dumps(head, ensure_ascii=False, indent=2, allow_nan=False)[:-2])
        rows = ",\n".join("    " + json.dumps(row, ensure_ascii=False) for row in score["per_utterance"])
        stream.write(f',\n  "per_utterance": [\n{rows}\n  ]\n}}\n')


def reference_hash(rows: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of the reference in normal form: lines `id<TAB>text`, sorted; equal sets give equal hashes in any order."""
    lines = sorted(f"{id}\t{text}\n" for id, text in rows)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_decoding(hyp: str | Path) -> dict[str, Any] | None:
    """What `HYP.meta.json` says of the decoding (prompt, config, checkpoint_sha256, audio_sec, wall_sec, includes, ...).

    Real-time factors are added: rtf = wall_sec / audio_sec, rtfx = audio_sec / wall_sec. None where there is no such file.
    """
    path = Path(f"{hyp}.meta.json")
    if not path.is_file():
        return None
    meta = read_json(path)
    if not isinstance(meta, dict):
        raise DataError(f"{path}: expected a JSON object that describes the decoding")
    audio, wall = meta.get("audio_sec"), meta.get("wall_sec")
    if isinstance(audio, (int, float)) and isinstance(wall, (int, float)) and audio > 0 and wall > 0:
        meta = {**meta, "rtf": wall / audio, "rtfx": audio / wall}
    return meta


def _align_all(
    references: Sequence[Transcript], ref: str | Path, hyp: str | Path, form: NormalForm
) -> list[_Utterance]:
    utterances = []
    for asked, answer in pair_transcripts(references, read_transcripts(hyp), ref, hyp):
        reference, hypothesis = form.normalise(asked.text), form.normalise(answer.text)
        utterances.append(_Utterance(
            asked.id, reference, hypothesis,
            align(form.cer_tokens(reference), form.cer_tokens(hypothesis)),
            align(form.mer_tokens(reference), form.mer_tokens(hypothesis)),
            asked.fields, answer.fields.get("error"),
        ))
    return utterances


def _compare(
    utterances: Sequence[_Utterance], references: Sequence[Transcript], ref: str | Path, other: str | Path,
    form: NormalForm, seed: int,
) -> dict[str, Any]:
    others = _align_all(references, ref, other, form)
    counts = _total(utterance.cer for utterance in others)
    ours = [utterance.cer.counts.errors for utterance in utterances]
    theirs = [utterance.cer.counts.errors for utterance in others]
    paired = paired_bootstrap(ours, theirs, [utterance.cer.counts.N for utterance in utterances], seed=seed)
    return {
        "hypothesis": str(other),
        "counts": asdict(counts),
        "cer": counts.percent,
        "difference": paired.difference if paired else None,  # --hyp minus --compare: below 0, --hyp is better
        "interval": list(paired.interval) if paired else None,
        "p": paired.p if paired else None,
        "better": sum(our < their for our, their in zip(ours, theirs, strict=True)),
        "worse": sum(our > their for our, their in zip(ours, theirs, strict=True)),
        "decoding": read_decoding(other),
    }


def _by_group(utterances: Sequence[_Utterance], name: str) -> dict[str, Any]:
    """Counts per value of a field, sorted; utterances without it under "". A list counts its utterance in each value."""
    if not any(utterance.fields.get(name) for utterance in utterances):
        return {}
    members: dict[str, list[_Utterance]] = {}
    for utterance in utterances:
        value = utterance.fields.get(name)
        for part in value if isinstance(value, list) else [value]:
            members.setdefault("" if part is None else str(part), []).append(utterance)
    table = {}
    for value, items in sorted(members.items()):
        counts = _total(item.cer for item in items)
        table[value] = {"utterances": len(items), "counts": asdict(counts), "cer": counts.percent}
    return table


def _row(utterance: _Utterance) -> dict[str, Any]:
    row = {
        "id": utterance.id,
        "reference": utterance.reference,
        "hypothesis": utterance.hypothesis,
        "counts": asdict(utterance.cer.counts),
        "operations": utterance.cer.operations,
        "mer_operations": utterance.mer.operations,
    }
    return row if utterance.error is None else {**row, "error": utterance.error}


def _total(alignments: Iterable[Alignment]) -> Counts:
    return sum((alignment.counts for alignment in alignments), Counts())


def _interval(alignments: Sequence[Alignment], seed: int) -> list[float] | None:
    errors, lengths = [item.counts.errors for item in alignments], [item.counts.N for item in alignments]
    interval = bootstrap_interval(errors, lengths, seed=seed)
    return None if interval is None else list(interval)


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None
