"""What the CIF ASR model hears in an utterance, beside the units that an X-LLM is fed with: text, times, signs of speech.

The encoder runs once for both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from xllm_speech.infer.unit_times import speech_span, unit_edges
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
    """

    text: str
    tokens: list[TimedToken]
    units: int
    heard: float | None
    log_energy: float


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
        heard_B: list[float] | None = None
        if self.asr.ctc_weight > 0:
            blank_BS = self.asr.ctc_head(encoded.x_BSD).float().softmax(-1)[..., BLANK_ID]
            inside_BS = valid_mask(encoded.lens_B, blank_BS.shape[1])
            heard_B = (1 - blank_BS).masked_fill(~inside_BS, 0.0).sum(1).tolist()
        energies = loudest(fbank)
        units, found = cif.lens_B.tolist(), []
        for row, result in enumerate(results):
            edges = unit_edges(cif.alpha_BS[row], units[row], *speech_span(fbank.x_BTF[row, : fbank.lens_B[row]]))
            tokens = [
                TimedToken(self.table.piece(token), edges[unit], edges[unit + 1], math.exp(log_prob))
                for unit, (token, log_prob) in enumerate(zip(result.tokens, result.log_probs, strict=True))
            ]
            text = self.table.decode(result.tokens)
            found.append(Heard(text, tokens, units[row], None if heard_B is None else heard_B[row], energies[row]))
        return found


def loudest(fbank: FbankBatch) -> list[float]:
    """Mean log mel energy of the loudest tenth of a second of each utterance."""
    energy_BT = fbank.x_BTF.float().mean(2)
    found = []
    for energy_T, length in zip(energy_BT, fbank.lens_B.tolist(), strict=True):
        width = min(LOUD_FRAMES, length)
        found.append(float(energy_T[:length].unfold(0, width, 1).mean(1).max()) if width else -math.inf)
    return found
