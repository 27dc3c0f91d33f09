"""Sound in windows, against one window at a time."""

from __future__ import annotations

import pytest
import torch

from xllm_speech.base.errors import SeamError
from xllm_speech.interfaces.audio import AudioInterface
from xllm_speech.interfaces.qformer import QueryTransformer
from xllm_speech.records import Memory

torch.set_num_threads(1)
D, H, WINDOW, QUERIES = 6, 7, 4, 2


@pytest.fixture
def audio() -> AudioInterface:
    torch.manual_seed(0)
    return AudioInterface(QueryTransformer(D, QUERIES, 8, 2, 2, 16, positions=WINDOW, init_std=0.4), WINDOW, H).eval()


def test_windows_follow_one_another_and_padding_is_unseen(audio: AudioInterface) -> None:
    lens = [9, 4, 1]
    x = torch.randn(3, 11, D)
    for row, length in enumerate(lens):
        x[row, length:] = float("nan")
    slots = audio(Memory(x, torch.tensor(lens)))
    assert (slots.kind, slots.lens_N.tolist()) == ("audio", [6, 2, 2])
    for row, length in enumerate(lens):
        for window in range(-(-length // WINDOW)):
            piece = x[row, window * WINDOW : min(length, (window + 1) * WINDOW)][None]
            expected = audio.adapter(audio.querying(Memory(piece, torch.tensor([piece.shape[1]]))))[0]
            found = slots.x_NQH[row, window * QUERIES : (window + 1) * QUERIES]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert not slots.x_NQH[row, int(slots.lens_N[row]) :].any()


def test_a_recording_without_frames_is_refused(audio: AudioInterface) -> None:
    with pytest.raises(SeamError, match="recording 1 has no frames"):
        audio(Memory(torch.zeros(2, 4, D), torch.tensor([4, 0])))


def test_phases(audio: AudioInterface) -> None:
    assert audio.trained_in(2) == ("querying", "adapter")
    assert audio.trained_in(3) == ("adapter",)
