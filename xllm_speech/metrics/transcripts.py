"""Transcripts to be scored: Kaldi `text` lines, JSON lines, or lhotse cuts; and the rule that every id is answered once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xllm_speech.base.errors import DataError
from xllm_speech.base.files import numbered_lines, read_json, read_jsonl

NAMED_AT_MOST = 5


@dataclass(frozen=True)
class Transcript:
    """One utterance's text and the line it stands on; fields: what else a JSON line said of it (speaker, error, ...)."""

    id: str
    text: str
    line: int
    fields: dict[str, Any] = field(default_factory=dict)


def read_transcripts(path: str | Path, need_text: bool = True) -> list[Transcript]:
    """Read Kaldi `text` lines (id, space, text; the text may be empty) or JSON lines (or one array) with "id" and "text".

    The form is told from the first line that is not blank; gzip is read too. A line with "supervisions" is a lhotse cut:
    its text is that of its supervisions in order of time, empty where it has none. Blank lines are passed over. Without
    need_text a JSON line may lack its text, which is then empty.

    Raises:
        DataError: the file is absent, holds nothing, a line cannot be read, or an id occurs twice; file:line is named.
    """
    first = next((line for _, line in numbered_lines(path) if line.strip()), None)
    if first is None:
        raise DataError(f"{path}: no transcript in it; expected lines of id and text, or JSON lines with id and text")
    as_json = first.lstrip().startswith(("{", "[{")) or first.strip() == "["
    rows = list(_json_rows(path, need_text) if as_json else _kaldi_rows(path))
    lines: dict[str, int] = {}
    for row in rows:
        if row.id in lines:
            raise DataError(f"{path}:{row.line}: id {row.id} is doubled, first on line {lines[row.id]}; keep one of them")
        lines[row.id] = row.line
    return rows


def _kaldi_rows(path: str | Path) -> Iterator[Transcript]:
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        if line[0].isspace():
            raise DataError(f"{path}:{number}: the line begins with a space where the utterance id should be: {line[:40]!r}")
        id, *rest = line.split(maxsplit=1)
        yield Transcript(id, rest[0].strip() if rest else "", number)


def _json_rows(path: str | Path, need_text: bool) -> Iterator[Transcript]:
    for count, (where, row) in enumerate(json_rows(path), 1):
        line = where.rpartition(":")[2]
        number = int(line) if line.isdecimal() else count
        id = row.get("id")
        if not isinstance(id, str) or not id:
            raise DataError(f'{where}: expected "id" to be a string, found {id!r}')
        fields = {key: value for key, value in row.items() if key not in ("id", "text", "tokens", "supervisions")}
        text = _cut_text(row, fields, f"{where}: cut {id}", need_text) if "supervisions" in row else row.get("text")
        if text is None and not need_text:
            text = ""
        if not isinstance(text, str):
            raise DataError(f'{where}: id {id}: expected "text" to be a string, found {text!r}')
        yield Transcript(id, text, number, fields)


def _cut_text(row: dict[str, Any], fields: dict[str, Any], where: str, need_text: bool) -> Any:
    """Text of a cut's supervisions; their speaker and custom fields go into `fields`, the cut's own custom ones too."""
    try:
        spans = sorted(row["supervisions"], key=lambda span: span.get("start", 0))
        texts = [span.get("text") for span in spans]
    except (TypeError, AttributeError) as error:
        raise DataError(f"{where}: its supervisions are not a list of objects") from error
    if need_text and any(not isinstance(text, str) for text in texts):
        raise DataError(f'{where}: a supervision without text; write "" where nothing is said')
    for source in (row.get("custom"), *(span.get("custom") for span in spans), *spans):
        if isinstance(source, dict):
            fields.update({key: value for key, value in source.items() if key not in ("id", "text", "custom")})
    return " ".join(text for text in texts if isinstance(text, str))


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


def read_field(path: str | Path, name: str, ids: Sequence[str]) -> dict[str, Any]:
    """What a file says of every id in `ids`: field `name` of its JSON lines or cuts, or the second column (as in utt2spk).

    Raises:
        DataError: the file cannot be read, lacks an id, or a JSON line lacks the field; the ids or the line are named.
    """
    rows = {row.id: row for row in read_transcripts(path, need_text=False)}
    missing = [id for id in ids if id not in rows]
    if missing:
        named = ", ".join(missing[:NAMED_AT_MOST]) + (", ..." if len(missing) > NAMED_AT_MOST else "")
        raise DataError(f"{path}: lacks {len(missing)} of {len(ids)} ids: {named}\nits lines must tell the {name} of each")
    if not _first_line(path).startswith("{"):
        return {id: rows[id].text for id in ids}
    for id in ids:
        if name not in rows[id].fields:
            known = ", ".join(sorted(rows[id].fields))
            raise DataError(f"{path}:{rows[id].line}: id {id} has no field `{name}`; it has {known}")
    return {id: rows[id].fields[name] for id in ids}


def read_texts(path: str | Path, several: bool = False) -> list[Transcript]:
    """Read generated texts or their references: what `read_transcripts` reads, a JSON array of objects, or COCO captions.

    Objects have "id" (or "question_id", or COCO's "image_id") and "text" (or "caption"). several: "text" may be a list, and
    an image_id may come again, each time with one more reference; all stand in `fields["texts"]`, the first is `text`.

    Raises:
        DataError: the file is absent, holds nothing, an object is incomplete, or an id occurs twice; file:line is named.
    """
    first = _first_line(path)
    if not first.startswith(("[", "{")) or '"supervisions"' in first:
        return read_transcripts(path)
    found: dict[str, Transcript] = {}
    for number, (where, row) in enumerate(json_rows(path), 1):
        id = row.get("image_id", row.get("question_id", row.get("id")))
        key = "text" if "text" in row else "caption"
        text = row.get(key)
        texts: list[Any] = text if several and isinstance(text, list) else [text]
        if isinstance(id, bool) or not isinstance(id, (str, int)) or id == "":
            raise DataError(f'{where}: expected "id" (or "question_id", "image_id") to be a string or a number, found {id!r}')
        if not texts or not all(isinstance(item, str) for item in texts):
            raise DataError(f'{where}: id {id}: expected "text" (or "caption") to be a string, found {text!r:.60}')
        older = found.get(str(id))
        if older is None:
            line = where.rpartition(":")[2]
            fields = {name: value for name, value in row.items() if name not in ("id", key)} | {"texts": texts}
            found[str(id)] = Transcript(str(id), texts[0], int(line) if line.isdecimal() else number, fields)
        elif several and "image_id" in row:
            older.fields["texts"].extend(texts)
        else:
            raise DataError(f"{where}: id {id} is doubled, first on line {older.line}; keep one of them")
    if not found:
        raise DataError(f"{path}: no text in it")
    return list(found.values())


def read_answers(path: str | Path, task: str) -> tuple[list[Transcript], list[Transcript]]:
    """(references, answers) of one task, from the output of `xllm-speech answer`, which has both on one line.

    Raises:
        DataError: the file is absent, a line of the task lacks its reference or text, an id occurs twice, or none is of it.
    """
    references, answers = [], []
    lines: dict[str, int] = {}
    tasks = set()
    for number, row in read_jsonl(path):
        tasks.add(str(row.get("task")))
        if row.get("task") != task:
            continue
        where = f"{path}:{number}"
        id = row.get("id")
        if not isinstance(id, str) or not isinstance(row.get("reference"), str) or not isinstance(row.get("text"), str):
            raise DataError(f"{where}: needs `id`, `reference` and `text`; do its conversations end in an answer?")
        if id in lines:
            raise DataError(f"{where}: id {id} is doubled, first on line {lines[id]}; keep one of them")
        lines[id] = number
        references.append(Transcript(id, row["reference"], number))
        answers.append(Transcript(id, row["text"], number, {} if row.get("error") is None else {"error": row["error"]}))
    if not answers:
        raise DataError(f"{path}: holds no answer to task `{task}`; it has {', '.join(sorted(tasks)) or 'no line'}")
    return references, answers


def json_rows(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and line, object) of JSON lines, of one JSON array, or of the "annotations" of one object, as COCO has them.

    Raises `DataError` that names a line or item which is no object.
    """
    first = _first_line(path)
    if not first.startswith(("[", '{"annotations"', '{"info"', '{"images"')) and first != "{":
        yield from ((f"{path}:{number}", row) for number, row in read_jsonl(path))
        return
    tree = read_json(path)
    rows = tree.get("annotations") if isinstance(tree, dict) else tree
    if not isinstance(rows, list):
        raise DataError(f'{path}: expected JSON lines, one JSON array, or one object with "annotations"')
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{path}: item {number}: expected a JSON object, found {type(row).__name__}")
        yield f"{path}: item {number}", row


def _first_line(path: str | Path) -> str:
    """The first line that is not blank, "" where there is none."""
    return next((line for _, raw in numbered_lines(path) if (line := raw.strip())), "")
