"""Each recording of VSDial-CN once.

    python3 spoken.py --cuts data/vsdial/train/cuts.jsonl.gz --out data/spoken/cuts.jsonl.gz

A question that dialogues share has one recording: this keeps the first cut of each, about 370 thousand of the 1.2 million
(paper, A.1), which phase 2 of the speech interface trains on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xllm_speech.base.errors import UserError
from xllm_speech.base.files import read_jsonl, write_jsonl


def first_of_each(cuts: Path) -> Iterator[dict[str, Any]]:
    """The first cut of every recording."""
    seen: set[str] = set()
    for _, row in read_jsonl(cuts):
        if row["recording"]["id"] not in seen:
            seen.add(row["recording"]["id"])
            yield row


def main() -> int:
    """Entry; the exit status is 1 where a file is broken."""
    parser = argparse.ArgumentParser(description="Each recording of VSDial-CN once.")
    parser.add_argument("--cuts", type=Path, required=True, metavar="FILE", help="cuts of the training set")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="cuts to write")
    args = parser.parse_args()
    try:
        print(f"{args.out}: {write_jsonl(args.out, first_of_each(args.cuts))} recordings, one cut each")
    except UserError as error:
        print(f"spoken: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
