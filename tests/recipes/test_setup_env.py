"""utils/setup_env.sh in a clone of its own, with a `uv` that only notes what it was asked to install."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.recipes.shell import UTILS, write_script

# Makes environments without pip, which takes 0.1 s instead of 3; else it is the Python of the tests.
PYTHON = f"""\
if [[ "$*" == *ensurepip* ]]; then exit 0; fi
if [ "${{2-}}" = venv ]; then exec {sys._base_executable} -m venv --without-pip "$3"; fi
exec {sys._base_executable} "$@"
"""

UV = """\
echo "$*" >>"$CALLS"
if [ -e "$CALLS.slow" ] && [[ "$*" == *requirements.txt* ]]; then touch "$CALLS.started"; sleep 30; fi
if [ -e "$CALLS.fail" ] && [[ "$*" == *requirements.txt* ]]; then echo "no index" >&2; exit 1; fi
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    clone = tmp_path / "clone"
    (clone / "utils").mkdir(parents=True)
    shutil.copy(UTILS / "setup_env.sh", clone / "utils")
    (clone / "xllm_speech").mkdir()
    for name, text in (("requirements.txt", "a==1\nb==2\n"), ("pyproject.toml", "x"), ("setup.py", "x")):
        (clone / name).write_text(text)
    write_script(tmp_path / "bin/python-fake", PYTHON)
    write_script(tmp_path / "bin/uv", UV)
    return clone


def environment(clone: Path) -> dict[str, str]:
    bin_dir = clone.parent / "bin"
    return {
        "PATH": f"{bin_dir}:/usr/bin:/bin",
        "XLLM_PYTHON": str(bin_dir / "python-fake"),
        "CALLS": str(clone.parent / "calls"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(clone.parent),
        # without pip's own index settings an accidental call of the real pip would have nowhere to go
        "PIP_NO_INDEX": "1",
    }


def setup(clone: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(clone / "utils/setup_env.sh")], env={**environment(clone), **changes}, capture_output=True, text=True,
        timeout=60, check=False, cwd=clone.parent,
    )


def installs(clone: Path) -> list[str]:
    """What uv was asked to install since the last question: the pins, or the package itself."""
    path = clone.parent / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return ["pins" if "requirements.txt" in line else "self" for line in lines if "install" in line]


def test_second_run_does_nothing_and_changes_are_noticed(clone: Path) -> None:
    first = setup(clone)
    assert first.returncode == 0, first.stderr
    assert "environment ready" in first.stdout
    assert installs(clone) == ["pins", "self"]
    second = setup(clone)
    assert second.returncode == 0
    assert second.stdout.splitlines()[-1].split("] ")[1].startswith("environment up to date")
    assert installs(clone) == []

    (clone / "pyproject.toml").write_text("y")
    assert "only the package's own metadata changed" in setup(clone).stdout
    assert installs(clone) == ["self"]
    (clone / "requirements.txt").write_text("a==2\n")
    assert setup(clone).returncode == 0
    assert installs(clone) == ["pins", "self"]
    assert "up to date" in setup(clone).stdout


def test_pins_are_installed_without_their_dependencies_and_compiled(clone: Path) -> None:
    setup(clone)
    text = (clone.parent / "calls").read_text()
    assert "--compile-bytecode --no-deps -r" in text


def test_killed_installation_begins_anew(clone: Path) -> None:
    (clone.parent / "calls.slow").touch()
    process = subprocess.Popen([str(clone / "utils/setup_env.sh")], env=environment(clone), start_new_session=True)
    for _ in range(500):
        if (clone.parent / "calls.started").exists():
            break
        time.sleep(0.02)
    else:
        raise AssertionError("the installation did not begin")
    (clone / ".venv/half").touch()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    (clone.parent / "calls.slow").unlink()
    installs(clone)
    again = setup(clone)
    assert again.returncode == 0, again.stderr
    assert "was interrupted" in again.stdout
    assert not (clone / ".venv/half").exists()
    assert installs(clone) == ["pins", "self"]


def test_failed_installation_is_said_and_tried_again(clone: Path) -> None:
    (clone.parent / "calls.fail").touch()
    result = setup(clone)
    assert result.returncode == 1
    assert "could not be installed" in result.stderr
    assert "Traceback" not in result.stderr
    assert "ready" not in result.stdout
    (clone.parent / "calls.fail").unlink()
    installs(clone)
    assert setup(clone).returncode == 0
    assert installs(clone) == ["pins", "self"]


def test_moved_clone_gets_a_new_environment(clone: Path) -> None:
    setup(clone)
    (clone / ".venv/old").touch()
    moved = clone.rename(clone.parent / "moved")
    result = setup(moved)
    assert result.returncode == 0, result.stderr
    assert "the clone was moved" in result.stdout
    assert not (moved / ".venv/old").exists()


def test_environment_whose_python_vanished_is_made_anew(clone: Path) -> None:
    setup(clone)
    python = clone / ".venv/bin/python"
    python.unlink()
    result = setup(clone)
    assert result.returncode == 0, result.stderr
    assert "beginning anew" in result.stdout
    assert python.exists()


def test_active_environment_is_left_alone(clone: Path) -> None:
    result = setup(clone, XLLM_ENV="none")
    assert result.returncode == 0
    assert not (clone / ".venv").exists()
    assert installs(clone) == []
    assert "only value is none" in setup(clone, XLLM_ENV="nothing").stderr


def test_wrong_python_and_strange_folder_are_named(clone: Path) -> None:
    old = write_script(clone.parent / "old-python", "exit 1\n")
    result = setup(clone, XLLM_PYTHON=str(old))
    assert result.returncode == 1
    assert f"XLLM_PYTHON={old} is not a Python 3.11 or 3.12" in result.stderr
    shutil.rmtree(clone / ".venv", ignore_errors=True)
    (clone / ".venv").mkdir()
    (clone / ".venv/precious").write_text("x")
    result = setup(clone)
    assert result.returncode == 1
    assert "is no Python environment" in result.stderr
    assert (clone / ".venv/precious").exists()
