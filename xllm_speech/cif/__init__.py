"""Layer 3: continuous integrate-and-fire: weights, integration, reference forms."""

from xllm_speech.cif.integrate import integrate_and_fire
from xllm_speech.cif.weights import AlphaPredictor
from xllm_speech.records import CifOut

__all__ = ["AlphaPredictor", "CifOut", "integrate_and_fire"]
