"""The frozen caption encoder: BERT from a local Hugging Face folder (bert-base-chinese in the paper, A.3)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xllm_speech.base.errors import CheckpointError, first_line
from xllm_speech.encoders.pretrained import load_pretrained
from xllm_speech.records import Memory

logger = logging.getLogger(__name__)

LONGEST_CAPTION = 128  # tokens; captions are one or two sentences
VOCABULARIES = ("tokenizer.json", "vocab.txt")


class CaptionEncoder(nn.Module):
    """Captions -> Memory [B, N, width]; an empty or blank caption has length 0.

    Args:
        model: a transformers BertModel. tokenizer: its tokenizer, padding on the right. width: hidden size.
        longest: tokens, `[CLS]` and `[SEP]` included; what is longer is cut there, with one warning.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, width: int, longest: int = LONGEST_CAPTION) -> None:
        super().__init__()
        self.model, self.tokenizer, self.width, self.longest = model, tokenizer, width, longest
        self._told_of_long = False

    def forward(self, captions: list[str]) -> Memory:
        """Last hidden states of the captions, `[CLS]` and `[SEP]` included."""
        device = next(self.model.parameters()).device
        rows = [b for b, caption in enumerate(captions) if caption.strip()]
        lens_B = torch.zeros(len(captions), dtype=torch.long, device=device)
        if not rows:
            return Memory(torch.zeros(len(captions), 1, self.width, device=device), lens_B)
        encoded = self.tokenizer(
            [captions[b] for b in rows], padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        ).to(device)
        if encoded["input_ids"].shape[1] == self.longest and not self._told_of_long:
            self._tell_of_long([captions[b] for b in rows])
        hidden = self.model(**encoded).last_hidden_state
        x_BND = hidden.new_zeros(len(captions), hidden.shape[1], self.width)
        x_BND[rows] = hidden
        lens_B[rows] = encoded["attention_mask"].sum(1)
        return Memory(x_BND, lens_B)

    def _tell_of_long(self, captions: list[str]) -> None:
        lens = [len(ids) for ids in self.tokenizer(captions, verbose=False)["input_ids"]]
        if max(lens) > self.longest:
            self._told_of_long = True
            logger.warning(
                "a caption of %d tokens is cut to %d, and so will be others: %s...",
                max(lens), self.longest, captions[lens.index(max(lens))][:20],
            )


def load_caption_encoder(path: str) -> CaptionEncoder:
    """Load BERT and its tokenizer, in eval mode, from a local folder; `CheckpointError` where that fails."""
    from transformers import AutoTokenizer, BertModel

    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"linguistic.path {path}: no such folder; bert-base-chinese (or another BERT) is needed there")
    model = load_pretrained(BertModel, folder, "BERT", ("bert",), add_pooling_layer=False)
    # Without its vocabulary transformers makes a tokenizer that knows no character.
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise CheckpointError(f"{folder}: holds no vocabulary ({' or '.join(VOCABULARIES)})")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False, padding_side="right")
    except Exception as error:  # a broken file gives any error
        raise CheckpointError(f"{folder}: its tokenizer cannot be loaded ({first_line(error)})") from error
    if len(tokenizer) > model.config.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, BERT {model.config.vocab_size}; they are not of one model"
        )
    longest = min(LONGEST_CAPTION, model.config.max_position_embeddings)
    return CaptionEncoder(model, tokenizer, model.config.hidden_size, longest).eval()
