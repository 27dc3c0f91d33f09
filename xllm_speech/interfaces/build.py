"""From configuration to interfaces: the one place where a kind chooses a class."""

from __future__ import annotations

from dataclasses import asdict

from xllm_speech.base.errors import ConfigError
from xllm_speech.interfaces.audio import AudioInterface
from xllm_speech.interfaces.base import Interface
from xllm_speech.interfaces.config import KINDS, InterfacesConfig, QFormerConfig
from xllm_speech.interfaces.qformer import QueryTransformer
from xllm_speech.interfaces.speech import SpeechInterface
from xllm_speech.interfaces.terminal import TerminalInterface
from xllm_speech.interfaces.vision import ImageInterface, VideoInterface


def build_qformer(config: QFormerConfig, text: bool = False) -> QueryTransformer:
    """A Q-Former of the configured sizes; `text` keeps the text branch of BLIP-2's first stage."""
    return QueryTransformer(**asdict(config), text=text)


def build_interface(kind: str, config: InterfacesConfig, llm_width: int, image: ImageInterface | None = None) -> Interface:
    """One interface with chance values.

    Args:
        kind: image | video | speech | audio | terminal. image: whose Q-Former a sharing video interface uses.

    Raises:
        ConfigError: unknown kind, or a shared Q-Former without `image`.
    """
    match kind:
        case "image":
            return ImageInterface(build_qformer(config.image.qformer), llm_width, config.image.activation)
        case "video":
            if not config.video.share:
                return VideoInterface(build_qformer(config.image.qformer), llm_width, config.video.activation)
            if image is None:
                raise ConfigError("interfaces.video.share: there is no image interface to share with; set it to false")
            return VideoInterface(image.querying, llm_width, config.video.activation, shared=True)
        case "speech":
            return SpeechInterface(llm_width, **asdict(config.speech))
        case "audio":
            qformer = build_qformer(config.audio.qformer)
            return AudioInterface(qformer, config.audio.window_frames, llm_width, config.audio.activation)
        case "terminal":
            return TerminalInterface(config.terminal.encoder_width, llm_width, config.terminal.activation)
    raise ConfigError(f"interface kind: `{kind}` is not one of {', '.join(KINDS)}")


def build_interfaces(config: InterfacesConfig, llm_width: int) -> dict[str, Interface]:
    """The interfaces of `config.kinds` by kind, in that order; a sharing video interface shares with the image one here."""
    image = build_interface("image", config, llm_width) if "image" in config.kinds else None
    assert image is None or isinstance(image, ImageInterface)
    return {
        kind: image if kind == "image" and image is not None else build_interface(kind, config, llm_width, image)
        for kind in config.kinds
    }
