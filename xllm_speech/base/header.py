"""The run header: what ran, where and on what, printed first and stored beside every output."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from xllm_speech.version import __version__


def git_commit() -> str | None:
    """Short commit of the checkout the package runs from, with `+` where tracked files differ; None outside one."""
    top = Path(__file__).resolve().parents[2]
    if not (top / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "-C", str(top), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10
        )
        dirty = subprocess.run(
            ["git", "-C", str(top), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True, text=True, timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def package_version(name: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def run_header(seed: int | None = None) -> dict[str, Any]:
    """Version, commit, command line, seed, processor and library versions; imports nothing heavy."""
    return {
        "xllm_speech": __version__,
        "commit": git_commit(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "seed": seed,
        "python": platform.python_version(),
        "torch": package_version("torch"),
        "transformers": package_version("transformers"),
        "lhotse": package_version("lhotse"),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
