"""Who trains when: one table (system.md section 5; house.md rule 9).

    phase 1   the CIF ASR model, all of it                  models.asr; not a matter of this module
    phase 2   one interface, each kind by itself            interface.trained_in(2)
    phase 3   the adapters of all interfaces together       interface.trained_in(3)

Encoders and the LLM are frozen in both. What does not train is in eval mode, inside an interface too: a frozen
transformer with active dropout would be another one in every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from xllm_speech.base.config import require
from xllm_speech.interfaces.base import Interface


@dataclass(frozen=True)
class PhasePlan:
    """What trains: the phase, the kinds it takes part in, and the dotted names of trained parts below `interfaces`."""

    phase: int
    kinds: tuple[str, ...]
    parts: tuple[str, ...]


def plan_phase(interfaces: dict[str, Interface], phase: int, kinds: Sequence[str] | None = None) -> PhasePlan:
    """The plan of phase 2 for one kind, or of phase 3 for all kinds (or those named).

    Raises:
        ConfigError: another phase, an unknown kind, or several kinds in phase 2, which trains each by itself.
    """
    require(phase in (2, 3), f"phase {phase}: interfaces train in phases 2 and 3")
    chosen = tuple(interfaces if kinds is None else kinds)
    unknown = [kind for kind in chosen if kind not in interfaces]
    require(not unknown, f"phase {phase}: no interface of kind {', '.join(unknown)}; there are {', '.join(interfaces)}")
    require(phase == 3 or len(chosen) == 1, f"phase 2 trains one interface by itself, not {', '.join(chosen)}")
    parts = tuple(f"{kind}.{part}" for kind in chosen for part in interfaces[kind].trained_in(phase))
    return PhasePlan(phase, chosen, parts)


def apply_phase(interfaces: dict[str, Interface], plan: PhasePlan | None) -> None:
    """Let exactly the parts of `plan` have gradients; None freezes everything."""
    for interface in interfaces.values():
        interface.requires_grad_(False)
    for part in () if plan is None else plan.parts:
        kind, name = part.split(".", 1)
        trained = dict(interfaces[kind].named_children()) | dict(interfaces[kind].named_parameters(recurse=False))
        trained[name].requires_grad_(True)


def set_modes(interfaces: dict[str, Interface], plan: PhasePlan | None, training: bool) -> None:
    """Train mode for the trained parts while `training`, eval mode for everything else."""
    for interface in interfaces.values():
        interface.eval()
    for part in plan.parts if plan is not None and training else ():
        kind, name = part.split(".", 1)
        module = dict(interfaces[kind].named_children()).get(name)
        if isinstance(module, nn.Module):
            module.train()
