"""How often the words that only the image decides come out right: accuracy of 旗, 棋, 钟 and 盅 per condition.

    python3 score_homophones.py --out exp/report/metrics.json cif_asr/S=exp/score/test_homophone/S.json ...

Reads score files of `xllm-speech score`; writes `homophone_accuracy` (%) into metrics.json and prints it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from scenes import TWINS

from xllm_speech.base.errors import DataError, UserError
from xllm_speech.base.files import read_json, write_json


def measure_accuracy(score_file: Path) -> tuple[int, int]:
    """(right, all) occurrences of homophone characters in the references of a score file."""
    deciding = {letter for name in TWINS for letter in name if letter not in TWINS[name]}
    right = total = 0
    for row in read_json(score_file)["per_utterance"]:
        letters = iter(row["reference"].replace(" ", ""))
        for operation in row["operations"]:
            if operation == "I":
                continue
            if next(letters) in deciding:
                total += 1
                right += operation == "C"
    if not total:
        raise DataError(f"{score_file}: no homophone in its references; is this the homophone set?")
    return right, total


def main() -> int:
    """Entry; the exit status is 1 where a file is broken."""
    parser = argparse.ArgumentParser(description="Accuracy of the words that only the image decides.")
    parser.add_argument("results", nargs="+", metavar="MODEL/CONDITION=FILE", help="score file of the homophone set")
    parser.add_argument("--out", type=Path, required=True, help="metrics.json to bring up to date")
    args = parser.parse_args()
    try:
        metrics = read_json(args.out) if args.out.exists() else {}
        for pair in args.results:
            key, _, name = pair.partition("=")
            model, _, condition = key.partition("/")
            right, total = measure_accuracy(Path(name))
            metrics.setdefault("homophone_accuracy", {}).setdefault(model, {})[condition] = round(100 * right / total, 2)
            print(f"homophones, {model} with {condition}: {right} of {total} right ({100 * right / total:.1f} %)")
        write_json(args.out, metrics)
    except UserError as error:
        print(f"score_homophones: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
