"""Configuration of ChatGLM-6B (v1), by the names of its official config.json (chatglm.md)."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from transformers import PreTrainedConfig

from xllm_speech.base.config import require, require_choice

# The first release stood 20 000 ids for pictures in front of the text's; its config.json names no mask tokens.
IMAGE_RELEASE_VOCABULARY = 150_528
IMAGE_RELEASE_IDS = 20_000
TEXT_RELEASE_VOCABULARY = 130_528
ROTARY_ANGLES = ("float16", "float32", "exact")


class SpecialIds(NamedTuple):
    """Ids of `<sop>`, `<eop>`, padding, `[MASK]` and `[gMASK]`."""

    sop: int
    eop: int
    pad: int
    mask: int
    gmask: int


class ChatGLMConfig(PreTrainedConfig):
    """Sizes, ids and numerics of a ChatGLM (v1); the defaults are those of the released model of 6 billion parameters.

    Args:
        vocab_size, hidden_size, num_layers, num_attention_heads, inner_hidden_size, max_sequence_length: sizes.
        layernorm_epsilon: of every layer norm.
        bos_token_id, eos_token_id, pad_token_id, mask_token_id, gmask_token_id: `<sop>`, `<eop>`, padding, `[MASK]` and
            `[gMASK]`; None means the release's own, which only its two vocabularies (130 528 and 150 528) have.
        image_token_count: ids in front that stand for pictures and are never generated; None: 20 000 in the vocabulary
            of 150 528, otherwise none.
        deepnorm_depth: layers that the residual's factor sqrt(2 * depth) counts; 28 at any depth in the original. A model
            that learns from nothing learns much sooner with its own number of layers here.
        rotary_angles: how the product of position and frequency is rounded, at every dtype of the computation. float16:
            frequencies and product in float16, as the released weights were trained. float32: frequencies in float16 but
            the product in float32, as the original code does in a float32 model. exact: nothing is rounded. None: float16
            for the two released vocabularies, otherwise float32.
        tie_word_embeddings: the head shares the embedding's weights.

    Raises:
        ConfigError: sizes that do not fit, an id outside the vocabulary or missing, an unknown choice, or a folder of a
            kind that this implementation does not carry (quantised weights, prefix tuning, one-dimensional positions).
    """

    model_type = "chatglm"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "num_hidden_layers": "num_layers",
        "max_position_embeddings": "max_sequence_length",
        "intermediate_size": "inner_hidden_size",
    }

    vocab_size: int = TEXT_RELEASE_VOCABULARY
    hidden_size: int = 4096
    num_layers: int = 28
    num_attention_heads: int = 32
    inner_hidden_size: int = 16_384
    max_sequence_length: int = 2048
    layernorm_epsilon: float = 1e-5
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    mask_token_id: int | None = None
    gmask_token_id: int | None = None
    image_token_count: int | None = None
    deepnorm_depth: int = 28
    rotary_angles: str | None = None
    position_encoding_2d: bool = True
    tie_word_embeddings: bool = True
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        images = self.vocab_size == IMAGE_RELEASE_VOCABULARY
        offset = IMAGE_RELEASE_IDS if images else 0
        released = images or self.vocab_size == TEXT_RELEASE_VOCABULARY
        if released:
            official = {"bos": 130_004, "eos": 130_005, "pad": 3, "mask": 130_000, "gmask": 130_001}
            for name, number in official.items():
                self._default(f"{name}_token_id", number + offset)
        self._default("image_token_count", offset)
        self._default("rotary_angles", "float16" if released else "float32")
        require(not kwargs.get("quantization_bit"), "config.json: quantization_bit: weights that were quantised before "
                "they were released are not supported; use the float16 folder and quantise it when loading")
        require(not kwargs.get("pre_seq_len"), "config.json: pre_seq_len: prefix-tuned weights are not supported")
        self._check()
        super().__post_init__(**kwargs)

    @property
    def special_ids(self) -> SpecialIds:
        """The ids that a prompt is framed with, by what they do."""
        names = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id", "gmask_token_id")
        return SpecialIds(*(int(self.__dict__[name]) for name in names))

    @property
    def deepnorm_alpha(self) -> float:
        """Factor of the residual."""
        return (2 * self.deepnorm_depth) ** 0.5

    @property
    def deepnorm_gain(self) -> float:
        """Factor of new weights that write into the residual."""
        return (8 * self.deepnorm_depth) ** -0.25

    def _default(self, name: str, value: int | str) -> None:
        if self.__dict__.get(name) is None:
            self.__dict__[name] = value

    def _check(self) -> None:
        require_choice("rotary_angles", str(self.rotary_angles), ROTARY_ANGLES)
        require(self.position_encoding_2d, "position_encoding_2d: only two-dimensional positions are supported")
        sizes = ("vocab_size", "hidden_size", "num_layers", "num_attention_heads", "inner_hidden_size", "deepnorm_depth")
        for name in sizes:
            require(self.__dict__[name] > 0, f"{name}: {self.__dict__[name]} is not a positive whole number")
        require(
            self.hidden_size % (4 * self.num_attention_heads) == 0,
            f"hidden_size {self.hidden_size} must be a multiple of 4 times the {self.num_attention_heads} attention heads",
        )
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id", "gmask_token_id"):
            number = self.__dict__[name]
            require(
                number is not None and 0 <= number < self.vocab_size,
                f"{name}: {number} is no id of a vocabulary of {self.vocab_size}; name it in the configuration",
            )
