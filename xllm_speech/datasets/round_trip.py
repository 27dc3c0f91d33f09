"""Synthetic speech that a recogniser does not understand is dropped: it is badly spoken, or its text badly translated.

    `prepare speech-cuts`    speech.jsonl -> cuts for `xllm-speech transcribe`
    `prepare round-trip`     speech.jsonl or cuts, and what was recognised of them -> those that were understood

OUT gets the file of its kind (speech.jsonl or cuts.jsonl.gz), rejected.jsonl with what was heard instead, and statistics.json.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xllm_speech.base.errors import DataError
from xllm_speech.base.files import read_jsonl, write_json, write_jsonl
from xllm_speech.base.rejects import Rejects
from xllm_speech.manifests.cuts import CUTS_NAME, REJECTED_NAME, make_recording
from xllm_speech.manifests.pieces import STATISTICS_NAME
from xllm_speech.manifests.vsdial_cn import SPEECH_NAME
from xllm_speech.metrics.alignment import align
from xllm_speech.text.normalise import normalise

DEFAULT_MAX_CER = 0.3
DEFAULT_MAX_DROPPED = 0.5


def count_errors(text: str, heard: str) -> tuple[int, int]:
    """(characters of a text, how many of them a recogniser got wrong, missed or added), by the normal forms without blanks."""
    counts = align(normalise(text).replace(" ", ""), normalise(heard).replace(" ", "")).counts
    return counts.N, counts.errors


def is_understood(text: str, heard: str, max_cer: float = DEFAULT_MAX_CER) -> bool:
    """Whether the character error rate is at most `max_cer`; never of a text without characters."""
    return _agree(*count_errors(text, heard), max_cer)


def _agree(total: int, errors: int, max_cer: float) -> bool:
    return total > 0 and errors <= max_cer * total


def speech_cuts(folder: str | Path) -> Iterator[dict[str, Any]]:
    """A lhotse cut, as an object, for every recording of a folder's speech.jsonl.

    Raises:
        DataError: a row without id, text and path, or a recording that cannot be opened.
    """
    from lhotse import MonoCut, SupervisionSegment

    path = Path(folder) / SPEECH_NAME
    for number, row in read_jsonl(path):
        name, text, file = (_text_of(row, key, f"{path}:{number}") for key in ("id", "text", "path"))
        recording = make_recording(name, os.path.abspath(Path(folder) / file))
        assert recording.channel_ids is not None
        channel = recording.channel_ids[0]
        words = SupervisionSegment(name, name, 0.0, recording.duration, channel, text, speaker=row.get("speaker"))
        cut = MonoCut(name, 0.0, recording.duration, channel, supervisions=[words], recording=recording)
        yield dict(cut.to_dict())


def keep_understood(
    out: str | Path, heard: str | Path, speech: str | Path | None = None, cuts: str | Path | None = None,
    max_cer: float = DEFAULT_MAX_CER, max_dropped: float = DEFAULT_MAX_DROPPED,
) -> dict[str, float]:
    """Write what was understood of one of `speech` (a folder with speech.jsonl) and `cuts` (a manifest), in its order.

    Args:
        heard: jsonl of {"id", "text"}, as `xllm-speech transcribe --out` writes it. max_cer: largest character error rate.
        max_dropped: largest share (0..1) that may be dropped; beyond it the recogniser is in doubt, and there is no manifest.

    Returns: `kept`, `rejected`, and `cer`, % of all characters.

    Raises:
        DataError: a recording that was not recognised, a broken line, or more than `max_dropped` not understood.
    """
    if max_cer < 0 or not 0 <= max_dropped <= 1:
        raise DataError(f"--max-cer {max_cer} must not be negative, --max-dropped {max_dropped} must lie in 0..1")
    out = Path(out)
    rejects, totals = Rejects(max_dropped), [0, 0, 0]
    rows = _speech_rows(Path(speech), out) if speech is not None else _cut_rows(Path(str(cuts)))
    texts = {str(row.get("id")): row for _, row in read_jsonl(heard)}

    def understood() -> Iterator[dict[str, Any]]:
        for name, text, path, row in rows:
            found = texts.get(name)
            if found is None:
                raise DataError(f"{heard}: nothing for {name}; recognise all of {speech or cuts} first")
            said = str(found.get("text") or "")
            total, errors = count_errors(text, said)
            totals[:] = totals[0] + 1, totals[1] + total, totals[2] + errors
            if found.get("error"):
                rejects.add(name, path, f"not recognised: {found['error']}", "not-recognised")
            elif not _agree(total, errors, max_cer):
                rejects.add(name, path, f"`{text}` was heard as `{said}`", "not-understood")
            else:
                yield row

    manifest = out / (SPEECH_NAME if speech is not None else CUTS_NAME)
    part = manifest.with_name(f".new.{manifest.name}")
    try:
        kept = write_jsonl(part, understood())
        rejects.write(out / REJECTED_NAME)
        if len(rejects.rows) > max_dropped * totals[0] or not kept:
            first = rejects.rows[0]["reason"] if rejects.rows else "there was none"
            raise DataError(
                f"{out / REJECTED_NAME}: {len(rejects.rows)} of {totals[0]} recordings were not understood, more than "
                f"--max-dropped {max_dropped:g} allows; is the recogniser trained for such speech? (first: {first})"
            )
        counts = {"kept": kept, "rejected": len(rejects.rows), "cer": round(100 * totals[2] / max(1, totals[1]), 2)}
        settings = {"heard": str(heard), "of": str(speech or cuts), "max_cer": max_cer}
        write_json(out / STATISTICS_NAME, {"statistics": {**counts, "rejected_kinds": rejects.counts}, "settings": settings})
        os.replace(part, manifest)
    finally:
        part.unlink(missing_ok=True)
    return counts


def _text_of(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise DataError(f"{where}: no `{key}`")
    return value


def _speech_rows(folder: Path, out: Path) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """(id, text, file, row whose path holds from `out`) of speech.jsonl."""
    path = folder / SPEECH_NAME
    for number, row in read_jsonl(path):
        name, text, file = (_text_of(row, key, f"{path}:{number}") for key in ("id", "text", "path"))
        yield name, text, str(folder / file), {**row, "path": os.path.relpath(folder / file, out)}


def _cut_rows(path: Path) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        name = _text_of(row, "id", where)
        supervisions = row.get("supervisions")
        if not isinstance(supervisions, list) or len(supervisions) != 1 or not isinstance(supervisions[0], dict):
            raise DataError(f"{where}: cut {name} has not one supervision with its text")
        yield name, _text_of(supervisions[0], "text", where), where, row
