"""`xllm-speech train --config conf/..._paper.yaml --show` against the paper's Tables 5 and 7 and A.3, line by line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from xllm_speech.bin.main import main

TOP = Path(__file__).resolve().parents[2]

# Table 7: init. LR, min. LR, warm-up LR, warm-up steps, epochs, batch size, GPUs.
TABLE_7 = {
    "image": (3e-5, 1e-8, 1e-6, 6000, 5, 4, 8),
    "video": (1e-5, 1e-8, 1e-6, 200, 5, 2, 2),
    "speech": (1e-4, 1e-8, 1e-6, 6000, 30, 4, 8),
    "integrate": (1e-6, 1e-6, 1e-6, 0, 2, 2, 2),
}
# Table 5: examples of a pass.
TABLE_5 = {"image": 14_000_000, "video": 7_700, "speech": 1_000_000 + 370_000, "integrate": 10_000}


def show(capsys: pytest.CaptureFixture[str], path: Path, *words: str) -> dict[str, Any]:
    assert main(["train", "--config", str(path), "--show", *words]) == 0
    value = yaml.safe_load(capsys.readouterr().out)
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize("name", TABLE_7)
@pytest.mark.parametrize("folder", ["conf/{}_paper.yaml", "egs/vsdial_cn/conf/{}.yaml"])
def test_phases_2_and_3_are_tables_5_and_7(name: str, folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    value = show(capsys, TOP / folder.format(name))
    optim, train, data = value["optim"], value["train"], value["data"]
    assert (
        float(optim["lr"]), float(optim["min_lr"]), float(optim["init_lr"]), optim["warmup_steps"], train["max_epochs"],
        data["batch_size"], train["devices"],
    ) == TABLE_7[name]
    assert data["epoch_batches"] * data["batch_size"] == TABLE_5[name]
    assert value["task"] == ("integrate" if name == "integrate" else "align")
    # A.3
    assert (optim["betas"], optim["weight_decay"], optim["schedule"]) == ([0.9, 0.98], 0.05, "cosine")
    assert (train["accumulate"], data["image_augment"]["flip"], train["max_steps"]) == (16, 0.5, 0)
    assert data["image_augment"]["crop_scale"] < 1
    steps = train["max_epochs"] * TABLE_5[name] / (data["batch_size"] * train["devices"] * train["accumulate"])
    assert abs(optim["warmup_steps"] + optim["hold_steps"] + optim["decay_steps"] - steps) <= 1


def test_the_interfaces_are_those_of_a3(capsys: pytest.CaptureFixture[str]) -> None:
    model = show(capsys, TOP / "conf/integrate_paper.yaml")["model"]
    qformer, speech = model["interfaces"]["image"]["qformer"], model["interfaces"]["speech"]
    bert = {"width": 768, "layers": 12, "heads": 12, "feedforward": 3072}
    assert {key: qformer[key] for key in bert} == {key: speech[key] for key in bert} == bert
    assert (qformer["queries"], qformer["cross_attention_every"], qformer["encoder_width"]) == (32, 2, 1408)
    assert {model["interfaces"][kind]["activation"] for kind in ("image", "video", "speech")} == {"none"}
    assert (model["encoders"]["vision"]["kind"], speech["unit_width"]) == ("eva", 512)
    image = show(capsys, TOP / "conf/image_paper.yaml")["start"]
    assert image["layout"] == "lavis"
    assert "opt6.7b" in image["weights"]
    assert show(capsys, TOP / "conf/speech_paper.yaml")["start"]["bert"].endswith("bert-base-chinese")
    assert show(capsys, TOP / "conf/video_paper.yaml")["parents"] == {"image": "exp/xllm/image"}


@pytest.mark.parametrize("path", ["conf/asr_paper.yaml", "egs/aishell2/conf/asr.yaml", "egs/vsdial_cn/conf/asr.yaml"])
def test_phase_1_is_a3(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    value = show(capsys, TOP / path)
    encoder, cif, decoder, optim = (*(value["model"][part] for part in ("encoder", "cif", "decoder")), value["optim"])
    expected = {"channels": 256, "blocks": 18, "width": 512, "feedforward": 2048, "heads": 8, "kernel": 31}
    expected |= {"pool_after": [6, 12]}
    assert {key: encoder[key] for key in expected} == expected
    assert (cif["channels"], cif["kernel"]) == (512, 5)
    expected = {"blocks": 6, "feedforward": 2048, "heads": 8, "visual_blocks": [3, 4], "linguistic_blocks": [5, 6]}
    assert {key: decoder[key] for key in expected} == expected
    expected = {"schedule": "tristage", "warmup_steps": 24000, "hold_steps": 36000, "decay_steps": 120000, "weight_decay": 0.01}
    assert {key: optim[key] for key in expected} == expected
    assert (float(optim["lr"]), value["train"]["max_epochs"], value["train"]["devices"]) == (3e-4, 84, 8)  # A.3, Table 7


def test_what_is_shown_has_overrides_and_starts_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    value = show(capsys, TOP / "conf/image_paper.yaml", "optim.lr=1e-4", "--device", "cpu")
    assert (value["optim"]["lr"], value["train"]["device"]) == (1e-4, "cpu")
    assert list(tmp_path.iterdir()) == []
    assert main(["train", "--config", str(TOP / "conf/image_paper.yaml"), "--show", "optim.lrr=1"]) == 1
    assert "did you mean `optim.lr`" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--config", str(TOP / "conf/image_paper.yaml"), "--show", "--out", str(tmp_path / "exp")])
    assert "not allowed with argument" in capsys.readouterr().err
