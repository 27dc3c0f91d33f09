"""CIF step by step: units come out as they fire, and are those of `integrate_and_fire` over the whole utterance."""

from __future__ import annotations

from typing import NamedTuple

import torch

from xllm_speech.cif.integrate import TAIL_THRESHOLD, integrate_and_fire
from xllm_speech.cif.weights import AlphaPredictor

NO_TAIL = 2.0  # a threshold that no residue reaches


class FiredUnits(NamedTuple):
    """units_UD; start_U, fire_U: in steps from the start of the stream, float64; alpha_S: weights of the steps just read."""

    units_UD: torch.Tensor
    start_U: torch.Tensor
    fire_U: torch.Tensor
    alpha_S: torch.Tensor


class StreamingCif:
    """Integrates the encoder output of one utterance, piece by piece.

    What has been integrated since the last fire is held as one vector and its weight, so memory does not grow.

    Args:
        predictor: of the weights; a weight waits for the `predictor.context` steps behind its own. tail_threshold: as in
            `integrate_and_fire`, at the end.
    """

    def __init__(self, predictor: AlphaPredictor, width: int, tail_threshold: float = TAIL_THRESHOLD) -> None:
        self.predictor, self.tail_threshold = predictor, tail_threshold
        weight = predictor.linear.weight
        self.seen_SD = weight.new_zeros(predictor.context, width)  # context, then steps without a weight yet
        self.held_D = weight.new_zeros(width)  # integrated since the last fire, divided by its weight
        self.residue = 0.0
        self.steps = 0  # with a weight
        self.last_fire = 0.0

    @torch.no_grad()
    def push(self, x_SD: torch.Tensor) -> FiredUnits:
        """Take encoder steps; the units that have fired."""
        self.seen_SD = torch.cat([self.seen_SD, x_SD])
        context = self.predictor.context
        ready = len(self.seen_SD) - 2 * context
        if ready <= 0:
            return self._integrate(x_SD[:0], x_SD.new_zeros(0))
        alpha_S = self.predictor.inside(self.seen_SD[None])[0]
        fresh_SD = self.seen_SD[context : context + ready]
        self.seen_SD = self.seen_SD[ready:].clone()
        return self._integrate(fresh_SD, alpha_S)

    def finish(self) -> FiredUnits:
        """The end: the last steps' units, and one more for the residue where it is large enough."""
        context = self.predictor.context
        fired = self.push(self.seen_SD.new_zeros(context, self.seen_SD.shape[1]))
        tail = integrate_and_fire(
            self.held_D[None, None], torch.tensor([[self.residue]], dtype=torch.float64, device=self.held_D.device),
            torch.ones(1, dtype=torch.long, device=self.held_D.device), tail_threshold=self.tail_threshold,
        )
        if not int(tail.lens_B):
            return fired
        start = fired.start_U.new_tensor([self.last_fire])
        end = fired.fire_U.new_tensor([float(self.steps)])
        return FiredUnits(
            torch.cat([fired.units_UD, tail.units_BUD[0]]), torch.cat([fired.start_U, start]), torch.cat([fired.fire_U, end]),
            fired.alpha_S,
        )

    def _integrate(self, x_SD: torch.Tensor, alpha_S: torch.Tensor) -> FiredUnits:
        """Integrate behind what is held, which stands as one more step in front."""
        joined_SD = torch.cat([self.held_D[None], x_SD])
        weight_S = torch.cat([alpha_S.new_tensor([self.residue], dtype=torch.float64), alpha_S.double()])
        lens_B = torch.tensor([len(joined_SD)], device=x_SD.device)
        cif = integrate_and_fire(joined_SD[None], weight_S[None], lens_B, tail_threshold=NO_TAIL)
        units = int(cif.lens_B)
        # What lies behind the last whole unit.
        cumulated_S = weight_S.cumsum(0)
        before_S = cumulated_S - weight_S
        rest_S = cumulated_S.clamp(min=units) - before_S.clamp(min=units)
        self.residue = float(cumulated_S[-1]) - units
        if self.residue > 0:
            self.held_D = ((rest_S / rest_S.sum()).to(joined_SD.dtype)[:, None] * joined_SD).sum(0)
        fire_U = cif.fire_BU[0].double() - 1 + self.steps
        start_U = torch.cat([fire_U.new_tensor([self.last_fire]), fire_U[:-1]]) if units else fire_U
        self.last_fire = float(fire_U[-1]) if units else self.last_fire
        self.steps += len(x_SD)
        return FiredUnits(cif.units_BUD[0], start_U, fire_U, alpha_S)
