"""Preparation of a corpus of any size, piece by piece: in bounded memory, in parallel, and resumable after a kill.

    OUT/<set>/<manifest>        what was asked for; written last
    OUT/<set>/rejected.jsonl    id, path, reason and kind of every item that cannot be used
    OUT/<set>/statistics.json   counts, sums, and the settings they hold for
    OUT/<set>/.pieces/          finished pieces of a preparation under way; removed at its end

A run that was interrupted takes up the finished pieces where settings and annotation files are the same; whatever was
rejected is looked at again. Pieces are gzip members, and a manifest is their concatenation.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xllm_speech.base.errors import DataError
from xllm_speech.base.files import atomic_write, read_json, write_json, write_jsonl
from xllm_speech.base.rejects import ALWAYS_ALLOWED, DEFAULT_MAX_SHARE

log = logging.getLogger(__name__)

REJECTED_NAME = "rejected.jsonl"
STATISTICS_NAME = "statistics.json"
PIECES_NAME = ".pieces"
PIECE_ITEMS = 2000
ITEMS_PER_TASK = 16
ROUGH_SHARE = 0.01
DEFAULT_JOBS = 4

Row = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One thing to prepare: its id in the manifest, where it stands (`file:line` or `file: entry`), what is known of it."""

    id: str
    where: str
    value: Any


@dataclass(frozen=True)
class Fault:
    """An item that cannot be used: the reason in words, a short `kind` to count by, and where it stands."""

    id: str
    where: str
    reason: str
    kind: str


@dataclass(frozen=True)
class LeftOut:
    """An item that is sound and yet not wanted by the settings; counted by kind."""

    kind: str


Outcome = Row | Fault | LeftOut


@dataclass
class SetPlan:
    """What becomes of one set.

    name: of the set, and of its folder below the output. manifest: file name. items: in the order of the manifest; an
    item may be a fault already. work: item -> row; runs in threads, opens the media. measure: numbers of a row, which
    are added up. group: (name, key of a row) of what is counted once, such as speakers or pictures. settings: whatever
    rows depend on. sources: annotation files; another size or date makes finished pieces stale. published: number that
    the corpus is known to have. roughly: that number is known to 1 % only. shares: fault kind -> share of its own that may
    be bad. ids_unique: by construction. provenance: where its parts come from, and their licences, for statistics.json.
    """

    name: str
    manifest: str
    items: Iterable[Item | Fault | LeftOut]
    work: Callable[[Item], Outcome]
    unit: str
    settings: Mapping[str, Any]
    sources: Sequence[Path]
    measure: Callable[[Row], Mapping[str, float]] = lambda row: {}
    group: tuple[str, Callable[[Row], str]] | None = None
    published: int | None = None
    roughly: bool = False
    shares: Mapping[str, float] = field(default_factory=dict)
    ids_unique: bool = False
    piece_items: int = PIECE_ITEMS
    provenance: Mapping[str, Any] = field(default_factory=dict)


def prepare_sets(
    out: Path, plans: Iterable[SetPlan], jobs: int = DEFAULT_JOBS, max_rejected: float = DEFAULT_MAX_SHARE
) -> dict[str, float]:
    """Prepare every set; returns `<set>.<count>` of each. Raises `DataError` as `prepare_set`, or where there is no set."""
    counts: dict[str, float] = {}
    for plan in plans:
        counts.update({f"{plan.name}.{key}": value for key, value in prepare_set(out, plan, jobs, max_rejected).items()})
    return counts


def prepare_set(
    out: Path, plan: SetPlan, jobs: int = DEFAULT_JOBS, max_rejected: float = DEFAULT_MAX_SHARE
) -> dict[str, float]:
    """Write one set (the module's docstring tells its files); returns its counts: rows, groups, sums, rejected, left out.

    Raises:
        DataError: nothing usable, or more than `max_rejected` (0..1) is broken: then there is no manifest, but
            rejected.jsonl tells why, and a rerun looks only at the broken pieces again.
    """
    if jobs < 1 or not 0 <= max_rejected <= 1:
        raise DataError(f"--jobs {jobs} must be at least 1, --max-rejected {max_rejected} must lie in 0..1")
    if Path(plan.name).name != plan.name:
        raise DataError(f"{plan.sources[0]}: a set cannot be called {plan.name!r}, which is no name of a folder")
    folder = Path(out) / plan.name
    pieces = _Pieces(folder, plan)
    pieces.run(jobs)
    total = pieces.total()
    _join(pieces.paths("rejected.jsonl"), folder / REJECTED_NAME)
    try:
        _check(total, plan, folder / REJECTED_NAME, max_rejected)
    except DataError:
        pieces.forget_broken()
        raise
    counts: dict[str, float] = {plan.unit: total["rows"]}
    if plan.group is not None:
        counts[plan.group[0]] = len(total["groups"])
    counts.update({key: round(value, 3) for key, value in total["sums"].items()})
    counts["rejected"] = sum(total["rejected"].values())
    if total["left_out"]:
        counts["left_out"] = sum(total["left_out"].values())
    statistics = {**counts, "rejected_kinds": total["rejected"], "left_out_kinds": total["left_out"]}
    _compare(plan, total, statistics)
    told = {"provenance": dict(plan.provenance)} if plan.provenance else {}
    write_json(folder / STATISTICS_NAME, {"statistics": statistics, "settings": dict(plan.settings), **told})
    _join(pieces.paths("jsonl.gz"), folder / plan.manifest)
    shutil.rmtree(pieces.folder, ignore_errors=True)
    kinds = ", ".join(f"{kind} {n}" for kind, n in [*total["rejected"].items(), *total["left_out"].items()])
    log.info("%s: %d %s%s", folder, total["rows"], plan.unit, f" (without: {kinds})" if kinds else "")
    return counts


def _compare(plan: SetPlan, total: dict[str, Any], statistics: dict[str, Any]) -> None:
    """Warn where the corpus is not as large as its authors say."""
    if plan.published is None:
        return
    statistics["published"] = plan.published
    found = total["rows"] + sum(total["left_out"].values())
    difference = found - plan.published
    if abs(difference) > ROUGH_SHARE * plan.published * plan.roughly:
        log.warning(
            "%s: %d usable %s, %s%d were published: %d %s; is the corpus whole?", plan.name, found, plan.unit,
            "about " if plan.roughly else "", plan.published, abs(difference), "more" if difference > 0 else "fewer",
        )


def _check(total: dict[str, Any], plan: SetPlan, path: Path, max_rejected: float) -> None:
    everything = total["rows"] + sum(total["rejected"].values()) + sum(total["left_out"].values())
    groups = [({kind: n}, plan.shares[kind]) for kind, n in total["rejected"].items() if kind in plan.shares]
    groups.append(({kind: n for kind, n in total["rejected"].items() if kind not in plan.shares}, max_rejected))
    for counts, share in groups:
        bad = sum(counts.values())
        allowed = max(share * everything, min(ALWAYS_ALLOWED, everything / 2)) if share > 0 else 0
        if bad > allowed:
            kinds = ", ".join(f"{kind} {n}" for kind, n in counts.items())
            option = "--max-missing" if set(counts) & set(plan.shares) else "--max-rejected"
            first = next(row for row in _rows(path) if row["kind"] in counts)
            raise DataError(
                f"{path}: {bad} rejected ({kinds}) of {everything} items, more than the allowed share {share:.3g}; "
                f"mend them or raise {option} (first: {first['path']}: {first['reason']})"
            )
    if not total["rows"]:
        kinds = ", ".join(f"{kind} {n}" for kind, n in [*total["rejected"].items(), *total["left_out"].items()])
        raise DataError(f"{path.parent}: nothing usable among {everything} items ({kinds or 'no items'}; see {path})")


def _rows(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8") as stream:
        yield from map(json.loads, stream)


class _Pieces:
    """The finished pieces of one set: N.jsonl.gz (rows), N.rejected.jsonl, and N.json, written last, with its sums."""

    def __init__(self, folder: Path, plan: SetPlan) -> None:
        self.plan = plan
        self.folder = folder / PIECES_NAME
        self.count = 0
        self._open()

    def _open(self) -> None:
        try:
            states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in self.plan.sources]
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error
        settings = {"settings": dict(self.plan.settings), "sources": states, "piece_items": self.plan.piece_items}
        settings = json.loads(json.dumps(settings))
        mark = self.folder / "settings.json"
        if mark.is_file():
            done = len(list(self.folder.glob("[0-9]*[0-9].json")))
            if read_json(mark) == settings:
                log.info("%s: taking up a preparation that was interrupted, %d pieces are done", self.folder.parent, done)
                return
            log.info("%s: not the settings or annotations of the interrupted preparation; beginning anew", self.folder.parent)
        shutil.rmtree(self.folder, ignore_errors=True)
        write_json(mark, settings)

    def path(self, number: int, kind: str) -> Path:
        return self.folder / f"{number:06d}.{kind}"

    def paths(self, kind: str) -> list[Path]:
        return [self.path(number, kind) for number in range(self.count)]

    def run(self, jobs: int) -> None:
        """Do every piece that is not done."""
        items = iter(self.plan.items if self.plan.ids_unique else _refuse_repeated(self.plan.items))
        with ThreadPoolExecutor(jobs) as pool:
            while block := list(itertools.islice(items, self.plan.piece_items)):
                content = _hash_items(block)
                if not self._is_done(self.count, content):
                    # Several to a task: as many tasks as items would cost more than most of the work in them.
                    shares = [block[at : at + ITEMS_PER_TASK] for at in range(0, len(block), ITEMS_PER_TASK)]
                    self._write(self.count, content, itertools.chain.from_iterable(pool.map(self._outcomes, shares)))
                self.count += 1

    def _is_done(self, number: int, content: str) -> bool:
        path = self.path(number, "json")
        return path.is_file() and read_json(path)["content"] == content

    def _outcomes(self, items: Sequence[Item | Fault | LeftOut]) -> list[tuple[str, Outcome]]:
        """(where it stands, outcome) of each."""
        return [(item.where, self.plan.work(item)) if isinstance(item, Item) else ("", item) for item in items]

    def _write(self, number: int, content: str, outcomes: Iterable[tuple[str, Outcome]]) -> None:
        plan = self.plan
        rejected: list[Row] = []
        left_out: Counter[str] = Counter()
        sums: dict[str, float] = {}
        groups: set[str] = set()
        rows = 0
        with atomic_write(self.path(number, "jsonl.gz")) as stream:
            for where, outcome in outcomes:
                if isinstance(outcome, Fault):
                    row = {"id": outcome.id, "path": outcome.where, "reason": outcome.reason, "kind": outcome.kind}
                    rejected.append({key: _writable(text) for key, text in row.items()})
                elif isinstance(outcome, LeftOut):
                    left_out[outcome.kind] += 1
                else:
                    line = json.dumps(outcome, ensure_ascii=False) + "\n"
                    try:
                        stream.write(line)
                    except UnicodeEncodeError as error:
                        # JSON can hold halves of a character, which no text file can.
                        reason = f"half a character in its text: {_writable(line[max(0, error.start - 20) : error.end])!r}"
                        row = {"id": str(outcome["id"]), "path": where, "reason": reason, "kind": "bad-text"}
                        rejected.append({key: _writable(text) for key, text in row.items()})
                        continue
                    rows += 1
                    for key, value in plan.measure(outcome).items():
                        sums[key] = sums.get(key, 0) + value
                    if plan.group is not None:
                        groups.add(plan.group[1](outcome))
        write_jsonl(self.path(number, "rejected.jsonl"), rejected)
        kinds = dict(Counter(row["kind"] for row in rejected))
        summary = {
            "content": content, "rows": rows, "rejected": kinds, "left_out": dict(left_out), "sums": sums,
            "groups": sorted(groups),
        }
        write_json(self.path(number, "json"), summary)

    def total(self) -> dict[str, Any]:
        """The sums over all pieces."""
        rejected: Counter[str] = Counter()
        left_out: Counter[str] = Counter()
        sums: dict[str, float] = {}
        groups: set[str] = set()
        rows = 0
        for path in self.paths("json"):
            part = read_json(path)
            rows += part["rows"]
            rejected.update(part["rejected"])
            left_out.update(part["left_out"])
            groups.update(part["groups"])
            for key, value in part["sums"].items():
                sums[key] = sums.get(key, 0) + value
        return {
            "rows": rows, "rejected": dict(rejected.most_common()), "left_out": dict(left_out.most_common()), "sums": sums,
            "groups": groups,
        }

    def forget_broken(self) -> None:
        """Remove the pieces with rejected items, so that a rerun sees what was mended."""
        for path in self.paths("json"):
            if read_json(path)["rejected"]:
                path.unlink()


def _refuse_repeated(items: Iterable[Item | Fault | LeftOut]) -> Iterator[Item | Fault | LeftOut]:
    seen: set[str] = set()
    for item in items:
        if isinstance(item, Item):
            if item.id in seen:
                item = Fault(item.id, item.where, f"the id {item.id} was used before", "duplicate-id")
            else:
                seen.add(item.id)
        yield item


def _writable(text: str) -> str:
    """The text itself, or with `\\udc80` and the like spelt out."""
    return text.encode(errors="backslashreplace").decode()


def _hash_items(items: Iterable[Item | Fault | LeftOut]) -> str:
    """What a piece is made of: files that came or went since the interruption move every later item."""
    digest = hashlib.blake2b(digest_size=16)
    for item in items:
        digest.update(repr(item if isinstance(item, LeftOut) else (item.id, item.where)).encode())
    return digest.hexdigest()


def _join(parts: Iterable[Path], path: Path) -> None:
    joined = path.with_name(f".{path.name}.joined")  # not `.gz`: the parts are compressed already
    with atomic_write(joined, "wb") as stream:
        for part in parts:
            with open(part, "rb") as source:
                shutil.copyfileobj(source, stream)
    os.replace(joined, path)
