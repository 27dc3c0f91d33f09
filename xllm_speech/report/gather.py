"""Reads what an experiment folder holds. Files are known by what is in them, not by their names, except where the name is
part of the layout (train.log and header.json of a training, minutes.tsv, report/metrics.json)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from xllm_speech.base.errors import DataError, first_line
from xllm_speech.base.files import numbered_lines, read_json, read_jsonl, sha256_file
from xllm_speech.infer.phase_tree import HEADER, SHORT, PhaseReader
from xllm_speech.manifests.cuts import PathFinder
from xllm_speech.metrics.judged import POLICIES, read_verdicts, summarise
from xllm_speech.models.checkpoints import WEIGHTS
from xllm_speech.report.experiment import (
    Answers,
    ConditionRow,
    Conditions,
    Experiment,
    Gap,
    Judged,
    Score,
    ScoredUtterance,
    Stage,
    TextScore,
    Training,
)

LOG = "train.log"
# Folders that hold no results: what runs write for themselves, and models (their own JSON is no concern of the report).
_PASSED_OVER = ("checkpoints", "tensorboard", "shards", "log", "data")
_CONDITION = re.compile(r"S(\+\w+)*")
_STAGE = re.compile(r'^stage\s+(\d+)\s+"([^"]*)"', re.MULTILINE)
_Keys = tuple[str, ...]
METHODS = {"cif": "cif_asr", "llm": "llm_asr"}


def gather(root: str | Path) -> Experiment:
    """Read an experiment folder.

    Raises:
        DataError: no such folder, or nothing in it that a report could show.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the folder with trainings and scores, such as exp")
    whole = root.resolve()
    experiment = Experiment(root, whole.parent.name if whole.name == "exp" else whole.name)
    for path in _files(root):
        if path.name == LOG:
            if (training := experiment.attempt(path, partial(_training, path, experiment))) is not None:
                experiment.trainings.append(training)
        elif path.suffix == ".jsonl":
            experiment.attempt(path, partial(_lines, path, experiment))
        elif path.suffix == ".json":
            experiment.attempt(path, partial(_document, path, experiment))
    experiment.trainings.sort(key=lambda item: _started(item.folder))
    _drop_doubles(experiment)
    _tell_stale(experiment)
    for path in (root / "report" / "metrics.json", root / "score" / "answers.json"):
        if path.is_file():
            numbers, spans = experiment.attempt(path, partial(_metrics, path)) or ({}, {})
            experiment.metrics |= numbers
            experiment.intervals |= spans
    minutes = root / "minutes.tsv"
    experiment.stages = experiment.attempt(minutes, partial(_stages, minutes, whole.parent / "run.sh")) or []
    try:
        experiment.nodes = PhaseReader(root).read()
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        experiment.note(root, f"its models cannot be told ({type(error).__name__}: {first_line(error)})")
    except DataError as error:
        found = (experiment.scores, experiment.trainings, experiment.metrics, experiment.answers, experiment.judged)
        if not any([*found, experiment.conditions]):
            raise DataError(f"{root}: holds no training, score or model; give an experiment's folder, such as exp") from error
    for node in experiment.nodes:
        if node.error is not None:
            experiment.note(root / node.path, node.error)
    return experiment


def _files(folder: Path) -> Iterator[Path]:
    """Files that may tell something, in the order of their names; nothing inside models."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    names = {entry.name for entry in entries}
    if any(name.endswith(".safetensors") for name in names):
        return
    for entry in entries:
        if entry.is_dir():
            if not entry.name.startswith(".") and entry.name not in _PASSED_OVER:
                yield from _files(Path(entry.path))
        elif entry.name == LOG or entry.name.endswith((".json", ".jsonl")):
            yield Path(entry.path)


def _started(folder: Path) -> float:
    """Trainings are told in the order in which they ended; a copied folder falls back on names alone."""
    return (folder / LOG).stat().st_mtime


def _training(path: Path, experiment: Experiment) -> Training:
    folder = path.parent
    header_file = folder / HEADER
    header = experiment.attempt(header_file, partial(_header, header_file)) if header_file.is_file() else None
    rows: list[dict[str, Any]] = []
    try:
        for number, row in read_jsonl(path):
            if not isinstance(row.get("step"), int):
                raise DataError(f"{path}:{number}: a row without a step")
            for key in ("loss", "lr"):
                _number(row.get(key))
            rows.append(row)
    except (DataError, ValueError) as error:  # a killed run leaves half a line; what stands before it counts
        experiment.note(path, f"{error}; the rows before it are shown")
    kinds = {kind: [row for row in rows if row.get("kind") == kind] for kind in ("train", "dev", "skipped")}
    name = os.path.relpath(folder, experiment.root)
    return Training(
        name, folder, header or {}, kinds["train"], kinds["dev"], len(kinds["skipped"]), (folder / "final").is_dir()
    )


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _header(path: Path) -> dict[str, Any]:
    value = _object(path)
    settings = value.get("settings", {})
    if not isinstance(settings, dict) or not isinstance(settings.get("train", {}), dict):
        raise DataError(f"{path}: `settings` are not those of a training")
    return value


def _lines(path: Path, experiment: Experiment) -> None:
    """A file of JSON lines: answers, where a description stands beside it, or verdicts."""
    meta_file = path.with_name(f"{path.name}.meta.json")
    first = next((row for _, row in read_jsonl(path)), None)
    if first is None:
        return
    if "content" in first and "category" in first:
        experiment.judged.append(_judged(path))
    elif meta_file.is_file() and "conversations" in (meta := _object(meta_file)):
        rows = [row for _, row in read_jsonl(path)]
        for number, row in enumerate(rows, 1):
            if not all(isinstance(row.get(key), str) for key in ("id", "text", "task")):
                raise DataError(f"{path}:{number}: an answer has id, text and task; `xllm-speech answer` writes them")
        prompt = meta.get("prompt") or {}
        experiment.answers.append(Answers(
            str(path), str(meta["conversations"]), tuple(meta.get("without") or ()), rows, prompt.get("wording"),
            prompt.get("instructions"), str(meta.get("model") or ""), str(meta.get("checkpoint_sha256") or ""),
        ))


def _judged(path: Path) -> Judged:
    verdicts = read_verdicts(path)
    return Judged(str(path), {policy: summarise(verdicts, policy) for policy in POLICIES})


def _document(path: Path, experiment: Experiment) -> None:
    """One JSON document: a score, conditions side by side, or an array of verdicts; others are none of ours."""
    if path.name.endswith(".meta.json") or path.name == HEADER:
        return
    value = read_json(path)
    if isinstance(value, list):
        if value and isinstance(value[0], dict) and {"content", "category"} <= value[0].keys():
            experiment.judged.append(_judged(path))
    elif not isinstance(value, dict):
        raise DataError(f"{path}: neither a score nor another result, but {type(value).__name__}")
    elif {"cer", "counts", "per_utterance"} <= value.keys():
        experiment.scores.append(_score(str(path), value))
    elif "conditions" in value and "baseline" in value:
        experiment.conditions.append(_conditions(str(path), value, value))
    elif isinstance(value.get("wordings"), dict):
        for name, table in value["wordings"].items():
            experiment.conditions.append(_conditions(str(path), table, value, str(name)))
    elif {"metrics", "scores", "per_item"} <= value.keys():
        experiment.texts.append(_text_score(str(path), value))
    elif "per_utterance" in value or "cer" in value:
        raise DataError(f"{path}: not a whole score file (cer, counts and per_utterance); `xllm-speech score --out` writes one")


def _score(path: str, value: dict[str, Any]) -> Score:
    decoding = value.get("decoding") or {}
    name, condition = _set_and_condition(value.get("set"), decoding, path)
    method = decoding.get("method")
    return Score(
        path, METHODS.get(str(method), str(method or decoding.get("model") or "other")), name, condition,
        _number(value["cer"]), _pair(value.get("interval")), {key: int(value["counts"][key]) for key in "NSDI"},
        _number(value.get("ser")), _number(decoding.get("rtfx")), _number(value.get("loop_rate")),
        _number(value.get("hallucination_rate")), int(value.get("undecoded") or 0), str(value.get("normaliser")),
        str(value.get("test_set_sha256")), str(value.get("reference")), str(decoding.get("model") or ""),
        str(decoding.get("checkpoint_sha256") or ""), [_utterance(row) for row in value["per_utterance"]],
    )


def _set_and_condition(name: Any, decoding: dict[str, Any], path: str) -> tuple[str, str]:
    """A recipe names its sets `test_mixed S+V`; without a condition in the name, the decoding tells whether it saw images."""
    words = str(name or Path(path).parent.name).split()
    condition = "S+V" if decoding.get("images") else "S"
    if len(words) > 1 and _CONDITION.fullmatch(words[-1]):
        condition = words.pop()
    return _set_name(" ".join(words)), condition


def _set_name(name: str) -> str:
    return re.sub(r"^test[_-]", "", str(name))


def _utterance(row: dict[str, Any]) -> ScoredUtterance:
    counts = row["counts"]
    return ScoredUtterance(
        str(row["id"]), str(row["reference"]), str(row["hypothesis"]), str(row["operations"]),
        int(counts["S"] + counts["D"] + counts["I"]), int(counts["N"]),
    )


def _conditions(path: str, value: dict[str, Any], about: dict[str, Any], worded: str = "") -> Conditions:
    """value: one comparison; about: the document it stands in, which tells of the model."""
    titles = about.get("titles") or {}
    rows = [
        ConditionRow(
            str(name), str(titles.get(name, "")), _number(row["cer"]), _pair(row.get("interval")), _gap(row.get("difference")),
            _gap(row.get("beside")), *(_number((row.get(part) or {}).get("percent")) for part in ("grounded", "other")),
        )
        for name, row in value["conditions"].items()
    ]
    return Conditions(
        path, _set_name(value.get("set") or Path(path).stem), rows, int(value.get("utterances") or 0),
        _number(value.get("same_text")), str(value["baseline"]), value.get("beside"), METHODS.get(str(about.get("method")), ""),
        worded, tuple((str(name), str(why)) for name, why in (about.get("left_out") or {}).items()),
        tuple(map(str, about.get("notes") or ())), str(about.get("model") or ""), str(about.get("checkpoint_sha256") or ""),
    )


def _gap(value: dict[str, Any] | None) -> Gap | None:
    return None if value is None else Gap(_number(value["points"]), _pair(value.get("interval")), _number(value.get("p")))


def _text_score(path: str, value: dict[str, Any]) -> TextScore:
    scores = {str(name): float(score) for name, score in value["scores"].items()}
    compare = value.get("compare") or {}
    return TextScore(
        path, str(value["metrics"]), str(value.get("set") or Path(path).stem), int(value["items"]), scores,
        {name: _pair((value.get("interval") or {}).get(name)) for name in scores}, str(compare.get("hypothesis", "")),
        {str(name): float(score) for name, score in (compare.get("scores") or {}).items()},
        {str(name): gap for name, row in (compare.get("differences") or {}).items() if (gap := _gap(row)) is not None},
    )


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number, found {value!r:.40}")
    return float(value)


def _pair(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    low, high = map(_number, value)
    return None if low is None or high is None else (low, high)


def _metrics(path: Path) -> tuple[dict[_Keys, float | None], dict[_Keys, tuple[float, float] | None]]:
    """Numbers, and the intervals of some."""
    value = read_json(path)
    spans = value.get("intervals", {}) if isinstance(value, dict) else {}
    intervals: dict[_Keys, tuple[float, float] | None] = {
        (section, key): _pair(span) for section, row in spans.items() for key, span in row.items()
    }
    return dict(_numbers(value)), intervals


def _numbers(value: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float | None]]:
    """Numbers of nested objects, by their path of keys."""
    if not isinstance(value, dict):
        raise ValueError(f"expected an object{' under ' + '/'.join(keys) if keys else ''}, found {json.dumps(value)[:40]}")
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _numbers(inner, (*keys, key))
        elif not isinstance(inner, str | list):
            yield (*keys, key), _number(inner)


def _stages(minutes: Path, script: Path) -> list[Stage]:
    """The stages that ran, and those that the recipe beside the folder has besides."""
    found: dict[int, Stage] = {}
    if script.is_file():
        for number, title in _STAGE.findall(script.read_text(encoding="utf-8", errors="replace")):
            found[int(number)] = Stage(int(number), title, None)
    if minutes.is_file():
        for line_number, line in numbered_lines(minutes):
            fields = line.split("\t")
            if line_number == 1 or not line:
                continue
            if len(fields) != 3:
                raise DataError(f"{minutes}:{line_number}: expected stage, title and minutes, found `{line}`")
            found[int(fields[0])] = Stage(int(fields[0]), fields[1], float(fields[2]))
    return [found[number] for number in sorted(found)]


def _tell_stale(experiment: Experiment) -> None:
    """Name what was decoded or answered with weights that have since been replaced."""
    finder = PathFinder(experiment.root)
    found: dict[str, str] = {}
    made = [(score.path, score.decoded_by, score.checkpoint_sha256) for score in experiment.scores]
    made += [(table.path, table.decoded_by, table.checkpoint_sha256) for table in experiment.conditions]
    made += [(answers.path, answers.model, answers.checkpoint_sha256) for answers in experiment.answers]
    for path, model, expected in made:
        weights = Path(finder.find(str(Path(model) / WEIGHTS), probe=True)) if model and expected else None
        if weights is None or not weights.is_file():
            continue
        if str(weights) not in found:
            found[str(weights)] = sha256_file(weights)
        if (now := found[str(weights)]) != expected:
            experiment.note(
                path, f"was made with {model} as it was ({expected[:SHORT]}), which is {now[:SHORT]} now; make it anew"
            )


def _drop_doubles(experiment: Experiment) -> None:
    """Of two scores of one model, set and condition the first is shown, and the other named."""
    kept: dict[tuple[str, str, str], Score] = {}
    for score in experiment.scores:
        key = (score.model, score.set, score.condition)
        if key in kept:
            experiment.note(score.path, f"a second score of {' '.join(key)}; {kept[key].path} is shown")
        kept.setdefault(key, score)
    experiment.scores = list(kept.values())
