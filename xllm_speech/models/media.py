"""The frozen encoders of an X-LLM by what they encode, from media as they were read to what an interface takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xllm_speech.base.config import require
from xllm_speech.base.errors import ConfigError
from xllm_speech.base.files import sha256_file
from xllm_speech.encoders.audio import AudioEncoder, load_audio_encoder
from xllm_speech.encoders.caption import CaptionEncoder, load_caption_encoder
from xllm_speech.encoders.vision import VisionEncoder, load_vision_encoder
from xllm_speech.interfaces.vision import ClipFeatures
from xllm_speech.models.asr import CifAsrModel
from xllm_speech.models.checkpoints import find_model, hash_weights, load_asr
from xllm_speech.models.xllm_config import EncodersConfig
from xllm_speech.records import ConversationBatch, Memory

# Kind of medium -> the part of `EncodersConfig` that encodes it. A further X adds itself here and in `MediaEncoders`.
ENCODER_OF = {"image": "vision", "video": "vision", "speech": "asr", "audio": "audio", "terminal": "text"}


class MediaEncoders(nn.Module):
    """Frozen encoders: always in eval mode, without gradients. A part that is absent encodes nothing.

    Args:
        vision: of pictures and frames. asr: phase 1's model. audio: of sound. text: of terminals' states.
    """

    def __init__(
        self, vision: VisionEncoder | None = None, asr: CifAsrModel | None = None, audio: AudioEncoder | None = None,
        text: CaptionEncoder | None = None, channel: str = "mix",
    ) -> None:
        super().__init__()
        self.vision, self.asr, self.audio, self.text = vision, asr, audio, text
        self.channel = channel
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> MediaEncoders:
        """Frozen encoders have one mode."""
        return super().train(False)

    @property
    def image_size(self) -> int:
        """Side of the pictures that the vision encoder takes, in pixels; 0 without one."""
        return 0 if self.vision is None else self.vision.image_size

    @torch.no_grad()
    def encode(self, batch: ConversationBatch) -> ConversationBatch:
        """The batch with features in place of its media; kinds that had features already keep those.

        Raises:
            ConfigError: media of a kind for which there is no encoder.
        """
        features = {kind: self.encode_kind(kind, media) for kind, media in batch.media.items()}
        return replace(batch, media={}, features={**batch.features, **features})

    def encode_kind(self, kind: str, media: Any) -> Any:
        """Features of all items of one kind, as its interface takes them; `Memory` (units from a cache) passes unchanged."""
        if isinstance(media, Memory):
            return media
        match kind:
            case "image" if self.vision is not None:
                return self.vision(media)
            case "video" if self.vision is not None:
                return ClipFeatures(self.vision(media.frames), media.counts_N)
            case "speech" if self.asr is not None:
                return self.asr.find_units(media)[1]
            case "audio" if self.audio is not None:
                return self.audio(media)
            case "terminal" if self.text is not None:
                return self.text(media.texts)
        if kind in ENCODER_OF:
            raise ConfigError(f"{kind}: there is no encoder for it; set model.encoders.{ENCODER_OF[kind]}")
        raise ConfigError(f"{kind}: no such kind of medium; there are {', '.join(ENCODER_OF)}")


def find_encoders(config: EncodersConfig, kinds: list[str]) -> dict[str, Path]:
    """Part of `EncodersConfig` -> file or folder of its weights, for the parts that `kinds` need.

    Raises:
        ConfigError: a kind has no encoder configured. CheckpointError: there is no model.
    """
    paths = {
        "vision": config.vision.path if config.vision.kind != "none" else "", "asr": config.asr, "audio": config.audio,
        "text": config.text,
    }
    found: dict[str, Path] = {}
    for kind in kinds:
        part = ENCODER_OF[kind]
        require(bool(paths[part]), f"{kind}: model.encoders.{part} is needed, the folder of its frozen encoder")
        found[part] = find_model(paths[part]) if part == "asr" else Path(paths[part])
    return found


def hash_frozen(path: Path) -> str:
    """SHA-256 that names the weights of a frozen part, of a folder or of a single file; `CheckpointError` without weights."""
    return sha256_file(path) if path.is_file() else hash_weights(path)


def build_encoders(config: EncodersConfig, kinds: list[str], without: tuple[str, ...] = ()) -> MediaEncoders:
    """Load the frozen encoders that `kinds` need, from local folders. without: parts that are not loaded all the same,
    such as `asr` where units come from a cache.

    Raises:
        ConfigError, CheckpointError: as `find_encoders`, or what the loading of a part raises.
    """
    found = {part: path for part, path in find_encoders(config, kinds).items() if part not in without}
    vision = load_vision_encoder(config.vision.kind, str(found["vision"])) if "vision" in found else None
    asr = load_asr(found["asr"]) if "asr" in found else None
    return MediaEncoders(
        vision,
        None if asr is None else asr.model,
        load_audio_encoder(str(found["audio"])) if "audio" in found else None,
        load_caption_encoder(str(found["text"])) if "text" in found else None,
        "mix" if asr is None else asr.description.features.channel,
    )
