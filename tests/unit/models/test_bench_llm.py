"""Benchmarks of interfaces and ChatGLM: references of the same size that compute the same, and ratios that are theirs."""

from __future__ import annotations

import pytest

from xllm_speech.models.bench_llm import bench_glm, bench_interfaces


@pytest.mark.parametrize("kind", ["image", "speech"])
def test_the_reference_of_an_interface_computes_the_same(kind: str) -> None:
    result = bench_interfaces(kind, items=2, layers=2, repeats=1, device="cpu", width=64, llm_width=32)
    assert result["largest_difference"] < 1e-4
    assert result["ratio"] == pytest.approx(result["eager_sec"] / result["ours_sec"])


def test_the_reference_of_chatglm_is_of_its_size_and_the_cache_is_timed_too() -> None:
    result = bench_glm(batch=2, prompt=24, answer=6, width=64, layers=2, repeats=1, device="cpu")
    head = 4096 * 64  # Llama's is not tied to its embeddings
    assert result["llama_parameters"] - head == pytest.approx(result["parameters"], rel=0.02)
    assert result["ratio_cache"] == pytest.approx(result["uncached_sec"] / result["write_sec"])
    assert result["shape"] == [2, 24, 6]
