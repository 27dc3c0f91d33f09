"""The three losses of BLIP-2's first stage (Li et al. 2023, section 3.2; paper section 3.2.1), to train a Q-Former from text.

All three share one Q-Former and differ in who sees whom: contrastive, queries and text apart; matching, both together;
generation, queries see queries, and text sees queries and earlier text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear, normalize

from xllm_speech.base.errors import ConfigError
from xllm_speech.interfaces.gather import gather_padded, gather_rows, world
from xllm_speech.interfaces.qformer import QueryTransformer
from xllm_speech.nn.masks import valid_mask
from xllm_speech.records import Memory
from xllm_speech.records.checks import ensure, ensure_lens


@dataclass(frozen=True)
class QFormerLosses:
    """Means over the batch, with gradient: contrastive over pictures and texts, matching over pairs, generation over tokens."""

    contrastive: torch.Tensor
    matching: torch.Tensor
    generation: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        """Their sum, as in BLIP-2."""
        return self.contrastive + self.matching + self.generation


class QFormerPretraining(nn.Module):
    """A Q-Former with its text branch and the heads of the first stage; phase 2 keeps `querying` without the text branch.

    Args:
        querying: made with text=True. vocab_size: of the text. start_id: token that opens generated text in the place of
            the first one ([DEC] of BLIP-2). longest_text: positions for text. shared_width: of the contrastive space.
            temperature: its first value; it is learnt. smoothing: of the labels in contrast and generation.

    Raises:
        ConfigError: a Q-Former without a text branch, or a start_id outside the vocabulary.
    """

    def __init__(
        self, querying: QueryTransformer, vocab_size: int, start_id: int, longest_text: int = 512, shared_width: int = 256,
        temperature: float = 0.07, smoothing: float = 0.1,
    ) -> None:
        from transformers import BertConfig
        from transformers.models.bert.modeling_bert import BertPredictionHeadTransform
        from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings

        super().__init__()
        if not querying.qformer.config.use_qformer_text_input:
            raise ConfigError("Q-Former pretraining: the Q-Former has no text branch; build it with text=True")
        if not 0 <= start_id < vocab_size:
            raise ConfigError(f"Q-Former pretraining: start_id {start_id} is outside the vocabulary of {vocab_size}")
        width = querying.width
        config = BertConfig(vocab_size=vocab_size, hidden_size=width, max_position_embeddings=longest_text)
        self.querying, self.start_id, self.smoothing = querying, start_id, smoothing
        self.text_embeddings = Blip2TextEmbeddings(config)
        self.transform = BertPredictionHeadTransform(config)
        self.word_bias = nn.Parameter(torch.zeros(vocab_size))
        for table in (self.text_embeddings.word_embeddings, self.text_embeddings.position_embeddings):
            nn.init.normal_(table.weight, std=config.initializer_range)
        self.vision_projection = nn.Linear(width, shared_width)
        self.text_projection = nn.Linear(width, shared_width)
        self.matching_head = nn.Linear(width, 2)
        self.temperature = nn.Parameter(torch.tensor(temperature))

    def forward(self, memory: Memory, ids_BL: torch.Tensor, lens_B: torch.Tensor) -> QFormerLosses:
        """Losses of B pictures and their texts.

        Args:
            memory: features of a frozen encoder. ids_BL: int64 tokens, first a class token, last an end token,
                right-padded with anything. lens_B: int64, at least 2.

        Raises:
            SeamError: texts for another number of pictures, too short or too long; one pair only, on all ranks together;
                batches of different sizes on different ranks.
        """
        batch = len(memory.lens_B)
        ensure(ids_BL.dim() == 2, f"Q-Former pretraining: token ids must be [B, L], found {tuple(ids_BL.shape)}")
        ensure_lens("Q-Former pretraining: texts", lens_B, batch, ids_BL.shape[1], least=2)
        places = self.text_embeddings.position_embeddings.num_embeddings
        ensure(ids_BL.shape[1] <= places, f"Q-Former pretraining: a text of {ids_BL.shape[1]} tokens, positions for {places}")
        ensure(batch * world()[1] > 1, "Q-Former pretraining: one pair has nothing to be told apart from; use larger batches")
        ids_BL = ids_BL.masked_fill(~valid_mask(lens_B, ids_BL.shape[1]), 0)
        everyone = _Pairs(memory, ids_BL, lens_B).gathered()
        contrastive, similar = self._contrastive(memory, ids_BL, lens_B)
        return QFormerLosses(
            contrastive,
            self._matching(everyone, similar),
            self._generation(memory, ids_BL, lens_B),
        )

    def embed(self, memory: Memory, ids_BL: torch.Tensor, lens_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit vectors for retrieval: pictures [B, Q, shared_width], texts [B, shared_width]; neither sees the other."""
        pictures_BQE = normalize(self.vision_projection(self.querying(memory)), dim=-1)
        hidden_BLD = self.querying.qformer(
            query_embeds=self.text_embeddings(ids_BL), query_length=0,
            attention_mask=valid_mask(lens_B, ids_BL.shape[1])[:, None, None, :],
        ).last_hidden_state
        return pictures_BQE, normalize(self.text_projection(hidden_BLD[:, 0]), dim=-1)

    def match_logits(self, memory: Memory, ids_BL: torch.Tensor, lens_B: torch.Tensor) -> torch.Tensor:
        """[B, 2] logits of (another's, its own) text: all queries and all words see one another; mean over queries."""
        queries = len(self.querying.queries)
        seen_B = torch.cat([lens_B.new_ones(len(ids_BL), queries).bool(), valid_mask(lens_B, ids_BL.shape[1])], dim=1)
        hidden_BPD = self._together(memory, ids_BL, seen_B[:, None, None, :])
        return self.matching_head(hidden_BPD[:, :queries]).mean(1)

    def text_logits(self, memory: Memory, ids_BL: torch.Tensor) -> torch.Tensor:
        """[B, L, vocabulary] logits of the token after each, from the picture and the tokens up to it."""
        queries, length = len(self.querying.queries), ids_BL.shape[1]
        seen_PP = torch.ones(queries + length, queries + length, dtype=torch.bool, device=ids_BL.device).tril()
        seen_PP[:queries, :queries] = True
        # What follows the text is padding, and no earlier token sees it.
        hidden_BLD = self.transform(self._together(memory, ids_BL, seen_PP[None, None])[:, queries:])
        # The words that come out are those that go in, as in BERT; one table serves both.
        return linear(hidden_BLD, self.text_embeddings.word_embeddings.weight, self.word_bias)

    def _together(self, memory: Memory, ids_BL: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Hidden states [B, queries + L, D] of queries and text in one pass; `seen` broadcasts to [B, 1, P, P]."""
        features, feature_mask = self.querying.prepare(memory)
        queries_BQD = self.querying.queries.expand(len(ids_BL), -1, -1)
        embeds = self.text_embeddings(ids_BL, query_embeds=queries_BQD)
        return self.querying.qformer(
            query_embeds=embeds, query_length=queries_BQD.shape[1], attention_mask=seen,
            encoder_hidden_states=features, encoder_attention_mask=feature_mask,
        ).last_hidden_state

    def _contrastive(
        self, memory: Memory, ids_BL: torch.Tensor, lens_B: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """The loss, and similarities [B, all] of own pictures to all texts and of own texts to all pictures."""
        pictures_BQE, texts_BE = self.embed(memory, ids_BL, lens_B)
        all_pictures_GQE, all_texts_GE = gather_rows(pictures_BQE), gather_rows(texts_BE)
        # A picture is as near to a text as the nearest of its queries.
        to_texts_BG = torch.einsum("bqe,ge->bgq", pictures_BQE, all_texts_GE).amax(-1) / self.temperature
        to_pictures_BG = torch.einsum("be,gqe->bgq", texts_BE, all_pictures_GQE).amax(-1) / self.temperature
        own_B = _own_rows(len(texts_BE), texts_BE.device)
        loss = sum(
            cross_entropy(logits, own_B, label_smoothing=self.smoothing) / 2 for logits in (to_texts_BG, to_pictures_BG)
        )
        assert isinstance(loss, torch.Tensor)
        return loss, (to_texts_BG.detach(), to_pictures_BG.detach())

    def _matching(self, everyone: _Pairs, similar: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """True pairs against each picture with a hard wrong text and each text with a hard wrong picture."""
        own_B = _own_rows(len(similar[0]), similar[0].device)
        same_BG = (everyone.ids_BL[own_B][:, None] == everyone.ids_BL[None]).all(-1)  # equal captions are no negatives
        text_B, has_B = draw_negatives(similar[0], same_BG)
        picture_B, _ = draw_negatives(similar[1], same_BG)
        pictures = torch.cat([own_B, own_B[has_B], picture_B[has_B]])
        texts = torch.cat([own_B, text_B[has_B], own_B[has_B]])
        logits = self.match_logits(everyone.memory_of(pictures), everyone.ids_BL[texts], everyone.lens_B[texts])
        true = torch.arange(len(logits), device=logits.device) < len(own_B)
        return cross_entropy(logits, true.long())

    def _generation(self, memory: Memory, ids_BL: torch.Tensor, lens_B: torch.Tensor) -> torch.Tensor:
        read_BL = torch.cat([torch.full_like(ids_BL[:, :1], self.start_id), ids_BL[:, 1:-1]], dim=1)
        logits_BLV = self.text_logits(memory, read_BL)
        wanted_BL = ids_BL[:, 1:].masked_fill(~valid_mask(lens_B - 1, ids_BL.shape[1] - 1), -100)
        return cross_entropy(logits_BLV.flatten(0, 1), wanted_BL.flatten(), label_smoothing=self.smoothing)


def draw_negatives(similar_BG: torch.Tensor, same_BG: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each row one column that is not `same`, nearer ones more often (softmax of similarity).

    Returns:
        column_B: int64. has_B: bool, False where every column is `same`; the column means nothing there.
    """
    has_B = ~same_BG.all(1)
    logits_BG = similar_BG.float().masked_fill(same_BG, float("-inf")).masked_fill(~has_B[:, None], 0.0)
    return torch.multinomial(logits_BG.softmax(1), 1).squeeze(1), has_B


@dataclass(frozen=True)
class _Pairs:
    memory: Memory
    ids_BL: torch.Tensor
    lens_B: torch.Tensor

    def gathered(self) -> _Pairs:
        with torch.no_grad():
            ids_GL = gather_padded(self.ids_BL)
            memory = Memory(gather_padded(self.memory.x_BND), gather_rows(self.memory.lens_B))
            return _Pairs(memory, ids_GL, gather_rows(self.lens_B))

    def memory_of(self, rows: torch.Tensor) -> Memory:
        return Memory(self.memory.x_BND[rows], self.memory.lens_B[rows])


def _own_rows(batch: int, device: torch.device) -> torch.Tensor:
    """Where this rank's rows lie among those of all ranks."""
    return torch.arange(batch, device=device) + world()[0] * batch
