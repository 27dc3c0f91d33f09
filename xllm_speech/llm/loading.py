"""Loading a frozen LLM from a local folder: ChatGLM natively, any other causal LM through `transformers` (system.md 3)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from xllm_speech.base.config import require_choice
from xllm_speech.base.errors import CheckpointError, ConfigError, DataError, MissingDependency, first_line
from xllm_speech.base.files import read_json
from xllm_speech.base.quiet import quiet_transformers
from xllm_speech.llm.chatglm_config import ChatGLMConfig
from xllm_speech.llm.chatglm_model import ChatGLMForConditionalGeneration
from xllm_speech.llm.chatglm_tokenizer import VOCABULARY_FILE, ChatGLMTokenizer
from xllm_speech.llm.framing import ChatGLMFraming, TemplateFraming
from xllm_speech.llm.loaded import LoadedLlm
from xllm_speech.nn.device import choose_device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTIZATIONS = ("none", "8bit", "4bit")


def load_llm(path: str | Path, dtype: str = "auto", device: str = "cpu", quantization: str = "none") -> LoadedLlm:
    """The model and tokenizer of a folder, frozen and in eval mode; nothing is fetched and no code of the folder runs.

    Args:
        path: a Hugging Face folder; the official one of ChatGLM-6B as it is. dtype: float32 | bfloat16 | float16 | auto
            (that of the stored weights). device: as for `choose_device`. quantization: none | 8bit | 4bit (weights only;
            bitsandbytes and a CUDA device are needed).

    Raises:
        CheckpointError: the folder is absent, incomplete or of a kind that is not supported. ConfigError: an unknown
        choice. MissingDependency: quantization is asked for where it cannot run.
    """
    folder = Path(path)
    require_choice("dtype", dtype, ("auto", *DTYPES))
    require_choice("quantization", quantization, QUANTIZATIONS)
    place = choose_device(device)
    described = _describe(folder)
    options: dict[str, Any] = {"dtype": DTYPES.get(dtype, "auto"), **_quantized(quantization, place)}
    if described.get("model_type") == "chatglm":
        llm = _load_chatglm(folder, described, options)
    else:
        llm = _load_causal(folder, options)
    return llm if quantization != "none" else llm.to(place)


def _describe(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; a language model with its config.json is needed there")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: not a language model (holds no config.json)")
    try:
        described = read_json(folder / "config.json")
    except DataError as error:
        raise CheckpointError(f"{folder}: not a language model ({first_line(error)})") from error
    if not isinstance(described, dict):
        raise CheckpointError(f"{folder / 'config.json'}: expected a JSON object, found {type(described).__name__}")
    return described


def _quantized(quantization: str, place: torch.device) -> dict[str, Any]:
    if quantization == "none":
        return {}
    if place.type != "cuda":
        raise MissingDependency(f"quantization {quantization} runs on CUDA only, the device is {place}; set quantization=none")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependency(f"quantization {quantization} needs bitsandbytes: pip install bitsandbytes")
    from transformers import BitsAndBytesConfig

    wanted = BitsAndBytesConfig(
        load_in_8bit=quantization == "8bit", load_in_4bit=quantization == "4bit", bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=["lm_head"],
    )
    return {"quantization_config": wanted, "device_map": {"": place.index or 0}}


def _load_weights(model_class: Any, folder: Path, options: dict[str, Any]) -> Any:
    """`from_pretrained`, strictly: transformers itself fills what a folder lacks with chance values."""
    try:
        with quiet_transformers():
            model, found = model_class.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, output_loading_info=True,
                ignore_mismatched_sizes=True, **options,
            )
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    except Exception as error:  # safetensors and pickle have errors of their own, wrong numbers give any
        raise CheckpointError(f"{folder}: cannot be loaded as a language model ({first_line(error)})") from error
    if lost := sorted(found["missing_keys"]):
        raise CheckpointError(f"{folder}: {len(lost)} weights are missing, among them {lost[0]}; get the folder anew")
    if unfit := sorted(found["mismatched_keys"]):
        key, stored, wanted = unfit[0]
        raise CheckpointError(
            f"{folder}: {len(unfit)} weights do not fit its config.json, among them {key}: {list(stored)} stored, "
            f"{list(wanted)} described"
        )
    return model


def _load_chatglm(folder: Path, described: dict[str, Any], options: dict[str, Any]) -> LoadedLlm:
    if "inner_hidden_size" not in described:  # ChatGLM2 and 3 go by the same model_type
        raise CheckpointError(
            f"{folder}: a ChatGLM, but not ChatGLM-6B of the first generation; of later ones take the folders that "
            "transformers carries itself, such as glm-4-9b-chat-hf"
        )
    if not (folder / VOCABULARY_FILE).is_file():
        raise CheckpointError(f"{folder}: holds no {VOCABULARY_FILE}, the vocabulary of ChatGLM-6B")
    model = _load_weights(ChatGLMForConditionalGeneration, folder, options)
    config: ChatGLMConfig = model.config
    with quiet_transformers():
        tokenizer = ChatGLMTokenizer.from_pretrained(
            str(folder), local_files_only=True, num_image_tokens=config.image_token_count
        )
    ids = config.special_ids
    pieces = {"sop": "<sop>", "eop": "<eop>", "pad": "<pad>", "mask": "[MASK]", "gmask": "[gMASK]"}
    for name, piece in pieces.items():
        found, expected = tokenizer.convert_tokens_to_ids(piece), ids._asdict()[name]
        if found != expected:
            raise CheckpointError(f"{folder}: {piece} has id {found} in {VOCABULARY_FILE} but {expected} in config.json")
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{folder}: {VOCABULARY_FILE} has {tokenizer.vocab_size} ids, config.json a vocab_size of {config.vocab_size}"
        )
    return LoadedLlm(
        model, tokenizer, "chatglm", ChatGLMFraming(ids.gmask, ids.sop, ids.eop), pad_id=ids.pad,
        filler_id=int(tokenizer.unk_token_id), max_length=config.max_sequence_length,
    )


def _load_causal(folder: Path, options: dict[str, Any]) -> LoadedLlm:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = _load_weights(AutoModelForCausalLM, folder, options)
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a missing or broken file of any of its formats
        raise CheckpointError(f"{folder}: its tokenizer cannot be loaded ({first_line(error)})") from error
    text_config = model.config.get_text_config()
    stops = [model.generation_config.eos_token_id, text_config.eos_token_id]
    ends = [index for stop in stops if stop is not None for index in (stop if isinstance(stop, list) else [stop])]
    framing = TemplateFraming(tokenizer, ends, str(folder))
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    if len(tokenizer) > vocabulary:
        raise CheckpointError(f"{folder}: its tokenizer has {len(tokenizer)} ids, its embedding {vocabulary}")
    pad = framing.answer_end_id if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
    filler = pad if tokenizer.unk_token_id is None else int(tokenizer.unk_token_id)
    longest = text_config.max_position_embeddings
    return LoadedLlm(
        model, tokenizer, str(model.config.model_type), framing, pad_id=pad, filler_id=filler, max_length=int(longest)
    )
