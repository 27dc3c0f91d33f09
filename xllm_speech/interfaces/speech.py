"""The speech interface (system.md section 2): C-Former, a linear layer and a BERT over CIF units, then the S-Adapter."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from xllm_speech.interfaces.base import Adapter, Interface, activate
from xllm_speech.nn.masks import valid_mask
from xllm_speech.records import CifOut, Memory, SlotEmbeds


def even_pieces(length: int, longest: int) -> list[int]:
    """Sizes of the fewest consecutive pieces of at most `longest`, in all `length`, that differ by at most one."""
    count = max(1, -(-length // longest))
    return [length // count + (number < length % count) for number in range(count)]


class SpeechInterface(Interface):
    """S2L: the units of N utterances -> one vector per unit.

    An utterance in which CIF found no unit is heard as one zero unit and yields one vector, since a prompt needs something
    between its tags. An utterance of more units than there are `positions` is cut into the fewest even pieces, each goes
    through the transformer by itself from position 0, and their vectors follow one another: none is lost.

    Args:
        unit_width: of CIF units. width, layers, heads, feedforward, positions, dropout, init_std: of the transformer,
            BERT-base by default. projection_activation, activation: after the first and the last linear layer, none | relu.
    """

    kind: ClassVar[str] = "speech"
    tag: ClassVar[str] = "Speech"

    def __init__(
        self, llm_width: int, unit_width: int = 512, width: int = 768, layers: int = 12, heads: int = 12,
        feedforward: int = 3072, positions: int = 512, dropout: float = 0.1, init_std: float = 0.02,
        projection_activation: str = "none", activation: str = "none",
    ) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        activate(torch.zeros(()), projection_activation)
        self.projection_activation = projection_activation
        self.positions = positions
        self.projection = nn.Linear(unit_width, width)
        config = BertConfig(
            vocab_size=1, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=feedforward,
            max_position_embeddings=positions, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
            initializer_range=init_std,
        )
        config._attn_implementation = "sdpa"
        self.transformer = BertModel(config, add_pooling_layer=False)
        # Units come as embeddings; a table of words would be 16 million numbers that nothing reads.
        self.transformer.set_input_embeddings(None)
        self.adapter = Adapter(width, llm_width, activation)

    def forward(self, features: CifOut | Memory) -> SlotEmbeds:
        """[N, U, unit_width] and lengths, 0 allowed -> SlotEmbeds [N, max(1, U), H], zero after each length."""
        x_NUD = features.units_BUD if isinstance(features, CifOut) else features.x_BND
        lens_N = features.lens_B.clamp(min=1)
        if not len(x_NUD):
            return self.nothing(lens_N)
        longest = int(lens_N.max())
        x_NUD = nn.functional.pad(x_NUD[:, :longest], (0, 0, 0, max(0, longest - x_NUD.shape[1])))
        x_NUD = x_NUD.masked_fill(~valid_mask(features.lens_B, longest)[:, :, None], 0.0)
        x_NUD = activate(self.projection(x_NUD.to(self.projection.weight.dtype)), self.projection_activation)
        hidden_NUD = self._in_pieces(x_NUD, lens_N) if longest > self.positions else self._transform(x_NUD, lens_N)
        x_NUH = self.adapter(hidden_NUD)
        return SlotEmbeds(x_NUH.masked_fill(~valid_mask(lens_N, longest)[:, :, None], 0.0), lens_N, self.kind)

    def _transform(self, x_NUD: torch.Tensor, lens_N: torch.Tensor) -> torch.Tensor:
        mask_NU = valid_mask(lens_N, x_NUD.shape[1]).long()
        return self.transformer(inputs_embeds=x_NUD, attention_mask=mask_NU).last_hidden_state

    def _in_pieces(self, x_NUD: torch.Tensor, lens_N: torch.Tensor) -> torch.Tensor:
        lens = lens_N.tolist()
        sizes = [even_pieces(length, self.positions) for length in lens]
        pieces = [piece for x_UD, length, cut in zip(x_NUD, lens, sizes, strict=True) for piece in x_UD[:length].split(cut)]
        flat = [size for cut in sizes for size in cut]
        hidden = self._transform(pad_sequence(pieces, batch_first=True), torch.tensor(flat, device=lens_N.device))
        kept = torch.cat([row[:size] for row, size in zip(hidden, flat, strict=True)])
        return pad_sequence(list(kept.split(lens)), batch_first=True)
