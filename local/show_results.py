"""Gather the scores of a recipe: one table on the console and one metrics.json.

    python3 show_results.py --minutes exp/minutes.tsv --out exp/report/metrics.json cif_asr/mixed/S=exp/score/.../score.json

Every KEY=FILE puts the CER of a score file under its key (model, set and condition, separated by `/`); `--answers FILE` merges
what score_answers.py wrote. Keys that another stage wrote into metrics.json stay as they are. A file that is not there yet is
left out, and said so. Where there are scores of one model only, the table shows them with their counts, else models and
conditions stand side by side as in the paper's Table 4, with questions about pictures and clips below, each beside what is
reached without the picture, the speech or the clip.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from xllm_speech.base.errors import DataError, UserError
from xllm_speech.base.files import numbered_lines, read_json, write_json


def read_minutes(path: Path) -> dict[str, float]:
    """Stage number -> minutes of its last run, and their sum under `total`; the file is what utils/stages.sh writes."""
    minutes: dict[str, float] = {}
    for number, line in numbered_lines(path):
        fields = line.split("\t")
        if number == 1 or not line:
            continue
        try:
            stage, _, value = fields
            minutes[stage] = float(value)
        except ValueError as error:
            raise DataError(f"{path}:{number}: expected stage, title and minutes, found `{line}`") from error
    minutes["total"] = round(sum(minutes.values()), 2)
    return minutes


def put(metrics: dict[str, Any], key: str, value: Any) -> None:
    """Set a value in nested dicts by its `/`-separated key."""
    *parents, last = key.split("/")
    for parent in parents:
        metrics = metrics.setdefault(parent, {})
    metrics[last] = value


def gather(pairs: list[str]) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    """(key, score document) of every KEY=FILE whose file is there, and the files that are not."""
    scores, absent = [], []
    for pair in pairs:
        key, equals, name = pair.partition("=")
        if not equals or not key:
            raise UserError(f"`{pair}`: expected KEY=FILE, for example cif_asr/mixed/S=exp/score/test_mixed/score.json")
        if not Path(name).exists():
            absent.append(name)
            continue
        document = read_json(name)
        if not isinstance(document, dict) or "cer" not in document or "counts" not in document:
            raise DataError(f"{name}: not a score file (no `cer` and `counts`); `xllm-speech score --out` writes one")
        scores.append((key, document))
    return scores, absent


def print_table(scores: list[tuple[str, dict[str, Any]]], console: Console) -> None:
    """One row per score: CER, its interval and the counts behind it."""
    table = Table(title="Character error rate, %", title_justify="left")
    for heading in ("model", "set", "with"):
        table.add_column(heading)
    for heading in ("CER", "95 % interval", "characters", "wrong", "missing", "too many"):
        table.add_column(heading, justify="right")
    for key, document in scores:
        model, name, condition = [*key.split("/"), "", ""][:3]
        counts, cer, interval = document["counts"], document["cer"], document.get("interval")
        span = f"{interval[0]:.2f} - {interval[1]:.2f}" if interval and None not in interval else "-"
        table.add_row(
            model, name, condition, "-" if cer is None else f"{cer:.2f}", span,
            str(counts["N"]), str(counts["S"]), str(counts["D"]), str(counts["I"]),
        )
    console.print(table)


NAMES = {"cif_asr": "CIF model", "llm_asr": "X-LLM"}
# Section of metrics.json, name of the row, key of the number, and of what is reached without a medium.
QUESTIONS = (
    ("image", "picture: caption, CER %", "caption_cer", {}),
    ("image", "picture: typed question, right %", "question_accuracy", {"no image": "blind_accuracy"}),
    ("spoken_question", "picture: spoken question, right %", "accuracy", {"no image": "no_image", "no speech": "no_speech"}),
    ("video", "clip: caption, CER %", "caption_cer", {}),
    ("video", "clip: typed question, right %", "direction_accuracy", {"no clip": "blind_accuracy", "chance": "chance"}),
)


def print_overview(metrics: dict[str, Any], console: Console) -> None:
    """Recognition by model and condition, and below it questions with what is reached without each medium."""
    models = [model for model in NAMES if model in metrics]
    columns = [
        (model, condition) for model in models
        for condition in dict.fromkeys(name for row in metrics[model].values() for name in row)
    ]
    table = Table(title="Recognition: character error rate, %", title_justify="left")
    table.add_column("test")
    for model, condition in columns:
        table.add_column(f"{NAMES[model]}\n{condition}", justify="right")

    def show(value: Any) -> str:
        return "-" if value is None else f"{value:.2f}"

    for name in dict.fromkeys(name for model in models for name in metrics[model]):
        table.add_row(name, *(show(metrics[model].get(name, {}).get(condition)) for model, condition in columns))
    if right := metrics.get("homophone_accuracy"):
        table.add_section()
        table.add_row("homophones, right %", *(show(right.get(model, {}).get(condition)) for model, condition in columns))
    console.print(table)
    rows = [row for row in QUESTIONS if row[2] in metrics.get(row[0], {})]
    if not rows:
        return
    table = Table(title="Pictures and clips: answers of the X-LLM", title_justify="left")
    table.add_column("test")
    beside = list(dict.fromkeys(name for row in rows for name in row[3]))
    for heading in ("X-LLM", *beside):
        table.add_column(heading, justify="right")
    for section, title, key, others in rows:
        numbers = metrics[section]
        found = [show(numbers.get(others[name])) if name in others else "" for name in beside]
        table.add_row(title, show(numbers[key]), *found)
    console.print(table)


def main() -> int:
    """Entry; the exit status is 1 where a file is broken."""
    parser = argparse.ArgumentParser(description="Gather the scores of a recipe in a table and in metrics.json.")
    parser.add_argument("results", nargs="+", metavar="KEY=FILE", help="score file and its place in metrics.json")
    parser.add_argument("--answers", type=Path, help="what score_answers.py wrote, to be merged")
    parser.add_argument("--minutes", type=Path, help="minutes.tsv of the stages")
    parser.add_argument("--out", type=Path, required=True, help="metrics.json to bring up to date")
    args = parser.parse_args()
    console = Console() if sys.stdout.isatty() else Console(width=120)
    try:
        scores, absent = gather(args.results)
        metrics = read_json(args.out) if args.out.exists() else {}
        before = json.dumps(metrics, sort_keys=True)
        for key, document in scores:
            put(metrics, key, None if document["cer"] is None else round(document["cer"], 3))
        if args.answers is not None and args.answers.exists():
            metrics |= read_json(args.answers)
        if args.minutes is not None and args.minutes.exists():
            metrics["minutes"] = read_minutes(args.minutes)
    except UserError as error:
        print(f"show_results: {error}", file=sys.stderr)
        return error.exit_code
    if scores:
        if len({key.split("/")[0] for key, _ in scores}) > 1:
            print_overview(metrics, console)
        else:
            print_table(scores, console)
        if json.dumps(metrics, sort_keys=True) != before:
            write_json(args.out, metrics)
        console.print(f"also in {args.out}", soft_wrap=True)
    if absent:
        console.print(f"not scored yet: {', '.join(absent)}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
