"""`xllm-speech tokens`: make a token table from transcripts."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--cuts", type=Path, nargs="+", metavar="FILE", help="lhotse cuts (jsonl, jsonl.gz)")
    source.add_argument("--text", type=Path, nargs="+", metavar="FILE", help="Kaldi `text` files; with --plain, mere text")
    parser.add_argument("--plain", action="store_true", help="--text files hold one transcript per line, without ids")
    parser.add_argument("--kind", choices=("char", "sentencepiece", "mixed"), default="char",
                        help="characters, pieces, or Chinese characters with pieces for the rest (default: char)")
    parser.add_argument("--vocab-size", type=int, metavar="N",
                        help="most tokens in all, the three special ones included (default: every character, or 2000)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the table's files go here")


def run(args: argparse.Namespace) -> int:
    """Train the table, save it and say what it holds; exit status 0."""
    from xllm_speech.base.errors import ConfigError
    from xllm_speech.text.tokens import TokenTable

    if args.plain and args.cuts:
        raise ConfigError("--plain goes with --text, not with --cuts")
    texts = list(_cut_texts(args.cuts) if args.cuts else _line_texts(args.text, args.plain))
    table = TokenTable.train(texts, args.kind, args.vocab_size)
    table.save(args.out)
    empty = sum(not text.strip() for text in texts)
    unknown = sum((table.count_unknown(text).total() for text in texts), 0)
    print(f"{args.out}: {table.size} tokens ({table.kind}) from {len(texts)} transcripts, {empty} of them empty; "
          f"{unknown} characters left unknown")
    return 0


def _cut_texts(paths: list[Path]) -> Iterator[str]:
    from xllm_speech.base.errors import DataError
    from xllm_speech.base.files import read_jsonl

    for path in paths:
        for number, row in read_jsonl(path):
            supervisions = row.get("supervisions")
            if not isinstance(supervisions, list) or not all(isinstance(span, dict) for span in supervisions):
                raise DataError(f"{path}:{number}: not a cut: it has no list of supervisions")
            yield from (span.get("text") or "" for span in supervisions)


def _line_texts(paths: list[Path], plain: bool) -> Iterator[str]:
    from xllm_speech.base.files import numbered_lines

    for path in paths:
        for _, line in numbered_lines(path):
            if plain:
                yield line
            elif line.strip():
                yield line.split(maxsplit=1)[1] if len(line.split(maxsplit=1)) == 2 else ""
