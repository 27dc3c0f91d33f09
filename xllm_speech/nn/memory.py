"""What running out of memory looks like."""

from __future__ import annotations

import torch


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says so, of a GPU or of the machine; PyTorch gives the latter no class of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )
