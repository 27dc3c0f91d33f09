"""Gather the scores of a recipe: one table on the console and one metrics.json.

    python3 show_results.py --minutes exp/minutes.tsv --out exp/report/metrics.json cif_asr/mixed/S=exp/score/.../score.json
    python3 show_results.py ... --markdown RESULTS.md --heading "Results of aishell2" --judged X-LLM=exp/judge/summary.json

Every KEY=FILE puts the CER of a score file under its key (model, set and condition, separated by `/`); `--answers FILE` merges
what score_answers.py wrote, intervals too. Keys that another stage wrote into metrics.json stay as they are. A file that is not
there yet is left out, and said so. Scores of one model alone are shown with their counts, else models
and conditions stand side by side as in the paper's Table 4, with questions about pictures and clips below, each beside what is
reached without the picture, the speech or the clip. `--markdown` writes a recipe's RESULTS.md: what is in metrics.json beside
the paper's Table 4, what was judged beside its Table 1, and the hours of the stages.
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
from xllm_speech.base.files import atomic_write, numbered_lines, read_json, write_json
from xllm_speech.report.paper import TABLE_1, TABLE_4
from xllm_speech.report.tables import DASH, Cell, as_markdown, percent, span
from xllm_speech.report.tables import Table as PlainTable


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

    def show(value: Any, interval: list[float] | None = None) -> str:
        if value is None:
            return "-"
        return f"{value:.2f}" + (f" ({interval[0]:.1f} - {interval[1]:.1f})" if interval else "")

    for name in dict.fromkeys(name for model in models for name in metrics[model]):
        table.add_row(name, *(show(metrics[model].get(name, {}).get(condition)) for model, condition in columns))
    if right := metrics.get("homophone_accuracy"):
        table.add_section()
        table.add_row("homophones, right %", *(show(right.get(model, {}).get(condition)) for model, condition in columns))
    console.print(table)
    rows = [row for row in QUESTIONS if row[2] in metrics.get(row[0], {})]
    if not rows:
        return
    title = "Pictures and clips: answers of the X-LLM" + (", with 95 % intervals" if "intervals" in metrics else "")
    table = Table(title=title, title_justify="left")
    table.add_column("test")
    beside = list(dict.fromkeys(name for row in rows for name in row[3]))
    for heading in ("X-LLM", *beside):
        table.add_column(heading, justify="right")
    for section, title, key, others in rows:
        numbers, spans = metrics[section], metrics.get("intervals", {}).get(section, {})
        found = [show(numbers.get(others[name]), spans.get(others[name])) if name in others else "" for name in beside]
        table.add_row(title, show(numbers[key], spans.get(key)), *found)
    console.print(table)


CONDITIONS = ("S", "S+V", "S+V+L")
# Key of `xllm-speech judge summarize --json` -> column of Table 1.
CATEGORIES = {"conv": "conversation", "detail": "detail", "complex": "reasoning", "all": "all"}


def name_of(model: str) -> str:
    """A model's heading; an ablation of the X-LLM has its tag behind its key."""
    for key, name in NAMES.items():
        if model.startswith(f"{key}_"):
            return f"{name} ({model.removeprefix(f'{key}_').replace('_', ' ')})"
    return NAMES.get(model, model)


def recognition_beside_paper(metrics: dict[str, Any], scores: dict[str, dict[str, Any]], keys: list[str]) -> PlainTable:
    """The sets, models and conditions that `keys` (model/set/condition) name, and those of metrics.json, beside the paper's."""
    known = [f"{model}/{name}/{condition}" for model in metrics if model.startswith(tuple(NAMES))
             for name, row in metrics[model].items() for condition in row]
    parts = [key.split("/") for key in [*keys, *known] if key.count("/") == 2]
    order = {name: place for place, name in enumerate((*NAMES, *CONDITIONS))}
    columns = sorted({(model, condition) for model, _, condition in parts}, key=lambda pair: (
        order.get(pair[0], len(order)), pair[0], order.get(pair[1], len(order))
    ))
    sets = list(dict.fromkeys(name for _, name, _ in parts))
    table = PlainTable(
        "Recognition: character error rate, %", ["test set", *(f"{name_of(model)} {condition}" for model, condition in columns)]
    )
    for name in sets:
        cells = []
        for model, condition in columns:
            paper = TABLE_4.get(name, {}).get(model, {}).get(condition)
            document = scores.get(f"{model}/{name}/{condition}", {})
            interval = document.get("interval")
            ours = percent(metrics.get(model, {}).get(name, {}).get(condition))
            small = span((interval[0], interval[1])) if interval and None not in interval and ours != DASH else ""
            if paper is not None:
                small = f"{small}; " if small else ""
                small += f"paper {paper}"
            cells.append(Cell(ours, small))
        table.add(name, *cells)
    table.note = (
        "S: speech alone; S+V: with the image; S+V+L: with the image and its caption. In brackets the 95 % bootstrap interval, "
        "and the figure of the paper's Table 4; a dash: not measured."
    )
    return table


def judged_beside_paper(pairs: list[str]) -> PlainTable:
    """One row per judged model, the paper's Table 1 below."""
    table = PlainTable("LLaVA-test: score relative to GPT-4 (text only), %", ["", *CATEGORIES.values()])
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not equals:
            raise UserError(f"--judged `{pair}`: expected NAME=FILE, for example X-LLM=exp/judge/summary.json")
        if not Path(path).exists():
            continue
        summary = read_json(path)
        if not isinstance(summary, dict) or not isinstance(summary.get("relative"), dict):
            raise DataError(f"{path}: no `relative` in it; `xllm-speech judge summarize --json` writes one")
        table.add(f"{name}, {summary.get('unparsed', 0)} verdicts without scores", *(
            percent(summary["relative"].get(key), 1) for key in CATEGORIES
        ))
    if not table.rows:
        table.add("not judged", *(DASH for _ in CATEGORIES))
    table.add_group("the paper, Table 1")
    for name, row in TABLE_1.items():
        table.add(name, *row)
    return table


def minutes_table(minutes: dict[str, float]) -> PlainTable:
    """Hours per stage."""
    table = PlainTable("Wall time", ["stage", "hours"])
    for stage, value in minutes.items():
        table.add(stage, percent(value / 60))
    return table


def write_markdown(
    path: Path, heading: str, metrics: dict[str, Any], scores: list[tuple[str, dict[str, Any]]], keys: list[str],
    judged: list[str] | None,
) -> None:
    """RESULTS.md of a recipe, whole or not at all; keys: what may be measured, measured or not."""
    tables = [recognition_beside_paper(metrics, dict(scores), keys)]
    if judged is not None:
        tables.append(judged_beside_paper(judged))
    if metrics.get("minutes"):
        tables.append(minutes_table(metrics["minutes"]))
    with atomic_write(path) as stream:
        stream.write(as_markdown(tables, heading))


def main() -> int:
    """Entry; the exit status is 1 where a file is broken."""
    parser = argparse.ArgumentParser(description="Gather the scores of a recipe in a table and in metrics.json.")
    parser.add_argument("results", nargs="*", metavar="KEY=FILE", help="score file and its place in metrics.json")
    parser.add_argument("--answers", type=Path, help="what score_answers.py wrote, to be merged")
    parser.add_argument("--minutes", type=Path, help="minutes.tsv of the stages")
    parser.add_argument("--out", type=Path, required=True, help="metrics.json to bring up to date")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables beside the paper's, as RESULTS.md")
    parser.add_argument("--heading", default="Results", metavar="TEXT", help="heading of that file")
    parser.add_argument("--judged", nargs="*", metavar="NAME=FILE", help="summaries of the judge, for that file's Table 1")
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
        if args.markdown is not None:
            keys = [pair.partition("=")[0] for pair in args.results]
            write_markdown(args.markdown, args.heading, metrics, scores, keys, args.judged)
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
