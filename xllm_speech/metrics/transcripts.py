"""Transcripts to be scored: Kaldi `text` lines, JSON lines, or lhotse cuts; and the rule that every id is answered once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xllm_speech.base.errors import DataError
from xllm_speech.base.files import numbered_lines, read_jsonl

NAMED_AT_MOST = 5


@dataclass(frozen=True)
class Transcript:
    """One utterance's text and the line it stands on; fields: what else a JSON line said of it (speaker, error, ...)."""

    id: str
    text: str
    line: int
    fields: dict[str, Any] = field(default_factory=dict)


def read_transcripts(path: str | Path) -> list[Transcript]:
    """Read Kaldi `text` lines (id, space, text; the text may be empty) or JSON lines with "id" and "text".

    The form is told from the first line that is not blank; gzip is read too. A line with "supervisions" is a lhotse cut:
    its text is that of its supervisions in order of time, empty where it has none. Blank lines are passed over.

    Raises:
        DataError: the file is absent, holds nothing, a line cannot be read, or an id occurs twice; file:line is named.
    """
    first = next((line for _, line in numbered_lines(path) if line.strip()), None)
    if first is None:
        raise DataError(f"{path}: no transcript in it; expected lines of id and text, or JSON lines with id and text")
    rows = list(_json_rows(path) if first.lstrip("\ufeff").lstrip().startswith("{") else _kaldi_rows(path))
    lines: dict[str, int] = {}
    for row in rows:
        if row.id in lines:
            raise DataError(f"{path}:{row.line}: id {row.id} is doubled, first on line {lines[row.id]}; keep one of them")
        lines[row.id] = row.line
    return rows


def _kaldi_rows(path: str | Path) -> Iterator[Transcript]:
    for number, line in numbered_lines(path):
        line = line.removeprefix("\ufeff")
        if not line.strip():
            continue
        if line[0].isspace():
            raise DataError(f"{path}:{number}: the line begins with a space where the utterance id should be: {line[:40]!r}")
        id, *rest = line.split(maxsplit=1)
        yield Transcript(id, rest[0].strip() if rest else "", number)


def _json_rows(path: str | Path) -> Iterator[Transcript]:
    for number, row in read_jsonl(path):
        id = row.get("id")
        if not isinstance(id, str) or not id:
            raise DataError(f'{path}:{number}: expected "id" to be a string, found {id!r}')
        fields = {key: value for key, value in row.items() if key not in ("id", "text", "tokens", "supervisions")}
        text = _cut_text(row, fields, f"{path}:{number}: cut {id}") if "supervisions" in row else row.get("text")
        if not isinstance(text, str):
            raise DataError(f'{path}:{number}: id {id}: expected "text" to be a string, found {text!r}')
        yield Transcript(id, text, number, fields)


def _cut_text(row: dict[str, Any], fields: dict[str, Any], where: str) -> Any:
    """Text of a cut's supervisions; their speaker and custom fields go into `fields`, the cut's own custom ones too."""
    try:
        spans = sorted(row["supervisions"], key=lambda span: span.get("start", 0))
        texts = [span.get("text") for span in spans]
    except (TypeError, AttributeError) as error:
        raise DataError(f"{where}: its supervisions are not a list of objects") from error
    if any(not isinstance(text, str) for text in texts):
        raise DataError(f'{where}: a supervision without text; write "" where nothing is said')
    for source in (row.get("custom"), *(span.get("custom") for span in spans), *spans):
        if isinstance(source, dict):
            fields.update({key: value for key, value in source.items() if key not in ("id", "text", "custom")})
    return " ".join(texts)


def pair_transcripts(
    references: Sequence[Transcript], hypotheses: Sequence[Transcript], ref: str | Path, hyp: str | Path
) -> list[tuple[Transcript, Transcript]]:
    """(reference, hypothesis) in the order of the references.

    Raises `DataError` unless every reference id is answered and nothing else is; the ids and their lines are named.
    """
    answers = {row.id: row for row in hypotheses}
    asked = {row.id for row in references}
    missing = [row for row in references if row.id not in answers]
    unknown = [row for row in hypotheses if row.id not in asked]
    complaints = []
    if missing:
        complaints.append(f"{hyp} lacks {len(missing)} of {len(references)} ids: {_name(missing, ref)}")
    if unknown:
        complaints.append(f"{hyp} has {len(unknown)} ids that the reference does not know: {_name(unknown, hyp)}")
    if complaints:
        raise DataError("; ".join(complaints) + "\nevery reference id must be answered exactly once; nothing was scored")
    return [(row, answers[row.id]) for row in references]


def _name(rows: Sequence[Transcript], path: str | Path) -> str:
    named = ", ".join(f"{row.id} ({path}:{row.line})" for row in rows[:NAMED_AT_MOST])
    return named + (", ..." if len(rows) > NAMED_AT_MOST else "")
