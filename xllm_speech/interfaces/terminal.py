"""A further X, the status of a terminal (a phone, a robot): named values as text, through a frozen text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from xllm_speech.base.errors import DataError
from xllm_speech.interfaces.base import Adapter, Interface
from xllm_speech.nn.masks import valid_mask
from xllm_speech.records import Memory, SlotEmbeds
from xllm_speech.records.checks import ensure

Value = str | int | float | bool


def write_status(status: Mapping[str, Value]) -> str:
    """Named values -> the sentence that the text encoder reads, such as 电量：80；蓝牙：开, in the order given.

    Raises:
        DataError: no value at all, or an empty name or value.
    """
    if not status:
        raise DataError("terminal status: holds no value; leave the item out instead")
    parts = []
    for name, value in status.items():
        shown = ("开" if value else "关") if isinstance(value, bool) else str(value).strip()
        if not name.strip() or not shown:
            raise DataError(f"terminal status: `{name}`: `{value}` has an empty name or value")
        parts.append(f"{name.strip()}：{shown}")
    return "；".join(parts)


class TerminalInterface(Interface):
    """Token features of N states, from a frozen text encoder -> one vector per token, by the adapter alone.

    Args:
        encoder_width: of the features. llm_width: H. activation: after the adapter, none | relu.
    """

    kind: ClassVar[str] = "terminal"
    tag: ClassVar[str] = "Terminal"

    def __init__(self, encoder_width: int, llm_width: int, activation: str = "none") -> None:
        super().__init__()
        self.adapter = Adapter(encoder_width, llm_width, activation)

    def forward(self, features: Memory) -> SlotEmbeds:
        """[N, tokens, D] -> SlotEmbeds [N, tokens, H], zero after each length; `SeamError` for a state without tokens."""
        lens_N = features.lens_B
        if not len(lens_N):
            return self.nothing(lens_N)
        longest = int(lens_N.max())
        ensure(int(lens_N.min()) >= 1, "TerminalInterface: a state without tokens")
        padding_NL1 = ~valid_mask(lens_N, longest)[:, :, None]
        x_NLH = self.adapter(features.x_BND[:, :longest].masked_fill(padding_NL1, 0.0))
        return SlotEmbeds(x_NLH.masked_fill(padding_NL1, 0.0), lens_N, self.kind)
