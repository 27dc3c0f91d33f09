"""Our conformer and ESPnet's compute the same from the same weights."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("espnet2", reason="ESPnet is not installed")

from espnet2.asr.encoder.conformer_encoder import ConformerEncoder as EspnetEncoder

from xllm_speech.base.errors import CheckpointError
from xllm_speech.encoders.conformer import ConformerEncoder
from xllm_speech.models.asr_config import EncoderConfig
from xllm_speech.models.foreign.load import load_foreign
from xllm_speech.neighbours.espnet_weights import espnet_settings, from_espnet, scale_frontend, to_espnet
from xllm_speech.nn.subsampling import max_pool_halves
from xllm_speech.records import FbankBatch

CONFIG = EncoderConfig(
    bins=20, channels=4, width=24, heads=3, feedforward=40, kernel=5, blocks=3, pool_after=[1, 2], dropout=0.0,
    position="relative", conv_norm="batch",
)


def make_ours(config: EncoderConfig = CONFIG, pool_after: tuple[int, ...] = (), **changes: object) -> ConformerEncoder:
    values = {
        "bins": config.bins, "channels": config.channels, "width": config.width, "heads": config.heads,
        "feedforward": config.feedforward, "kernel": config.kernel, "blocks": config.blocks, "dropout": 0.0,
        "position": config.position, "conv_norm": config.conv_norm, **changes,
    }
    return ConformerEncoder(pool_after=pool_after, **values)  # type: ignore[arg-type]


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Every weight and every statistic away from its initial value, in float64, in eval mode."""
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.2)
    return module.double().eval()


def with_eps(module: torch.nn.Module, eps: float) -> torch.nn.Module:
    for part in module.modules():
        if isinstance(part, torch.nn.LayerNorm):
            part.eps = eps
    return module


def test_both_encode_the_same_without_pooling() -> None:
    ours = with_eps(shaken(make_ours()), 1e-12)
    theirs = EspnetEncoder(**espnet_settings(CONFIG)).double().eval()
    missing, surplus = theirs.load_state_dict(to_espnet(ours.state_dict()), strict=False)
    assert surplus == []
    assert missing == []
    fbank = FbankBatch(torch.randn(1, 57, CONFIG.bins, dtype=torch.float64), torch.tensor([57]))
    with torch.no_grad():
        found = ours(fbank)
        # ESPnet's encoder multiplies by the root of the width: its front-end gets the inverse.
        front = make_ours().double().eval().frontend
        scaled = scale_frontend(ours.state_dict(), CONFIG.width, to="espnet")
        front.load_state_dict({k.removeprefix("frontend."): v for k, v in scaled.items() if k.startswith("frontend.")})
        x_BLD, lens_B = front(fbank.x_BTF, fbank.lens_B)
        expected, expected_lens, _ = theirs(x_BLD, lens_B)
        unscaled, *_ = theirs(ours.frontend(fbank.x_BTF, fbank.lens_B)[0], lens_B)
    assert found.lens_B.tolist() == expected_lens.tolist()
    # Positions are computed in float32 by both, which bounds the agreement.
    assert (found.x_BSD - expected).abs().max() < 1e-6
    assert (found.x_BSD - unscaled).abs().max() > 1e-2


def test_as_shipped_the_difference_is_that_of_the_norms_epsilon() -> None:
    torch.manual_seed(0)
    ours = make_ours(width=64, heads=4, feedforward=128, blocks=6).eval()
    config = EncoderConfig(width=64, heads=4, feedforward=128, blocks=6, pool_after=[1, 2], kernel=5, dropout=0.0)
    theirs = EspnetEncoder(**espnet_settings(config))
    theirs.load_state_dict(to_espnet(ours.state_dict()))
    x_BLD = torch.randn(1, 40, 64)
    with torch.no_grad():
        expected, *_ = theirs.eval()(x_BLD / 8.0, torch.tensor([40]))
        for block in ours.blocks:
            x_BLD = block(x_BLD, torch.ones(1, 40, dtype=torch.bool), None)
        difference = (ours.norm(x_BLD) - expected).abs().max()
    assert difference < 1e-4


def test_both_encode_the_same_with_pooling_between_stacks() -> None:
    ours = with_eps(shaken(make_ours(pool_after=(1, 2))), 1e-12)
    names = to_espnet(ours.state_dict())
    fbank = FbankBatch(torch.randn(1, 61, CONFIG.bins, dtype=torch.float64), torch.tensor([61]))
    with torch.no_grad():
        expected = ours(fbank).x_BSD
        x_BLD, lens_B = ours.frontend(fbank.x_BTF, fbank.lens_B)
        for number in range(3):
            stack = EspnetEncoder(**{**espnet_settings(CONFIG), "num_blocks": 1}).double().eval()
            # Between stacks there is neither a factor nor a norm.
            if number < 2:
                stack.after_norm = torch.nn.Identity()
            own = {k.replace(f"encoders.{number}.", "encoders.0."): v for k, v in names.items() if f"encoders.{number}." in k}
            own |= {k: v for k, v in names.items() if k.startswith("after_norm.") and number == 2}
            stack.load_state_dict(own)
            x_BLD, lens_B, _ = stack(x_BLD / CONFIG.width**0.5, lens_B)
            if number < 2:
                x_BLD, lens_B = max_pool_halves(x_BLD, lens_B)
    assert (x_BLD - expected).abs().max() < 1e-6


def test_there_and_back_is_the_same() -> None:
    state = {name: t for name, t in shaken(make_ours()).state_dict().items() if not name.startswith("frontend.")}
    back = from_espnet(to_espnet(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_files_of_espnet_are_read_the_same_way(tmp_path) -> None:
    theirs = EspnetEncoder(**espnet_settings(CONFIG))
    torch.save({f"encoder.{name}": tensor for name, tensor in theirs.state_dict().items()}, tmp_path / "valid.acc.best.pth")
    state, report = load_foreign(tmp_path / "valid.acc.best.pth", layout="espnet")
    direct = from_espnet(theirs.state_dict())
    assert state.keys() == {f"encoder.{name}" for name in direct}
    assert all(torch.equal(state[f"encoder.{name}"], tensor) for name, tensor in direct.items())
    assert report.settings["encoder.position"] == "relative"


def test_padding_changes_espnets_result_and_not_ours() -> None:
    ours = shaken(make_ours())
    theirs = EspnetEncoder(**espnet_settings(CONFIG)).double().eval()
    theirs.load_state_dict(to_espnet(ours.state_dict()))
    x_BTF = torch.randn(2, 60, CONFIG.bins, dtype=torch.float64)
    x_BTF[1, 40:] = 0
    lens_B = torch.tensor([60, 40])
    with torch.no_grad():
        alone, together = ours(FbankBatch(x_BTF[1:, :40], lens_B[1:])).x_BSD, ours(FbankBatch(x_BTF, lens_B)).x_BSD
        assert (alone[0] - together[1, :20]).abs().max() < 1e-9
        x_BLD, steps_B = ours.frontend(x_BTF, lens_B)
        their_alone, *_ = theirs(x_BLD[1:, :20], steps_B[1:])
        their_together, *_ = theirs(x_BLD, steps_B)
        assert (their_alone[0] - their_together[1, :20]).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"position": "rope"}, "position: relative"), ({"conv_norm": "layer"}, "conv_norm: batch"),
     ({"final_norm": False}, "final_norm: true")],
)
def test_what_espnet_has_no_place_for_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        to_espnet(make_ours(**changes).state_dict())


def test_an_unknown_layer_is_named() -> None:
    state = EspnetEncoder(**espnet_settings(CONFIG)).state_dict()
    with pytest.raises(CheckpointError, match=r"conditioning_layer\.weight: no place"):
        from_espnet({**state, "conditioning_layer.weight": torch.zeros(1)})
    state.pop("encoders.1.self_attn.linear_k.bias")
    with pytest.raises(CheckpointError, match=r"encoders\.1\.self_attn\.linear_k\.bias is missing"):
        from_espnet(state)
