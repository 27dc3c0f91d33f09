"""Configuration of the X-LLM: which frozen parts it stands on, its interfaces, and how prompts are written."""

from __future__ import annotations

from dataclasses import dataclass, field

from xllm_speech.base.config import require, require_choice
from xllm_speech.interfaces.config import InterfacesConfig
from xllm_speech.llm.loading import DTYPES, QUANTIZATIONS
from xllm_speech.llm.lora import LoraConfig
from xllm_speech.prompts.templates import PromptStyle, find_template

VISION_KINDS = ("none", "vit", "clip", "eva")
LOSS_UNITS = ("token", "answer")


@dataclass
class LlmConfig:
    """`llm.load_llm`: a folder with the frozen LLM. lora: adapters on its attention that phase 3 trains; none by default."""

    path: str = ""
    dtype: str = "float32"  # float32 | bfloat16 | float16 | auto
    quantization: str = "none"  # none | 8bit | 4bit; CUDA only
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        require_choice("llm.dtype", self.dtype, ("auto", *DTYPES))
        require_choice("llm.quantization", self.quantization, QUANTIZATIONS)


@dataclass
class VisionConfig:
    """`encoders.vision.load_vision_encoder`: the frozen encoder of pictures and frames."""

    kind: str = "none"  # none | vit (a recipe's own) | clip | eva
    path: str = ""

    def __post_init__(self) -> None:
        require_choice("encoders.vision.kind", self.kind, VISION_KINDS)
        require(self.kind == "none" or bool(self.path), f"encoders.vision.kind {self.kind} needs encoders.vision.path")


@dataclass
class EncodersConfig:
    """The frozen encoders: folders, empty for none.

    vision: of pictures and of the frames of clips. asr: model directory (or experiment) of phase 1, for speech. audio: an
    audio spectrogram transformer, for other sound. text: a BERT, for the states of terminals.
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    asr: str = ""
    audio: str = ""
    text: str = ""


@dataclass
class PromptConfig:
    """`prompts.PromptStyle`; max_tokens: most positions of prompt and answer, 0: as many as the LLM takes."""

    template: str = "chinese"  # chinese | english | plain
    rounds: str = "text"  # text | turns
    loss: str = "last"  # last | all
    media_order: str = "template"  # template | given
    max_tokens: int = 0

    def __post_init__(self) -> None:
        require(self.max_tokens >= 0, f"prompt.max_tokens {self.max_tokens} must not be negative")
        self.style()

    def style(self) -> PromptStyle:
        """The style itself; `ConfigError` for a value that it does not know."""
        return PromptStyle(
            find_template(self.template), rounds=self.rounds, loss=self.loss, media_order=self.media_order
        )


@dataclass
class XllmConfig:
    """The X-LLM (system.md sections 2 to 4).

    video_frames: T, frames of a clip that its encoder sees. loss_unit: `token` weighs every answer token alike, `answer`
    every answer (mini.md: with a small LLM short answers starve otherwise).
    """

    llm: LlmConfig = field(default_factory=LlmConfig)
    encoders: EncodersConfig = field(default_factory=EncodersConfig)
    interfaces: InterfacesConfig = field(default_factory=InterfacesConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    video_frames: int = 4
    loss_unit: str = "token"

    def __post_init__(self) -> None:
        require(self.video_frames >= 1, f"model.video_frames {self.video_frames} must be at least 1")
        require_choice("model.loss_unit", self.loss_unit, LOSS_UNITS)
