"""The spoken questions of VSDial-CN: what a recogniser understands of them, and each recording once.

    python3 spoken.py cuts --speech data/speech_all --out data/speech_all/cuts.jsonl.gz     to be recognised
    python3 spoken.py keep --speech data/speech_all --heard heard.jsonl --out data/speech   drops failed synthesis
    python3 spoken.py once --cuts data/vsdial/train/cuts.jsonl.gz --out data/spoken/cuts.jsonl.gz

A question that dialogues share has one recording: `once` keeps the first cut of each, about 370 thousand of the 1.2 million
(paper, A.1), which phase 2 of the speech interface trains on. `keep` without --heard keeps all of them, and says so.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xllm_speech.base.errors import DataError, UserError
from xllm_speech.base.files import read_jsonl, write_jsonl
from xllm_speech.manifests.vsdial_cn import SPEECH_NAME


def spoken_cuts(folder: Path) -> Iterator[dict[str, Any]]:
    """A cut for every recording of speech.jsonl."""
    from lhotse import MonoCut, SupervisionSegment

    from xllm_speech.manifests.cuts import make_recording

    for _, row in read_jsonl(folder / SPEECH_NAME):
        recording = make_recording(row["id"], os.path.abspath(folder / row["path"]))
        words = SupervisionSegment(row["id"], row["id"], 0.0, recording.duration, text=row["text"], speaker=row.get("speaker"))
        cut = MonoCut(row["id"], 0.0, recording.duration, 0, supervisions=[words], recording=recording)
        yield dict(cut.to_dict())


def keep_understood(folder: Path, heard: Path | None, max_cer: float, out: Path) -> tuple[int, int]:
    """Write speech.jsonl of what was understood, and rejected.jsonl; returns the numbers of both."""
    from xllm_speech.datasets.synthesis import keep_by_round_trip

    rows = [row for _, row in read_jsonl(folder / SPEECH_NAME)]
    for row in rows:
        row["path"] = os.path.relpath(folder / row["path"], out)
    texts = {row["id"]: row["text"] for _, row in read_jsonl(heard)} if heard is not None else {}
    if heard is not None and (lacking := [row["id"] for row in rows if row["id"] not in texts]):
        raise DataError(f"{heard}: {len(lacking)} recordings were not recognised, first {lacking[0]}; decode them again")
    kept = [True] * len(rows)
    if heard is not None:
        kept = keep_by_round_trip(((row["text"], texts[row["id"]]) for row in rows), max_cer)
    good = [row for row, keeps in zip(rows, kept, strict=True) if keeps]
    if not good:
        raise DataError(f"{heard}: none of {len(rows)} was understood (--max-cer {max_cer}); is the recogniser trained?")
    bad = [
        {"id": row["id"], "path": row["path"], "reason": f"`{row['text']}` was heard as `{texts[row['id']]}`"}
        for row, keeps in zip(rows, kept, strict=True) if not keeps
    ]
    write_jsonl(out / "rejected.jsonl", bad)
    write_jsonl(out / SPEECH_NAME, good)
    return len(good), len(bad)


def first_of_each(cuts: Path) -> Iterator[dict[str, Any]]:
    """The first cut of every recording."""
    seen: set[str] = set()
    for _, row in read_jsonl(cuts):
        if row["recording"]["id"] not in seen:
            seen.add(row["recording"]["id"])
            yield row


def main() -> int:
    """Entry; the exit status is 1 where a file is broken."""
    parser = argparse.ArgumentParser(description="The spoken questions of VSDial-CN.")
    commands = parser.add_subparsers(dest="action", required=True, metavar="cuts | keep | once")
    for name in ("cuts", "keep", "once"):
        command = commands.add_parser(name)
        if name == "once":
            command.add_argument("--cuts", type=Path, required=True, metavar="FILE", help="cuts of the training set")
        else:
            command.add_argument("--speech", type=Path, required=True, metavar="DIR", help="folder with speech.jsonl")
        command.add_argument("--out", type=Path, required=True, help="file; of `keep` the folder to write")
        if name == "keep":
            command.add_argument("--heard", type=Path, metavar="FILE", help="what was recognised, jsonl of id and text")
            command.add_argument("--max-cer", type=float, default=0.3, metavar="X", help="most wrong characters, a share (0.3)")
    args = parser.parse_args()
    try:
        match args.action:
            case "cuts":
                print(f"{args.out}: {write_jsonl(args.out, spoken_cuts(args.speech))} recordings")
            case "keep":
                good, bad = keep_understood(args.speech, args.heard, args.max_cer, args.out)
                how = "no recogniser was named: nothing was filtered" if args.heard is None else f"{bad} were not understood"
                print(f"{args.out}: {good} recordings; {how}")
            case _:
                print(f"{args.out}: {write_jsonl(args.out, first_of_each(args.cuts))} recordings, one cut each")
    except UserError as error:
        print(f"spoken: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
