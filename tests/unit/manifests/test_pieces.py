"""Preparation in pieces: order, counts, limits, and what is left of a run that was killed."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from xllm_speech.base.errors import DataError
from xllm_speech.base.files import read_json, read_jsonl
from xllm_speech.manifests.pieces import Fault, Item, LeftOut, Outcome, SetPlan, prepare_set


def plan(tmp_path: Path, items: Iterable[Any], done: list[str] | None = None, **more: Any) -> SetPlan:
    source = tmp_path / "source.txt"
    if not source.exists():
        source.write_text("x")

    def work(item: Item) -> Outcome:
        if done is not None:
            done.append(item.id)
        if item.value == "bad":
            return Fault(item.id, item.where, "it is bad", "bad")
        return LeftOut("unwanted") if item.value == "unwanted" else {"id": item.id, "speaker": item.id[:1], "length": 2}

    values: dict[str, Any] = {
        "name": "train", "manifest": "rows.jsonl.gz", "items": items, "work": work, "unit": "rows", "settings": {"a": 1},
        "sources": [source], "piece_items": 10, "measure": lambda row: {"length": row["length"]},
        "group": ("speakers", lambda row: row["speaker"]),
    }
    return SetPlan(**{**values, **more})


def numbered(count: int, **values: str) -> list[Item | Fault | LeftOut]:
    return [Item(f"{n % 3}-{n:03d}", f"list:{n + 1}", values.get(f"n{n}")) for n in range(count)]


def rows_of(tmp_path: Path) -> list[str]:
    return [row["id"] for _, row in read_jsonl(tmp_path / "train/rows.jsonl.gz")]


def test_rows_stand_in_order_and_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    items = [*numbered(35, n4="bad", n20="unwanted"), Fault("line 9", "list:9", "no line", "bad-line")]
    items.append(Item("1-001", "list:40", None))
    with caplog.at_level(logging.WARNING):
        counts = prepare_set(tmp_path, plan(tmp_path, items, published=40), jobs=4, max_rejected=0.5)
    assert counts == {"rows": 33, "speakers": 3, "length": 66, "rejected": 3, "left_out": 1}
    assert rows_of(tmp_path) == [item.id for n, item in enumerate(numbered(35)) if n not in (4, 20)]  # type: ignore[union-attr]
    rejected = [(row["kind"], row["path"]) for _, row in read_jsonl(tmp_path / "train/rejected.jsonl")]
    assert rejected == [("bad", "list:5"), ("bad-line", "list:9"), ("duplicate-id", "list:40")]
    statistics = read_json(tmp_path / "train/statistics.json")["statistics"]
    assert statistics["rejected_kinds"] == {"bad": 1, "bad-line": 1, "duplicate-id": 1}
    assert statistics["left_out_kinds"] == {"unwanted": 1}
    assert "34 usable rows, 40 were published: 6 fewer" in caplog.text
    files = sorted(path.name for path in (tmp_path / "train").iterdir())
    assert files == ["rejected.jsonl", "rows.jsonl.gz", "statistics.json"]


def test_a_number_that_is_known_roughly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        prepare_set(tmp_path / "near", plan(tmp_path, numbered(100), published=101, roughly=True))
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        prepare_set(tmp_path / "far", plan(tmp_path, numbered(100), published=102, roughly=True))
    assert "100 usable rows, about 102 were published: 2 fewer" in caplog.text


def test_too_much_broken_fails_and_a_rerun_looks_at_what_was_mended(tmp_path: Path) -> None:
    bad = {f"n{n}": "bad" for n in range(40, 52)}
    with pytest.raises(DataError, match=r"12 rejected \(bad 12\) of 100 items, more than .* share 0.01.*list:41: it is bad"):
        prepare_set(tmp_path, plan(tmp_path, numbered(100, **bad)))
    assert not (tmp_path / "train/rows.jsonl.gz").exists()
    assert len(list(read_jsonl(tmp_path / "train/rejected.jsonl"))) == 12
    done: list[str] = []
    counts = prepare_set(tmp_path, plan(tmp_path, numbered(100), done))
    assert (counts["rows"], counts["rejected"]) == (100, 0)
    assert sorted(int(name[2:]) for name in done) == list(range(40, 60))  # the two pieces that held something bad


def test_a_kind_may_have_a_share_of_its_own(tmp_path: Path) -> None:
    bad = {f"n{n}": "bad" for n in range(40)}
    assert prepare_set(tmp_path, plan(tmp_path, numbered(100, **bad), shares={"bad": 0.5}))["rejected"] == 40
    with pytest.raises(DataError, match="--max-missing"):
        prepare_set(tmp_path, plan(tmp_path, numbered(100, **bad), shares={"bad": 0.3}))


@pytest.mark.parametrize(
    ("items", "message"),
    [([], "nothing usable among 0 items .no items"), ([LeftOut("tiny")], "nothing usable among 1 items .tiny 1")],
)
def test_nothing_usable_fails(tmp_path: Path, items: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare_set(tmp_path, plan(tmp_path, items))


def interrupt(tmp_path: Path, after: int, **more: Any) -> None:
    def items() -> Iterable[Item | Fault | LeftOut]:
        for number, item in enumerate(numbered(100)):
            if number == after:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        prepare_set(tmp_path, plan(tmp_path, items(), **more))


def test_an_interrupted_run_goes_on_from_its_last_piece(tmp_path: Path) -> None:
    prepare_set(tmp_path / "whole", plan(tmp_path, numbered(100)))
    interrupt(tmp_path, 47)
    assert not (tmp_path / "train/rows.jsonl.gz").exists()
    done: list[str] = []
    prepare_set(tmp_path, plan(tmp_path, numbered(100), done))
    assert sorted(int(name[2:]) for name in done) == list(range(40, 100))
    assert (tmp_path / "train/rows.jsonl.gz").read_bytes() == (tmp_path / "whole/train/rows.jsonl.gz").read_bytes()


def test_other_settings_sources_or_items_do_not_meet_old_pieces(tmp_path: Path) -> None:
    for change in ("settings", "source", "items"):
        interrupt(tmp_path, 47)
        done: list[str] = []
        items: list[Any] = numbered(100)
        more: dict[str, Any] = {}
        match change:
            case "settings":
                more["settings"] = {"a": 2}
            case "source":
                (tmp_path / "source.txt").write_text("another")
            case _:
                items.insert(15, Item("new", "list:new", None))
        prepare_set(tmp_path, plan(tmp_path, items, done, **more))
        assert len(done) == (91 if change == "items" else 100)  # a file that came moves all pieces behind it
        assert len(rows_of(tmp_path)) == len(items)


def test_a_killed_process_costs_only_the_piece_in_hand(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(
        "import sys, time\nfrom pathlib import Path\nfrom xllm_speech.manifests.pieces import Item, SetPlan, prepare_set\n"
        "top = Path(sys.argv[1])\n"
        "def work(item):\n    time.sleep(0.01)\n    return {'id': item.id}\n"
        "items = (Item(str(n), str(n), None) for n in range(400))\n"
        "source = top / 'source.txt'\n"
        "prepare_set(top, SetPlan('train', 'rows.jsonl.gz', items, work, 'rows', {}, [source], piece_items=10), jobs=1)\n"
    )
    (tmp_path / "source.txt").write_text("x")
    child = subprocess.Popen([sys.executable, str(script), str(tmp_path)])
    pieces = tmp_path / "train/.pieces"
    deadline = time.monotonic() + 30
    while len(list(pieces.glob("0*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    kept = len(list(pieces.glob("0*[0-9].json")))
    assert 3 <= kept < 40
    assert not (tmp_path / "train/rows.jsonl.gz").exists()
    before = {path: path.stat().st_mtime_ns for path in pieces.glob("0*[0-9].json")}
    seen: list[str] = []

    def work(item: Item) -> Outcome:
        seen.append(item.id)
        assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
        return {"id": item.id}

    items = (Item(str(n), str(n), None) for n in range(400))
    prepare_set(tmp_path, SetPlan("train", "rows.jsonl.gz", items, work, "rows", {}, [tmp_path / "source.txt"], piece_items=10))
    assert len(seen) == 400 - 10 * kept
    assert rows_of(tmp_path) == [str(n) for n in range(400)]
    assert not pieces.exists()


def test_mistakes_in_the_call(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--jobs 0 must be at least 1"):
        prepare_set(tmp_path, plan(tmp_path, []), jobs=0)
    with pytest.raises(DataError, match=r"nowhere\.json: cannot be read"):
        prepare_set(tmp_path, plan(tmp_path, [], sources=[tmp_path / "nowhere.json"]))


def test_rows_are_json_lines_with_readable_chinese(tmp_path: Path) -> None:
    import gzip

    prepare_set(tmp_path, plan(tmp_path, [Item("a", "1", None)], work=lambda item: {"id": "中文", "speaker": "s", "length": 1}))
    text = gzip.decompress((tmp_path / "train/rows.jsonl.gz").read_bytes()).decode()
    assert json.loads(text)["id"] == "中文"
    assert "中文" in text
