"""A tiny X-LLM whose answers depend on what it is asked, media for it, and servers on it."""

from __future__ import annotations

import shutil

import pytest
import torch
from serving import running


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def served_dir(world, tmp_path_factory):
    """A model directory on the tiny world's parts, its LLM with weights large enough to say something."""
    import yaml
    from tiny import xllm_settings

    from xllm_speech.base.config import config_from_dict
    from xllm_speech.base.quiet import quiet_transformers
    from xllm_speech.llm.loading import load_llm
    from xllm_speech.models.xllm_checkpoints import XllmDescription, build_xllm, hash_parts, save_xllm
    from xllm_speech.models.xllm_config import XllmConfig

    folder = tmp_path_factory.mktemp("served")
    llm = folder / "llm"
    shutil.copytree(world.llm, llm)
    loaded = load_llm(llm)
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in loaded.model.parameters():
            if weight.dim() == 2:
                weight.normal_(0, 0.3)
        vocabulary = loaded.tokenizer.get_vocab()
        mute = [index for piece, index in vocabulary.items() if piece[0] in "<[" and piece != "<eop>" and piece[1:]]
        loaded.model.lm_head.weight[mute] *= 0.1
    with quiet_transformers():
        loaded.model.save_pretrained(llm)
    settings = xllm_settings(world) | {"llm": {"path": str(llm)}}
    config = config_from_dict(yaml.safe_load(yaml.safe_dump(settings)), XllmConfig)
    torch.manual_seed(1)
    model = build_xllm(config, load_llm(llm))
    with torch.no_grad():
        for name, weight in model.interfaces.named_parameters():
            if weight.dim() == 2 and "adapter" in name:
                weight.normal_(0, 0.3)
    kinds = list(config.interfaces.kinds)
    whole = [f"{kind}.{name}" for kind in kinds for name, _ in model.interfaces[kind].named_children()]
    out = folder / "model"
    out.mkdir()
    save_xllm(out, model.state_dict(), XllmDescription(
        phase=3, kinds=kinds, parts=whole, complete=True, model=config, frozen_sha256=hash_parts(config), parents={},
    ))
    return out


@pytest.fixture(scope="session")
def model(served_dir):
    from xllm_speech import XLLM

    return XLLM.from_pretrained(served_dir)


@pytest.fixture(scope="session")
def server(model):
    with running(model) as found:
        yield found


@pytest.fixture
def client(server):
    with server.client() as found:
        yield found
