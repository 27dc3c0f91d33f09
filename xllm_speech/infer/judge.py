"""Ask a judge which of two systems answered better (evaluation.md, LLaVA-test): question sets, prompts, a run that resumes.

A question set is JSON lines or one array of objects; the authors' files read as they are:

    questions  {"question_id": 0, "image": "000000441147.jpg", "text": "What ...?", "category": "conv"}
    answers    {"question_id": 0, "text": "..."}                                      one file for each of the two systems
    contexts   {"image": "000000441147.jpg", "captions": ["..."], "instances": [{"category": "tie", "bbox": [0.2, ...]}]}
    rules      {"conv": {"role": "Assistant", "prompt": "..."}, "default": {...}}                 one object, by category
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from xllm_speech.base.config import require, require_choice
from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.base.files import read_json, read_jsonl, write_json
from xllm_speech.base.header import run_header
from xllm_speech.infer.endpoint import ChatEndpoint, EndpointUnusable, RequestFailed
from xllm_speech.metrics.judged import ORDERS, model_first
from xllm_speech.metrics.transcripts import json_rows
from xllm_speech.metrics.verdicts import read_verdict

log = logging.getLogger(__name__)

FAILURES_IN_A_ROW = 3
NAMED_AT_MOST = 5
SYSTEM = "You judge answers: carefully, fairly and to the point."


@dataclass(frozen=True)
class Rule:
    """role: what the two systems are called in the prompt. prompt: what the judge is asked to do."""

    role: str
    prompt: str


DEFAULT_RULE = Rule(
    "Assistant",
    "Above stands a user's question about an image and what two AI assistants answered. You cannot see the image: sentences "
    "that describe it, and the boxes of its objects as (x1, y1, x2, y2) in fractions of its width and height from the upper "
    "left corner, stand in its place where they are given. Judge how helpful, relevant, accurate and detailed each answer is, "
    "and give each assistant one overall score from 1 to 10; higher is better.\n"
    "Write on the first line nothing but the two scores, that of Assistant 1 first, parted by a space. Then explain your "
    "judgement. The order in which the answers stand must not influence it.",
)


@dataclass(frozen=True)
class Question:
    """One question with both systems' answers; context: what is known of the image, possibly empty."""

    id: str
    text: str
    category: str
    model_answer: str
    reference_answer: str
    context: str = ""


@dataclass
class JudgeRun:
    """What a run did. failed: (question and order, reason) of those that got no answer; they are asked by the next run."""

    asked: int = 0
    kept: int = 0
    unparsed: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)


def read_questions(
    questions: str | Path, answers: str | Path, reference: str | Path, contexts: str | Path | None = None,
    question_field: str = "text",
) -> list[Question]:
    """Read a question set; answers: the judged model's, reference: the other system's. question_field: such as text_zh.

    Raises:
        DataError: an object is incomplete, an id is doubled, a question lacks an answer or its image a context, or an
            answer belongs to no question; file and line are named.
    """
    asked = _by_key(questions, "question_id", (question_field, "category"))
    if not asked:
        raise DataError(f"{questions}: no question in it")
    ours, theirs = (_by_key(path, "question_id", ("text",), set(asked)) for path in (answers, reference))
    known = {} if contexts is None else _by_key(contexts, "image", ())
    found = []
    for id, (where, row) in asked.items():
        context = ""
        if contexts is not None:
            image = str(row.get("image"))
            if image not in known:
                raise DataError(f"{where}: question {id}: its image {image} has no line in {contexts}")
            context = _context(*known[image])
        text, category = row[question_field], row["category"]
        found.append(Question(id, text, category, ours[id][1]["text"], theirs[id][1]["text"], context))
    return found


def read_rules(path: str | Path | None) -> dict[str, Rule]:
    """Rules by category from a file in the authors' layout; without one, a single rule of our own for every category."""
    if path is None:
        return {"default": DEFAULT_RULE}
    tree = read_json(path)
    if not isinstance(tree, dict) or not tree:
        raise DataError(f"{path}: expected one JSON object of rules by category")
    rules = {}
    for category, row in tree.items():
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise DataError(f'{path}: rule `{category}`: expected an object with a string "prompt"')
        rules[category] = Rule(str(row.get("role", "Assistant")), row["prompt"])
    return rules


def judge_messages(question: Question, order: str, rules: dict[str, Rule]) -> list[dict[str, str]]:
    """The chat that asks for one verdict; in the order `swapped` the reference is assistant 1.

    Context, question, both answers and rule, in the layout that the paper's evaluation took over from LLaVA.
    """
    rule = rules.get(question.category) or rules.get("default")
    if rule is None:
        known = ", ".join(sorted(rules))
        raise ConfigError(f"question {question.id}: no rule for category `{question.category}`; known: {known}")
    answers = [question.model_answer, question.reference_answer]
    blocks = [f"[Context]\n{question.context}"] if question.context else []
    blocks.append(f"[Question]\n{question.text}")
    for number, answer in enumerate(answers if order == "given" else reversed(answers), 1):
        blocks.append(f"[{rule.role} {number}]\n{answer}\n\n[End of {rule.role} {number}]")
    blocks.append(f"[System]\n{rule.prompt}")
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "\n\n".join(blocks) + "\n"}]


def run_judge(
    questions: Sequence[Question], endpoint: ChatEndpoint, out: str | Path, rules: dict[str, Rule],
    orders: str = "both", attempts: int = 3,
) -> JudgeRun:
    """Ask for every verdict that `out` does not hold yet, each appended to it (JSON lines) the moment it has come.

    orders: `both`, or `given` for the model as assistant 1 only. attempts: a verdict without scores is asked for again until
    this many have come; all of them are kept. A question that gets no answer at all is named and left to the next run.
    `OUT.meta.json` tells model, temperature and prompts; a run with others is refused.

    Raises:
        ConfigError: wrong values, or `out` was begun with another model, temperature or other prompts.
        EndpointUnusable: nothing can be answered, or three questions in a row were not.
    """
    require_choice("--orders", orders, ("both", "given"))
    require(attempts >= 1, f"--attempts {attempts}: must be 1 or more")
    wanted = [(question, order) for question in questions for order in (ORDERS if orders == "both" else ORDERS[:1])]
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    run, in_a_row = JudgeRun(), 0
    with _append_only(out) as stream:
        _check_settings(out, endpoint, questions, rules)
        done = _answered(out)
        for question, order in wanted:
            made, has_scores = done.get((question.id, order), (0, False))
            run.kept += has_scores or made >= attempts
            name = f"question {question.id}, order {order}"
            while not has_scores and made < attempts:
                try:
                    answer = endpoint.ask(judge_messages(question, order, rules))
                except RequestFailed as error:
                    run.failed.append((name, str(error)))
                    log.warning("%s: %s", name, error)
                    in_a_row += 1
                    if in_a_row == FAILURES_IN_A_ROW:
                        raise EndpointUnusable(
                            f"{in_a_row} questions in a row got no answer, the last for this: {error}\n"
                            f"{out} keeps what was answered; the same command goes on from there"
                        ) from error
                    break
                made, in_a_row, run.asked = made + 1, 0, run.asked + 1
                reading = model_first(read_verdict(answer.text), order)
                has_scores = reading.scores is not None
                row = {
                    "question_id": question.id, "order": order, "attempt": made, "category": question.category,
                    "content": answer.text, "tuple": reading.scores, "form": reading.form, "conflict": reading.conflict,
                    "model": answer.model or endpoint.config.model, "temperature": endpoint.config.temperature,
                }
                stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
            run.unparsed += not has_scores and made >= attempts
    return run


@contextlib.contextmanager
def _append_only(out: Path) -> Iterator[IO[bytes]]:
    """`out` for appending, locked against a second run; a last line that was cut off by a kill is taken away first."""
    with open(out, "a+b") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{out}: another run is writing to it; wait for its end or choose another --out") from None
        stream.seek(0)
        content = stream.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            log.warning("%s: its last line was cut off; that verdict is asked for again", out)
            stream.truncate(whole)
        yield stream


def _answered(out: Path) -> dict[tuple[str, str], tuple[int, bool]]:
    """(question, order) -> attempts made, and whether the last has scores."""
    done: dict[tuple[str, str], tuple[int, bool]] = {}
    for number, row in read_jsonl(out):
        try:
            key, attempt = (str(row["question_id"]), str(row["order"])), int(row["attempt"])
        except (KeyError, TypeError, ValueError):
            raise DataError(
                f"{out}:{number}: not a line of `judge run`, which has question_id, order and attempt; choose another --out"
            ) from None
        done[key] = (attempt, row.get("tuple") is not None)
    return done


def _check_settings(out: Path, endpoint: ChatEndpoint, questions: Sequence[Question], rules: dict[str, Rule]) -> None:
    """Write what the verdicts depend on beside them, or refuse to go on with something else."""
    digest = hashlib.sha256()
    for question in questions:
        for order in ORDERS:
            digest.update(json.dumps([question.id, question.category, judge_messages(question, order, rules)]).encode())
    settings = {
        "model": endpoint.config.model, "temperature": endpoint.config.temperature, "prompts_sha256": digest.hexdigest(),
    }
    path = Path(f"{out}.meta.json")
    if not path.exists():
        if out.stat().st_size:
            raise ConfigError(f"{out}: holds something, but {path.name} is not beside it; choose another --out")
        header = run_header()
        header["command"] = [word.replace(endpoint.config.url, endpoint.config.place) for word in header["command"]]
        write_json(path, {"settings": settings, "endpoint": endpoint.config.place, "header": header})
        return
    meta = read_json(path)
    older = meta.get("settings") if isinstance(meta, dict) else None
    older = older if isinstance(older, dict) else {}
    changed = [f"{key} {older.get(key)!r} then, {value!r} now" for key, value in settings.items() if older.get(key) != value]
    if changed:
        raise ConfigError(f"{out}: begun with other settings ({'; '.join(changed)}); choose another --out")


def _by_key(
    path: str | Path, key: str, texts: Sequence[str], expected: set[str] | None = None
) -> dict[str, tuple[str, dict[str, Any]]]:
    """Rows of a file by the value of `key`, with where they stand; `texts` must be strings, `expected` the keys exactly."""
    rows: dict[str, tuple[str, dict[str, Any]]] = {}
    for where, row in json_rows(path):
        value = row.get(key)
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise DataError(f'{where}: expected "{key}" to be a number or a string, found {value!r}')
        for name in texts:
            if not isinstance(row.get(name), str):
                raise DataError(f'{where}: {key} {value}: expected "{name}" to be a string, found {row.get(name)!r:.60}')
        if str(value) in rows:
            raise DataError(f"{where}: {key} {value} is doubled, first at {rows[str(value)][0]}; keep one of them")
        if expected is not None and str(value) not in expected:
            raise DataError(f"{where}: {key} {value} belongs to no question")
        rows[str(value)] = (where, row)
    missing = sorted((expected or set()) - set(rows))
    if missing:
        named = ", ".join(missing[:NAMED_AT_MOST]) + (", ..." if len(missing) > NAMED_AT_MOST else "")
        raise DataError(f"{path}: lacks the answers to {len(missing)} of {len(expected or ())} questions: {named}")
    return rows


def _context(where: str, row: dict[str, Any]) -> str:
    """Captions, then one line for each object's box."""
    try:
        captions = "\n".join(row.get("captions", []))
        boxes = "\n".join(
            f"{item['category']}: [{', '.join(f'{edge:g}' for edge in item['bbox'])}]" for item in row.get("instances", [])
        )
    except (TypeError, KeyError, ValueError):
        raise DataError(f'{where}: expected "captions" to be strings and "instances" to have category and bbox') from None
    return "\n\n".join(part for part in (captions, boxes) if part)
