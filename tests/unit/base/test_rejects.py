from __future__ import annotations

import json
from pathlib import Path

import pytest

from xllm_speech.base.errors import DataError
from xllm_speech.base.rejects import Rejects


def rejected(number: int, max_share: float = 0.01) -> Rejects:
    rejects = Rejects(max_share)
    for place in range(number):
        rejects.add(f"u{place}", f"file:{place}", "no reason", "odd" if place % 2 else "even")
    return rejects


@pytest.mark.parametrize(("number", "total", "share", "passes"), [
    (0, 0, 0.01, True), (0, 10, 0.0, True), (1, 10, 0.0, False),  # a share of 0 allows nothing
    (3, 6, 0.01, True), (4, 6, 0.01, False),  # half of a few
    (10, 100, 0.01, True), (11, 100, 0.01, False),  # ten of many
    (20, 2000, 0.01, True), (21, 2000, 0.01, False),  # the share of very many
    (6, 6, 1.0, True), (30, 100, 0.3, True), (31, 100, 0.3, False),
])
def test_when_too_many_are_bad(number: int, total: int, share: float, passes: bool) -> None:
    rejects = rejected(number, share)
    if passes:
        rejects.check(total, "list.jsonl")
        return
    with pytest.raises(DataError, match=f"list.jsonl: {number} rejected .* of {total} items"):
        rejects.check(total, "list.jsonl")


def test_what_is_written(tmp_path: Path) -> None:
    rejects = rejected(3)
    assert rejects.counts == {"even": 2, "odd": 1}
    assert rejects.summary() == "3 rejected (even 2, odd 1)"
    rejects.write(tmp_path / "rejected.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert rows[1] == {"id": "u1", "path": "file:1", "reason": "no reason", "kind": "odd"}
    Rejects().write(tmp_path / "none.jsonl")
    assert (tmp_path / "none.jsonl").read_text() == ""
