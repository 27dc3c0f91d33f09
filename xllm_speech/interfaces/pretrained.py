"""Starting values from a local bert-base-chinese folder, for the C-Former and for a Q-Former trained from its first stage."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from xllm_speech.base.errors import CheckpointError
from xllm_speech.interfaces.qformer import QueryTransformer
from xllm_speech.interfaces.speech import SpeechInterface

WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def read_bert(folder: str | Path) -> dict[str, torch.Tensor]:
    """Weights of BERT by BertModel's names, from the folder's safetensors or .bin file; heads are left aside.

    Raises:
        CheckpointError: no such folder, no weights in it, a damaged file, or no BERT.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder}: holds no {' or '.join(WEIGHTS)}; a folder such as bert-base-chinese is needed there")
    try:
        stored = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({(str(error) or repr(error)).splitlines()[0]})") from error
    weights = {}
    for name, tensor in stored.items() if isinstance(stored, dict) else ():
        # Folders of 2018 call the parts of a norm gamma and beta.
        plain = str(name).removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
        plain = plain.replace("LayerNorm.beta", "LayerNorm.bias")
        if plain.startswith(("embeddings.", "encoder.")) and isinstance(tensor, torch.Tensor):
            weights[plain] = tensor
    if not weights:
        raise CheckpointError(f"{path}: holds no weights of BERT")
    return weights


def start_speech_from_bert(interface: SpeechInterface, folder: str | Path) -> None:
    """Fill the C-Former's transformer, positions and norms included, from BERT; the linear layers stay as they are.

    Raises:
        CheckpointError: see `read_bert`; or weights are missing or of other sizes; nothing is filled then.
    """
    weights = read_bert(folder)
    _fill({name: name for name in interface.transformer.state_dict()}, weights, interface.transformer, folder)


def start_qformer_from_bert(querying: QueryTransformer, folder: str | Path, text_embeddings: nn.Module | None = None) -> int:
    """Fill a Q-Former from BERT as BLIP-2 does: self-attention, norms, and both feed-forward branches from BERT's one.

    Queries and cross-attention, which BERT has not, keep their chance values. text_embeddings: of
    `qformer_losses.QFormerPretraining`; its table of words may have more rows than BERT's, which keep theirs.

    Returns:
        How many weights were filled.

    Raises:
        CheckpointError: as `start_speech_from_bert`.
    """
    weights = read_bert(folder)
    sources = {"layernorm.weight": "embeddings.LayerNorm.weight", "layernorm.bias": "embeddings.LayerNorm.bias"}
    for name in querying.qformer.state_dict():
        if name.startswith("encoder.") and ".crossattention." not in name:
            source = name.replace(".attention.attention.", ".attention.self.")
            sources[name] = source.replace(".intermediate_query.", ".intermediate.").replace(".output_query.", ".output.")
    _fill(sources, weights, querying.qformer, folder)
    if text_embeddings is None:
        return len(sources)
    tables = {name: f"embeddings.{name}" for name in text_embeddings.state_dict()}
    words = "embeddings.word_embeddings.weight"
    table = text_embeddings.get_parameter("word_embeddings.weight")
    if words in weights and len(weights[words]) < len(table):
        weights[words] = torch.cat([weights[words], table.detach().cpu()[len(weights[words]) :]])
    _fill(tables, weights, text_embeddings, folder)
    return len(sources) + len(tables)


def _fill(sources: Mapping[str, str], weights: Mapping[str, torch.Tensor], module: nn.Module, folder: str | Path) -> None:
    targets = module.state_dict()
    _refuse(folder, "missing", (source for source in sources.values() if source not in weights))
    _refuse(folder, "of other sizes than the configuration's", (
        f"{source}: {list(weights[source].shape)} stored, {list(targets[name].shape)} configured"
        for name, source in sources.items() if weights[source].shape != targets[name].shape
    ))
    with torch.no_grad():
        for name, source in sources.items():
            targets[name].copy_(weights[source])


def _refuse(folder: str | Path, what: str, names: Iterable[str]) -> None:
    bad = sorted(set(names))
    if bad:
        raise CheckpointError(f"{folder}: {len(bad)} weights of BERT are {what}, among them {bad[0]}")
