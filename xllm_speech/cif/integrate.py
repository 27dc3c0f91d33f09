"""Continuous integrate-and-fire, batched (cif.md, Semantics; the paper's section 3.2.1 and its reference [12]).

The cumulated weight of an utterance is a line from 0 to its quantity. Steps cut it at c_1, c_2, ...; units cut it at 1, 2, ...
Merging both sets of cuts gives at most S + U segments, each inside one step and one unit, in the order of both. A unit is
then the sum of (segment width x its step's vector): one sparse product that reads every step about once, writes every unit
once and builds nothing of the size of the input.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional

from xllm_speech.records import CifOut
from xllm_speech.records.checks import ensure

EPSILON = 1e-8  # in the scaling of training, cif.md rule 2
TAIL_THRESHOLD = 0.5


def integrate_and_fire(
    h_BSD: torch.Tensor,
    alpha_BS: torch.Tensor,
    lens_B: torch.Tensor,
    target_lens_B: torch.Tensor | None = None,
    tail_threshold: float = TAIL_THRESHOLD,
) -> CifOut:
    """Turn encoder steps into units, one per token.

    Args:
        h_BSD: encoder output, any float dtype, right-padded.
        alpha_BS: non-negative weights; those outside `lens_B` count as zero.
        lens_B: valid steps per utterance, integers.
        target_lens_B: training: weights are scaled so that exactly this many units come out. None: inference, no scaling.
        tail_threshold: inference: a residue of at least this much after the last whole unit becomes one more unit.

    Returns:
        `CifOut`; units in the dtype of `h_BSD`, sums done in float32 at least and the cumulated weight in float64 (float32
        where a device has no float64). The result for an utterance does not depend on its batch. Times are in steps and
        carry no gradient; units carry gradients to `h_BSD` and `alpha_BS`.

    Raises:
        SeamError: shapes disagree, a length exceeds S, or a weight or a target is negative.
    """
    batch, steps, width = _check(h_BSD, alpha_BS, lens_B, target_lens_B)
    device = h_BSD.device
    exact = torch.float32 if device.type == "mps" else torch.float64
    report = torch.float64 if h_BSD.dtype == torch.float64 else torch.float32  # of quantities and times
    with torch.autocast(device.type, enabled=False):
        valid_BS = torch.arange(steps, device=device) < lens_B[:, None]
        weight_BS = alpha_BS.to(exact).masked_fill(~valid_BS, 0.0)
        quantity_B = weight_BS.sum(1)
        if target_lens_B is None:
            whole_B = quantity_B.detach().nan_to_num(0.0).floor()
            tail_B = quantity_B.detach() - whole_B >= tail_threshold
            units_B = whole_B.long() + tail_B
            residue_B = torch.where(tail_B, quantity_B - whole_B, torch.ones_like(quantity_B))
        else:
            weight_BS = weight_BS * (target_lens_B.to(exact) / (quantity_B + EPSILON))[:, None]
            units_B = target_lens_B.long()
            residue_B = None
        units = int(units_B.max()) if batch else 0
        if steps == 0 or units == 0:
            # Nothing to integrate; the sum keeps the result attached to its inputs, so that backward finds zeros.
            zeros_BUD = h_BSD.new_zeros(batch, units, width) + (h_BSD.sum() * 0 + alpha_BS.sum() * 0).to(h_BSD.dtype)
            times_BU = torch.zeros(batch, units, device=device, dtype=report)
            return CifOut(zeros_BUD, units_B, quantity_B.to(report), times_BU, times_BU, weight_BS.to(alpha_BS.dtype))

        # Cut the line of cumulated weight at every step and every unit boundary. Boundaries stand first, so that a tie
        # fires at the first time the weight is reached and not after a stretch of silence.
        cumulated_BS = weight_BS.cumsum(1)
        boundaries_BU = torch.arange(1, units + 1, device=device, dtype=exact).expand(batch, units)
        cuts_BP, order_BP = torch.cat([boundaries_BU, cumulated_BS], 1).sort(dim=1, stable=True)
        from_unit_BP = order_BP < units
        unit_BP = from_unit_BP.cumsum(1) - from_unit_BP.long()  # boundaries passed before the segment ends
        step_BP = (~from_unit_BP).cumsum(1) - (~from_unit_BP).long()
        width_BP = cuts_BP - functional.pad(cuts_BP[:, :-1], (1, 0))
        width_BP = width_BP.masked_fill((step_BP >= lens_B[:, None]) | (unit_BP >= units_B[:, None]), 0.0)
        if residue_B is not None:  # only the tail unit, the last one of its utterance, is divided
            tail_BP = tail_B[:, None] & (unit_BP == units_B[:, None] - 1)
            width_BP = torch.where(tail_BP, width_BP / residue_B[:, None], width_BP)

        rank_BP = _ranks(order_BP)  # where each cut landed: unit boundaries first, then steps
        rank_BU = rank_BP[:, :units]
        table = h_BSD.reshape(batch * steps, width)
        table = table if table.dtype in (torch.float32, torch.float64) else table.float()
        row_B1 = torch.arange(batch, device=device)[:, None]
        units_BUD = _SegmentSum.apply(
            table,
            width_BP.reshape(-1).to(table.dtype),
            (step_BP.where(step_BP < lens_B[:, None], 0) + row_B1 * steps).reshape(-1),
            (unit_BP.clamp(max=units - 1) + row_B1 * units).reshape(-1),
            _starts(rank_BU, order_BP.shape[1]),
            _starts(rank_BP[:, units:], order_BP.shape[1]),
        ).view(batch, units, width)
        present_BU = torch.arange(units, device=device) < units_B[:, None]
        units_BUD = units_BUD.masked_fill(~present_BU[:, :, None], 0.0).to(h_BSD.dtype)
        fire_BU = _fire_times(cumulated_BS.detach(), weight_BS.detach(), lens_B, rank_BU)
        fire_BU = fire_BU.masked_fill(~present_BU, 0.0).to(report)
        start_BU = functional.pad(fire_BU[:, :-1], (1, 0)).masked_fill(~present_BU, 0.0)
    return CifOut(units_BUD, units_B, quantity_B.to(report), start_BU, fire_BU, weight_BS.to(alpha_BS.dtype))


def _check(
    h_BSD: torch.Tensor, alpha_BS: torch.Tensor, lens_B: torch.Tensor, target_lens_B: torch.Tensor | None
) -> tuple[int, int, int]:
    ensure(h_BSD.dim() == 3, f"integrate_and_fire: h must be [B, S, D], found {tuple(h_BSD.shape)}")
    batch, steps, width = h_BSD.shape
    ensure(alpha_BS.shape == (batch, steps), f"integrate_and_fire: alpha {tuple(alpha_BS.shape)} for h {tuple(h_BSD.shape)}")
    for name, value in (("lens", lens_B), ("target_lens", target_lens_B)):
        if value is None:
            continue
        ensure(value.shape == (batch,), f"integrate_and_fire: {name} {tuple(value.shape)} for a batch of {batch}")
        ensure(not value.is_floating_point(), f"integrate_and_fire: {name} must be integers, found {value.dtype}")
    if batch and steps:
        # One read-back for all conditions on values.
        low, high, lightest = torch.stack([lens_B.min(), lens_B.max(), (alpha_BS < 0).any().to(lens_B.dtype)]).tolist()
        ensure(low >= 0 and high <= steps, f"integrate_and_fire: lengths {low}..{high} for {steps} steps")
        ensure(not lightest, "integrate_and_fire: a weight is negative; weights come from a sigmoid")
    if target_lens_B is not None and batch:
        ensure(int(target_lens_B.min()) >= 0, "integrate_and_fire: a target length is negative")
    return batch, steps, width


def _ranks(order_BP: torch.Tensor) -> torch.Tensor:
    """Inverse of a permutation in each row."""
    positions_BP = torch.arange(order_BP.shape[1], device=order_BP.device).expand_as(order_BP)
    return torch.empty_like(order_BP).scatter_(1, order_BP, positions_BP)


def _starts(rank_BN: torch.Tensor, segments: int) -> torch.Tensor:
    """First segment of each unit (or step): the row's start, then right after the cut that ended the one before."""
    rows_B1 = torch.arange(rank_BN.shape[0], device=rank_BN.device)[:, None] * segments
    return (functional.pad(rank_BN[:, :-1] + 1, (1, 0)) + rows_B1).reshape(-1)


class _SegmentSum(torch.autograd.Function):
    """out[unit] = sum of weight[p] x table[step[p]] over its segments p, which are contiguous for units and for steps.

    The gradient of the table is the same product with units and steps exchanged, so it is one more embedding bag; the
    gradient that `embedding_bag` would compute by itself sorts and scatters, at ten times the cost.
    """

    @staticmethod
    def forward(ctx, table, weight_P, step_P, unit_P, unit_start, step_start):
        ctx.save_for_backward(table, weight_P, step_P, unit_P, unit_start, step_start)
        return functional.embedding_bag(step_P, table, unit_start, mode="sum", per_sample_weights=weight_P)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):
        table, weight_P, step_P, unit_P, unit_start, step_start = ctx.saved_tensors
        grad_out = grad_out.contiguous()
        grad_table = grad_weight_P = None
        if ctx.needs_input_grad[0]:
            grad_table = functional.embedding_bag(
                unit_P, grad_out, step_start, mode="sum", per_sample_weights=weight_P
            )
        if ctx.needs_input_grad[1]:  # <out gradient of the unit, vector of the step>, one number per segment
            grad_weight_P = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                grad_out, table, step_P, unit_start, unit_P, 0
            )
        return grad_table, grad_weight_P, None, None, None, None


def _fire_times(
    cumulated_BS: torch.Tensor, weight_BS: torch.Tensor, lens_B: torch.Tensor, rank_BU: torch.Tensor
) -> torch.Tensor:
    """When the cumulated weight reaches u + 1, in steps, by linear interpolation inside the step; else the end."""
    steps = cumulated_BS.shape[1]
    boundary_U = torch.arange(rank_BU.shape[1], device=rank_BU.device)
    step_BU = rank_BU - boundary_U  # steps that ended strictly before the boundary
    inside_BU = step_BU.clamp(max=steps - 1)
    before_BU = functional.pad(cumulated_BS, (1, 0)).gather(1, inside_BU)
    weight_BU = weight_BS.gather(1, inside_BU)
    part_BU = ((boundary_U + 1 - before_BU) / weight_BU.clamp(min=torch.finfo(weight_BU.dtype).tiny)).clamp(0.0, 1.0)
    reached_BU = step_BU < lens_B[:, None]
    return torch.where(reached_BU, inside_BU + part_BU, lens_B[:, None].to(part_BU.dtype))
