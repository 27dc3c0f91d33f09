"""A chunked encoder fed in pieces equals itself over whole, padded batches; nothing is seen beyond a chunk."""

from __future__ import annotations

import pytest
import torch

from xllm_speech.base.errors import ConfigError
from xllm_speech.encoders.conformer import ConformerEncoder
from xllm_speech.encoders.streaming import StreamingEncoder
from xllm_speech.models.asr_config import EncoderConfig
from xllm_speech.records import FbankBatch

BINS = 10


def make_encoder(chunk_steps=2, left_chunks=0, **more):
    torch.manual_seed(0)
    options = {"kernel": 7, "blocks": 4, "pool_after": (1, 3), "dropout": 0.0} | more
    return ConformerEncoder(
        bins=BINS, channels=3, width=16, heads=2, feedforward=24, chunk_steps=chunk_steps, left_chunks=left_chunks, **options
    ).eval()


def encode(encoder, *frames):
    lens = torch.tensor([len(x) for x in frames])
    with torch.no_grad():
        return encoder(FbankBatch(torch.nn.utils.rnn.pad_sequence(list(frames), batch_first=True), lens))


@pytest.mark.parametrize(("chunk_steps", "left_chunks", "kernel"), [(1, 0, 7), (2, 0, 15), (3, 2, 7), (8, 1, 15), (1, 1, 15)])
@pytest.mark.parametrize("frames", [1, 7, 8, 9, 64, 131])
def test_pieces_give_the_steps_of_the_whole(chunk_steps, left_chunks, kernel, frames):
    encoder = make_encoder(chunk_steps, left_chunks, kernel=kernel)
    generator = torch.Generator().manual_seed(frames)
    x = torch.randn(frames, BINS, generator=generator)
    longer = torch.randn(frames + 37, BINS, generator=generator)
    out = encode(encoder, longer, x)
    whole = out.x_BSD[1, : int(out.lens_B[1])]
    for size in (1, 5, 64, 200):
        stream = StreamingEncoder(encoder)
        steps = [stream.push(piece) for piece in x.split(size)]
        assert stream.frames_TF is not None
        assert len(stream.frames_TF) < stream.chunk_frames
        torch.testing.assert_close(torch.cat([*steps, stream.finish()]), whole, atol=1e-5, rtol=1e-4)


def test_a_step_depends_on_its_chunk_and_earlier_ones_only():
    encoder = make_encoder(2, 0)
    x = torch.randn(100, BINS)
    changed = x.clone()
    changed[48:] += 1.0  # the fourth chunk of 16 frames and all after it
    before, after = encode(encoder, x).x_BSD[0], encode(encoder, changed).x_BSD[0]
    torch.testing.assert_close(before[:6], after[:6])
    assert float((before[6:] - after[6:]).abs().max()) > 1e-2


def test_left_chunks_bound_what_is_held():
    encoder = make_encoder(2, 3)
    stream = StreamingEncoder(encoder)
    for _ in range(20):
        stream.push(torch.randn(16, BINS))
    held = [state.cache[0].shape[2] for state in stream.states]
    assert held == [3 * 8, 3 * 4, 3 * 4, 3 * 2]


def test_training_sees_the_same_chunks_and_gives_gradients():
    x = torch.randn(2, 60, BINS, requires_grad=True)
    make_encoder(2, 1).train()(FbankBatch(x, torch.tensor([60, 33]))).x_BSD[0, 3, 0].backward()
    assert float(x.grad[0, 32:].abs().sum()) == 0
    assert float(x.grad[0, :32].abs().sum()) > 0
    assert torch.isfinite(x.grad).all()
    x.grad = None
    make_encoder(2, 1, conv_norm="batch").train()(FbankBatch(x, torch.tensor([60, 33]))).x_BSD.square().sum().backward()
    assert torch.isfinite(x.grad).all()


def test_a_model_without_chunks_and_wrong_settings_are_refused():
    with pytest.raises(ConfigError, match=r"encoder.chunk_steps 0.*model.encoder.chunk_steps=8"):
        StreamingEncoder(make_encoder(0))
    with pytest.raises(ConfigError, match=r"chunk_steps 4 goes with encoder.position rope"):
        EncoderConfig(chunk_steps=4, position="relative")
    with pytest.raises(ConfigError, match=r"encoder.left_chunks -1"):
        EncoderConfig(left_chunks=-1)
