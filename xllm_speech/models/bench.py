"""Benchmarks that print ratios against a reference timed in the same run, in turn, so that a busy machine slows both."""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from xllm_speech.base.errors import MissingDependency
from xllm_speech.cif import integrate_and_fire
from xllm_speech.cif.reference import integrate_by_loop, integrate_by_scatter
from xllm_speech.encoders.conformer import ConformerEncoder
from xllm_speech.models.asr_config import EncoderConfig
from xllm_speech.records import FbankBatch

MIB = 1 << 20


def time_in_turn(runs: dict[str, Callable[[], None]], repeats: int, device: str) -> dict[str, float]:
    """Median seconds of each run; A B C A B C ..., after one warm-up of each."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, call in runs.items():
            _synchronise(device)
            begin = time.perf_counter()
            call()
            _synchronise(device)
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def measure_peak(call: Callable[[], None], device: str) -> float | None:
    """Peak memory in MiB that `call` takes above what is held before it; None where the system does not tell."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    try:
        # Free pages go back first: what the allocator still holds would hide what the call needs.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = _status_bytes("VmRSS")
        call()
        return max(_status_bytes("VmHWM") - before, 0) / MIB
    except (OSError, AttributeError, KeyError):
        return None


def _status_bytes(name: str) -> int:
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(rows[name].split()[0]) * 1024


def bench_cif(batch: int, steps: int, width: int, rate: float, repeats: int, device: str) -> dict[str, Any]:
    """Forward and backward of integrate-and-fire in training form."""
    generator = torch.Generator().manual_seed(0)
    h_BSD = torch.randn(batch, steps, width, generator=generator).to(device).requires_grad_()
    alpha_BS = torch.rand(batch, steps, generator=generator).to(device).requires_grad_()
    lens_B = torch.randint(steps * 3 // 4, steps + 1, (batch,), generator=generator)
    lens_B[0] = steps
    lens_B = lens_B.to(device)
    target_lens_B = (lens_B * rate).long().clamp(min=1)

    def step(integrate: Callable[..., Any]) -> Callable[[], None]:
        def call() -> None:
            h_BSD.grad = alpha_BS.grad = None
            out = integrate(h_BSD, alpha_BS, lens_B, target_lens_B)
            units_BUD = out if isinstance(out, torch.Tensor) else out.units_BUD
            units_BUD.square().sum().backward()

        return call

    quick = {"ours": step(integrate_and_fire), "scatter": step(integrate_by_scatter)}
    seconds = time_in_turn(quick, repeats, device)
    begin = time.perf_counter()
    step(integrate_by_loop)()  # minutes at full size: once is enough
    _synchronise(device)
    loop_sec = time.perf_counter() - begin
    return {
        "bench": "cif",
        "shape": [batch, steps, width],
        "units": int(target_lens_B.sum()),
        "device": device,
        "threads": torch.get_num_threads(),
        "ours_sec": seconds["ours"],
        "scatter_sec": seconds["scatter"],
        "loop_sec": loop_sec,
        "ratio": loop_sec / seconds["ours"],
        "ratio_scatter": seconds["scatter"] / seconds["ours"],
        "peak_mib": measure_peak(quick["ours"], device),
        "peak_scatter_mib": measure_peak(quick["scatter"], device),
        "input_mib": h_BSD.numel() * 4 / MIB,
    }


def bench_asr(batch: int, seconds: float, position: str, repeats: int, device: str) -> dict[str, Any]:
    """Forward and backward of the paper's encoder, beside ESPnet2 conformers of the same size on the same batch.

    Two references: `pooled` has ESPnet's blocks with the same two max-pools between them, so that both encode the same
    lengths; `plain` is ESPnet's encoder as it is usually built, at a quarter of the frame rate throughout.
    """
    config = EncoderConfig(position=position)
    frames = int(seconds * 100)
    fbank = FbankBatch(
        torch.randn(batch, frames, config.bins, device=device),
        torch.linspace(frames * 0.75, frames, batch, device=device).round().long(),
    )
    ours = ConformerEncoder(
        bins=config.bins, channels=config.channels, width=config.width, heads=config.heads, feedforward=config.feedforward,
        kernel=config.kernel, blocks=config.blocks, pool_after=config.pool_after, dropout=config.dropout, position=position,
    ).to(device)
    networks: dict[str, torch.nn.Module] = {"ours": ours, **_espnet_encoders(config, device)}

    def step(network: torch.nn.Module) -> Callable[[], None]:
        def call() -> None:
            network.zero_grad(set_to_none=True)
            out = network(fbank) if network is ours else network(fbank.x_BTF, fbank.lens_B)
            x_BSD = out[0] if isinstance(out, tuple) else out.x_BSD
            x_BSD.square().mean().backward()

        return call

    timed = time_in_turn({name: step(network) for name, network in networks.items()}, repeats, device)
    return {
        "bench": "asr",
        "shape": [batch, frames, config.bins],
        "position": position,
        "device": device,
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in ours.parameters()),
        "ours_sec": timed["ours"],
        "espnet_pooled_sec": timed["espnet_pooled"],
        "espnet_plain_sec": timed["espnet_plain"],
        "ratio": timed["espnet_pooled"] / timed["ours"],
        "ratio_plain": timed["espnet_plain"] / timed["ours"],
    }


def _espnet_encoders(config: EncoderConfig, device: str) -> dict[str, torch.nn.Module]:
    try:
        from espnet2.asr.encoder.conformer_encoder import ConformerEncoder as EspnetConformer
    except ImportError as error:
        raise MissingDependency(
            f"bench asr compares with ESPnet2, which cannot be imported ({error}); "
            "install it with: pip install 'xllm-speech[espnet]'"
        ) from error
    common = {
        "output_size": config.width, "attention_heads": config.heads, "linear_units": config.feedforward,
        "dropout_rate": config.dropout, "positional_dropout_rate": config.dropout,
        "attention_dropout_rate": config.attention_dropout,
        "macaron_style": True, "rel_pos_type": "latest", "pos_enc_layer_type": "rel_pos",
        "selfattention_layer_type": "rel_selfattn", "activation_type": "swish", "use_cnn_module": True,
        "cnn_module_kernel": config.kernel,
    }
    third = config.blocks // 3
    pooled = _PooledEspnet(
        ConformerEncoder(config.bins, config.channels, config.width, config.heads, blocks=0, pool_after=()).frontend,
        [EspnetConformer(config.width, num_blocks=third, input_layer=None, **common) for _ in range(3)],
    )
    plain = EspnetConformer(config.bins, num_blocks=config.blocks, input_layer="conv2d", **common)
    return {"espnet_pooled": pooled.to(device), "espnet_plain": plain.to(device)}


class _PooledEspnet(torch.nn.Module):
    """Our front-end, then ESPnet's blocks in three groups with a max-pool by 2 between them."""

    def __init__(self, frontend: torch.nn.Module, groups: list[torch.nn.Module]) -> None:
        super().__init__()
        self.frontend, self.groups = frontend, torch.nn.ModuleList(groups)

    def forward(self, x_BTF: torch.Tensor, lens_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, T, F] -> [B, T / 8, D]."""
        x_BLD, lens_B = self.frontend(x_BTF, lens_B)
        for number, group in enumerate(self.groups):
            if number:
                x_BLD = torch.nn.functional.max_pool1d(x_BLD.transpose(1, 2), 2, ceil_mode=True).transpose(1, 2)
                lens_B = (lens_B + 1) // 2
            x_BLD, lens_B, _ = group(x_BLD, lens_B)
        return x_BLD, lens_B


def print_result(result: dict[str, Any], as_json: bool) -> None:
    """One JSON object, or a two-column table."""
    if as_json:
        print(json.dumps(result))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"bench {result['bench']}", show_header=False)
    for key, value in result.items():
        if key != "bench":
            table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console(file=sys.stdout).print(table)
