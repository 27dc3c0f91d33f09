"""A question set for `xllm-speech judge run`: the X-LLM's answers beside the corpus's own, the caption as context.

    python3 judge_questions.py --answers exp/answers/all.jsonl --conversations data/test_mixed/conversations.jsonl.gz \
      --each 20 --out exp/judge

Writes questions.jsonl, answers.jsonl, reference.jsonl and contexts.jsonl. Of every kind (descriptions, typed and spoken
questions) the first so many by the hash of their id, so that the choice is the same on every machine.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any

from xllm_speech.base.errors import DataError, UserError
from xllm_speech.base.files import read_jsonl, write_jsonl

# Task -> the judge's category; `complex` questions of LLaVA-test there are none.
CATEGORIES = {"vl": "conv", "caption": "detail", "vsd": "spoken"}
DESCRIBE = "请描述这张图片。"


def read_talks(path: Path) -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """(id -> question and image, image -> caption) of the conversations about images."""
    asked: dict[str, tuple[str, str]] = {}
    captions: dict[str, str] = {}
    for _, row in read_jsonl(path):
        items = row["messages"][0]["content"]
        image = next((item["path"] for item in items if item["type"] == "image"), None)
        if image is None or row["task"] not in CATEGORIES:
            continue
        typed = next((item["text"] for item in items if item["type"] == "text"), None)
        asked[row["id"]] = (typed or row.get("custom", {}).get("question") or DESCRIBE, image)
        if row["task"] == "caption":
            captions[image] = row["messages"][1]["content"]
    return asked, captions


def choose(answers: Path, each: int) -> list[dict[str, Any]]:
    """So many answers of every kind."""
    found: dict[str, list[dict[str, Any]]] = {task: [] for task in CATEGORIES}
    for _, row in read_jsonl(answers):
        if row["task"] in found:
            found[row["task"]].append(row)
    for rows in found.values():
        rows.sort(key=lambda row: hashlib.sha256(row["id"].encode()).hexdigest())
    return [row for rows in found.values() for row in rows[:each]]


def main() -> int:
    """Entry; the exit status is 1 where a file is broken."""
    parser = argparse.ArgumentParser(description="A question set for the judge.")
    parser.add_argument("--answers", type=Path, required=True, help="what `xllm-speech answer` wrote")
    parser.add_argument("--conversations", type=Path, required=True, help="what it answered")
    parser.add_argument("--each", type=int, default=20, help="questions of each kind (default: 20)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the question set")
    args = parser.parse_args()
    try:
        asked, captions = read_talks(args.conversations)
        chosen = choose(args.answers, args.each)
        if absent := [row["id"] for row in chosen if row["id"] not in asked]:
            raise DataError(f"{args.answers}: {absent[0]} is not in {args.conversations}; answer its conversations anew")
        write_jsonl(args.out / "questions.jsonl", (
            {"question_id": row["id"], "text": asked[row["id"]][0], "category": CATEGORIES[row["task"]],
             "image": asked[row["id"]][1]}
            for row in chosen
        ))
        for name, key in (("answers", "text"), ("reference", "reference")):
            write_jsonl(args.out / f"{name}.jsonl", ({"question_id": row["id"], "text": row[key]} for row in chosen))
        images = dict.fromkeys(asked[row["id"]][1] for row in chosen)
        write_jsonl(args.out / "contexts.jsonl", (
            {"image": image, "captions": [captions[image]] if image in captions else []} for image in images
        ))
    except UserError as error:
        print(f"judge_questions: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
