"""`xllm-speech judge`: ask a judge which of two systems answers better, and sum up what it said."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

POLICIES = ("reparse", "paper-1", "paper-2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    subparsers = parser.add_subparsers(dest="action", required=True, metavar="run | summarize")
    run = subparsers.add_parser("run", help="ask for verdicts; an interrupted run goes on where it stopped",
                                description="Ask an OpenAI-compatible endpoint for a verdict on every question.")
    files = run.add_argument_group("what is judged (JSON lines or arrays; the authors' files read as they are)")
    files.add_argument("--questions", type=Path, required=True, metavar="FILE",
                       help="objects with question_id, text, category, and image where there are contexts")
    files.add_argument("--answers", type=Path, required=True, metavar="FILE", help="the model's: question_id and text")
    files.add_argument("--reference", type=Path, required=True, metavar="FILE", help="answers of the system it is held against")
    files.add_argument("--contexts", type=Path, metavar="FILE", help="what stands for the images: image, captions, instances")
    files.add_argument("--rules", type=Path, metavar="FILE", help="what the judge is asked to do, by category (default: ours)")
    files.add_argument("--question-field", default="text", metavar="NAME", help="field of the question (default: text)")
    files.add_argument("--out", type=Path, required=True, metavar="FILE", help="verdicts, JSON lines; grows line by line")
    ask = run.add_argument_group("who judges, and how it is asked")
    ask.add_argument("--url", required=True, help="the endpoint, such as http://localhost:8000/v1")
    ask.add_argument("--model", required=True, help="name of the judge's model")
    ask.add_argument("--api-key-env", default="OPENAI_API_KEY", metavar="NAME",
                     help="environment variable with the API key; not set, none is sent (default: %(default)s)")
    ask.add_argument("--orders", choices=("both", "given"), default="both",
                     help="ask in both orders of the answers, or with the model first only (default: both)")
    ask.add_argument("--temperature", type=float, default=0.2, help="default: 0.2")
    ask.add_argument("--attempts", type=int, default=3, help="verdicts asked for until one has scores (default: 3)")
    ask.add_argument("--retries", type=int, default=6, help="further tries after time-outs, status 429 or 5xx (default: 6)")
    ask.add_argument("--timeout-sec", type=float, default=120.0, help="for one try (default: 120)")
    ask.add_argument("--requests-per-minute", type=float, metavar="N", help="at most so many (default: no limit)")
    summarize = subparsers.add_parser("summarize", help="relative scores of a file of verdicts",
                                      description="Relative scores of a file of verdicts: ours, or the authors'.")
    summarize.add_argument("verdicts", type=Path, metavar="VERDICTS", help="JSON lines or one array")
    for sub in (run, summarize):
        sub.add_argument("--failures", choices=POLICIES, default="reparse",
                         help="verdicts without stored scores: read again, or (-1, -1) or (1, 9) as in the paper's rows")
        sub.add_argument("--json", action="store_true", help="one JSON object instead of a table")


def run(args: argparse.Namespace) -> int:
    """Run or sum up; exit status 1 when a question got no answer."""
    import sys

    from xllm_speech.metrics.judged import as_json, read_verdicts, summarise

    failed = _ask(args) if args.action == "run" else []
    for name, reason in failed:
        print(f"xllm-speech judge: {name}: {reason}", file=sys.stderr)
    path = args.out if args.action == "run" else args.verdicts
    if args.action == "run" and not path.stat().st_size:
        return 1
    summary = summarise(read_verdicts(path), args.failures)
    if args.json:
        print(as_json(summary))
    else:
        _print(summary, path)
    if failed:
        print(f"xllm-speech judge: {len(failed)} verdicts are missing; the same command asks for them", file=sys.stderr)
    return 1 if failed else 0


def _ask(args: argparse.Namespace) -> list[tuple[str, str]]:
    import os
    import sys

    from xllm_speech.infer.endpoint import ChatEndpoint, EndpointConfig
    from xllm_speech.infer.judge import read_questions, read_rules, run_judge

    config = EndpointConfig(
        url=args.url, model=args.model, temperature=args.temperature,
        api_key=os.environ.get(args.api_key_env, "").strip() or None, timeout_sec=args.timeout_sec, retries=args.retries,
        requests_per_minute=args.requests_per_minute,
    )
    questions = read_questions(args.questions, args.answers, args.reference, args.contexts, args.question_field)
    rules = read_rules(args.rules)
    with ChatEndpoint(config) as endpoint:
        done = run_judge(questions, endpoint, args.out, rules, args.orders, args.attempts)
    print(f"{len(questions)} questions: {done.asked} verdicts asked for, {done.kept} there before, "
          f"{done.unparsed} without scores, {len(done.failed)} without an answer", file=sys.stderr)
    return done.failed


def _print(summary: dict[str, Any], path: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    title = f"{path.name}: {summary['verdicts']} verdicts on {summary['questions']} questions"
    table = Table(title=title, title_justify="left")
    for heading in ("", "relative %", "95 % interval", "model", "reference", "win", "tie", "loss"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, relative in summary["relative"].items():
        interval, mean = summary["interval"][name], summary["mean"][name] or (None, None)
        table.add_row(
            name, _number(relative, ".1f"), "-" if interval is None else f"{interval[0]:.1f} .. {interval[1]:.1f}",
            *(_number(value, ".2f") for value in mean), *map(str, summary["outcomes"][name].values()),
        )
    console.print(table)
    lines = [f"failures: {summary['policy']}; {summary['unparsed']} unparsed{_ids(summary['unparsed_ids'])}"]
    if summary["reread"]:
        lines.append(f"{summary['reread']} read from their text, {summary['conflicts']} of them contradict themselves"
                     f"{_ids(summary['conflict_ids'])}")
    if summary["stored_conflicts"]:
        lines.append(f"{summary['stored_conflicts']} stored scores stand against what their text says")
    for order, row in summary["orders"].items():
        lines.append(f"order {order}: {_number(row['relative'], '.1f')} % over {row['verdicts']} verdicts")
    for line in lines:
        console.print(line, markup=False)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _ids(ids: list[str], at_most: int = 10) -> str:
    return f": questions {', '.join(ids[:at_most])}{', ...' if len(ids) > at_most else ''}" if ids else ""
