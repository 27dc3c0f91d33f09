"""`xllm-speech score`: hypothesis files beside their reference, with everything that makes the numbers checkable."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xllm_speech.metrics.score_file import NormalForm

KINDS = ("transcript", "caption", "answer", "translation")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--ref", type=Path, metavar="FILE",
                        help="reference: Kaldi `text` lines, JSON lines with id and text, or lhotse cuts; gzip is read too")
    parser.add_argument("--hyp", type=Path, metavar="FILE", help="hypothesis, in the same forms")
    parser.add_argument("--answers", type=Path, metavar="FILE",
                        help="in place of both, with --metrics caption, answer or translation: the output of `answer`")
    parser.add_argument("--task", metavar="NAME", help="of --answers, those to this task: caption, vl, vsd, video, ...")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write score.json here")
    parser.add_argument("--compare", type=Path, metavar="OTHER_HYP",
                        help="paired bootstrap of the difference to another hypothesis (or answer) file")
    parser.add_argument("--mer", action="store_true", help="show the mixed error rate too: a Latin word is one token")
    parser.add_argument("--numbers", action="store_true", help="read digits in Mandarin on both sides (123 = 一百二十三)")
    parser.add_argument("--by", action="append", metavar="FIELD",
                        help="break down by this field of the reference's JSON lines (default: speaker and group), or with "
                             "NAME=FILE by another file: utt2spk or any two columns, or JSON lines or cuts with that field")
    parser.add_argument("--hotwords", type=Path, metavar="FILE",
                        help="recall and precision of these phrases, one per line, and the CER in and out of them")
    parser.add_argument("--set-name", metavar="NAME", help="name of the test set, for the score file")
    parser.add_argument("--metrics", choices=KINDS, default="transcript",
                        help="what is scored: transcript (CER), caption (CIDEr, BLEU, ROUGE-L), answer (exact match, token F1) "
                             "or translation (BLEU, chrF); references of the last three may be several, in a list")
    parser.add_argument("--conditions", nargs="+", metavar="NAME=HYP",
                        help="instead of --hyp: the same utterances under several conditions or wordings of the instruction, "
                             "each compared with the first")
    parser.add_argument("--captions", type=Path, metavar="FILE",
                        help="with --conditions: the images' captions, by which wrong characters are split")


def run(args: argparse.Namespace) -> int:
    """Score; exit status 0. A missing, doubled or unknown id raises `DataError` before anything is written."""
    form = normal_form(args.numbers)
    _check(args)
    if args.conditions:
        _conditions(args, form)
    elif args.metrics == "transcript":
        _transcripts(args, form)
    else:
        _texts(args, form)
    if args.out:
        print(f"written: {args.out}")
    return 0


def normal_form(numbers: bool) -> NormalForm:
    """The normal form that everything is scored in; numbers: digits are read in Mandarin."""
    import functools

    from xllm_speech.metrics.score_file import NormalForm
    from xllm_speech.text.normalise import NORMALISER, cer_tokens, mer_tokens, normalise

    return NormalForm(
        id=NORMALISER + ("+numbers" if numbers else ""), normalise=functools.partial(normalise, numbers=numbers),
        cer_tokens=cer_tokens, mer_tokens=mer_tokens,
    )


def _check(args: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    from xllm_speech.base.config import require

    if args.answers is not None:
        require(args.ref is None and args.hyp is None and not args.conditions, "--answers holds both sides; leave --ref, --hyp "
                "and --conditions away")
        require(bool(args.task) and args.metrics != "transcript", "--answers FILE goes with --task NAME and --metrics caption, "
                "answer or translation")
        return _check_texts(args)
    require(args.task is None, "--task goes with --answers")
    require(args.ref is not None, "expected --ref FILE")
    require((args.hyp is None) == bool(args.conditions), "expected one of --hyp FILE and --conditions NAME=HYP ...")
    require(args.captions is None or bool(args.conditions), "--captions goes with --conditions")
    plain = args.metrics == "transcript"
    require(plain or not args.conditions, f"--conditions compares transcripts, not --metrics {args.metrics}")
    require(args.compare is None or not args.conditions, "--compare goes with --hyp; --conditions compares all with the first")
    if not plain or args.conditions:
        _check_texts(args)


def _check_texts(args: argparse.Namespace) -> None:
    from xllm_speech.base.config import require

    wanted = {"--by": args.by, "--mer": args.mer, "--hotwords": args.hotwords}
    given = ", ".join(name for name, value in wanted.items() if value)
    require(not given, f"{given}: only for --hyp with transcripts")


def _named_files(words: list[str], option: str) -> dict[str, Path]:
    """NAME=FILE words as a dictionary; `ConfigError` for a word without a name, or a name that comes twice."""
    from xllm_speech.base.config import require

    found: dict[str, Path] = {}
    for word in words:
        name, sign, path = word.partition("=")
        require(bool(name and sign and path), f"{option} {word}: expected NAME=FILE")
        require(name not in found, f"{option} {word}: {name} is already {found.get(name)}")
        found[name] = Path(path)
    return found


def _transcripts(args: argparse.Namespace, form: NormalForm) -> None:
    from xllm_speech.metrics.score_file import GROUP_FIELDS, score_files, write_score

    by = args.by or list(GROUP_FIELDS)
    score = score_files(
        args.ref, args.hyp, form, args.compare, args.set_name, tuple(word for word in by if "=" not in word),
        group_files=_named_files([word for word in by if "=" in word], "--by"),
    )
    if args.hotwords:
        score["hotwords"] = _hotwords(args, form)
    if args.out:
        write_score(args.out, score)
    _print(score, args.mer)
    if args.hotwords:
        _print_hotwords(score["hotwords"], score["set"] or args.ref.name)


def _hotwords(args: argparse.Namespace, form: NormalForm) -> dict[str, Any]:
    """What is known of the phrases of --hotwords, with --compare in the other file too."""
    from xllm_speech.base.config import require
    from xllm_speech.metrics.hotwords import score_hotword_files
    from xllm_speech.text.hotwords import read_hotwords

    phrases = [phrase for _, phrase in read_hotwords(args.hotwords)]
    require(bool(phrases), f"--hotwords {args.hotwords}: no phrase in it")
    other = None if args.compare is None else score_hotword_files(args.ref, args.compare, phrases, form)
    return {"file": str(args.hotwords), **score_hotword_files(args.ref, args.hyp, phrases, form), "compare": other}


def _print_hotwords(found: dict[str, Any], name: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{name}: hotwords", title_justify="left")
    for heading in ("", "said", "written", "right", "recall %", "precision %", "F1 %"):
        table.add_column(heading, justify="left" if not heading else "right")

    def add(title: str, row: dict[str, Any]) -> None:
        rates = [_number(row[rate]) for rate in ("recall", "precision", "f1")]
        table.add_row(title, *(str(row[key]) for key in ("said", "written", "right")), *rates)

    add("all", found)
    if found["compare"]:
        add("all, compared file", found["compare"])
    for phrase, row in found["phrases"].items():
        add(phrase, row)
    console = Console(highlight=False)
    console.print(table)
    parts = "; ".join(f"{title} {_number(found[key]['cer'])} % of {found[key]['counts']['N']} characters"
                      for title, key in (("CER in hotwords", "inside"), ("elsewhere", "outside")))
    console.print(parts, markup=False, soft_wrap=True)


def _conditions(args: argparse.Namespace, form: NormalForm) -> None:
    from rich.console import Console

    from xllm_speech.base.files import write_json
    from xllm_speech.metrics.grounding import compare_conditions

    files = _named_files(args.conditions, "--conditions")
    score = compare_conditions(args.ref, files, form, args.captions, args.set_name)
    if args.out:
        write_json(args.out, score)
    print_conditions(score, Console(highlight=False))


def print_conditions(score: dict[str, Any], console: Any) -> None:
    """Tables of what `metrics.grounding.compare_conditions` found."""
    from rich.table import Table

    beside = score["beside"]
    name = score["set"] or Path(score["reference"]).name
    table = Table(title=f"{name}: {score['utterances']} utterances, differences to {score['baseline']}", title_justify="left")
    gaps = ["difference", "p", f"to {beside}", "p"] if beside else ["difference", "95 % interval", "p"]
    for heading in ("", "CER %", "95 % interval", *gaps):
        table.add_column(heading, justify="left" if not heading else "right", overflow="fold")
    split = Table(title="characters that the captions ground, and others", title_justify="left")
    for heading in ("", "grounded %", "points", "p", "other %", "points", "p", "copied"):
        split.add_column(heading, justify="left" if not heading else "right", overflow="fold")
    for name, row in score["conditions"].items():
        cells = []
        for gap in (row["difference"], row["beside"]) if beside else (row["difference"],):
            span = [] if beside else [_span(gap and gap["interval"], "+.2f")]
            cells += [_points(gap), *span, _number(gap and gap["p"], ".3f")]
        table.add_row(name, _number(row["cer"]), _span(row["interval"]), *cells)
        if score["captions"]:
            cells = []
            for part in (row["grounded"], row["other"]):
                gap = part["difference"]
                cells += [_number(part["percent"]), _points(gap), _number(gap and gap["p"], ".3f")]
            split.add_row(name, *cells, str(row["copied"]))
    console.print(table)
    if score["captions"]:
        console.print(split)
    spread = score["spread"]
    if spread:
        console.print(f"CER from {spread['lowest']:.2f} to {spread['highest']:.2f}, mean {spread['mean']:.2f}; all conditions "
                      f"agree on {score['same_text']:.1f} % of the utterances", markup=False, soft_wrap=True)


def _texts(args: argparse.Namespace, form: NormalForm) -> None:
    from rich.console import Console
    from rich.table import Table

    from xllm_speech.base.files import write_json
    from xllm_speech.metrics.captions import score_texts

    score = score_texts(
        args.ref, args.answers or args.hyp, args.metrics, form, args.set_name, compare=args.compare, task=args.task
    )
    if args.out:
        write_json(args.out, score)
    title = f"{score['set'] or Path(score['reference']).name}: {score['items']} items, {score['references']} references"
    table = Table(title=title, title_justify="left")
    compare = score["compare"]
    other = ["other", "difference", "95 % interval", "p"] if compare else []
    for place, heading in enumerate((args.metrics, "", "95 % interval", *other)):
        table.add_column(heading, justify="right" if place else "left")
    for name, value in score["scores"].items():
        cells = [name, _number(value), _span(score["interval"].get(name))]
        if compare:
            gap = compare["differences"][name]
            cells += [_number(compare["scores"][name]), _points(gap), _span(gap["interval"], "+.2f"), _number(gap["p"], ".3f")]
        table.add_row(*cells)
    console = Console(highlight=False)
    console.print(table)
    if compare:
        console.print(f"other: {compare['hypothesis']}", markup=False, soft_wrap=True)
    console.print(f"counted: {score['tokens']}; normaliser {score['normaliser']}", markup=False, soft_wrap=True)


def _print(score: dict[str, Any], with_mer: bool) -> None:
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


def _points(difference: dict[str, Any] | None) -> str:
    return "-" if difference is None else f"{difference['points']:+.2f}"


def _counts(counts: dict[str, int]) -> list[str]:
    return [str(counts[key]) for key in "NSDI"]
