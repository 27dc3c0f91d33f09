"""What the CIF ASR model hears in an utterance, beside the units that an X-LLM is fed with: text, times, signs of speech.

The encoder runs once for both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from xllm_speech.infer.unit_times import energy_swing, frame_energies, token_spans
from xllm_speech.models.asr import BLANK_ID, CifAsrModel, SearchConfig
from xllm_speech.nn.masks import valid_mask
from xllm_speech.records import CifOut, EncoderOut, FbankBatch, TimedToken
from xllm_speech.text.tokens import TokenTable

LOUD_FRAMES = 10  # over which energy is averaged before the loudest place is taken, so that a click is not speech


@dataclass(frozen=True)
class Heard:
    """One utterance by the CIF ASR model.

    text: its hypothesis. tokens: one per unit, seconds from the start of the utterance (`infer.unit_times`). units: CIF's
    count. heard: how many encoder steps CTC takes for speech (sum of what blank leaves), None where the model trained without
    CTC. log_energy: of the loudest tenth of a second, mean over mel bins of 16-bit samples (a noise of one digit: 4.5).
    swing: from its quiet frames to its loud ones, in log energy (a steady noise: 0.3, speech in much noise: 0.6 and more).
    """

    text: str
    tokens: list[TimedToken]
    units: int
    heard: float | None
    log_energy: float
    swing: float = math.inf


class Listener:
    """Hears with the frozen ASR model of an X-LLM.

    Args:
        asr: the model. table: its tokens. search: None for fast where the model has the head for it, else greedy.
    """

    def __init__(self, asr: CifAsrModel, table: TokenTable, search: SearchConfig | None = None) -> None:
        self.asr, self.table = asr, table
        self.search = search or SearchConfig("greedy" if asr.unit_head is None else "fast")

    @torch.no_grad()
    def hear(self, fbank: FbankBatch) -> tuple[CifOut, list[Heard]]:
        """Units of a batch, and what was heard in each utterance."""
        encoded, cif = self.asr.find_units(fbank)
        return cif, self.interpret(fbank, encoded, cif)

    @torch.no_grad()
    def interpret(self, fbank: FbankBatch, encoded: EncoderOut, cif: CifOut) -> list[Heard]:
        """What was heard, from what the encoder and CIF made of a batch."""
        results, _ = self.asr.decode(encoded, cif, None, None, self.search)
        heard_B = hear_steps(self.asr, encoded)
        units, found = cif.lens_B.tolist(), []
        for row, result in enumerate(results):
            energy_T = frame_energies(fbank.x_BTF[row, : fbank.lens_B[row]])
            spans = token_spans(cif.alpha_BS[row], units[row], energy_T)
            tokens = [
                TimedToken(self.table.piece(token), *spans[unit], math.exp(log_prob))
                for unit, (token, log_prob) in enumerate(zip(result.tokens, result.log_probs, strict=True))
            ]
            text = self.table.decode(result.tokens)
            found.append(Heard(text, tokens, units[row], heard_B[row], loudest(energy_T), energy_swing(energy_T)))
        return found


def hear_steps(asr: CifAsrModel, encoded: EncoderOut) -> list[float | None]:
    """How many encoder steps of each utterance CTC takes for speech; None: the model trained without CTC."""
    if asr.ctc_weight <= 0:
        return [None] * len(encoded.lens_B)
    blank_BS = asr.ctc_head(encoded.x_BSD).float().softmax(-1)[..., BLANK_ID]
    inside_BS = valid_mask(encoded.lens_B, blank_BS.shape[1])
    return list((1 - blank_BS).masked_fill(~inside_BS, 0.0).sum(1).tolist())


def loudest(energy_T: np.ndarray) -> float:
    """Mean log mel energy of the loudest tenth of a second; minus infinity of nothing."""
    width = min(LOUD_FRAMES, len(energy_T))
    return float(np.convolve(energy_T, np.full(width, 1 / width), "valid").max()) if width else -math.inf
