"""Conversations about the clips of the mini corpus: what happens in one, and where it moves.

    python3 make_clip_manifests.py --corpus data/corpus --out data

Writes data/{train,dev,test}_clips/conversations.jsonl.gz: for each clip a conversation of task `video` (its caption) and one
of task `vl` (a typed question about the direction). Every 15th training clip, or the last one, is kept for dev.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from xllm_speech.base.errors import DataError, UserError
from xllm_speech.base.files import read_jsonl
from xllm_speech.manifests.conversations import write_conversations
from xllm_speech.records.manifest import Conversation, ConversationItem, Message

DEV_EVERY = 15
KEYS = ("id", "split", "path", "caption", "question", "answer")


def talk(name: str, task: str, clip: str, question: str | None, answer: str) -> Conversation:
    """One question, or none where an instruction will be sampled, about one clip."""
    items = [ConversationItem("video", path=clip)]
    if question is not None:
        items.append(ConversationItem("text", text=question))
    reply = Message("assistant", (ConversationItem("text", text=answer),))
    return Conversation(name, task, (Message("user", tuple(items)), reply))


def main() -> int:
    """Entry; the exit status is 1 where the corpus is broken."""
    parser = argparse.ArgumentParser(description="Conversations about the clips of the mini corpus.")
    parser.add_argument("--corpus", type=Path, required=True, help="folder that make_corpus.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="data folder")
    args = parser.parse_args()
    rows: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    path = args.corpus / "clips.jsonl"
    try:
        for number, row in read_jsonl(path):
            lacking = [key for key in KEYS if not isinstance(row.get(key), str)]
            if lacking or row["split"] not in ("train", "test"):
                raise DataError(f"{path}:{number}: needs {', '.join(lacking) or 'split train or test'}; make the corpus again")
            rows[row["split"]].append(row)
        kept = {row["id"] for row in rows["train"][DEV_EVERY - 1 :: DEV_EVERY] or rows["train"][-1:]}
        rows["dev"] = [row for row in rows["train"] if row["id"] in kept]
        rows["train"] = [row for row in rows["train"] if row["id"] not in kept]
        for name, chosen in rows.items():
            talks = []
            for row in chosen:
                clip = os.path.join(args.corpus, row["path"])
                talks.append(talk(f"{row['id']}-video", "video", clip, None, row["caption"]))
                talks.append(talk(f"{row['id']}-vl", "vl", clip, row["question"], row["answer"]))
            folder = args.out / f"{name}_clips"
            folder.mkdir(parents=True, exist_ok=True)
            print(f"{folder / 'conversations.jsonl.gz'}: {write_conversations(folder / 'conversations.jsonl.gz', talks)}")
    except UserError as error:
        print(f"make_clip_manifests: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
