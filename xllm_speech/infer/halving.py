"""A batch that fails as a whole is halved until what is to blame stands alone; a batch too big for the memory is not lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from xllm_speech.nn.memory import ran_out_of_memory

Item = TypeVar("Item")
Key = TypeVar("Key")
Result = TypeVar("Result")


def halve_on_failure(
    items: Sequence[Item], work: Callable[[Sequence[Item]], dict[Key, Result]],
    give_up: Callable[[Item, Exception], dict[Key, Result]], blames: tuple[type[Exception], ...] = (),
) -> dict[Key, Result]:
    """`work` of all items, or of each half where it fails, and so on.

    Args:
        give_up: what becomes of one item that fails alone. blames: failures to halve for, beside a lack of memory; others are
            raised.
    """
    try:
        return work(items)
    except Exception as error:
        if not (ran_out_of_memory(error) or isinstance(error, blames)):
            raise
        if len(items) == 1:
            return give_up(items[0], error)
    # Only here has the failed attempt let go of its memory.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(items) // 2
    parts = (halve_on_failure(part, work, give_up, blames) for part in (items[:half], items[half:]))
    return {key: result for part in parts for key, result in part.items()}
