"""Score the answers of `xllm-speech answer` and put the numbers into metrics.json.

    python3 score_answers.py --out exp/report/metrics.json image/question_accuracy=exp/answers/all.jsonl#vl ...

KEY=FILE#TASK scores the answers to one task. A key that ends in `_cer` takes the character error rate, every other the share
of answers that are exactly right after normalisation; both in %. KEY=chance:FILE#TASK takes what a guess would reach: the share
of the most frequent reference. Answers that failed count as wrong. Under `intervals` stand the 95 % intervals of the same keys:
Wilson's of a share, the bootstrap's over answers of an error rate.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from show_results import put

from xllm_speech.base.errors import UserError
from xllm_speech.base.files import read_json, write_json
from xllm_speech.metrics.alignment import Counts, align
from xllm_speech.metrics.rates import bootstrap_interval, wilson_interval
from xllm_speech.metrics.transcripts import read_answers
from xllm_speech.text.normalise import cer_tokens, normalise


def measure(key: str, rows: list[tuple[str, str]]) -> tuple[float, tuple[float, float] | None]:
    """CER or accuracy, in %, and its 95 % interval."""
    if not key.endswith("_cer"):
        right = sum(reference == answer for reference, answer in rows)
        return 100.0 * right / len(rows), wilson_interval(right, len(rows))
    counts = [align(cer_tokens(reference), cer_tokens(answer)).counts for reference, answer in rows]
    total = sum(counts, Counts())
    interval = bootstrap_interval([count.errors for count in counts], [count.N for count in counts])
    return 100.0 * total.errors / max(1, total.N), interval


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
            references, answers = read_answers(path.removeprefix("chance:"), task)
            rows = [(normalise(asked.text), normalise(given.text)) for asked, given in zip(references, answers, strict=True)]
            shown = ""
            if path.startswith("chance:"):
                value = 100.0 * Counter(reference for reference, _ in rows).most_common(1)[0][1] / len(rows)
            else:
                value, interval = measure(key, rows)
                if interval is not None:
                    put(metrics, f"intervals/{key}", [round(edge, 2) for edge in interval])
                    shown = f" ({interval[0]:.2f} to {interval[1]:.2f})"
            put(metrics, key, round(value, 2))
            print(f"{key}: {value:.2f} %{shown} of {len(rows)} ({task})")
        write_json(args.out, metrics)
    except UserError as error:
        print(f"score_answers: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
