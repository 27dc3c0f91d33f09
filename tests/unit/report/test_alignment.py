"""Alignments: what the plots show is what a slow loop over the weights gives; broken utterances cost only themselves."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from xllm_speech.base.units import STEP_SEC
from xllm_speech.cif.reference import integrate_by_loop
from xllm_speech.report.alignment import align_some
from xllm_speech.report.gather import gather


def test_fires_are_those_of_the_loop(exp):
    experiment = gather(exp)
    found = align_some(experiment, 3)
    assert experiment.problems == []
    assert len(found) == 3
    assert len({item.id for item in found}) == 3
    for item in found:
        alpha_BS = torch.tensor(item.alpha_S)[None]
        lens_B = torch.tensor([alpha_BS.shape[1]])
        slow = integrate_by_loop(torch.zeros(1, alpha_BS.shape[1], 2), alpha_BS, lens_B, tail_threshold=0.5)
        assert item.fire_sec == pytest.approx((slow.fire_BU[0] * STEP_SEC).tolist(), abs=1e-5)
        assert len(item.pieces) == len(item.fire_sec) == slow.lens_B.item()
        assert item.fbank_TF.shape[1] == 80
        assert item.set == "one"
        assert item.reference


def test_the_same_utterances_are_drawn_again(exp):
    first, second = ([item.id for item in align_some(gather(exp), 4)] for _ in range(2))
    assert first == second
    assert first != [f"u{number}" for number in range(4)]  # not just the first lines of the manifest


def test_a_recording_that_is_gone_costs_only_itself(exp):
    chosen = align_some(gather(exp), 2)[0]
    cuts = exp.parent / "data" / "test_one" / "cuts.jsonl.gz"
    source = chosen.cut.recording.sources[0].source
    text = gzip.decompress(cuts.read_bytes()).decode().replace(source, str(Path(source).with_name("gone.wav")))
    cuts.write_bytes(gzip.compress(text.encode()))
    experiment = gather(exp)
    found = align_some(experiment, 2)
    assert len(found) == 1
    ((name, what),) = experiment.problems
    assert name == chosen.id
    assert "gone.wav" in what


def test_a_model_that_cannot_be_loaded_is_named(exp):
    (exp / "asr" / "final" / "model.safetensors").write_bytes(b"no tensors")
    experiment = gather(exp)
    assert align_some(experiment, 2) == []
    assert any("asr" in name for name, _ in experiment.problems)
