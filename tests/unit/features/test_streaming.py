"""Features of a stream equal those of the whole recording, however it was cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xllm_speech.features.fbank import compute_fbank
from xllm_speech.features.streaming import StreamingFbank


@pytest.mark.parametrize("length", [0, 50, 79, 80, 279, 280, 281, 399, 400, 439, 1000, 16037, 24000])
@pytest.mark.parametrize("pieces", [1, 2, 7, 60])
def test_frames_equal_those_of_the_whole_recording(length, pieces):
    generator = np.random.default_rng(length)
    samples = (0.1 * generator.standard_normal(length)).astype(np.float32)
    cuts = np.sort(generator.integers(0, length + 1, pieces - 1))
    stream = StreamingFbank()
    frames = [stream.push(piece) for piece in np.split(samples, cuts)]
    assert len(stream.samples_N) < 1000 + length * (pieces < 60)
    found = torch.cat([*frames, stream.finish()])
    torch.testing.assert_close(found, compute_fbank(samples), atol=1e-4, rtol=1e-5)


def test_a_frame_comes_as_soon_as_its_window_is_there():
    stream = StreamingFbank()
    assert len(stream.push(np.zeros(279))) == 0
    assert len(stream.push(np.zeros(1))) == 1
    assert len(stream.push(np.zeros(159))) == 0
    assert len(stream.push(np.zeros(1))) == 1
