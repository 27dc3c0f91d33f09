"""`xllm-speech score`: character error rate of a hypothesis file, with everything that makes the number checkable."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--ref", type=Path, required=True, metavar="FILE",
                        help="reference: Kaldi `text` lines, JSON lines with id and text, or lhotse cuts; gzip is read too")
    parser.add_argument("--hyp", type=Path, required=True, metavar="FILE", help="hypothesis, in the same forms")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write score.json here")
    parser.add_argument("--compare", type=Path, metavar="OTHER_HYP",
                        help="paired bootstrap of the difference to another hypothesis file")
    parser.add_argument("--mer", action="store_true", help="show the mixed error rate too: a Latin word is one token")
    parser.add_argument("--numbers", action="store_true", help="read digits in Mandarin on both sides (123 = 一百二十三)")
    parser.add_argument("--by", action="append", metavar="FIELD",
                        help="break down by this field of the reference's JSON lines (default: speaker and group)")
    parser.add_argument("--set-name", metavar="NAME", help="name of the test set, for the score file")


def run(args: argparse.Namespace) -> int:
    """Score; exit status 0. A missing, doubled or unknown id raises `DataError` before anything is written."""
    import functools

    from xllm_speech.metrics.score_file import GROUP_FIELDS, NormalForm, score_files, write_score
    from xllm_speech.text.normalise import NORMALISER, cer_tokens, mer_tokens, normalise

    form = NormalForm(
        id=NORMALISER + ("+numbers" if args.numbers else ""),
        normalise=functools.partial(normalise, numbers=args.numbers),
        cer_tokens=cer_tokens,
        mer_tokens=mer_tokens,
    )
    score = score_files(args.ref, args.hyp, form, args.compare, args.set_name, tuple(args.by or GROUP_FIELDS))
    if args.out:
        write_score(args.out, score)
    _print(score, args.mer, args.out)
    return 0


def _print(score: dict[str, Any], with_mer: bool, out: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    name = score["set"] or Path(score["reference"]).name
    table = Table(title=f"{name}: {score['utterances']} utterances", title_justify="left")
    for heading in ("", "%", "95 % interval", "N", "S", "D", "I"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row("CER", _number(score["cer"]), _span(score["interval"]), *_counts(score["counts"]))
    if with_mer:
        table.add_row("MER", _number(score["mer"]), _span(score["mer_interval"]), *_counts(score["mer_counts"]))
    table.add_row("sentences wrong", _number(score["ser"]), "", str(score["utterances"]))
    compare = score["compare"]
    if compare:
        table.add_row(f"CER {Path(compare['hypothesis']).name}", _number(compare["cer"]), "", *_counts(compare["counts"]))
        table.add_row("difference", _number(compare["difference"], "+.2f"), _span(compare["interval"], "+.2f"),
                      f"p {_number(compare['p'], '.3f')}")
    for field, groups in score["groups"].items():
        for value, row in groups.items():
            table.add_row(f"{field} {value}", _number(row["cer"]), "", *_counts(row["counts"]))
    console.print(table)
    for line in _remarks(score):
        console.print(line, markup=False)
    if out:
        console.print(f"written: {out}", markup=False)


def _remarks(score: dict[str, Any]) -> list[str]:
    lines = [f"normaliser {score['normaliser']}, test set {score['test_set_sha256'][:12]}"]
    silent = score["hallucination"]
    if silent["silent_utterances"]:
        lines.append(f"{silent['silent_utterances']} utterances without reference text: {silent['answered']} answered, "
                     f"{silent['characters']} characters ({score['hallucination_rate']:.2f} each)")
    if score["loop_rate"]:
        lines.append(f"loops in {score['loop_rate']:.2f} % of the utterances")
    if score["undecoded"]:
        lines.append(f"{score['undecoded']} utterances could not be decoded; their text counts as deleted")
    if score["cer"] is None:
        lines.append("no reference holds a character: there is no error rate")
    decoding = score["decoding"] or {}
    if "rtfx" in decoding:
        lines.append(f"RTF {decoding['rtf']:.3f}, RTFx {decoding['rtfx']:.1f} ({decoding.get('includes', 'not said of what')})")
    return lines


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def _span(interval: list[float] | None, form: str = ".2f") -> str:
    return "-" if interval is None else f"{interval[0]:{form}} .. {interval[1]:{form}}"


def _counts(counts: dict[str, int]) -> list[str]:
    return [str(counts[key]) for key in "NSDI"]
