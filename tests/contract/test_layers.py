"""The rooms of the package import in one direction only, without cycles, and stay small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = "xllm_speech"
# The table of layers: a room imports only rooms of lower rank, or itself. Rooms of one rank are strangers.
RANK = {
    "base": 0,
    "records": 1,
    "nn": 2,
    **dict.fromkeys(
        ("manifests", "features", "text", "encoders", "cif", "decoders", "interfaces", "prompts", "llm", "metrics"), 3
    ),
    "models": 4,
    "datasets": 4,
    "train": 5,
    "infer": 5,
    "serve": 6,
    "report": 6,
    "neighbours": 6,
    "bin": 7,
}
MOST_LINES = 400


def module_name(path: Path, root: Path) -> str:
    parts = list(path.relative_to(root).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str, module: str, is_package: bool) -> set[tuple[int, str]]:
    """(line, dotted name) of everything imported anywhere in a module, functions and type checking included."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {(node.lineno, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = module.split(".") if is_package else module.split(".")[:-1]
                base = ".".join([*up[: len(up) - node.level + 1], *([base] if base else [])])
            found |= {(node.lineno, f"{base}.{alias.name}") for alias in node.names}
    return found


def room_of(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == PACKAGE else None


def breaches(sources: dict[str, tuple[str, bool]]) -> list[str]:
    """Imports that go up or sideways; `sources` maps a module to its text and whether it is a package."""
    bad = []
    for module, (text, is_package) in sources.items():
        room = room_of(module)
        if room is None or room == "version":
            continue  # the package's own page may show names of any room
        for line, name in sorted(imports_of(text, module, is_package)):
            if name.split(".")[0] != PACKAGE:
                continue
            target = room_of(name)
            if target in (room, "version", "__version__"):
                continue
            if target not in RANK:
                bad.append(f"{module}:{line} imports {name}: rooms import one another's modules, never the package itself")
            elif RANK[target] >= RANK[room]:
                rows = f"{room} (row {RANK[room]}) may not know {target} (row {RANK[target]})"
                bad.append(f"{module}:{line} imports {name}: {rows}")
    return bad


def cycle(sources: dict[str, tuple[str, bool]]) -> list[str]:
    """One import cycle among the modules, or an empty list."""
    edges: dict[str, set[str]] = {}
    for module, (text, is_package) in sources.items():
        names = {name for _, name in imports_of(text, module, is_package)}
        hits = {name if name in sources else name.rpartition(".")[0] for name in names}
        edges[module] = {hit for hit in hits if hit in sources and hit != module}
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(edges[module]):
            if found := visit(target, [*path, module]):
                return found
        done.add(module)
        return []

    for module in sorted(sources):
        if found := visit(module, []):
            return found
    return []


@pytest.fixture(scope="module")
def sources(top: Path) -> dict[str, tuple[str, bool]]:
    files = sorted((top / PACKAGE).rglob("*.py"))
    return {module_name(path, top): (path.read_text(encoding="utf-8"), path.name == "__init__.py") for path in files}


def test_every_room_stands_in_the_table(sources: dict[str, tuple[str, bool]]) -> None:
    rooms = {room_of(module) for module, (_, is_package) in sources.items() if is_package} - {None}
    assert rooms <= set(RANK), f"rooms without a row: {sorted(rooms - set(RANK))}"
    assert len(rooms) >= 10


def test_rooms_import_downwards_only(sources: dict[str, tuple[str, bool]]) -> None:
    assert breaches(sources) == []


def test_no_import_cycle(sources: dict[str, tuple[str, bool]]) -> None:
    assert cycle(sources) == []


def test_modules_stay_small(sources: dict[str, tuple[str, bool]]) -> None:
    long = {module: lines for module, (text, _) in sources.items() if (lines := text.count("\n")) > MOST_LINES}
    assert long == {}, f"modules of more than {MOST_LINES} lines"


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("xllm_speech.nn.x", "from xllm_speech.models import asr"),
        ("xllm_speech.nn.x", "def f():\n    import xllm_speech.models.asr"),
        ("xllm_speech.cif.x", "from xllm_speech.encoders.conformer import Encoder"),
        ("xllm_speech.cif.x", "from ..encoders import conformer"),
        ("xllm_speech.base.x", "from xllm_speech import CifAsr"),
        ("xllm_speech.train.x", "from xllm_speech.infer import asr"),
    ],
)
def test_a_breach_is_found(module: str, text: str) -> None:
    assert len(breaches({module: (text, False)})) == 1


def test_lawful_imports_pass() -> None:
    lines = ("import torch", "from xllm_speech.version import x", "from .y import z", "from xllm_speech.base import files")
    text = "\n".join(lines)
    assert breaches({"xllm_speech.nn.x": (text, False)}) == []


def test_a_cycle_is_found() -> None:
    found = cycle({
        "xllm_speech.nn.a": ("def f():\n    from xllm_speech.nn.b import g", False),
        "xllm_speech.nn.b": ("from xllm_speech.nn import a", False),
    })
    assert found == ["xllm_speech.nn.a", "xllm_speech.nn.b", "xllm_speech.nn.a"]
