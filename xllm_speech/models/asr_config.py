"""Configuration of the CIF ASR model. Defaults are the paper's (A.3); every key is the argument of a constructor."""

from __future__ import annotations

from dataclasses import dataclass, field

from xllm_speech.base.config import require, require_choice


@dataclass
class EncoderConfig:
    """`encoders.conformer.ConformerEncoder`."""

    bins: int = 80
    channels: int = 256
    width: int = 512
    heads: int = 8
    feedforward: int = 2048
    kernel: int = 31
    blocks: int = 18
    pool_after: list[int] = field(default_factory=lambda: [6, 12])
    dropout: float = 0.1
    attention_dropout: float = 0.0  # other than 0 leaves the fused attention kernel on a CPU
    position: str = "rope"  # rope | relative
    conv_norm: str = "layer"  # layer | batch
    final_norm: bool = True
    chunk_steps: int = 0  # for streaming: steps of 80 ms that are encoded together, 8 say; 0: the whole utterance
    left_chunks: int = 0  # earlier chunks that attention sees; 0: all, so that memory grows with the utterance

    def __post_init__(self) -> None:
        require_choice("encoder.position", self.position, ("rope", "relative"))
        require_choice("encoder.conv_norm", self.conv_norm, ("layer", "batch"))
        require(self.width % (2 * self.heads) == 0, f"encoder.width {self.width} must be a multiple of 2 x heads {self.heads}")
        require(self.kernel % 2 == 1, f"encoder.kernel {self.kernel} must be odd")
        for name, value in (("chunk_steps", self.chunk_steps), ("left_chunks", self.left_chunks)):
            require(value >= 0, f"encoder.{name} {value} must not be negative")
        require(
            self.chunk_steps == 0 or self.position == "rope",
            f"encoder.chunk_steps {self.chunk_steps} goes with encoder.position rope, found {self.position}",
        )
        require(
            len(set(self.pool_after)) == 2 and all(1 <= b <= self.blocks for b in self.pool_after),
            f"encoder.pool_after {self.pool_after}: two different blocks of 1..{self.blocks}; steps are 80 ms (1/8 rate)",
        )


@dataclass
class CifConfig:
    """`cif.AlphaPredictor` and `cif.integrate_and_fire`."""

    channels: int = 512
    kernel: int = 5
    dropout: float = 0.0
    tail_threshold: float = 0.5

    def __post_init__(self) -> None:
        require(self.kernel % 2 == 1, f"cif.kernel {self.kernel} must be odd")
        require(0 < self.tail_threshold <= 1, f"cif.tail_threshold {self.tail_threshold} must lie in (0, 1]")


@dataclass
class DecoderConfig:
    """`decoders.cif_decoder.CifDecoder`; its width is the encoder's."""

    heads: int = 8
    feedforward: int = 2048
    blocks: int = 6
    dropout: float = 0.1
    visual_blocks: list[int] = field(default_factory=lambda: [3, 4])
    linguistic_blocks: list[int] = field(default_factory=lambda: [5, 6])

    def __post_init__(self) -> None:
        named = [*self.visual_blocks, *self.linguistic_blocks]
        require(
            len(set(named)) == len(named) and all(1 <= b <= self.blocks for b in named),
            f"decoder: visual_blocks {self.visual_blocks} and linguistic_blocks {self.linguistic_blocks} must be different "
            f"blocks of 1..{self.blocks}",
        )


@dataclass
class VisualConfig:
    """The frozen picture encoder (`encoders.vision`): none, a CLIP folder, or a small timm ViT trained by a recipe."""

    kind: str = "none"  # none | clip | vit
    path: str | None = None  # folder of the weights
    width: int = 768

    def __post_init__(self) -> None:
        require_choice("visual.kind", self.kind, ("none", "clip", "vit"))
        require(self.kind == "none" or bool(self.path), f"visual.kind {self.kind} needs visual.path, a folder")


@dataclass
class LinguisticConfig:
    """The frozen caption encoder (`encoders.caption`): none or a BERT folder."""

    kind: str = "none"  # none | bert
    path: str | None = None
    width: int = 768

    def __post_init__(self) -> None:
        require_choice("linguistic.kind", self.kind, ("none", "bert"))
        require(self.kind == "none" or bool(self.path), f"linguistic.kind {self.kind} needs linguistic.path")


@dataclass
class LossConfig:
    """Weights of the loss terms (cif.md, Losses). `unit_weight` is ours, for the head of the fast search; 0 builds none."""

    label_smoothing: float = 0.1
    ctc_weight: float = 0.5
    quantity_weight: float = 1.0
    unit_weight: float = 0.0
    ctc_by: str = "torch"  # torch | k2: the same loss; k2 must be installed

    def __post_init__(self) -> None:
        require_choice("loss.ctc_by", self.ctc_by, ("torch", "k2"))


@dataclass
class AsrModelConfig:
    """The CIF ASR model. `eos_unit`: one more unit at the end, for `<sos/eos>`, counted in all losses (cif.md, Losses)."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    cif: CifConfig = field(default_factory=CifConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    visual: VisualConfig = field(default_factory=VisualConfig)
    linguistic: LinguisticConfig = field(default_factory=LinguisticConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    eos_unit: bool = False

    def __post_init__(self) -> None:
        require(
            self.encoder.width % (2 * self.decoder.heads) == 0,
            f"encoder.width {self.encoder.width} must be a multiple of 2 x decoder.heads {self.decoder.heads}",
        )
