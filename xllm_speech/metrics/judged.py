"""A file of verdicts, and the relative score that it gives one system beside another (evaluation.md, LLaVA-test; Table 1)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xllm_speech.base.config import require_choice
from xllm_speech.base.errors import DataError
from xllm_speech.metrics.rates import bootstrap_interval
from xllm_speech.metrics.transcripts import json_rows
from xllm_speech.metrics.verdict_words import HIGHEST, LOWEST
from xllm_speech.metrics.verdicts import Reading, Scores, read_verdict

CATEGORIES = ("conv", "detail", "complex")
POLICIES = ("reparse", "paper-1", "paper-2")
ORDERS = ("given", "swapped")


@dataclass(frozen=True)
class Verdict:
    """One question's verdict in one order.

    order: `given` where the judge's assistant 1 is the model, `swapped` where it is the reference. stored: the scores that
    stand in the file, the model's first, or None where there are none that hold. reading: what the text says, the model's
    first too. where: file and line.
    """

    question: str
    category: str
    order: str
    stored: Scores | None
    reading: Reading
    where: str


def read_verdicts(path: str | Path) -> list[Verdict]:
    """Read a file of verdicts, JSON lines or one array: objects with "question_id" (or "id"), "category", "content", "tuple".

    A file whose first object tells no question is read in order: it is question 1. "tuple" holds the scores of assistants 1
    and 2, the model first; [-1, -1], null or nothing marks a failure. Files of `judge run` add "order" and "attempt": of
    several attempts at one question in one order the last counts.

    Raises:
        DataError: the file is absent or empty, an object is incomplete, or a verdict stands there twice.
    """
    latest: dict[tuple[str, str], tuple[int, Verdict]] = {}
    seen: dict[tuple[str, str, int], str] = {}
    named = True
    for number, (where, row) in enumerate(json_rows(path), 1):
        named = "question_id" in row or "id" in row if number == 1 else named
        verdict, attempt = _verdict(row if named else {"question_id": number, **row}, where)
        key = (verdict.question, verdict.order)
        if (first := seen.setdefault((*key, attempt), where)) != where:
            raise DataError(f"{where}: question {verdict.question} was judged before, at {first}; keep one of the two")
        if key not in latest or attempt > latest[key][0]:
            latest[key] = (attempt, verdict)
    if not latest:
        raise DataError(f"{path}: no verdict in it; expected objects with question_id, category, content and tuple")
    return [verdict for _, verdict in latest.values()]


def _verdict(row: dict[str, Any], where: str) -> tuple[Verdict, int]:
    question = row.get("question_id", row.get("id"))
    category, content = row.get("category"), row.get("content")
    order, attempt = row.get("order", "given"), row.get("attempt", 1)
    if isinstance(question, bool) or not isinstance(question, (str, int)):
        raise DataError(f'{where}: expected "question_id" to be a number or a string, found {question!r}')
    if not isinstance(category, str) or not category:
        raise DataError(f'{where}: question {question}: expected "category" to be a string ({", ".join(CATEGORIES)}), '
                        f"found {category!r}")
    if content is not None and not isinstance(content, str):
        raise DataError(f'{where}: question {question}: expected "content" to be the text of a verdict, found {content!r:.60}')
    if order not in ORDERS or isinstance(attempt, bool) or not isinstance(attempt, int):
        raise DataError(f'{where}: question {question}: "order" is {order!r} and "attempt" {attempt!r}; '
                        f"expected {' or '.join(ORDERS)}, and a number")
    reading = model_first(read_verdict(content or ""), order)
    return Verdict(str(question), category, order, stored_scores(row.get("tuple")), reading, where), attempt


def model_first(reading: Reading, order: str) -> Reading:
    """The reading with the model's score first, whichever assistant it was."""
    if order == "given" or reading.scores is None:
        return reading
    return Reading(reading.scores[::-1], reading.form, reading.conflict)


_NUMBER = re.compile(r"-?\d+(?:\.\d+)?", re.ASCII)
_WRITTEN = re.compile(rf"\s*[\[(]?\s*({_NUMBER.pattern})\s*[,\s]\s*({_NUMBER.pattern})\s*[\])]?\s*", re.ASCII)


def stored_scores(value: Any) -> Scores | None:
    """A stored tuple as scores: two numbers of the scale, also written as text ("(8, 9)", ["8", "9"]).

    None for anything else, -1 and null above all.
    """
    if isinstance(value, str):
        match = _WRITTEN.fullmatch(value)
        value = list(match.groups()) if match else None
    if not isinstance(value, list) or len(value) != 2:
        return None
    value = [float(part) if isinstance(part, str) and _NUMBER.fullmatch(part.strip()) else part for part in value]
    if any(isinstance(part, bool) or not isinstance(part, (int, float)) or not math.isfinite(part) for part in value):
        return None
    return (float(value[0]), float(value[1])) if all(LOWEST <= part <= HIGHEST for part in value) else None


def summarise(verdicts: Sequence[Verdict], policy: str = "reparse", seed: int = 0) -> dict[str, Any]:
    """Relative scores: 100 * sum of the model's scores / sum of the reference's, over questions.

    A question that was judged in both orders counts with the mean of what was scored. policy, what becomes of a verdict
    without stored scores: `reparse` reads its text again, and leaves it out where that gives no scores either; `paper-1`
    counts it as (-1, -1), as the paper's first row does; `paper-2` as (1, 9), as its ablation rows do.

    Keys: relative {conv, detail, complex, all, further categories} in percent, null where nothing was scored; interval of
    each (95 % bootstrap over questions); mean scores [model, reference]; outcomes {win, tie, loss} of questions with scores
    that were truly given; unparsed (verdicts without scores of their own) and unparsed_ids; reread (scores from the text
    alone); conflicts (verdicts read from text that contradicts itself); stored_conflicts (texts that contradict the stored
    scores, which stand); orders: relative score and verdicts of each order where there are both; policy, verdicts, questions.

    Raises:
        ConfigError: no such policy; the choices are named.
    """
    require_choice("--failures", policy, POLICIES)
    filled: Scores | None = {"paper-1": (-1.0, -1.0), "paper-2": (1.0, 9.0)}.get(policy)

    def true_scores(verdict: Verdict) -> Scores | None:
        return verdict.stored or (verdict.reading.scores if policy == "reparse" else None)

    def scores(verdict: Verdict) -> Scores | None:
        return true_scores(verdict) or filled

    categories = (*CATEGORIES, *sorted({verdict.category for verdict in verdicts} - set(CATEGORIES)))
    groups = {name: [verdict for verdict in verdicts if verdict.category == name] for name in categories}
    groups["all"] = list(verdicts)
    pairs = {name: _by_question(members, scores) for name, members in groups.items()}
    unparsed = [verdict for verdict in verdicts if true_scores(verdict) is None]
    failed = [verdict for verdict in verdicts if verdict.stored is None]
    both_orders = len({verdict.order for verdict in verdicts}) == 2
    return {
        "relative": {name: _relative(rows) for name, rows in pairs.items()},
        "unparsed": len(unparsed),
        "policy": policy,
        "verdicts": len(verdicts),
        "questions": len({verdict.question for verdict in verdicts}),
        "interval": {name: _interval(rows, seed) for name, rows in pairs.items()},
        "mean": {name: _mean(rows) for name, rows in pairs.items()},
        "outcomes": {name: _outcomes(_by_question(members, true_scores)) for name, members in groups.items()},
        "reread": sum(true_scores(verdict) is not None for verdict in failed),
        "conflicts": sum(verdict.reading.conflict for verdict in failed),
        "stored_conflicts": sum(
            verdict.stored is not None and verdict.reading.scores not in (None, verdict.stored) for verdict in verdicts
        ),
        "unparsed_ids": sorted({verdict.question for verdict in unparsed}, key=_numeric),
        "conflict_ids": sorted({verdict.question for verdict in failed if verdict.reading.conflict}, key=_numeric),
        "orders": {
            order: {
                "relative": _relative(_by_question([verdict for verdict in verdicts if verdict.order == order], scores)),
                "verdicts": sum(verdict.order == order for verdict in verdicts),
            }
            for order in (ORDERS if both_orders else ())
        },
    }


def _by_question(verdicts: Iterable[Verdict], scores: Callable[[Verdict], Scores | None]) -> list[Scores]:
    """Mean scores of every question of which at least one verdict has any."""
    found: dict[str, list[Scores]] = {}
    for verdict in verdicts:
        if (pair := scores(verdict)) is not None:
            found.setdefault(verdict.question, []).append(pair)
    return [(sum(one for one, _ in pairs) / len(pairs), sum(two for _, two in pairs) / len(pairs)) for pairs in found.values()]


def _relative(rows: Sequence[Scores]) -> float | None:
    reference = sum(two for _, two in rows)
    return 100 * sum(one for one, _ in rows) / reference if reference > 0 else None


def _interval(rows: Sequence[Scores], seed: int) -> list[float] | None:
    if _relative(rows) is None:
        return None
    interval = bootstrap_interval([one for one, _ in rows], [two for _, two in rows], seed=seed)
    return None if interval is None else list(interval)


def _mean(rows: Sequence[Scores]) -> list[float] | None:
    return [sum(one for one, _ in rows) / len(rows), sum(two for _, two in rows) / len(rows)] if rows else None


def _outcomes(rows: Sequence[Scores]) -> dict[str, int]:
    return {
        "win": sum(one > two for one, two in rows),
        "tie": sum(one == two for one, two in rows),
        "loss": sum(one < two for one, two in rows),
    }


def _numeric(question: str) -> tuple[int, str]:
    return (int(question), "") if question.isdecimal() else (1 << 62, question)


def as_json(summary: dict[str, Any]) -> str:
    """One line of JSON."""
    return json.dumps(summary, ensure_ascii=False, allow_nan=False)
