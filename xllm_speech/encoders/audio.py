"""The frozen encoder of non-speech sound: an audio spectrogram transformer (Gong et al. 2021) from a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from xllm_speech.base.errors import CheckpointError, first_line
from xllm_speech.base.units import SAMPLE_RATE_HZ
from xllm_speech.encoders.pretrained import load_pretrained
from xllm_speech.records import Memory, WaveBatch

FRAME_MS = 10  # of the spectrogram that the transformer reads
SPECIAL_TOKENS = 2  # in front of the patches: class and distillation


class AudioEncoder(nn.Module):
    """WaveBatch -> Memory [B, N, width]: one vector per time patch, the mean over its frequency patches.

    A recording longer than the model's window is cut into consecutive windows; patches that lie in padding only are left
    out, so that N is about the recording's length / the patches' stride.

    Args:
        model: a transformers ASTModel. extractor: its feature extractor.
    """

    def __init__(self, model: nn.Module, extractor: Any) -> None:
        super().__init__()
        self.model, self.extractor = model, extractor
        config: Any = model.config
        self.width = int(config.hidden_size)
        self.rows = (int(config.num_mel_bins) - int(config.patch_size)) // int(config.frequency_stride) + 1
        self.stride = int(config.time_stride) * FRAME_MS * SAMPLE_RATE_HZ // 1000  # samples from patch to patch
        patches = (int(config.max_length) - int(config.patch_size)) // int(config.time_stride) + 1
        self.window = patches * self.stride  # samples; what the transformer could see beyond belongs to the next window

    def forward(self, waves: WaveBatch) -> Memory:
        """Features of the recordings; each has at least one vector."""
        device = waves.x_BN.device
        pieces, counts = [], []
        for x_N, length in zip(waves.x_BN, waves.lens_B.tolist(), strict=True):
            cut = x_N[: max(1, length)].split(self.window)
            pieces += [piece.cpu().numpy() for piece in cut]
            counts.append([-(-len(piece) // self.stride) for piece in cut])
        values = self.extractor(pieces, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")["input_values"].to(device)
        tokens_PND = self.model(values).last_hidden_state[:, SPECIAL_TOKENS:]
        frames_PTD = tokens_PND.unflatten(1, (self.rows, -1)).mean(1)
        wanted = [count for row in counts for count in row]
        kept = [frames_TD[:count] for frames_TD, count in zip(frames_PTD, wanted, strict=True)]
        items, start = [], 0
        for row in counts:
            items.append(torch.cat(kept[start : start + len(row)]))
            start += len(row)
        lens_B = torch.tensor([len(item) for item in items], device=device)
        return Memory(pad_sequence(items, batch_first=True), lens_B)


def load_audio_encoder(path: str) -> AudioEncoder:
    """Load the transformer and its feature extractor, in eval mode, from a local folder; `CheckpointError` where that fails."""
    from transformers import ASTFeatureExtractor, ASTModel

    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"encoders.audio {path}: no such folder; an audio spectrogram transformer is needed there")
    model = load_pretrained(ASTModel, folder, "audio spectrogram transformer", ("audio-spectrogram-transformer",))
    try:
        extractor = ASTFeatureExtractor.from_pretrained(path, local_files_only=True)
    except Exception as error:  # a missing or broken file gives any error
        raise CheckpointError(f"{folder}: its feature extractor cannot be loaded ({first_line(error)})") from error
    if extractor.sampling_rate != SAMPLE_RATE_HZ or extractor.max_length != model.config.max_length:
        raise CheckpointError(
            f"{folder}: made for {extractor.sampling_rate} Hz and {extractor.max_length} frames, its model for "
            f"{model.config.max_length}; {SAMPLE_RATE_HZ} Hz and equal numbers are needed"
        )
    return AudioEncoder(model, extractor).eval()
