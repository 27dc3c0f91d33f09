"""Model directories of the CIF ASR model: everything that decoding needs in one folder, loadable wherever it is moved.

    model.yaml          format, configuration, vocabulary size, how features are read
    model.safetensors   weights and CMVN statistics (frozen encoders apart)
    tokens.txt ...      the token table
    visual/             a small ViT of the recipe's own; CLIP and BERT are named by path and by the hash of their weights
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from xllm_speech.base.config import config_from_dict
from xllm_speech.base.errors import CheckpointError, ConfigError, DataError
from xllm_speech.base.files import atomic_write, sha256_file
from xllm_speech.encoders.vision import VIT_CONFIG, VIT_WEIGHTS
from xllm_speech.models.asr import CifAsrModel, build_asr_model
from xllm_speech.models.asr_config import AsrModelConfig
from xllm_speech.models.foreign.load import load_foreign as load_foreign  # part of the public surface
from xllm_speech.text.tokens import TokenTable

FORMAT = "xllm-cif-asr-1"
DESCRIPTION = "model.yaml"
WEIGHTS = "model.safetensors"
VISUAL_FOLDER = "visual"
FROZEN_PREFIXES = ("visual.", "linguistic.")
# Where the model of an experiment stands, in order of preference.
EXPERIMENT_FOLDERS = ("average", "final", "best")


@dataclass
class FeatureConfig:
    """How a model's input is read: channel of recordings with several, side of pictures in pixels (0: none)."""

    channel: str = "mix"
    image_size: int = 0


@dataclass
class AsrDescription:
    """Content of model.yaml."""

    format: str = FORMAT
    vocab: int = 0
    model: AsrModelConfig = field(default_factory=AsrModelConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    frozen_sha256: dict[str, str] = field(default_factory=dict)


@dataclass
class AsrCheckpoint:
    """A loaded model with what belongs to it."""

    model: CifAsrModel
    table: TokenTable
    description: AsrDescription
    folder: Path


def save_asr(
    folder: Path,
    state: dict[str, torch.Tensor],
    config: AsrModelConfig,
    table: TokenTable,
    features: FeatureConfig,
) -> None:
    """Write a model directory into `folder`, which exists. state: the model's state dict; frozen encoders are left out."""
    from safetensors.torch import save

    trained = {
        name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if not name.startswith(FROZEN_PREFIXES)
    }
    with atomic_write(folder / WEIGHTS, "wb") as stream:  # save_file would let nobody else read it
        stream.write(save(trained, metadata={"format": "pt"}))
    table.save(folder)
    described = asdict(AsrDescription(vocab=table.size, model=config, features=features))
    for name in ("visual", "linguistic"):
        part = described["model"][name]
        if part["kind"] == "none":
            continue
        source = Path(part["path"])
        if part["kind"] == "vit":
            _copy_vit(source, folder / VISUAL_FOLDER)
            part["path"] = VISUAL_FOLDER
        else:
            part["path"] = str(source.absolute())
        described["frozen_sha256"][name] = hash_weights(source)
    with atomic_write(folder / DESCRIPTION) as stream:
        yaml.safe_dump(described, stream, sort_keys=False, allow_unicode=True)


def _copy_vit(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name in (VIT_CONFIG, VIT_WEIGHTS):
        with atomic_write(target / name, "wb") as stream:
            stream.write((source / name).read_bytes())


def hash_weights(folder: Path) -> str:
    """SHA-256 over the weight files of a frozen encoder's folder, by name; `CheckpointError` when it has none."""
    import hashlib

    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    if not files:
        raise CheckpointError(f"{folder}: holds no weights (*.safetensors or *.bin)")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}:{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def find_model(path: str | Path, folders: tuple[str, ...] = EXPERIMENT_FOLDERS) -> Path:
    """The model directory that `path` means: itself, or the average, final or best model (`folders`) of an experiment.

    Raises:
        CheckpointError: there is none; the text says where it was looked for.
    """
    path = Path(path)
    for folder in (path, *(path / name for name in folders)):
        if (folder / DESCRIPTION).is_file():
            return folder
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such model directory")
    raise CheckpointError(
        f"{path}: holds no {DESCRIPTION}, nor does {' or '.join(folders)} in it; "
        "give a model directory or the output of `xllm-speech train`"
    )


def load_asr(path: str | Path, device: torch.device | str = "cpu") -> AsrCheckpoint:
    """Load a model for inference, in eval mode on `device`.

    Raises:
        CheckpointError: a file is missing, broken or of another format, a tensor is missing, surplus or of another
            shape, or a frozen encoder is not the one the model was trained with.
    """
    folder = find_model(path)
    description = read_asr_description(folder)
    config = description.model
    for part in (config.visual, config.linguistic):
        if part.kind != "none" and (folder / str(part.path)).exists():  # carried along; else named by where it is
            part.path = str(folder / str(part.path))
    for name, part in (("visual", config.visual), ("linguistic", config.linguistic)):
        if part.kind != "none" and Path(str(part.path)).is_dir():
            _check_frozen(folder, name, Path(str(part.path)), description.frozen_sha256.get(name))
    try:
        table = TokenTable.load(folder)
    except (DataError, ConfigError) as error:
        raise CheckpointError(f"{folder}: {error}") from error
    if table.size != description.vocab:
        raise CheckpointError(f"{folder}: {table.size} tokens in its table, {description.vocab} in {DESCRIPTION}")
    model = build_asr_model(config, table.size, table.sos_id)
    load_weights(model, folder / WEIGHTS)
    return AsrCheckpoint(model.to(device).eval(), table, description, folder)


def load_weights(model: CifAsrModel, path: Path) -> None:
    """Fill a model from a safetensors file without its frozen encoders; `CheckpointError` names what does not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be loaded ({str(error).splitlines()[0]})") from error
    expected = {name: t for name, t in model.state_dict().items() if not name.startswith(FROZEN_PREFIXES)}
    wrong = [name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape]
    for what, names in (("missing", expected.keys() - tensors.keys()), ("surplus", tensors.keys() - expected.keys())):
        if names:
            raise CheckpointError(f"{path}: {len(names)} tensors {what}, first {min(names)}; the configuration is another")
    if wrong:
        name = min(wrong)
        raise CheckpointError(
            f"{path}: {name} is {tuple(tensors[name].shape)}, the configuration says {tuple(expected[name].shape)}"
        )
    model.load_state_dict(tensors, strict=False)


def read_asr_description(folder: Path) -> AsrDescription:
    """The content of a model directory's model.yaml; `CheckpointError` where it is unreadable or of another format."""
    path = folder / DESCRIPTION
    try:
        value: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = value.get("format") if isinstance(value, dict) else type(value).__name__
        raise CheckpointError(f"{path}: format `{found}`, expected `{FORMAT}`")
    try:
        return config_from_dict(value, AsrDescription, str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def _check_frozen(folder: Path, name: str, source: Path, expected: str | None) -> None:
    found = hash_weights(source)
    if expected is not None and found != expected:
        raise CheckpointError(
            f"{folder}: trained with another {name} encoder: {source} has sha256 {found[:12]}, expected {expected[:12]}"
        )


