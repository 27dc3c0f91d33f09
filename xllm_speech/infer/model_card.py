"""The page that goes with an exported X-LLM: what it is made of, how it was trained, what it scored, how to use it."""

from __future__ import annotations

from typing import Any

from xllm_speech.models.xllm_checkpoints import XllmCheckpoint
from xllm_speech.version import __version__

HEAD = """---
library_name: xllm_speech
tags: [speech-recognition, multimodal, cif, x-llm]
---
"""


def write_card(checkpoint: XllmCheckpoint, name: str, scores: dict[str, Any] | None = None, data: str = "") -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        name: of the model. scores: as metrics.json of a recipe. data: what it was trained on, in a sentence.
    """
    description, model = checkpoint.description, checkpoint.model
    kinds = description.model.interfaces.kinds
    llm_sha256 = description.frozen_sha256.get("llm", "")[:12]
    rows = [
        ("interfaces", ", ".join(f"{kind} ({_count(model.interfaces[kind]):,} parameters)" for kind in kinds)),
        ("language model", f"{model.llm.family}, width {model.llm.width}, sha256 `{llm_sha256}`"),
        *((part, f"sha256 `{digest[:12]}`") for part, digest in description.frozen_sha256.items() if part != "llm"),
        ("phase", str(description.phase)),
        *((f"{kind} interface from", f"sha256 `{parent.sha256[:12]}`") for kind, parent in description.parents.items()),
        ("written by", f"xllm_speech {__version__}"),
    ]
    table = "\n".join(f"| {left} | {right} |" for left, right in rows)
    parts = [
        f"{HEAD}\n# {name}\n\nAn X-LLM: interfaces that let a frozen language model take {', '.join(kinds)} in its prompt.\n",
        f"| | |\n|---|---|\n{table}\n",
        f"## Data\n\n{data or 'Not told.'}\n",
        f"## Scores\n\n{_scores(scores)}\n",
        "## Use\n\n    from xllm_speech import XLLM\n    model = XLLM.from_pretrained(\"this folder\")\n"
        "    model.chat([{\"role\": \"user\", \"content\": \"...\"}])\n\n"
        "No code of this folder runs when it is loaded; weights are safetensors. Frozen parts keep their own licences.\n",
    ]
    return "\n".join(parts)


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _scores(scores: dict[str, Any] | None) -> str:
    if not scores:
        return "Not told."
    rows = [f"| {name} | {value:g} |" for name, value in _flatten(scores) if not name.startswith("minutes")]
    return "In %.\n\n| measure | value |\n|---|---|\n" + "\n".join(rows)


def _flatten(value: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    rows: list[tuple[str, float]] = []
    for name, inner in value.items():
        if isinstance(inner, dict):
            rows += _flatten(inner, f"{prefix}{name} / ")
        elif isinstance(inner, int | float) and not isinstance(inner, bool):
            rows.append((prefix + name, float(inner)))
    return rows
