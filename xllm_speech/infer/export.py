"""An X-LLM as one folder that works wherever it is moved: whole interfaces, and the frozen parts beside them.

    README.md                       the model card
    model.yaml model.safetensors    as any model directory, `complete`, its paths relative to the folder
    llm/ vision/ asr/ audio/ text/  the frozen parts it needs, file by file as they were
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import yaml

from xllm_speech.base.errors import CheckpointError
from xllm_speech.base.files import atomic_dir, atomic_write
from xllm_speech.infer.model_card import write_card
from xllm_speech.models.checkpoints import DESCRIPTION
from xllm_speech.models.media import find_encoders
from xllm_speech.models.xllm_checkpoints import XllmCheckpoint, save_xllm
from xllm_speech.models.xllm_config import XllmConfig

# Of a training, and code, which is never run: neither belongs to a model.
_LEFT_BEHIND = ("optimizer.pt", "state.json", "*.py", ".*", "__pycache__")


def export_xllm(checkpoint: XllmCheckpoint, path: str | Path, include_frozen: bool, card: str = "") -> None:
    """Write `checkpoint` to the folder `path`, atomically.

    include_frozen: copy the LLM and the encoders into it; else they are named by their absolute paths. card: text of its
    README.md; by default one without scores.

    Raises:
        CheckpointError: `path` is the model itself or one of its parts, or a part cannot be copied.
    """
    path = Path(path)
    description = copy.deepcopy(checkpoint.description)
    description.complete = True
    config = description.model
    sources = {"llm": Path(config.llm.path), **find_encoders(config.encoders, config.interfaces.kinds)}
    for place in (checkpoint.folder, *sources.values()):
        if place.resolve().is_relative_to(path.resolve()):
            raise CheckpointError(f"{path}: holds {place}, which is to be copied; choose another folder")
    with atomic_dir(path) as part:
        for name, source in sources.items():
            if include_frozen:
                _set_path(config, name, _copy(source, part / name))
            else:
                _set_path(config, name, str(source.resolve()))
        save_xllm(part, checkpoint.model.state_dict(), description)
        with atomic_write(part / "README.md") as stream:
            stream.write(card or write_card(checkpoint, path.name))


def _set_path(config: XllmConfig, part: str, path: str) -> None:
    match part:
        case "llm":
            config.llm.path = path
        case "vision":
            config.encoders.vision.path = path
        case "asr":
            config.encoders.asr = path
        case "audio":
            config.encoders.audio = path
        case _:
            config.encoders.text = path


def _copy(source: Path, target: Path) -> str:
    """Copy a frozen part; returns its path relative to the folder that holds `target`."""
    try:
        if source.is_file():
            target.mkdir()
            shutil.copyfile(source, target / source.name)
            return f"{target.name}/{source.name}"
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(*_LEFT_BEHIND), copy_function=shutil.copyfile)
    except OSError as error:
        raise CheckpointError(f"{source}: cannot be copied to {target} ({error.strerror or error})") from error
    if target.name == "asr":
        _adopt_encoders(target)
    return target.name


def _adopt_encoders(folder: Path) -> None:
    """Copy what an ASR model names by path, such as CLIP or BERT, into its own folder."""
    described = yaml.safe_load((folder / DESCRIPTION).read_text(encoding="utf-8"))
    changed = False
    for name in ("visual", "linguistic"):
        part = described["model"][name]
        source = Path(part["path"] or "")
        if part["kind"] != "none" and source.is_absolute() and source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns(*_LEFT_BEHIND), copy_function=shutil.copyfile)
            part["path"] = name
            changed = True
    if changed:
        with atomic_write(folder / DESCRIPTION) as stream:
            yaml.safe_dump(described, stream, sort_keys=False, allow_unicode=True)
