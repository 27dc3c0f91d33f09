"""A small ChatGLM of a recipe's own: its configuration, its vocabulary of characters, and its folder (mini.md, row LM)."""

from __future__ import annotations

import io
import string
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save
from torch import nn

from xllm_speech.base.config import require
from xllm_speech.base.files import atomic_write, write_json
from xllm_speech.llm.chatglm_config import ChatGLMConfig
from xllm_speech.llm.chatglm_model import ROTARY_BASE, ChatGLMForConditionalGeneration
from xllm_speech.llm.chatglm_tokenizer import (
    CONTROL_PIECES,
    LONGEST_BLANK,
    NEWLINE,
    TAB,
    VOCABULARY_FILE,
    ChatGLMTokenizer,
    blank_piece,
)
from xllm_speech.prompts.instructions import INSTRUCTIONS
from xllm_speech.prompts.templates import CHINESE, ENGLISH, TAGS

# Of the fastest three rotary frequencies: the first tells neighbours apart, the others places a turn of the first away.
STRENGTHS = (4.8, 3.2, 3.2)
SPECIAL_PIECES = {
    "bos_token_id": "<sop>", "eos_token_id": "<eop>", "pad_token_id": "<pad>", "mask_token_id": "[MASK]",
    "gmask_token_id": "[gMASK]",
}


@dataclass
class LmModelConfig:
    """Sizes of a ChatGLM by the names of its config.json, and what it is started from.

    deepnorm_depth: layers that the residual's factor sqrt(2 * depth) counts; 28 in the original at any depth. The smaller,
    the more a layer says beside its input, and the faster a shallow model learns. init_std: of the starting weights.
    neighbours: what the first heads of the first layers look at to begin with, as distances: -1 the token before, 1 the one
    behind, one list per layer (`look_at_neighbours`). words:
    pieces of the vocabulary beside single characters and tags, such as the words of instructions: prompts become short.
    """

    hidden_size: int = 128
    num_layers: int = 4
    num_attention_heads: int = 4
    inner_hidden_size: int = 512
    max_sequence_length: int = 512
    deepnorm_depth: int = 4
    init_std: float = 0.05
    neighbours: list[list[int]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require(self.init_std > 0, f"model.init_std {self.init_std} must be above 0")
        require(
            len(self.neighbours) <= self.num_layers and all(len(row) <= self.num_attention_heads for row in self.neighbours),
            f"model.neighbours: more layers or heads than the {self.num_layers} x {self.num_attention_heads} of the model",
        )
        require(all(self.words), f"model.words {self.words}: an empty word")


def make_vocabulary(texts: Iterable[str], words: Iterable[str] = ()) -> bytes:
    """A sentencepiece model of all characters of `texts`, with ChatGLM's pieces, the tags of media, and `words`.

    No blank is put in front of a text, so that a prompt has the same ids however it is cut into pieces around its media.
    """
    letters = sorted(set("".join(texts)) - set("\n\t "))
    tags = [piece for tag in TAGS.values() for piece in tag]
    blanks = [blank_piece(count) for count in range(LONGEST_BLANK, 1, -1)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter([*letters, "a b"]), model_writer=model, model_type="char", use_all_vocab=True,
        character_coverage=1.0, user_defined_symbols=[NEWLINE, TAB, *blanks, *CONTROL_PIECES, *tags, *words], pad_id=3,
        pad_piece="<pad>", normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
        hard_vocab_limit=False, minloglevel=2, num_threads=1,
    )
    return model.getvalue()


def load_vocabulary(vocabulary: bytes) -> ChatGLMTokenizer:
    """The tokenizer of a sentencepiece model that stands in memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / VOCABULARY_FILE
        path.write_bytes(vocabulary)
        return ChatGLMTokenizer(str(path))


def build_lm(config: LmModelConfig, tokenizer: ChatGLMTokenizer) -> ChatGLMForConditionalGeneration:
    """A ChatGLM with starting weights.

    Raises:
        ConfigError: sizes that do not fit.
    """
    ids: dict[str, Any] = {name: tokenizer.convert_tokens_to_ids(piece) for name, piece in SPECIAL_PIECES.items()}
    glm = ChatGLMForConditionalGeneration(ChatGLMConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=config.hidden_size, num_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads, inner_hidden_size=config.inner_hidden_size,
        max_sequence_length=config.max_sequence_length, deepnorm_depth=config.deepnorm_depth, dtype="float32", **ids,
    ))
    for module in glm.transformer.layers.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=config.init_std)
    for layer, distances in zip(glm.transformer.layers, config.neighbours, strict=False):
        block: Any = layer
        look_at_neighbours(block.attention.query_key_value.bias.data, config.num_attention_heads, distances)
    return glm


def look_at_neighbours(bias: torch.Tensor, heads: int, distances: Sequence[int]) -> None:
    """Set the query-key-value bias of one layer so that its first heads begin by looking at tokens at given distances.

    Copying and binding words to one another both start with a head that sees the token before, in the context (first row
    of positions) and in the answer (second). From starting weights of zero mean such a head takes most of a short training
    to appear: a score that depends on distance alone is a product of two constant parts, of query and key, that both
    begin at nothing. The weights may leave this at will.

    Args:
        bias: [heads * 3 * head width], changed in place; per head query, key, value as in chatglm.md 3 and 4.
        distances: of the token looked at, one per head.
    """
    parts = bias.view(heads, 3, 2, 2, -1)  # head; query, key, value; row of positions; halves that rotate together; frequency
    count = parts.shape[-1]
    frequencies = ROTARY_BASE ** (-torch.arange(count) / count)
    strength = torch.zeros(count)
    strength[: len(STRENGTHS)] = torch.tensor(STRENGTHS[:count])
    for head, distance in enumerate(distances):
        angles = frequencies * distance
        parts[head, 0, :, 0] = strength
        parts[head, 1, :, 0] = strength * angles.cos()
        parts[head, 1, :, 1] = -strength * angles.sin()


def known_texts(texts: Iterable[str]) -> list[str]:
    """The texts of a corpus and all that prompts put around them: templates, instructions, printable ASCII."""
    templates = [text for template in (CHINESE, ENGLISH) for text in (template.before, template.after, template.header(0))]
    wordings = [text for wordings in INSTRUCTIONS.values() for text in wordings]
    return [*texts, *templates, *wordings, string.ascii_letters, string.digits, string.punctuation, "，。？！：；、"]


def save_lm(folder: Path, state: Mapping[str, torch.Tensor], config: ChatGLMConfig, tokenizer: ChatGLMTokenizer) -> None:
    """Write config.json, ice_text.model, tokenizer_config.json and model.safetensors (float32) into an existing folder.

    Args:
        state: tensors by their official names; the head, tied to the embeddings, is not repeated.
    """
    described = {"architectures": ["ChatGLMForConditionalGeneration"], **config.to_diff_dict(), "model_type": "chatglm"}
    write_json(folder / "config.json", described)
    with atomic_write(folder / VOCABULARY_FILE, "wb") as stream:
        stream.write(tokenizer.sp_model.serialized_model_proto())
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "ChatGLMTokenizer", "padding_side": "left"})
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if name != "lm_head.weight"}
    with atomic_write(folder / "model.safetensors", "wb") as stream:
        stream.write(save(whole, metadata={"format": "pt"}))
