"""Run small bash scripts that source the shell idiom, in a folder of their own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
UTILS = TOP / "utils"


def write_script(path: Path, body: str) -> Path:
    """An executable bash script; `@UTILS@` in it is the folder of the shell idiom."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/usr/bin/env bash\n" + body.replace("@UTILS@", str(UTILS)), encoding="utf-8")
    path.chmod(0o755)
    return path


def run(
    script: Path, *words: str, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script; its folder is the working directory unless told otherwise."""
    return subprocess.run(
        [str(script), *words],
        cwd=cwd or script.parent,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
