"""The frozen caption encoder: BERT from a local Hugging Face folder (bert-base-chinese in the paper, A.3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from xllm_speech.base.errors import CheckpointError
from xllm_speech.records import Memory

LONGEST_CAPTION = 128  # tokens; captions are one or two sentences


class CaptionEncoder(nn.Module):
    """Captions -> Memory [B, N, width]; an empty caption has length 0.

    Args:
        model: a transformers BertModel. tokenizer: its tokenizer. width: hidden size.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, width: int) -> None:
        super().__init__()
        self.model, self.tokenizer, self.width = model, tokenizer, width

    def forward(self, captions: list[str]) -> Memory:
        """Last hidden states of the captions, `[CLS]` and `[SEP]` included."""
        device = next(self.model.parameters()).device
        rows = [b for b, caption in enumerate(captions) if caption]
        lens_B = torch.zeros(len(captions), dtype=torch.long, device=device)
        if not rows:
            return Memory(torch.zeros(len(captions), 1, self.width, device=device), lens_B)
        encoded = self.tokenizer(
            [captions[b] for b in rows], padding=True, truncation=True, max_length=LONGEST_CAPTION, return_tensors="pt"
        ).to(device)
        hidden = self.model(**encoded).last_hidden_state
        x_BND = hidden.new_zeros(len(captions), hidden.shape[1], self.width)
        x_BND[rows] = hidden
        lens_B[rows] = encoded["attention_mask"].sum(1)
        return Memory(x_BND, lens_B)


def load_caption_encoder(path: str) -> CaptionEncoder:
    """Load BERT and its tokenizer from a local folder; `CheckpointError` where that fails."""
    from transformers import AutoTokenizer, BertModel

    if not Path(path).is_dir():
        raise CheckpointError(f"linguistic.path {path}: no such folder; bert-base-chinese (or another BERT) is needed there")
    try:
        model: Any = BertModel.from_pretrained(path, local_files_only=True, trust_remote_code=False, add_pooling_layer=False)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: not a BERT folder ({str(error).splitlines()[0]})") from error
    return CaptionEncoder(model, tokenizer, model.config.hidden_size)
