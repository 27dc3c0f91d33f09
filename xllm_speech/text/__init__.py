"""Layer 3: normal forms, numbers read aloud, token tables."""

from xllm_speech.text.normalise import NORMALISER, cer_tokens, mer_tokens, normalise
from xllm_speech.text.tokens import TokenTable

__all__ = ["NORMALISER", "TokenTable", "cer_tokens", "mer_tokens", "normalise"]
