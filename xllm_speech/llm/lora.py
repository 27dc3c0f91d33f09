"""Low-rank adapters on the attention of a frozen LLM (Hu et al. 2021, arXiv 2106.09685), by `peft`. Off unless asked for.

The LLM's own weights stay frozen and bit for bit as they are; only the adapters have gradients, only they are saved, in
peft's own format (`adapter_config.json`, `adapter_model.safetensors`). They are float32 whatever the LLM computes in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from xllm_speech.base.config import require
from xllm_speech.base.errors import CheckpointError, ConfigError, DataError, first_line
from xllm_speech.base.files import atomic_write, read_json, write_json
from xllm_speech.llm.loaded import LoadedLlm

# What projections of attention are called, by family of models; of the first set that a model has all, all are adapted.
ATTENTION = (
    ("query_key_value",),  # ChatGLM, BLOOM, GPT-NeoX, Falcon
    ("q_proj", "v_proj"),  # Llama, Qwen, GLM-4, Mistral, Gemma
    ("qkv_proj",),  # Phi-3
)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER = "default"  # peft's name for the only adapter
SAVED_PREFIX = "base_model.model."  # of names in peft's files


@dataclass
class LoraConfig:
    """rank: 0 is no adapter at all. alpha: adapters count alpha / rank. dropout: on their input, in training. targets: names
    of linear layers, empty: those of attention, as the family calls them."""

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    targets: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require(self.rank >= 0, f"lora.rank {self.rank} must not be negative; 0 is no adapter")
        require(self.alpha > 0, f"lora.alpha {self.alpha} must be positive")
        require(0 <= self.dropout < 1, f"lora.dropout {self.dropout} must lie in [0, 1)")


def add_lora(llm: LoadedLlm, config: LoraConfig) -> list[str]:
    """Put adapters into an LLM; returns the names of its trained parameters, none for rank 0. What it computes is not changed
    until they are trained.

    Raises:
        ConfigError: the LLM has adapters already, or no linear layer of a wanted name.
    """
    if config.rank == 0:
        return []
    import peft

    require(not lora_parameters(llm), "this LLM has LoRA adapters already; merge them, or load it anew")
    targets = config.targets or _find_attention(llm)
    layers = _linear_names(llm)
    unknown = [name for name in targets if name not in layers]
    there = f"in this {llm.family}; there are {', '.join(layers)}"
    require(not unknown, f"lora.targets: no linear layer called {', '.join(unknown)} {there}")
    wanted = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=list(targets)  # type: ignore[arg-type]
    )
    peft.inject_adapter_in_model(wanted, llm.model, adapter_name=ADAPTER)
    parameters = lora_parameters(llm)
    for parameter in llm.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    llm.model.eval()  # new layers are in train mode
    return list(parameters)


def lora_parameters(llm: LoadedLlm) -> dict[str, nn.Parameter]:
    """The adapters by their names in the LLM; {} where it has none."""
    parts = (f".lora_A.{ADAPTER}.", f".lora_B.{ADAPTER}.")
    return {name: parameter for name, parameter in llm.named_parameters() if any(part in name for part in parts)}


def set_lora_mode(llm: LoadedLlm, training: bool) -> None:
    """Dropout of the adapters on or off. `LoadedLlm.train` leaves everything in eval mode, so call this after it."""
    for name, module in llm.named_modules():
        if name.endswith(f".lora_dropout.{ADAPTER}"):
            module.train(training)


def merge_lora(llm: LoadedLlm) -> int:
    """Add the adapters to the weights that they adapt and take them out; returns the number of layers. The LLM then computes,
    up to rounding, what it did with them, at no cost, and is frozen as a whole."""
    return _take_out(llm, merge=True)


def save_lora(folder: str | Path, llm: LoadedLlm, config: LoraConfig) -> None:
    """Write the adapters, and nothing else of the LLM, into `folder` (made where absent) as peft reads them.

    Raises:
        ConfigError: the LLM has no adapters.
    """
    from safetensors.torch import save

    parameters = lora_parameters(llm)
    require(bool(parameters), "this LLM has no LoRA adapters to save")
    state = {_saved_name(name): parameter.detach().cpu().contiguous() for name, parameter in parameters.items()}
    targets = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in parameters})
    folder = Path(folder)
    with atomic_write(folder / WEIGHTS, "wb") as stream:
        stream.write(save(state, metadata={"format": "pt"}))
    write_json(folder / CONFIG, {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": config.rank, "lora_alpha": config.alpha,
        "lora_dropout": config.dropout, "target_modules": targets, "bias": "none",
    })


def load_lora(llm: LoadedLlm, folder: str | Path) -> LoraConfig:
    """Put adapters of `save_lora`, or of peft itself, into the LLM that they were made for; returns their configuration.

    Raises:
        CheckpointError: a file is missing, broken or of another kind of adapter, or a tensor does not fit the LLM.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG)
    tensors = _read_weights(folder / WEIGHTS)
    try:
        names = add_lora(llm, config)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: made for another LLM ({error})") from error
    parameters = lora_parameters(llm)
    expected = {_saved_name(name): parameters[name] for name in names}
    wrong = [name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape]
    for what, odd in (
        ("missing", expected.keys() - tensors.keys()), ("surplus", tensors.keys() - expected.keys()),
        ("of another shape", wrong),
    ):
        if odd:
            _take_out(llm, merge=False)
            raise CheckpointError(f"{folder / WEIGHTS}: {len(odd)} tensors {what}, first {min(odd)}; made for another LLM")
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(tensors[name])
    return config


def _take_out(llm: LoadedLlm, merge: bool) -> int:
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = [(name, module) for name, module in llm.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, module in found:
        if merge:
            module.merge(safe_merge=True)
        parent, _, leaf = name.rpartition(".")
        setattr(llm.get_submodule(parent), leaf, module.get_base_layer())
    llm.requires_grad_(False)
    return len(found)


def _linear_names(llm: LoadedLlm) -> list[str]:
    names = {name.rpartition(".")[2] for name, module in llm.model.named_modules() if isinstance(module, nn.Linear)}
    return sorted(names - {"lm_head"})


def _find_attention(llm: LoadedLlm) -> tuple[str, ...]:
    layers = set(_linear_names(llm))
    for names in ATTENTION:
        if layers.issuperset(names):
            return names
    raise ConfigError(f"lora.targets: attention of {llm.family} has unknown names; choose among {', '.join(sorted(layers))}")


def _saved_name(name: str) -> str:
    """`model.transformer...lora_A.default.weight` of `LoadedLlm` -> the name in peft's files."""
    return SAVED_PREFIX + name.removeprefix("model.").replace(f".{ADAPTER}.", ".")


def _read_config(path: Path) -> LoraConfig:
    try:
        value = read_json(path)
    except DataError as error:
        raise CheckpointError(f"{error}; a folder of LoRA adapters holds {CONFIG} and {WEIGHTS}") from error
    kind = value.get("peft_type") if isinstance(value, dict) else None
    if kind != "LORA":
        raise CheckpointError(f"{path}: peft_type {kind}, only LORA is read")
    odd = [key for key in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out") if value.get(key)]
    if odd or value.get("bias", "none") != "none" or not isinstance(value.get("target_modules"), list):
        raise CheckpointError(f"{path}: a LoRA of a form that is not read ({', '.join(odd) or 'bias or target_modules'})")
    try:
        return LoraConfig(int(value["r"]), float(value["lora_alpha"]), float(value["lora_dropout"]), value["target_modules"])
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{path}: not a configuration of LoRA ({first_line(error)})") from error


def _read_weights(path: Path) -> Mapping[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be loaded ({first_line(error)})") from error
