"""xllm_speech: multimodal speech recognition with CIF and large language models.

Importing the package is cheap; the names below load what they need when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xllm_speech.version import __version__

if TYPE_CHECKING:
    from xllm_speech.infer.asr import CifAsr
    from xllm_speech.infer.xllm import XLLM

__all__ = ["XLLM", "CifAsr", "__version__"]


def __getattr__(name: str) -> Any:
    match name:
        case "CifAsr":
            from xllm_speech.infer.asr import CifAsr

            return CifAsr
        case "XLLM":
            from xllm_speech.infer.xllm import XLLM

            return XLLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
