"""Status of a terminal as text and as vectors."""

from __future__ import annotations

import pytest
import torch

from xllm_speech.base.errors import DataError, SeamError
from xllm_speech.interfaces.terminal import TerminalInterface, write_status
from xllm_speech.records import Memory

torch.set_num_threads(1)


def test_status_is_written_in_its_order() -> None:
    assert write_status({"电量": 80, "蓝牙": True, "静音": False, "应用": "相机", "音量": 0.5}) == (
        "电量：80；蓝牙：开；静音：关；应用：相机；音量：0.5"
    )


@pytest.mark.parametrize("status", [{}, {"电量": " "}, {" ": 3}])
def test_empty_status_is_refused(status: dict[str, str | int]) -> None:
    with pytest.raises(DataError, match="terminal status"):
        write_status(status)  # type: ignore[arg-type]


def test_one_vector_per_token_and_padding_unseen() -> None:
    torch.manual_seed(0)
    terminal = TerminalInterface(4, 6, "relu")
    x = torch.randn(2, 5, 4)
    x[1, 2:] = float("nan")
    slots = terminal(Memory(x, torch.tensor([3, 2])))
    assert (slots.kind, slots.lens_N.tolist(), tuple(slots.x_NQH.shape)) == ("terminal", [3, 2], (2, 3, 6))
    expected = (x[1, :2] @ terminal.adapter.weight.T + terminal.adapter.bias).clamp(min=0)
    torch.testing.assert_close(slots.x_NQH[1, :2], expected)
    assert not slots.x_NQH[1, 2:].any()


def test_a_state_without_tokens_is_refused() -> None:
    with pytest.raises(SeamError, match="without tokens"):
        TerminalInterface(4, 6)(Memory(torch.zeros(2, 3, 4), torch.tensor([3, 0])))
