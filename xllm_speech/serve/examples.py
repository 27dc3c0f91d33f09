"""What the page offers to those who have no media at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from xllm_speech.manifests.conversations import read_conversations
from xllm_speech.records import Conversation

SIZE = 64  # pixels


def load_examples(manifest: str, folder: Path, kinds: tuple[str, ...]) -> list[dict[str, Any]]:
    """Values of a multimodal text box: the first question of each task of a conversation manifest, else drawn ones.

    manifest: its relative paths are looked up from the current directory, then from its own folder and those above. folder: for
    drawings. kinds: of media that the model takes.

    Raises:
        DataError: the manifest is absent or broken.
    """
    if not manifest:
        return _drawn(folder) if "image" in kinds else [{"text": "你好", "files": []}]
    first: dict[str, dict[str, Any]] = {}
    for conversation in read_conversations(manifest, kinds=("text", *kinds)):
        if conversation.task not in first and (value := _value(conversation, Path(manifest))) is not None:
            first[conversation.task] = value
    return list(first.values())


def _value(conversation: Conversation, manifest: Path) -> dict[str, Any] | None:
    items = conversation.messages[0].items
    roots = [Path(), *manifest.resolve().parents]
    files = []
    for item in items:
        if item.type == "text":
            continue
        found = next((root / item.path for root in roots if item.path and (root / item.path).is_file()), None)
        if found is None:
            return None
        files.append(str(found.resolve()))
    return {"text": "".join(item.text or "" for item in items if item.type == "text"), "files": files}


def _drawn(folder: Path) -> list[dict[str, Any]]:
    """A red circle and a green square."""
    picture = Image.new("RGB", (SIZE, SIZE), (25, 20, 30))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((6, 6, 28, 28), fill=(220, 40, 40))
    pen.rectangle((38, 38, 58, 58), fill=(40, 180, 60))
    path = folder / "example.png"
    picture.save(path)
    return [{"text": "圆形是什么颜色", "files": [str(path)]}, {"text": "", "files": [str(path)]}]
