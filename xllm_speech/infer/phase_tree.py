"""What an experiment folder holds, phase by phase, and what stands on what (`xllm-speech phases`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.text import Text
from rich.tree import Tree

from xllm_speech.base.errors import CheckpointError, DataError, UserError
from xllm_speech.base.files import read_json, read_jsonl, sha256_file
from xllm_speech.encoders.vision import VIT_CONFIG
from xllm_speech.models import checkpoints as asr_checkpoints
from xllm_speech.models.checkpoints import DESCRIPTION, WEIGHTS
from xllm_speech.models.media import hash_frozen
from xllm_speech.models.xllm_checkpoints import PREFIX, find_xllm, frozen_paths, read_description

HEADER = "header.json"  # of a training; its model is one of the folders below
MODEL_FOLDERS = ("average", "final", "best")
_PASSED_OVER = ("checkpoints", "tensorboard")
SHORT = 12


@dataclass(frozen=True)
class Link:
    """Something that a model stands on. part: llm, vision ... or `KIND interface`; sha256: then and now, "" when absent.

    state: same | changed | missing.
    """

    part: str
    path: str
    sha256: str
    found_sha256: str

    @property
    def state(self) -> str:
        """How what is there now compares to what the model was trained with."""
        if not self.found_sha256:
            return "missing"
        return "same" if self.sha256 in ("", self.found_sha256) else "changed"


@dataclass
class Node:
    """A model in the folder.

    phase: 0 for a frozen part that no phase trains. trained, frozen: parameters, None where they cannot be counted.
    wall_sec: of optimiser steps, evaluations apart; core_sec: times the threads of all processes. error: why it cannot be
    read.
    """

    path: str
    phase: int
    what: str
    kinds: list[str] = field(default_factory=list)
    sha256: str = ""
    trained: int | None = None
    frozen: int | None = None
    steps: int | None = None
    wall_sec: float | None = None
    core_sec: float | None = None
    parents: list[Link] = field(default_factory=list)
    error: str | None = None


class PhaseReader:
    """Reads an experiment folder; hashes and counts each weights file once.

    Args:
        root: the folder. Raises `DataError` when it is absent.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"{root}: no such folder")
        self._hashes: dict[Path, str] = {}

    def read(self) -> list[Node]:
        """The models, by phase and path; `DataError` when there is none."""
        nodes = [node for folder in self._folders(self.root) if (node := self._node(folder)) is not None]
        if not nodes:
            raise DataError(f"{self.root}: holds no model of any phase; give the folder with the trainings, such as exp")
        return sorted(nodes, key=lambda node: (node.phase, node.path))

    def _folders(self, folder: Path) -> Iterator[Path]:
        """Model directories, one of each training; nothing inside a model directory."""
        if _is_model(folder):
            yield folder
            return
        inner = sorted(
            Path(entry.path) for entry in os.scandir(folder)
            if entry.is_dir() and not entry.name.startswith(".") and entry.name not in _PASSED_OVER
        )
        if (folder / HEADER).is_file():
            best = next((folder / name for name in MODEL_FOLDERS if _is_model(folder / name)), None)
            if best is not None:
                yield best
                inner = [path for path in inner if path.name not in MODEL_FOLDERS]
        for path in inner:
            yield from self._folders(path)

    def _node(self, folder: Path) -> Node | None:
        name = os.path.relpath(folder, self.root)
        try:
            if (folder / DESCRIPTION).is_file():
                node = self._xllm(folder, name) if _format(folder) != asr_checkpoints.FORMAT else self._asr(folder, name)
            else:
                what = "vision encoder" if (folder / VIT_CONFIG).is_file() else _llm_name(folder)
                node = Node(name, 0, what, sha256=self._hash(folder), frozen=count_parameters(folder))
        except UserError as error:
            return Node(name, 0, "model", error=str(error))
        self._add_cost(node, folder)
        return node

    def _asr(self, folder: Path, name: str) -> Node:
        description = asr_checkpoints.read_asr_description(folder)
        node = Node(name, 1, "CIF ASR", ["speech"], self._hash(folder), count_parameters(folder / WEIGHTS), 0)
        for part, config in (("vision", description.model.visual), ("text", description.model.linguistic)):
            if config.kind != "none":
                key = "visual" if part == "vision" else "linguistic"
                path = folder / str(config.path)  # an absolute one stays itself
                node.parents.append(self._link(part, path, description.frozen_sha256.get(key, "")))
                node.frozen = _sum(node.frozen, count_parameters(path))
        return node

    def _xllm(self, folder: Path, name: str) -> Node:
        description = read_description(folder)
        paths = frozen_paths(description.model)
        own = _shapes(folder / WEIGHTS)
        node = Node(name, description.phase, "X-LLM" if description.complete else "interfaces", list(description.kinds))
        node.sha256 = self._hash(folder / WEIGHTS)
        trained = {key for key in own if any(_within(key, part) for part in description.parts)}
        node.trained, node.frozen = sum(own[key] for key in trained), sum(own[key] for key in own.keys() - trained)
        for part, digest in description.frozen_sha256.items():
            path = Path(paths[part])
            node.parents.append(self._link(part, path, digest))
            node.frozen = _sum(node.frozen, count_parameters(path))
        for kind, parent in description.parents.items() if not description.complete else ():
            weights = Path(parent.path)
            try:
                weights = find_xllm(parent.path) / WEIGHTS
                inherited = [count for key, count in _shapes(weights).items() if _within(key, kind) and key not in own]
                # A video interface that started from the image one does not hold it.
                node.frozen = _sum(node.frozen, sum(inherited) if kind in description.model.interfaces.kinds else 0)
            except CheckpointError:
                node.frozen = None
            node.parents.append(self._link(f"{kind} interface", weights, parent.sha256, Path(parent.path)))
        return node

    def _link(self, part: str, path: Path, digest: str, shown: Path | None = None) -> Link:
        found = ""
        if path.exists():
            try:
                found = self._hash(path)
            except CheckpointError:
                found = ""
        return Link(part, os.path.relpath(shown or path, self.root), digest, found)

    def _hash(self, path: Path) -> str:
        path = path.resolve()
        if path not in self._hashes:
            if not path.exists():
                raise CheckpointError(f"{path}: no such file")
            self._hashes[path] = sha256_file(path) if path.is_file() else hash_frozen(path)
        return self._hashes[path]

    def _add_cost(self, node: Node, folder: Path) -> None:
        """Steps and seconds of the training that the model comes from, where it stands beside or above it."""
        training = next((place for place in (folder, folder.parent) if (place / HEADER).is_file()), None)
        if training is None:
            return
        try:
            header = read_json(training / HEADER)
            node.steps, node.wall_sec = read_cost(training)
            node.core_sec = node.wall_sec * header.get("threads", 1) * header.get("processes", 1)
            node.trained = header.get("trained_parameters", node.trained)
        except (DataError, AttributeError, KeyError, TypeError) as error:
            node.error = f"{training / HEADER}: {error}"


def read_cost(training: Path) -> tuple[int, float]:
    """(optimiser steps, their seconds) by the log of a training; evaluations and checkpoints apart."""
    steps, seconds = 0, 0.0
    if not (training / "train.log").is_file():
        return steps, seconds
    for _, row in read_jsonl(training / "train.log"):
        if row.get("kind") == "train":
            seconds += row.get("step_sec", 0.0) * (row["step"] - steps)
            steps = row["step"]
    return steps, seconds


def count_parameters(path: Path) -> int | None:
    """Numbers in the weights of a file or folder, without loading them; None where that cannot be told."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
    try:
        return sum(sum(_shapes(file).values()) for file in files) if files else None
    except CheckpointError:
        return None


def _shapes(path: Path) -> dict[str, int]:
    """Size of every tensor of a file, by name."""
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {key: _product(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return {key: value.numel() for key, value in state.items()}
    except (OSError, SafetensorError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
    except Exception as error:  # pickle has errors of its own
        raise CheckpointError(f"{path}: cannot be read ({type(error).__name__})") from error


def _product(shape: list[int]) -> int:
    size = 1
    for number in shape:
        size *= number
    return size


def _within(name: str, part: str) -> bool:
    inner = name.removeprefix(PREFIX)
    return inner == part or inner.startswith(f"{part}.")


def _sum(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first + second


def _is_model(folder: Path) -> bool:
    if (folder / DESCRIPTION).is_file():
        return True
    described = (folder / VIT_CONFIG).is_file() or (folder / "config.json").is_file()
    return described and (any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")))


def _format(folder: Path) -> str:
    """The format that model.yaml names, "" where it cannot be read."""
    for line in (folder / DESCRIPTION).read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("format:"):
            return line.partition(":")[2].strip().strip("'\"")
    return ""


def _llm_name(folder: Path) -> str:
    described = read_json(folder / "config.json")
    kind = described.get("model_type") if isinstance(described, dict) else None
    return f"{kind or 'unknown'} (transformers)"


def as_json(nodes: list[Node]) -> list[dict[str, Any]]:
    """For `--json`: every field, and the state of every link."""
    return [
        asdict(node) | {"parents": [asdict(link) | {"state": link.state} for link in node.parents]} for node in nodes
    ]


def as_tree(root: str | Path, nodes: list[Node]) -> Tree:
    """For the console."""
    tree = Tree(Text(str(root), style="bold"))
    titles = {0: "frozen parts", 1: "phase 1, convert", 2: "phase 2, align", 3: "phase 3, integrate"}
    for phase, title in titles.items():
        members = [node for node in nodes if node.phase == phase]
        branch = tree.add(Text(title, style="bold")) if members else tree
        for node in members:
            twig = branch.add(_describe(node))
            if node.error is None:
                twig.add(_describe_cost(node))
            for link in node.parents:
                twig.add(_describe_link(link))
    return tree


def _describe(node: Node) -> Text:
    text = Text(f"{node.path}  ", style="cyan").append(node.what, style="default")
    if node.error is not None:
        return text.append(f"  {node.error}", style="red")
    if node.kinds:
        text.append(f": {', '.join(node.kinds)}", style="default")
    return text.append(f"  {node.sha256[:SHORT]}", style="dim")


def _describe_cost(node: Node) -> Text:
    if node.phase:
        text = Text(f"{_number(node.trained)} parameters trained, {_number(node.frozen)} frozen")
    else:
        text = Text(f"{_number(node.frozen)} parameters")
    if node.steps is not None and node.wall_sec is not None and node.core_sec is not None:
        text.append(f"; {node.steps} steps in {_span(node.wall_sec)}, {_span(node.core_sec)} of cores")
    return text


def _describe_link(link: Link) -> Text:
    text = Text(f"on {link.part} {link.path}  ").append(link.sha256[:SHORT], style="dim")
    match link.state:
        case "changed":
            text.append(f"  parent changed: is {link.found_sha256[:SHORT]} now", style="red")
        case "missing":
            text.append("  parent missing", style="red")
    return text


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
