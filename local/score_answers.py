"""Score the answers of `xllm-speech answer` and put the numbers into metrics.json.

    python3 score_answers.py --out exp/report/metrics.json image/question_accuracy=exp/answers/all.jsonl#vl ...

KEY=FILE#TASK scores the answers to one task. A key that ends in `_cer` takes the character error rate, every other the share
of answers that are exactly right after normalisation; both in %. KEY=chance:FILE#TASK takes what a guess would reach: the share
of the most frequent reference. Answers that failed count as wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from show_results import put

from xllm_speech.base.errors import DataError, UserError
from xllm_speech.base.files import read_json, read_jsonl, write_json
from xllm_speech.metrics.alignment import Counts, align
from xllm_speech.text.normalise import cer_tokens, normalise


def read_answers(path: str, task: str) -> list[tuple[str, str]]:
    """(reference, answer) of the conversations of one task; `DataError` where there is none, or one without a reference."""
    rows = []
    for number, row in read_jsonl(path):
        if row.get("task") != task:
            continue
        if not isinstance(row.get("reference"), str) or not isinstance(row.get("text"), str):
            raise DataError(f"{path}:{number}: needs `reference` and `text`; do its conversations end in an answer?")
        rows.append((normalise(row["reference"]), normalise(row["text"])))
    if not rows:
        raise DataError(f"{path}: holds no answer to task `{task}`")
    return rows


def measure(key: str, rows: list[tuple[str, str]]) -> float:
    """CER or accuracy, in %."""
    if not key.endswith("_cer"):
        return 100.0 * sum(reference == answer for reference, answer in rows) / len(rows)
    counts = Counts()
    for reference, answer in rows:
        counts += align(cer_tokens(reference), cer_tokens(answer)).counts
    return 100.0 * (counts.S + counts.D + counts.I) / max(1, counts.N)


def main() -> int:
    """Entry; the exit status is 1 where a file is broken."""
    parser = argparse.ArgumentParser(description="Score answers and put the numbers into metrics.json.")
    parser.add_argument("results", nargs="+", metavar="KEY=FILE#TASK", help="where a number goes, and what it is of")
    parser.add_argument("--out", type=Path, required=True, help="metrics.json to bring up to date")
    args = parser.parse_args()
    try:
        metrics = read_json(args.out) if args.out.exists() else {}
        for pair in args.results:
            key, _, source = pair.partition("=")
            path, hash_sign, task = source.rpartition("#")
            if not key or not hash_sign:
                raise UserError(f"`{pair}`: expected KEY=FILE#TASK, for example image/question_accuracy=answers.jsonl#vl")
            rows = read_answers(path.removeprefix("chance:"), task)
            if path.startswith("chance:"):
                value = 100.0 * Counter(reference for reference, _ in rows).most_common(1)[0][1] / len(rows)
            else:
                value = measure(key, rows)
            put(metrics, key, round(value, 2))
            print(f"{key}: {value:.2f} % of {len(rows)} ({task})")
        write_json(args.out, metrics)
    except UserError as error:
        print(f"score_answers: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
