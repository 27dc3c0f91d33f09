"""Model directories of the X-LLM: what one phase trained, and the hashes of everything it was trained on.

    model.yaml          format, phase, kinds, configuration, hash of every frozen part, parents with their hashes
    model.safetensors   the tensors that trained, by their names in `XllmModel`

A directory of phase 3 holds the adapters alone; the rest of each interface comes from its parent of phase 2. A frozen part
or a parent that is not the one of the training is refused: an interface speaks to the LLM it was trained with and to no
other (mini.md, 4). A directory that was exported (`complete: true`) holds whole interfaces and needs no parent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from xllm_speech.base.config import config_from_dict
from xllm_speech.base.errors import CheckpointError, ConfigError, first_line
from xllm_speech.base.files import atomic_write, sha256_file
from xllm_speech.base.safe_load import read_tensors
from xllm_speech.interfaces.build import build_interfaces
from xllm_speech.interfaces.config import InterfacesConfig
from xllm_speech.llm.loaded import LoadedLlm
from xllm_speech.llm.loading import load_llm
from xllm_speech.llm.lora import add_lora, lora_parameters
from xllm_speech.manifests.cuts import PathFinder
from xllm_speech.models.checkpoints import DESCRIPTION, WEIGHTS, find_model, hash_weights
from xllm_speech.models.media import ENCODER_OF, MediaEncoders, build_encoders, find_encoders, hash_frozen
from xllm_speech.models.xllm import XllmModel
from xllm_speech.models.xllm_config import XllmConfig

FORMAT = "xllm-1"
EXPERIMENT_FOLDERS = ("final", "best")
PREFIX = "interfaces."


@dataclass
class Parent:
    """A checkpoint that another was trained on: where it stood, and the SHA-256 of its weights."""

    path: str = ""
    sha256: str = ""


@dataclass
class XllmDescription:
    """Content of model.yaml.

    phase: 2 or 3. kinds: interfaces that took part. parts: what trained, below `interfaces.`. complete: the directory holds
    whole interfaces, not only what trained. frozen_sha256: llm and encoders (vision, asr, audio, text). parents: by kind.
    """

    format: str = FORMAT
    phase: int = 2
    kinds: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    complete: bool = False
    model: XllmConfig = field(default_factory=XllmConfig)
    channel: str = "mix"
    frozen_sha256: dict[str, str] = field(default_factory=dict)
    parents: dict[str, Parent] = field(default_factory=dict)


@dataclass
class XllmCheckpoint:
    """A loaded X-LLM with its frozen encoders and what it says about itself; paths in `description.model` are usable."""

    model: XllmModel
    encoders: MediaEncoders
    description: XllmDescription
    folder: Path


def build_xllm(config: XllmConfig, llm: LoadedLlm) -> XllmModel:
    """The model around a loaded LLM, interfaces with chance values."""
    interfaces = build_interfaces(config.interfaces, llm.width)
    return XllmModel(llm, interfaces, config.prompt.style(), config.prompt.max_tokens or None, config.loss_unit)


def hash_parts(config: XllmConfig) -> dict[str, str]:
    """SHA-256 of the LLM and of every frozen encoder that the interfaces need, by part; `CheckpointError` for one absent."""
    paths = {"llm": Path(config.llm.path), **find_encoders(config.encoders, config.interfaces.kinds)}
    for part, path in paths.items():
        if not path.exists():
            raise CheckpointError(f"model.{'llm.path' if part == 'llm' else 'encoders.' + part}: {path}: no such folder")
    return {part: hash_frozen(path) for part, path in paths.items()}


def save_xllm(folder: Path, state: Mapping[str, torch.Tensor], description: XllmDescription) -> None:
    """Write a model directory into `folder`, which exists.

    Args:
        state: the model's state dict; of it, only `description.parts` are written (all of the interfaces where `complete`),
            and LoRA adapters of the LLM where there are any.
    """
    from safetensors.torch import save

    wanted = {name: tensor for name, tensor in state.items() if _belongs(name, description)}
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in wanted.items()}
    with atomic_write(folder / WEIGHTS, "wb") as stream:
        stream.write(save(whole, metadata={"format": "pt"}))
    with atomic_write(folder / DESCRIPTION) as stream:
        yaml.safe_dump(asdict(description), stream, allow_unicode=True, sort_keys=False)


def _belongs(name: str, description: XllmDescription) -> bool:
    if not name.startswith(PREFIX):
        return name.startswith("llm.") and ".lora_" in name
    inner = name.removeprefix(PREFIX)
    return description.complete or any(inner == part or inner.startswith(f"{part}.") for part in description.parts)


def find_xllm(path: str | Path) -> Path:
    """The model directory that `path` means: itself, or the final or best model of a training.

    Raises:
        CheckpointError: there is none; the text says where it was looked for.
    """
    return find_model(path, EXPERIMENT_FOLDERS)


def read_description(folder: Path) -> XllmDescription:
    """The content of model.yaml, paths in it made usable from here.

    Raises:
        CheckpointError: unreadable, or of another format.
    """
    path = folder / DESCRIPTION
    try:
        value: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: cannot be read ({first_line(error)})") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = value.get("format") if isinstance(value, dict) else type(value).__name__
        raise CheckpointError(f"{path}: format `{found}`, expected `{FORMAT}`, an X-LLM of phase 2 or 3")
    try:
        description = config_from_dict(value, XllmDescription, str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    finder = PathFinder(folder)

    def locate(path: str) -> str:
        # What an export carries inside itself comes before anything of that name in the working directory.
        return str(folder / path) if path and (folder / path).exists() else finder.find(path, probe=True)

    config = description.model
    config.llm.path = locate(config.llm.path)
    encoders = config.encoders
    encoders.vision.path = locate(encoders.vision.path)
    encoders.asr, encoders.audio, encoders.text = map(locate, (encoders.asr, encoders.audio, encoders.text))
    for parent in description.parents.values():
        parent.path = locate(parent.path)
    return description


def check_frozen(who: str, expected: Mapping[str, str], found: Mapping[str, str], paths: Mapping[str, str]) -> None:
    """Refuse frozen parts that are not those of a training.

    Args:
        who: what was trained, for the message. expected: its hashes. found: the hashes of what is there, some or all parts.
        paths: where the parts are.

    Raises:
        CheckpointError: a hash differs; names the part, both hashes and what to do.
    """
    for part, digest in found.items():
        if part in expected and expected[part] != digest:
            raise CheckpointError(
                f"{who}: was trained with another {part}: sha256 {expected[part][:12]}, {paths[part]} is {digest[:12]}; "
                f"put the former {part} back, or train it again with this one"
            )


def frozen_paths(config: XllmConfig) -> dict[str, str]:
    """Where the frozen parts are, by part."""
    encoders = config.encoders
    return {
        "llm": config.llm.path, "vision": encoders.vision.path, "asr": encoders.asr, "audio": encoders.audio,
        "text": encoders.text,
    }


@dataclass
class Interfaces:
    """Interfaces of one checkpoint, whole: tensors by their names in `XllmModel`."""

    folder: Path
    description: XllmDescription
    sha256: str
    tensors: dict[str, torch.Tensor]


def read_interfaces(path: str | Path) -> Interfaces:
    """The interfaces of a checkpoint; where it holds adapters only, the rest comes from its parents.

    Raises:
        CheckpointError: a file is missing or broken, or a parent is absent or not the one of the training.
    """
    folder = find_xllm(path)
    description = read_description(folder)
    # One file, or shards with their index, as hubs and other tools lay them out.
    own = read_tensors(folder / WEIGHTS if (folder / WEIGHTS).is_file() else folder)
    tensors: dict[str, torch.Tensor] = {}
    for kind, parent in description.parents.items() if not description.complete else ():
        if kind in description.model.interfaces.kinds:
            tensors |= {
                name: tensor for name, tensor in _read_parent(folder, kind, parent).tensors.items()
                if name.startswith(f"{PREFIX}{kind}.")
            }
    return Interfaces(folder, description, hash_own(folder), tensors | own)


def _read_parent(folder: Path, kind: str, parent: Parent) -> Interfaces:
    if not Path(parent.path).is_dir():
        raise CheckpointError(
            f"{folder}: its {kind} interface stands on {parent.path} (sha256 {parent.sha256[:12]}), which is not there; "
            "bring it back, or use an exported model"
        )
    read = read_interfaces(parent.path)
    if read.sha256 != parent.sha256:
        raise CheckpointError(
            f"{folder}: was trained on the {kind} interface with sha256 {parent.sha256[:12]}, {read.folder} now is "
            f"{read.sha256[:12]}; put the former one back, or train phase {_phase_of(folder)} again"
        )
    return read


def _phase_of(folder: Path) -> int:
    return read_description(folder).phase


def hash_own(folder: Path) -> str:
    """SHA-256 of a model directory's weights: of their file, or over all shards."""
    return sha256_file(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else hash_weights(folder)


def fill_interfaces(model: XllmModel, tensors: Mapping[str, torch.Tensor], who: object, kinds: Iterable[str]) -> None:
    """Fill the interfaces of `kinds`; `CheckpointError` names tensors that are missing, surplus or of another shape."""
    starts = tuple(f"{PREFIX}{kind}." for kind in kinds)
    expected = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(starts)}
    for what, names in (("missing", expected.keys() - tensors.keys()), ("surplus", tensors.keys() - expected.keys())):
        if names:
            raise CheckpointError(f"{who}: {len(names)} tensors {what}, first {min(names)}; the configuration is another")
    wrong = [name for name in expected if expected[name].shape != tensors[name].shape]
    if wrong:
        name = min(wrong)
        raise CheckpointError(
            f"{who}: {name} is {tuple(tensors[name].shape)}, the configuration says {tuple(expected[name].shape)}"
        )
    model.load_state_dict(dict(tensors), strict=False)


def adopt_interfaces(config: InterfacesConfig, parents: Mapping[str, Interfaces]) -> None:
    """Take each interface's sizes from its parent."""
    for kind, read in parents.items():
        theirs = read.description.model.interfaces
        match kind:
            case "image":
                config.image = theirs.image
            case "video":
                config.video = theirs.video
                if "image" not in parents:
                    config.image = theirs.image
            case "speech":
                config.speech = theirs.speech
            case "audio":
                config.audio = theirs.audio
            case "terminal":
                config.terminal = theirs.terminal


def adopt_parents(config: XllmConfig, parents: Mapping[str, str], frozen: Mapping[str, str]) -> dict[str, Interfaces]:
    """The parents of a new training: each has an interface of its kind and was trained with the same frozen parts.

    Args:
        config: of the new training. parents: kind -> folder. frozen: `hash_parts` of the new training.

    Raises:
        CheckpointError: a parent lacks the interface, or stands on another LLM or encoder.
    """
    adopted: dict[str, Interfaces] = {}
    for kind, path in parents.items():
        read = read_interfaces(path)
        has = read.description.model.interfaces.kinds
        if kind not in has:
            raise CheckpointError(f"parents.{kind}: {read.folder} holds interfaces for {', '.join(has)}, not for {kind}")
        needed = {part: digest for part, digest in frozen.items() if part in ("llm", ENCODER_OF[kind])}
        check_frozen(f"parents.{kind}: {read.folder}", read.description.frozen_sha256, needed, frozen_paths(config))
        adopted[kind] = read
    return adopted


def _fill_lora(model: XllmModel, read: Interfaces) -> None:
    expected = {f"llm.{name}": parameter for name, parameter in lora_parameters(model.llm).items()}
    stored = {name: tensor for name, tensor in read.tensors.items() if name.startswith("llm.")}
    odd = expected.keys() ^ stored.keys() or [name for name in expected if expected[name].shape != stored[name].shape]
    if odd:
        raise CheckpointError(f"{read.folder}: LoRA adapters do not fit the LLM: {len(odd)} tensors, first {min(odd)}")
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(stored[name])
            parameter.requires_grad_(False)


def load_xllm(
    path: str | Path, device: str = "cpu", llm: LoadedLlm | None = None, without: tuple[str, ...] = ()
) -> XllmCheckpoint:
    """Load an X-LLM for inference, in eval mode on `device`.

    Args:
        path: a model directory or a training's folder. llm: take this one, already loaded, instead of the folder's.
        without: encoders that are not loaded (`models.media.build_encoders`).

    Raises:
        CheckpointError: a file is missing or broken, a tensor does not fit, or a frozen part or a parent is not the one of
            the training.
    """
    read = read_interfaces(path)
    description = read.description
    config = description.model
    check_frozen(str(read.folder), description.frozen_sha256, hash_parts(config), frozen_paths(config))
    if llm is None:
        llm = load_llm(config.llm.path, config.llm.dtype, device, config.llm.quantization)
    add_lora(llm, config.llm.lora)
    model = build_xllm(config, llm)
    inside = {name: tensor for name, tensor in read.tensors.items() if not name.startswith("llm.")}
    fill_interfaces(model, inside, read.folder, config.interfaces.kinds)
    _fill_lora(model, read)
    model.interfaces.to(device)
    encoders = build_encoders(config.encoders, config.interfaces.kinds, without).to(device)
    return XllmCheckpoint(model.eval(), encoders, description, read.folder)
