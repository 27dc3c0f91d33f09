"""Whole models as Hugging Face folders: BLIP-2, and ChatGLM-6B in its official form."""

from __future__ import annotations

from pathlib import Path

import torch

from xllm_speech.base.errors import CheckpointError
from xllm_speech.base.safe_load import read_tensors
from xllm_speech.encoders.pretrained import describe_pretrained
from xllm_speech.llm import ChatGLMConfig, ChatGLMForConditionalGeneration
from xllm_speech.llm.chatglm_tokenizer import VOCABULARY_FILE
from xllm_speech.models.foreign.blip2 import HUGGING_FACE, take_blip2
from xllm_speech.models.foreign.intake import Intake
from xllm_speech.models.foreign.report import ForeignReport

HEAD, EMBEDDING = "lm_head.weight", "transformer.word_embeddings.weight"


def read_blip2_hf(path: str | Path, report: ForeignReport) -> dict[str, torch.Tensor]:
    """`image.*` and `vision.*` of a BLIP-2 folder, and `pretraining.*` of one for retrieval.

    Raises:
        CheckpointError: the folder is no BLIP-2, or not a whole one.
    """
    folder = Path(path)
    described = describe_pretrained(folder, "BLIP-2", ("blip-2",))
    intake = Intake(str(path), read_tensors(folder), report)
    state = take_blip2(intake, HUGGING_FACE)
    part = described.get("qformer_config")
    heads = part.get("num_attention_heads") if isinstance(part, dict) else None
    if type(heads) is int:
        report.settings["interfaces.image.qformer.heads"] = heads
    report.notes.append("ln_vision is computed with eps 1e-5, as the weights were trained; transformers itself takes 1e-6")
    return state


def read_chatglm(path: str | Path, report: ForeignReport) -> dict[str, torch.Tensor]:
    """A check of an official folder of ChatGLM-6B (v1) against its config.json; names stay as they are.

    Raises:
        CheckpointError: another model, quantised weights, or a weight that is missing or of another shape.
    """
    folder = Path(path)
    described = describe_pretrained(folder, "ChatGLM-6B", ("chatglm",))
    if "inner_hidden_size" not in described:
        raise CheckpointError(f"{folder}: a ChatGLM, but not ChatGLM-6B of the first generation (no inner_hidden_size)")
    intake = Intake(str(path), read_tensors(folder), report)
    layers = described.get("num_layers")
    if not (isinstance(layers, int) and layers <= len(intake.tensors)):
        raise CheckpointError(f"{folder}: num_layers {layers!r} in config.json, but {len(intake.tensors)} tensors in all")
    model = intake.build(lambda: ChatGLMForConditionalGeneration(ChatGLMConfig(**described)))
    tied = HEAD not in intake and model.config.tie_word_embeddings
    intake.take_module("", model, lambda name: name, skip=lambda name: tied and name == HEAD)
    if tied:
        report.missing[HEAD] = f"shares the weights of {EMBEDDING}"
    if not (folder / VOCABULARY_FILE).is_file():
        report.notes.append(f"{VOCABULARY_FILE}, the vocabulary, is missing: the folder cannot be used as an LLM without it")
    report.notes.append("the folder is loaded as it stands (model.llm.path); it needs no conversion")
    report.settings |= {"llm.path": str(path), "llm_width": model.config.hidden_size}
    intake.ignore("computed, not learnt", r".*rotary_emb\.inv_freq")
    return intake.finish()
