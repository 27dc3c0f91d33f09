"""The authors' checkpoints: numbers of the release, stale parameters, several files in any order."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from originals import (
    EYE,
    HEADS,
    LLM,
    QUERIES,
    WIDTH,
    apply_linear,
    ask,
    c_former_weights,
    chance,
    hear,
    linear_weights,
    norm_weights,
    qformer_weights,
)  # fmt: skip

from xllm_speech.base.errors import CheckpointError, ConfigError
from xllm_speech.interfaces.base import Adapter
from xllm_speech.interfaces.build import build_interfaces
from xllm_speech.interfaces.config import InterfacesConfig, QFormerConfig
from xllm_speech.interfaces.vision import ClipFeatures
from xllm_speech.models.checkpoints import load_foreign
from xllm_speech.models.foreign.report import ForeignReport
from xllm_speech.records import Memory

NOISE = "opt_model.transformer.layers.3.attention.rotary_emb.inv_freq"


def released(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    """The four files, with what each of them holds beside what it trained."""
    torch.manual_seed(seed)
    noise = {NOISE: torch.ones(4)}
    image = qformer_weights() | linear_weights("opt_proj", LLM, WIDTH) | noise
    video = {"video_query_tokens": chance(1, QUERIES, WIDTH), "query_tokens": chance(1, QUERIES, WIDTH)}
    video |= linear_weights("video_proj", LLM, WIDTH) | linear_weights("opt_proj", LLM, WIDTH) | noise
    speech = c_former_weights() | {"query_tokens": chance(1, QUERIES, WIDTH)} | norm_weights("ln_vision", EYE) | noise
    stage3 = {"query_tokens": chance(1, QUERIES, WIDTH), "video_query_tokens": chance(1, QUERIES, WIDTH)}
    for name in ("opt_proj", "video_proj", "post_bert_proj"):
        stage3 |= linear_weights(name, LLM, WIDTH)
    return {"image": image, "video": video, "speech": speech, "stage3": stage3}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    made = {}
    for name, weights in released().items():
        made[name] = tmp_path / f"{name}.pth"
        torch.save({"model": weights, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "config": {"run": {"lr": 1e-5}},
                    "scaler": {"scale": 1.0}, "epoch": 4}, made[name])  # fmt: skip
    return made


def configured(report: ForeignReport) -> InterfacesConfig:
    """The configuration that the report asks for."""
    config = InterfacesConfig()
    config.image.qformer = QFormerConfig(heads=HEADS, width=WIDTH)
    config.speech.heads = HEADS
    for name, value in report.settings.items():
        target: object = config
        *way, last = name.split(".")
        for step in way[1:]:
            target = vars(target)[step]
        if way:
            assert last in vars(target), name
            setattr(target, last, value)
    return config


@torch.no_grad()
def check_numbers(state: dict[str, torch.Tensor], report: ForeignReport, final: bool) -> None:
    weights = released()
    interfaces = torch.nn.ModuleDict(build_interfaces(configured(report), int(report.settings["llm_width"]))).eval()
    interfaces.load_state_dict(state)
    trained = {"opt_proj": "image", "video_proj": "video", "post_bert_proj": "speech"}
    adapters = {name: weights["stage3" if final else kind] for name, kind in trained.items()}
    queries = {name: weights["stage3" if final else kind][name][0]
               for name, kind in (("query_tokens", "image"), ("video_query_tokens", "video"))}
    features = torch.randn(3, 6, EYE, generator=torch.Generator().manual_seed(5))
    memory = Memory(features, torch.tensor([6, 6, 6]))
    found = interfaces["image"](memory).x_NQH
    clip = interfaces["video"](ClipFeatures(memory, torch.tensor([3]))).x_NQH[0].split(QUERIES)
    for row in range(3):
        asked = ask(weights["image"], features[row], queries["query_tokens"])
        torch.testing.assert_close(found[row], apply_linear(adapters["opt_proj"], "opt_proj", asked), atol=2e-5, rtol=0)
        asked = ask(weights["image"], features[row], queries["video_query_tokens"])
        torch.testing.assert_close(clip[row], apply_linear(adapters["video_proj"], "video_proj", asked), atol=2e-5, rtol=0)
    units = torch.randn(9, 7, generator=torch.Generator().manual_seed(6))
    heard = interfaces["speech"](Memory(units[None], torch.tensor([9]))).x_NQH[0]
    last = {name: value for name, value in adapters["post_bert_proj"].items() if name.startswith("post_bert_proj")}
    expected = hear(weights["speech"] | last, units)
    assert (expected == 0).any()  # the ReLU did something
    torch.testing.assert_close(heard, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("order", list(itertools.permutations(("image", "video", "speech")))[::2])
def test_three_files_in_any_order_give_the_numbers_of_the_release(order: tuple[str, ...], files: dict[str, Path]) -> None:
    state, report = load_foreign([files[name] for name in order], layout="xllm")
    check_numbers(state, report, final=False)
    assert report.missing == {}
    stale = {"speech": ("query_tokens", "ln_vision.bias"), "video": ("query_tokens", "opt_proj.bias")}
    for kind, names in stale.items():
        for name in names:
            assert f"not trained in a {kind} checkpoint" in report.ignored[f"{kind}.pth: {name}"]
    assert "LLM computes it" in report.ignored[f"image.pth: {NOISE}"]
    assert report.settings["interfaces.speech.activation"] == "relu"
    assert report.settings["interfaces.speech.projection_activation"] == "relu"
    assert report.settings["interfaces.image.activation"] == report.settings["interfaces.video.activation"] == "none"
    accounted = {*report.used, *report.ignored}
    assert accounted == {f"{kind}.pth: {name}" for kind in order for name in released()[kind]}


def test_stage_3_comes_last_wherever_it_is_named(files: dict[str, Path]) -> None:
    state, report = load_foreign([files["stage3"], files["speech"], files["image"], files["video"]], layout="xllm")
    check_numbers(state, report, final=True)
    assert report.ignored["image.pth: opt_proj.weight"] == "trained further in stage3.pth"
    assert "image.pth: opt_proj.weight" not in report.used
    assert report.used["stage3.pth: post_bert_proj.bias"] == ["speech.adapter.bias"]


def test_files_of_one_name_stay_apart(files: dict[str, Path], tmp_path: Path) -> None:
    moved = []
    for kind in ("image", "video"):
        (tmp_path / kind).mkdir()
        moved.append(files[kind].rename(tmp_path / kind / "checkpoint_4.pth"))
    _, report = load_foreign(moved, layout="xllm")
    assert f"{moved[0]}: query_tokens" in report.used
    assert f"{moved[1]}: query_tokens" in report.ignored


def test_single_files(files: dict[str, Path]) -> None:
    state, report = load_foreign(files["image"], layout="xllm")
    assert {name.split(".")[0] for name in state} == {"image"}
    assert report.missing == {}
    state, report = load_foreign(files["video"], layout="xllm")
    assert sorted(state) == ["video.adapter.bias", "video.adapter.weight", "video.querying.queries"]
    assert set(report.missing) == {"video.querying.qformer.*", "video.querying.ln_vision.*"}
    state, report = load_foreign(files["speech"], layout="xllm")
    assert {name.split(".")[0] for name in state} == {"speech"}
    assert "units do not need" in report.ignored["speech_bert_adaptor.pooler.dense.bias"]
    state, report = load_foreign(files["stage3"], layout="xllm")
    assert "speech.projection.*" in report.missing
    assert "image.querying.qformer.*" in report.missing
    assert set(state) == {f"{kind}.adapter.{part}" for kind in ("image", "video", "speech") for part in ("weight", "bias")} | {
        "image.querying.queries", "video.querying.queries"
    }


def test_a_merged_file_is_used_whole_with_a_warning(tmp_path: Path) -> None:
    weights = released()
    torch.save({"model": {**weights["speech"], **weights["video"], **weights["image"]}}, tmp_path / "new.pth")
    state, report = load_foreign(tmp_path / "new.pth", layout="xllm")
    check_numbers(state, report, final=False)
    assert any("merged" in note for note in report.notes)


@torch.no_grad()
def test_the_linear_speech_interface_of_the_release(tmp_path: Path) -> None:
    weights = linear_weights("speech_feat_proj", LLM, 7) | {"query_tokens": chance(1, 2, 3)}
    torch.save({"model": weights}, tmp_path / "speech.pth")
    state, report = load_foreign(tmp_path / "speech.pth", layout="xllm")
    adapter = Adapter(7, LLM, str(report.settings["interfaces.speech.activation"]))
    adapter.load_state_dict({name.removeprefix("speech.adapter."): value for name, value in state.items()})
    x = torch.randn(4, 7)
    torch.testing.assert_close(adapter(x), apply_linear(weights, "speech_feat_proj", x).relu())
    assert any("one linear layer" in note for note in report.notes)
    assert report.missing == {}


@pytest.mark.parametrize(("kind", "lost"), [
    ("image", "opt_proj.weight"), ("video", "video_proj.bias"), ("speech", "post_bert_proj.weight"),
    ("speech", "speech_bert_adaptor.encoder.layer.1.output.LayerNorm.bias"), ("stage3", "opt_proj.weight"),
])  # fmt: skip
def test_a_file_that_lacks_what_it_must_hold(kind: str, lost: str, tmp_path: Path) -> None:
    weights = released()[kind]
    del weights[lost]
    torch.save({"model": weights}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=rf"x\.pth: {lost} is missing .*layout xllm must hold it".replace("[", r"\[")):
        load_foreign(tmp_path / "x.pth", layout="xllm")


def test_other_files_and_layouts_are_refused(tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.ones(2)}}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="holds nothing of an X-LLM"):
        load_foreign(tmp_path / "x.pth", layout="xllm")
    with pytest.raises(ConfigError, match="layout: `llava` is not one of lavis, blip2-hf, xllm"):
        load_foreign(tmp_path / "x.pth", layout="llava")
    with pytest.raises(ConfigError, match="layout lavis: one file or folder is needed, 2 given"):
        load_foreign([tmp_path / "x.pth"] * 2, layout="lavis")
