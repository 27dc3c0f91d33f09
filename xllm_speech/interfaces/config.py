"""Configuration of the interfaces. Defaults are the paper's (A.3); every key is the argument of a constructor."""

from __future__ import annotations

from dataclasses import dataclass, field

from xllm_speech.base.config import require, require_choice
from xllm_speech.interfaces.base import ACTIVATIONS

KINDS = ("image", "video", "speech", "audio", "terminal")


@dataclass
class QFormerConfig:
    """`interfaces.qformer.QueryTransformer`."""

    encoder_width: int = 1408  # EVA ViT-g
    queries: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12
    feedforward: int = 3072
    cross_attention_every: int = 2
    positions: int = 0  # size of the learnt position table on the encoder's tokens; 0: none
    dropout: float = 0.1
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("encoder_width", "queries", "width", "layers", "heads", "feedforward", "cross_attention_every"):
            require(self.__dict__[name] > 0, f"qformer.{name} {self.__dict__[name]} must be positive")
        require(self.width % self.heads == 0, f"qformer.width {self.width} is not a multiple of heads {self.heads}")
        require(self.positions >= 0, f"qformer.positions {self.positions} must not be negative")
        require(0 <= self.dropout < 1, f"qformer.dropout {self.dropout} must lie in [0, 1)")
        require(self.init_std > 0, f"qformer.init_std {self.init_std} must be positive")


@dataclass
class ImageInterfaceConfig:
    """`interfaces.vision.ImageInterface`."""

    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    activation: str = "none"  # none | relu

    def __post_init__(self) -> None:
        require_choice("image.activation", self.activation, ACTIVATIONS)


@dataclass
class VideoInterfaceConfig:
    """`interfaces.vision.VideoInterface`: the image interface's sizes, and its Q-Former itself when shared."""

    share: bool = False
    activation: str = "none"  # none | relu

    def __post_init__(self) -> None:
        require_choice("video.activation", self.activation, ACTIVATIONS)


@dataclass
class SpeechInterfaceConfig:
    """`interfaces.speech.SpeechInterface`."""

    unit_width: int = 512
    width: int = 768
    layers: int = 12
    heads: int = 12
    feedforward: int = 3072
    positions: int = 512
    dropout: float = 0.1
    init_std: float = 0.02
    projection_activation: str = "none"  # none | relu
    activation: str = "none"  # none | relu

    def __post_init__(self) -> None:
        for name in ("unit_width", "width", "layers", "heads", "feedforward", "positions"):
            require(self.__dict__[name] > 0, f"speech.{name} {self.__dict__[name]} must be positive")
        require(self.width % self.heads == 0, f"speech.width {self.width} is not a multiple of heads {self.heads}")
        require(0 <= self.dropout < 1, f"speech.dropout {self.dropout} must lie in [0, 1)")
        require(self.init_std > 0, f"speech.init_std {self.init_std} must be positive")
        require_choice("speech.projection_activation", self.projection_activation, ACTIVATIONS)
        require_choice("speech.activation", self.activation, ACTIVATIONS)


@dataclass
class AudioInterfaceConfig:
    """`interfaces.audio.AudioInterface`."""

    qformer: QFormerConfig = field(
        default_factory=lambda: QFormerConfig(encoder_width=768, queries=4, layers=2, positions=64)
    )
    window_frames: int = 64
    activation: str = "none"  # none | relu

    def __post_init__(self) -> None:
        require(self.window_frames > 0, f"audio.window_frames {self.window_frames} must be positive")
        require(
            self.qformer.positions in (0, self.window_frames),
            f"audio.qformer.positions {self.qformer.positions} must be 0 or window_frames, {self.window_frames}",
        )
        require_choice("audio.activation", self.activation, ACTIVATIONS)


@dataclass
class TerminalInterfaceConfig:
    """`interfaces.terminal.TerminalInterface`."""

    encoder_width: int = 768
    activation: str = "none"  # none | relu

    def __post_init__(self) -> None:
        require_choice("terminal.activation", self.activation, ACTIVATIONS)


@dataclass
class InterfacesConfig:
    """Which interfaces a model has, and how each is made."""

    kinds: list[str] = field(default_factory=lambda: ["image", "video", "speech"])
    image: ImageInterfaceConfig = field(default_factory=ImageInterfaceConfig)
    video: VideoInterfaceConfig = field(default_factory=VideoInterfaceConfig)
    speech: SpeechInterfaceConfig = field(default_factory=SpeechInterfaceConfig)
    audio: AudioInterfaceConfig = field(default_factory=AudioInterfaceConfig)
    terminal: TerminalInterfaceConfig = field(default_factory=TerminalInterfaceConfig)

    def __post_init__(self) -> None:
        for kind in self.kinds:
            require_choice("interfaces.kinds", kind, KINDS)
        require(len(set(self.kinds)) == len(self.kinds), f"interfaces.kinds {self.kinds}: a kind occurs twice")
        require(
            not ("video" in self.kinds and self.video.share) or "image" in self.kinds,
            "interfaces.video.share: there is no image interface to share with; add image to interfaces.kinds",
        )
