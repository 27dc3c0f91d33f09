"""JSON documents entry by entry: the same values as the json module's, in little memory, and faults named by line."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xllm_speech.base.errors import DataError
from xllm_speech.manifests import json_stream
from xllm_speech.manifests.json_stream import stream_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=8,
)


def gather(path: Path, into: tuple[str, ...] = ()) -> list[tuple[str, int | None, Any]]:
    return [(entry.key, entry.index, entry.value) for entry in stream_json(path, into)]


@settings(max_examples=60, deadline=None)
@given(
    document=st.lists(VALUES, max_size=6) | st.dictionaries(st.text(max_size=4), VALUES, max_size=5), chunk=st.integers(1, 9)
)
def test_gives_what_the_json_module_gives(tmp_path_factory: pytest.TempPathFactory, document: Any, chunk: int) -> None:
    path = tmp_path_factory.mktemp("json") / "document.json"
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK_CHARS", chunk)
        found = gather(path)
    wanted: list[tuple[str, int | None, Any]] = []
    for key, value in document.items() if isinstance(document, dict) else [("", document)]:
        wanted += [(key, i, part) for i, part in enumerate(value)] if isinstance(value, list) else [(key, None, value)]
    assert found == wanted


def test_goes_into_named_objects_and_reads_gzip_and_byte_order_marks(tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(("\ufeff" + json.dumps({"data": {"a": [1, 2], "b": {"c": []}}, "d": [{"e": 1}]})).encode()))
    wanted = [("a", 0, 1), ("a", 1, 2), ("b", None, {"c": []}), ("d", 0, {"e": 1})]
    assert gather(path, ("data",)) == wanted
    entry = next(stream_json(path, ("data",)))
    assert entry.where("x.json") == "x.json: a[0]"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[1,\n 2,\n {"a": }]', 3), ('{"a": [1,\n2', 2), ("[1]\n\n[2]", 3), ('{"a" 1}', 1), ("{1: 2}", 1), ("3", 1), ("", 1),
        ("[1,]", 1),
    ],
)
def test_a_broken_document_is_named_by_line(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"broken\.json:{line}: not JSON"):
        gather(path)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with open(path, "w") as stream:
        stream.write('{"annotations": [')
        for number in range(60000):
            stream.write(f'{{"id": {number}, "caption": "{"x" * 100}"}}, ')
        stream.write("{}]}")
    tracemalloc.start()
    assert sum(1 for _ in stream_json(path)) == 60001
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 7e6
    assert peak < 4e6
