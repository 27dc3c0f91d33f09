"""`python -m xllm_speech.neighbours.espnet_train`: ESPnet2's training of the CIF ASR, with ESPnet's options."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from xllm_speech.base.errors import UserError


def main(cmd: Sequence[str] | None = None) -> int:
    """Train, or collect statistics; returns the exit status."""
    try:
        from xllm_speech.neighbours.espnet import CifAsrTask

        CifAsrTask.main(cmd=cmd)
    except UserError as error:
        print(f"espnet_train: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
