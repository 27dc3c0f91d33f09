"""What the ASR model hears beside its units: the text of its own search, signs of speech, the same in any company."""

from __future__ import annotations

import math

import numpy as np
import pytest

from xllm_speech.datasets.asr import pad_features
from xllm_speech.features.audio import load_file
from xllm_speech.features.fbank import load_features
from xllm_speech.infer.asr import CifAsr
from xllm_speech.infer.listening import Listener, loudest
from xllm_speech.models.asr import SearchConfig
from xllm_speech.records import FbankBatch


@pytest.fixture(scope="module")
def asr(model_dir):
    return CifAsr.from_pretrained(model_dir)


@pytest.fixture(scope="module")
def fbank(media):
    return pad_features([load_features(load_file(media / f"{name}.wav"), "mix") for name in ("short", "long", "middle")])


@pytest.mark.parametrize("method", [None, "greedy"])
def test_the_text_is_that_of_the_model_by_itself(asr, fbank, media, method):
    cif, heard = Listener(asr.model, asr.table, method and SearchConfig(method)).hear(fbank)
    files = [media / f"{name}.wav" for name in ("short", "long", "middle")]
    alone = asr.transcribe(files, SearchConfig(method or "fast"))
    assert [one.text for one in heard] == [other.text for other in alone]
    assert [one.units for one in heard] == cif.lens_B.tolist() == [len(other.tokens) for other in alone]
    for one, other in zip(heard, alone, strict=True):
        assert [token.confidence for token in one.tokens] == pytest.approx([t.confidence for t in other.tokens], abs=1e-4)
        edges = [edge for token in one.tokens for edge in (token.start_sec, token.end_sec)]
        assert edges == sorted(edges)


def test_signs_of_speech_do_not_depend_on_company(asr, fbank):
    listener = Listener(asr.model, asr.table)
    together = listener.hear(fbank)[1]
    for row, one in enumerate(together):
        length = int(fbank.lens_B[row])
        alone = listener.hear(FbankBatch(fbank.x_BTF[row : row + 1, :length], fbank.lens_B[row : row + 1]))[1][0]
        assert (one.text, one.units) == (alone.text, alone.units)
        assert one.heard == pytest.approx(alone.heard, abs=1e-3)
        assert one.log_energy == pytest.approx(alone.log_energy)
        assert 0 < one.heard < length / 8 + 1


def test_a_model_without_ctc_gives_no_sign_of_it(asr, fbank, monkeypatch):
    monkeypatch.setattr(asr.model, "ctc_weight", 0.0)
    assert [one.heard for one in Listener(asr.model, asr.table).hear(fbank)[1]] == [None] * 3


def test_the_loudest_tenth_of_a_second_counts_and_a_click_does_not():
    loud, click = np.full(50, 2.0), np.full(50, 2.0)
    loud[20:30] = 9.0
    click[7] = 12.0
    assert [loudest(energy_T) for energy_T in (loud, click, loud[:5])] == pytest.approx([9.0, 3.0, 2.0])
    assert loudest(loud[:0]) == -math.inf
