"""Spread a manifest over several processes, and put together what they wrote.

    python3 spread.py split data/test/cuts.jsonl.gz 4 --out exp/parts    1.jsonl.gz ... 4.jsonl.gz, every fourth line each;
                                                                         parts of the same --mark are left as they are
    python3 spread.py merge exp/decode/test/S.jsonl exp/parts            from 1.jsonl ... 4.jsonl and their .meta.json
    python3 spread.py deal exp/all.jsonl data/a/cuts.jsonl.gz=exp/a/S.jsonl data/b/cuts.jsonl.gz=exp/b/S.jsonl

A manifest of fewer lines gives fewer parts. Lines of the merged file are in the order of the manifest; a part that is missing,
or has not as many lines as were split off, is named, and nothing is written. `deal` gives every test set its own of what was
recognised of all sets together, which loads a model once.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import itertools
import sys
from pathlib import Path
from typing import Any

from xllm_speech.base.errors import DataError, UserError
from xllm_speech.base.files import (
    atomic_dir,
    atomic_write,
    numbered_lines,
    read_json,
    read_jsonl,
    sha256_file,
    write_json,
    write_jsonl,
)

COUNTS = "counts.json"
ADDED = ("utterances", "failed", "audio_sec", "loading_sec", "decoding_sec")  # of a .meta.json; wall_sec is the longest


def split(manifest: Path, parts: int, out: Path, mark: str = "") -> list[int]:
    """Write the parts and how many lines each has; returns those numbers.

    mark: of what is made of the parts. A folder that was split with the same is left as it is, with what is finished in it.
    """
    if parts < 1:
        raise DataError(f"{manifest}: cannot be split into {parts} parts")
    made = {"mark": f"{mark} {parts} {sha256_file(manifest)}"} if mark and manifest.is_file() else {}
    if made and (out / COUNTS).is_file():
        before = read_json(out / COUNTS)
        if isinstance(before, dict) and before.get("mark") == made["mark"]:
            return list(before["lines"])
    total = sum(1 for _, line in numbered_lines(manifest) if line.strip())
    if not total:
        raise DataError(f"{manifest}: empty; nothing to split")
    counts = [len(range(part, total, parts)) for part in range(min(parts, total))]
    with atomic_dir(out) as folder:
        with contextlib.ExitStack() as stack:
            streams = [
                stack.enter_context(gzip.open(folder / f"{part + 1}.jsonl.gz", "wt", encoding="utf-8"))
                for part in range(len(counts))
            ]
            lines = (line for _, line in numbered_lines(manifest) if line.strip())
            for line, stream in zip(lines, itertools.cycle(streams), strict=False):
                stream.write(line + "\n")
        write_json(folder / COUNTS, {"lines": counts, **made})
    return counts


def merge(out: Path, folder: Path) -> int:
    """Put the parts' lines together in the order of the manifest; returns their number."""
    counts = read_json(folder / COUNTS)["lines"]
    paths = [folder / f"{part + 1}.jsonl" for part in range(len(counts))]
    for path, count in zip(paths, counts, strict=True):
        found = sum(1 for _ in numbered_lines(path)) if path.is_file() else 0
        if found != count:
            raise DataError(f"{path}: {found} of {count} lines are there; decode this part again")
    rows = [[line for _, line in numbered_lines(path)] for path in paths]
    with atomic_write(out) as stream:
        for group in itertools.zip_longest(*rows):
            stream.writelines(f"{line}\n" for line in group if line is not None)
    metas = [read_json(path) for path in (Path(f"{path}.meta.json") for path in paths) if path.is_file()]
    if metas:
        write_json(f"{out}.meta.json", _add(metas))
    return sum(counts)


def _add(metas: list[dict[str, Any]]) -> dict[str, Any]:
    merged = dict(metas[0])
    for key in ADDED:
        if all(isinstance(meta.get(key), int | float) for meta in metas):
            merged[key] = sum(meta[key] for meta in metas)
    if all(isinstance(meta.get("wall_sec"), int | float) for meta in metas):
        merged["wall_sec"] = max(meta["wall_sec"] for meta in metas)
        merged["rtf"] = merged["wall_sec"] / merged["audio_sec"] if merged.get("audio_sec") else None
    return merged | {"parts": len(metas)}


def deal(hypotheses: Path, sets: list[tuple[Path, Path]]) -> int:
    """Write (manifest, output) for every set, in the order of its manifest; returns the number of lines."""
    lines = {row["id"]: row for _, row in read_jsonl(hypotheses)}
    chosen: list[tuple[Path, list[dict[str, Any]]]] = []
    seen: set[str] = set()
    for manifest, out in sets:
        ids = [str(row.get("id")) for _, row in read_jsonl(manifest)]
        for name in ids:
            if name in seen:
                raise DataError(f"{manifest}: {name} stands in another of these sets too; decode them one by one")
            if name not in lines:
                raise DataError(f"{hypotheses}: nothing for {name} of {manifest}; decode again")
            seen.add(name)
        chosen.append((out, [lines[name] for name in ids]))
    meta_path = Path(f"{hypotheses}.meta.json")
    meta = read_json(meta_path) if meta_path.is_file() else None
    for out, rows in chosen:
        write_jsonl(out, rows)
        if meta is not None:
            failed = sum(bool(row.get("error")) for row in rows)
            # Seconds, and what follows from them, are of all sets together.
            write_json(f"{out}.meta.json", meta | {"utterances": len(rows), "failed": failed, "sets_together": len(sets)})
    return sum(len(rows) for _, rows in chosen)


def main() -> int:
    """Entry; the exit status is 1 where something is missing or broken."""
    parser = argparse.ArgumentParser(description="Spread a manifest over several processes, and merge what they wrote.")
    commands = parser.add_subparsers(dest="action", required=True, metavar="split | merge")
    one = commands.add_parser("split", help="a manifest into parts")
    one.add_argument("manifest", type=Path, help="jsonl or jsonl.gz")
    one.add_argument("parts", type=int, help="how many")
    one.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets 1.jsonl.gz, 2.jsonl.gz ...")
    one.add_argument("--mark", default="", metavar="TEXT", help="of what is made of the parts; the same takes them up again")
    other = commands.add_parser("merge", help="what was made of the parts into one file")
    other.add_argument("out", type=Path, help="the file to write")
    other.add_argument("folder", type=Path, help="what split wrote, with 1.jsonl, 2.jsonl ... beside")
    third = commands.add_parser("deal", help="what was recognised of several sets together to each")
    third.add_argument("hypotheses", type=Path, help="of all sets")
    third.add_argument("sets", nargs="+", metavar="CUTS=OUT", help="manifest of a set, and where its part goes")
    args = parser.parse_args()
    try:
        if args.action == "deal":
            sets = [(Path(word.partition("=")[0]), Path(word.partition("=")[2])) for word in args.sets]
            print(f"{args.hypotheses}: {deal(args.hypotheses, sets)} lines to {len(sets)} sets")
        elif args.action == "split":
            counts = split(args.manifest, args.parts, args.out, args.mark)
            print(f"{args.out}: {sum(counts)} lines in {len(counts)} parts")
        else:
            print(f"{args.out}: {merge(args.out, args.folder)} lines")
    except UserError as error:
        print(f"spread: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
