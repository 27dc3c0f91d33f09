"""Configuration and sizes."""

from __future__ import annotations

import pytest
import torch

from xllm_speech.base.config import config_from_dict
from xllm_speech.base.errors import ConfigError
from xllm_speech.interfaces.build import build_interface, build_interfaces
from xllm_speech.interfaces.config import KINDS, InterfacesConfig
from xllm_speech.interfaces.vision import ClipFeatures, VideoInterface
from xllm_speech.records import Memory

torch.set_num_threads(1)
SMALL_QFORMER = {"encoder_width": 6, "queries": 2, "width": 8, "layers": 2, "heads": 2, "feedforward": 16}
SMALL = {
    "kinds": list(KINDS),
    "image": {"qformer": SMALL_QFORMER},
    "speech": {"unit_width": 6, "width": 8, "layers": 1, "heads": 2, "feedforward": 16, "positions": 9},
    "audio": {"qformer": {**SMALL_QFORMER, "positions": 3}, "window_frames": 3},
    "terminal": {"encoder_width": 6, "activation": "relu"},
}


def numbers(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_sizes_of_the_paper() -> None:
    with torch.device("meta"):
        made = build_interfaces(InterfacesConfig(), 4096)
    assert list(made) == ["image", "video", "speech"]
    d, ffn, eye = 768, 3072, 1408
    norm = 2 * d
    attention = 4 * (d * d + d) + norm
    feedforward = d * ffn + ffn + ffn * d + d + norm
    cross = 2 * (d * d + d) + 2 * (eye * d + d) + norm
    qformer = 12 * (attention + feedforward) + 6 * cross + norm + 32 * d
    assert 105.1e6 < qformer < 105.2e6
    adapter = d * 4096 + 4096
    assert numbers(made["image"]) == numbers(made["video"]) == qformer + 2 * eye + adapter
    bert = 12 * (attention + feedforward) + 512 * d + 2 * d + norm  # layers, positions, two segment types, norm
    assert numbers(made["speech"]) == 512 * d + d + bert + adapter


def test_every_kind_is_built_as_configured() -> None:
    made = build_interfaces(config_from_dict(SMALL, InterfacesConfig), 10)
    assert [made[kind].kind for kind in KINDS] == list(KINDS) == list(made)
    assert {interface.llm_width for interface in made.values()} == {10}
    assert made["terminal"].adapter.activation == "relu"
    assert made["image"].adapter.activation == "none"
    assert len({interface.tag for interface in made.values()}) == len(KINDS)


def test_sharing_is_an_option() -> None:
    made = build_interfaces(config_from_dict({**SMALL, "video": {"share": True}}, InterfacesConfig), 10)
    assert set(made["video"].state_dict()) == {"adapter.weight", "adapter.bias"}
    video = made["video"]
    assert isinstance(video, VideoInterface)
    apart = build_interfaces(config_from_dict(SMALL, InterfacesConfig), 10)
    assert apart["video"].state_dict().keys() == apart["image"].state_dict().keys()


@pytest.mark.parametrize("kind", KINDS)
def test_of_no_item_come_no_slots_and_a_gradient_of_zeros(kind: str) -> None:
    interface = build_interface(kind, config_from_dict(SMALL, InterfacesConfig), 10)
    none = torch.zeros(0, dtype=torch.long)
    memory = Memory(torch.zeros(0, 3, 6), none)
    slots = interface(ClipFeatures(memory, none) if kind == "video" else memory)
    assert (slots.kind, len(slots.x_NQH), slots.x_NQH.shape[2], len(slots.lens_N)) == (kind, 0, 10, 0)
    slots.x_NQH.sum().backward()
    assert torch.equal(interface.adapter.weight.grad, torch.zeros_like(interface.adapter.weight))


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision_stays_near_full(kind: str) -> None:
    torch.manual_seed(0)
    interface = build_interface(kind, config_from_dict(SMALL, InterfacesConfig), 10).eval()
    memory = Memory(torch.randn(2, 3, 6), torch.tensor([3, 2]))
    given = ClipFeatures(memory, torch.tensor([2])) if kind == "video" else memory
    full = interface(given)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = interface(given)
    assert mixed.lens_N.tolist() == full.lens_N.tolist()
    torch.testing.assert_close(mixed.x_NQH.float(), full.x_NQH, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kinds": ["image", "smell"]}, "`smell` is not one of image, video, speech, audio, terminal"),
        ({"kinds": ["image", "image"]}, "a kind occurs twice"),
        ({"kinds": ["video"], "video": {"share": True}}, "no image interface to share with"),
        ({"image": {"activation": "tanh"}}, "`tanh` is not one of none, relu"),
        ({"image": {"qformer": {"query": 3}}}, "did you mean `image.qformer.queries`"),
        ({"image": {"qformer": {"heads": 5}}}, "not a multiple of heads 5"),
        ({"audio": {"window_frames": 5}}, "must be 0 or window_frames, 5"),
        ({"speech": {"positions": 0}}, "speech.positions 0 must be positive"),
    ],
)
def test_wrong_configuration_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config_from_dict(change, InterfacesConfig)


def test_an_unknown_kind_lists_the_choices() -> None:
    with pytest.raises(ConfigError, match="`smell` is not one of image"):
        build_interface("smell", InterfacesConfig(), 10)
    with pytest.raises(ConfigError, match="no image interface to share with"):
        build_interface("video", config_from_dict({"video": {"share": True}}, InterfacesConfig), 10)
