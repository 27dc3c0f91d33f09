"""Every configuration file loads, is complete in itself, and builds its model (without memory for the large ones)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

TOP = Path(__file__).resolve().parents[2]
FILES = sorted([*TOP.glob("conf/*.yaml"), *TOP.glob("egs/*/conf/*.yaml")])


def test_there_are_configuration_files():
    assert {"asr_paper.yaml", "asr_small.yaml"} <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TOP)))
def test_configuration_loads_and_builds_its_model(path):
    from xllm_speech.base.config import load_config, read_key
    from xllm_speech.train.asr import AsrExperiment
    from xllm_speech.train.lm import LmExperiment
    from xllm_speech.train.xllm import XllmExperiment

    match read_key(path, "task", default="asr"):
        case "asr":
            model = build_asr(load_config(path, AsrExperiment))
        case "lm":
            model = build_language_model(load_config(path, LmExperiment))
        case "align" | "integrate":
            model = build_interfaces(load_config(path, XllmExperiment))
        case task:
            pytest.fail(f"no training task is called {task}")
    assert sum(p.numel() for p in model.parameters()) > 1e5


def build_asr(experiment):
    from xllm_speech.encoders.vision import build_vit
    from xllm_speech.models.asr import build_asr_model

    visual = None
    with torch.device("meta"):
        if experiment.model.visual.kind == "vit":  # made by an earlier stage of the recipe
            assert experiment.data.image_size > 0, "a model that sees needs pictures of some size"
            visual = build_vit(image_size=64, patch_size=16, width=experiment.model.visual.width, depth=1, heads=4)
        return build_asr_model(experiment.model, vocab=100, sos_id=99, visual=visual)


def build_language_model(experiment):
    from xllm_speech.models.lm_config import build_lm, known_texts, load_vocabulary, make_vocabulary

    return build_lm(experiment.model, load_vocabulary(make_vocabulary(known_texts([]), experiment.model.words)))


def build_interfaces(experiment):
    from xllm_speech.interfaces import build

    with torch.device("meta"):
        return torch.nn.ModuleDict(build.build_interfaces(experiment.model.interfaces, 4096))


def test_an_unknown_key_is_refused_with_the_nearest_name(tmp_path):
    from xllm_speech.base.config import load_config
    from xllm_speech.base.errors import ConfigError
    from xllm_speech.train.asr import AsrExperiment

    (tmp_path / "base.yaml").write_text("model: {encoder: {blocks: 4, pool_after: [1, 2]}, decoder: {blocks: 6}}\n")
    (tmp_path / "mine.yaml").write_text("base: base.yaml\nmodel: {encoder: {kernl: 7}}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: unknown key `model\.encoder\.kernl`; did you mean `.*\.kernel`"):
        load_config(tmp_path / "mine.yaml", AsrExperiment)
    (tmp_path / "mine.yaml").write_text("base: base.yaml\nmodel: {encoder: {kernel: 7}}\n")
    loaded = load_config(tmp_path / "mine.yaml", AsrExperiment, ["optim.lr=1e-4"])
    assert (loaded.model.encoder.blocks, loaded.model.encoder.kernel, loaded.optim.lr) == (4, 7, 1e-4)
    for override, message in (
        ("optim.lr=fast", "optim.lr"), ("optim", "expected key=value"), ("model.encoder.kernel=8", "must be odd"),
        ("optim.schedule=linear", "is not one of tristage, cosine, constant"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(tmp_path / "mine.yaml", AsrExperiment, [override])
    (tmp_path / "base.yaml").write_text("base: mine.yaml\n")
    with pytest.raises(ConfigError, match="leads back to itself"):
        load_config(tmp_path / "mine.yaml", AsrExperiment)
