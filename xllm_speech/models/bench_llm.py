"""Benchmarks of the interfaces and of ChatGLM, each beside a reference of the same size in the same run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from xllm_speech.interfaces.build import build_interface
from xllm_speech.interfaces.config import ImageInterfaceConfig, InterfacesConfig, QFormerConfig, SpeechInterfaceConfig
from xllm_speech.llm.chatglm_config import ChatGLMConfig
from xllm_speech.llm.chatglm_model import ChatGLMForConditionalGeneration
from xllm_speech.models.bench import measure_peak, time_in_turn
from xllm_speech.records import Memory

VOCABULARY = 4096  # of the benchmark's ChatGLM: its table weighs little beside its layers


def bench_interfaces(
    kind: str, items: int, layers: int, repeats: int, device: str, width: int = 768, llm_width: int = 4096
) -> dict[str, Any]:
    """Forward and backward of the image or the speech interface, beside the same weights with unfused attention.

    Args:
        kind: image (257 tokens of width 1408 each) | speech (16 to 64 units of width 512 each). layers, width: of the
            transformer; heads of width 64.
    """
    heads, feedforward = width // 64, width * 4
    qformer = QFormerConfig(width=width, layers=layers, heads=heads, feedforward=feedforward, dropout=0.0)
    config = InterfacesConfig(
        image=ImageInterfaceConfig(qformer),
        speech=SpeechInterfaceConfig(width=width, layers=layers, heads=heads, feedforward=feedforward, dropout=0.0),
    )
    torch.manual_seed(0)
    ours = build_interface(kind, config, llm_width).to(device)
    plain = copy.deepcopy(ours)
    inner: Any = plain.querying.qformer if kind == "image" else plain.transformer  # type: ignore[union-attr]
    inner.set_attn_implementation("eager")
    if kind == "image":
        features = Memory(torch.randn(items, 257, 1408), torch.full((items,), 257))
    else:
        lens_N = torch.linspace(16, 64, items).long()
        features = Memory(torch.randn(items, int(lens_N.max()), 512), lens_N)
    features = features.to(device)

    def step(interface: torch.nn.Module) -> Callable[[], None]:
        def call() -> None:
            interface.zero_grad(set_to_none=True)
            interface(features).x_NQH.square().mean().backward()

        return call

    with torch.no_grad():
        gap = float((ours(features).x_NQH - plain(features).x_NQH).abs().max())
    runs = {"ours": step(ours), "eager": step(plain)}
    timed = time_in_turn(runs, repeats, device)
    return {
        "bench": "interfaces", "kind": kind, "items": items, "layers": layers, "device": device,
        "threads": torch.get_num_threads(), "parameters": sum(p.numel() for p in ours.parameters()),
        "ours_sec": timed["ours"], "eager_sec": timed["eager"], "ratio": timed["eager"] / timed["ours"],
        "largest_difference": gap, "peak_mib": measure_peak(runs["ours"], device),
        "peak_eager_mib": measure_peak(runs["eager"], device),
    }


def bench_glm(
    batch: int, prompt: int, answer: int, width: int, layers: int, repeats: int, device: str
) -> dict[str, Any]:
    """Prompts read, and greedy answers written, by a ChatGLM by chance; beside transformers' Llama of the same layers, width
    and feed-forward size, and beside itself without its cache.
    """
    torch.manual_seed(0)
    heads = width // 64
    special: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "mask_token_id": 2, "gmask_token_id": 3, "pad_token_id": 4}
    glm: Any = ChatGLMForConditionalGeneration(ChatGLMConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_layers=layers, num_attention_heads=heads, inner_hidden_size=4 * width,
        max_sequence_length=prompt + answer + 2, **special,
    ))
    glm = glm.to(device).eval()
    llama = _make_llama(width, layers, heads, prompt + answer + 2).to(device).eval()
    ids_BL = torch.randint(5, VOCABULARY, (batch, prompt), device=device)
    ids_BL[:, -2], ids_BL[:, -1] = special["gmask_token_id"], special["bos_token_id"]
    mask_BL = torch.ones_like(ids_BL)

    @torch.no_grad()
    def read(model: Any) -> None:
        model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False)

    def write(model: Any, cached: bool = True) -> None:
        model.generate(
            input_ids=ids_BL, attention_mask=mask_BL, max_new_tokens=answer, min_new_tokens=answer, do_sample=False,
            use_cache=cached, pad_token_id=4,
        )

    timed = time_in_turn({
        "read": lambda: read(glm), "llama_read": lambda: read(llama), "write": lambda: write(glm),
        "llama_write": lambda: write(llama), "uncached": lambda: write(glm, cached=False),
    }, repeats, device)
    return {
        "bench": "glm", "shape": [batch, prompt, answer], "width": width, "layers": layers, "device": device,
        "threads": torch.get_num_threads(), "parameters": sum(p.numel() for p in glm.parameters()),
        "llama_parameters": sum(p.numel() for p in llama.parameters()),
        "read_sec": timed["read"], "llama_read_sec": timed["llama_read"], "ratio": timed["llama_read"] / timed["read"],
        "write_sec": timed["write"], "llama_write_sec": timed["llama_write"],
        "ratio_write": timed["llama_write"] / timed["write"],
        "uncached_sec": timed["uncached"], "ratio_cache": timed["uncached"] / timed["write"],
        "peak_mib": measure_peak(lambda: write(glm), device),
    }


def _make_llama(width: int, layers: int, heads: int, length: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    # Llama's gated feed-forward has three matrices, ChatGLM's two: of equal size in all at two thirds of the width.
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=8 * width // 3, max_position_embeddings=length, bos_token_id=0, eos_token_id=1, pad_token_id=4,
    ))
