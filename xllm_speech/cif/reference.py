"""Two slow, readable forms of CIF for tests and benchmarks: a loop that follows cif.md word by word, and a plain scatter."""

from __future__ import annotations

import torch

from xllm_speech.cif.integrate import EPSILON, TAIL_THRESHOLD
from xllm_speech.records import CifOut


def integrate_by_loop(
    h_BSD: torch.Tensor,
    alpha_BS: torch.Tensor,
    lens_B: torch.Tensor,
    target_lens_B: torch.Tensor | None = None,
    tail_threshold: float = TAIL_THRESHOLD,
) -> CifOut:
    """Same contract as `integrate_and_fire`, one utterance, one step and one unit at a time; the oracle of the tests."""
    results = []
    for b in range(h_BSD.shape[0]):
        target = None if target_lens_B is None else int(target_lens_B[b])
        results.append(_integrate_one(h_BSD[b, : int(lens_B[b])], alpha_BS[b, : int(lens_B[b])], target, tail_threshold))
    longest = max((len(units) for units, *_ in results), default=0)
    units_BUD = h_BSD.new_zeros(len(results), longest, h_BSD.shape[2])
    start_BU, fire_BU = h_BSD.new_zeros(2, len(results), longest)
    alpha_out_BS = torch.zeros_like(alpha_BS)
    for b, (units, starts, fires, weights, _) in enumerate(results):
        if units:
            units_BUD[b, : len(units)] = torch.stack(units)
        start_BU[b, : len(starts)] = torch.tensor(starts, dtype=h_BSD.dtype)
        fire_BU[b, : len(fires)] = torch.tensor(fires, dtype=h_BSD.dtype)
        alpha_out_BS[b, : len(weights)] = weights
    lens_out_B = torch.tensor([len(units) for units, *_ in results], dtype=torch.long, device=h_BSD.device)
    return CifOut(units_BUD, lens_out_B, torch.stack([r[4] for r in results]), start_BU, fire_BU, alpha_out_BS)


def _integrate_one(h_SD, alpha_S, target, tail_threshold):
    quantity = alpha_S.sum()
    weights = alpha_S if target is None else alpha_S * (target / (quantity + EPSILON))
    units: list[torch.Tensor] = []
    fires: list[float] = []
    held, unit = alpha_S.new_zeros(()), h_SD.new_zeros(h_SD.shape[1])  # weight and vector of the unit being filled
    for s in range(len(weights)):
        left = weights[s]
        while float((held + left).detach()) >= 1.0 and (target is None or len(units) < target):
            need = 1.0 - held
            left = left - need
            units.append(unit + need * h_SD[s])
            fires.append(s + 1.0 - float(left.detach()) / float(weights[s].detach()))
            held, unit = alpha_S.new_zeros(()), h_SD.new_zeros(h_SD.shape[1])
        held, unit = held + left, unit + left * h_SD[s]
    if target is None and float(held.detach()) >= tail_threshold:
        units.append(unit / held)
        fires.append(float(len(weights)))
    while target is not None and len(units) < target:  # rounding (or no weight at all) left the last one open
        units.append(unit)
        fires.append(float(len(weights)))
        unit = h_SD.new_zeros(h_SD.shape[1])
    starts = [0.0, *fires][: len(fires)]  # a unit begins when the one before has fired
    return units, starts, fires, weights, quantity


def integrate_by_scatter(
    h_BSD: torch.Tensor, alpha_BS: torch.Tensor, lens_B: torch.Tensor, target_lens_B: torch.Tensor
) -> torch.Tensor:
    """Training form only: every step is scattered into the unit it starts in, the unit it ends in, and those between.

    The usual vectorised form; it builds [B, S, D] products for each of the two (or more) units a step feeds. Returns
    units_BUD. Reference point of `xllm-speech bench cif`.
    """
    batch, steps, width = h_BSD.shape
    valid_BS = torch.arange(steps, device=h_BSD.device) < lens_B[:, None]
    weight_BS = alpha_BS.masked_fill(~valid_BS, 0.0)
    weight_BS = weight_BS * (target_lens_B / (weight_BS.sum(1) + EPSILON))[:, None]
    right_BS = weight_BS.cumsum(1)
    left_BS = right_BS - weight_BS
    units = int(target_lens_B.max())
    first_BS, last_BS = left_BS.floor().long().clamp(0, units), right_BS.floor().long().clamp(0, units)
    out_BUD = h_BSD.new_zeros(batch, units + 1, width)
    inside_BS = torch.minimum(right_BS, first_BS + 1.0) - left_BS
    out_BUD = out_BUD.scatter_add(1, first_BS[:, :, None].expand(-1, -1, width), inside_BS[:, :, None] * h_BSD)
    crossing_BS = (last_BS > first_BS).to(h_BSD.dtype) * (right_BS - last_BS)
    out_BUD = out_BUD.scatter_add(1, last_BS[:, :, None].expand(-1, -1, width), crossing_BS[:, :, None] * h_BSD)
    for extra in range(1, int((last_BS - first_BS).max())):  # several fires inside one step: whole units
        full_BS = (first_BS + extra < last_BS).to(h_BSD.dtype)
        unit_BS = (first_BS + extra).clamp(max=units)
        out_BUD = out_BUD.scatter_add(1, unit_BS[:, :, None].expand(-1, -1, width), full_BS[:, :, None] * h_BSD)
    return out_BUD[:, :units]
