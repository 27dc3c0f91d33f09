"""ESPnet2 experiment folders of the task `cif_asr` to model directories of ours, and back. ESPnet itself is not needed.

    config.yaml       ESPnet's arguments; `model_conf`, `token_list` and `token_table` or `bpemodel` say all about the model
    valid.acc.ave.pth and its like: the network's weights as `asr.*`, CMVN statistics among them
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from xllm_speech.base.config import config_from_dict
from xllm_speech.base.errors import CheckpointError, ConfigError, DataError, first_line
from xllm_speech.base.files import atomic_dir, atomic_write
from xllm_speech.base.safe_load import read_tensors
from xllm_speech.models.asr import build_asr_model
from xllm_speech.models.asr_config import AsrModelConfig
from xllm_speech.models.checkpoints import AsrCheckpoint, AsrDescription, FeatureConfig, load_asr, save_asr
from xllm_speech.text.tokens import TokenTable

CONFIG = "config.yaml"
PREFIX = "asr."  # of the network in ESPnet's model
TABLE_FOLDER = "token_table"
MODEL_FILE = "model.pth"
# What ESPnet leaves behind, in order of preference.
CHOICES = ("valid.acc.ave.pth", "valid.acc.best.pth", "valid.loss.ave.pth", "valid.loss.best.pth", "latest.pth", MODEL_FILE)


def load_experiment(experiment: str | Path, weights: str | None = None, device: torch.device | str = "cpu") -> AsrCheckpoint:
    """The model of an experiment, for `CifAsr(load_experiment(folder)).transcribe(...)`.

    Args:
        experiment: ESPnet's output_dir. weights: a .pth file in it; default: the first of `CHOICES` that is there.

    Raises:
        CheckpointError: no such folder or file, another task's, or weights that do not fit the configuration.
    """
    folder = Path(experiment)
    arguments = _read_arguments(folder)
    where = str(folder / CONFIG)
    if arguments.get("input_size") is None and arguments.get("frontend") != "fbank":
        raise CheckpointError(f"{where}: frontend {arguments.get('frontend')}; only `fbank` has a form of ours")
    try:
        config = config_from_dict(arguments["model_conf"], AsrModelConfig, f"{where}: model_conf")
        table = _read_table(folder, arguments)
        model = build_asr_model(config, table.size, table.sos_id)
    except (ConfigError, DataError) as error:
        raise CheckpointError(str(error)) from error
    path = _find_weights(folder, weights)
    state = {name.removeprefix(PREFIX): t for name, t in read_tensors(path).items() if name.startswith(PREFIX)}
    expected = model.state_dict()
    wrong = [name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape]
    for what, names in (
        ("missing", expected.keys() - state.keys()), ("surplus", state.keys() - expected.keys()), ("of another shape", wrong),
    ):
        if names:
            raise CheckpointError(f"{path}: {len(names)} tensors {what}, first {PREFIX}{min(names)}; {CONFIG} is of another")
    model.load_state_dict(state)
    description = AsrDescription(vocab=table.size, model=config, features=FeatureConfig())
    return AsrCheckpoint(model.to(device).eval(), table, description, folder)


def export_experiment(experiment: str | Path, out: str | Path, weights: str | None = None) -> Path:
    """Write the model directory of an experiment to `out`, atomically; returns the file whose weights it holds.

    Raises:
        CheckpointError: what `load_experiment` raises.
    """
    found = load_experiment(experiment, weights)
    with atomic_dir(out) as part:
        save_asr(part, found.model.state_dict(), found.description.model, found.table, found.description.features)
    return _find_weights(Path(experiment), weights)


def start_experiment(model: str | Path, out: str | Path) -> None:
    """Write a folder from which ESPnet goes on with a model of ours: `--config out/config.yaml --init_param out/model.pth`.

    Raises:
        CheckpointError: no model directory, or a model with a frozen encoder of pictures or captions, for which ESPnet's
            data have no place.
    """
    found = load_asr(model)
    config = found.description.model
    for name, kind in (("visual", config.visual.kind), ("linguistic", config.linguistic.kind)):
        if kind != "none":
            raise CheckpointError(f"{found.folder}: sees more than speech ({name}.kind {kind}); ESPnet's data cannot feed it")
    out = Path(out).absolute()
    arguments = {
        "token_list": list(found.table.tokens), "token_table": str(out / TABLE_FOLDER), "frontend": "fbank",
        "frontend_conf": {"fs": "16k"}, "input_size": None, "specaug": None, "specaug_conf": {}, "normalize": None,
        "normalize_conf": {}, "init": None, "model_conf": asdict(config),
    }
    state = {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in found.model.state_dict().items()}
    with atomic_dir(out) as part:
        found.table.save(part / TABLE_FOLDER)
        with atomic_write(part / CONFIG) as text:
            yaml.safe_dump(arguments, text, sort_keys=False, allow_unicode=True)
        with atomic_write(part / MODEL_FILE, "wb") as stream:
            torch.save(state, stream)


def _read_arguments(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        arguments = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: cannot be read ({first_line(error)}); give the output_dir of a training") from error
    if not isinstance(arguments, dict) or not isinstance(arguments.get("token_list"), list):
        raise CheckpointError(f"{path}: not what ESPnet writes beside a model (no token_list in it)")
    if not isinstance(arguments.get("model_conf"), dict) or "encoder" in arguments or "decoder" in arguments:
        raise CheckpointError(
            f"{path}: an experiment of another ESPnet task, not of cif_asr; of a conformer ASR, "
            "`xllm-speech convert --from espnet` takes the encoder"
        )
    return arguments


def _read_table(folder: Path, arguments: dict[str, Any]) -> TokenTable:
    tokens = [str(token) for token in arguments["token_list"]]
    if source := arguments.get("token_table"):
        # An experiment that was moved may carry its table along.
        table = TokenTable.load(Path(source) if Path(source).is_dir() else folder / Path(source).name)
        if list(table.tokens) != tokens:
            raise DataError(f"{source}: {table.size} tokens, not the {len(tokens)} that {folder / CONFIG} was trained with")
        return table
    match arguments.get("token_type"):
        case "char":
            return TokenTable("char", tokens)
        case "bpe":
            model = Path(str(arguments.get("bpemodel")))
            try:
                return TokenTable("sentencepiece", tokens, model.read_bytes())
            except OSError as error:
                raise DataError(f"{folder / CONFIG}: bpemodel {model} cannot be read ({error.strerror})") from error
        case other:
            raise ConfigError(f"{folder / CONFIG}: token_type `{other}` is not one of char, bpe")


def _find_weights(folder: Path, weights: str | None) -> Path:
    for name in CHOICES if weights is None else (weights,):
        if (folder / name).is_file():
            return folder / name
    there = ", ".join(sorted(path.name for path in folder.glob("*.pth"))) or "no .pth file"
    raise CheckpointError(f"{folder}: holds none of {weights or ', '.join(CHOICES)}; there is {there}")
