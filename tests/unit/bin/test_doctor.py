"""`xllm-speech doctor`: what it says about packages that work, that lack, that crash."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from xllm_speech.bin import doctor, installation
from xllm_speech.bin.installation import CORE, EXTRA, PARTS, PROGRAM, Part


def fake_package(folder: Path, name: str, body: str, version: str = "1.0") -> None:
    """A distribution `name` whose module imports as `body`."""
    (folder / f"{name}.py").write_text(body)
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_a_crash_costs_one_line_and_not_the_rest(fakes: Path) -> None:
    fake_package(fakes, "timm", "import os; os._exit(139)")
    fake_package(fakes, "jiwer", "raise RuntimeError('operator does not exist\\nsecond line')")
    errors = installation.operate_all(["numpy", "timm", "jiwer", "rich"])
    assert errors["numpy"] is None
    assert errors["rich"] is None
    assert "status 139" in str(errors["timm"])
    assert errors["jiwer"] == "RuntimeError: operator does not exist"


def test_a_hang_costs_one_line_and_not_the_rest(fakes: Path) -> None:
    fake_package(fakes, "timm", "import time; time.sleep(60)")
    errors = installation.operate_all(["timm", "rich"], timeout_sec=3)
    assert "no answer within 3 s" in str(errors["timm"])
    assert errors["rich"] is None


def test_findings_tell_missing_broken_and_other_versions(fakes: Path) -> None:
    fake_package(fakes, "kaldiio", "raise ImportError('no')", version="2.18.1")
    fake_package(fakes, "omegaconf", "class OmegaConf:\n    from_dotlist = None", version="1.0")
    parts = (
        Part("rich", "tables"),
        Part("kaldiio", "Kaldi"),
        Part("k2", "graphs", EXTRA, "a wheel"),
        Part("no-such-program", "nothing", PROGRAM, "apt-get install x"),
    )
    found = {finding.name: finding for finding in installation.examine(parts)}
    assert (found["rich"].status, found["rich"].mend) == ("ok", None)
    assert found["kaldiio"].status == "broken"
    assert found["kaldiio"].detail == "ImportError: no"
    assert found["kaldiio"].mend == installation.SETUP
    assert found["no-such-program"].status == "missing"
    assert found["no-such-program"].mend == "apt-get install x"


def test_other_version_than_asked_for_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "wanted_versions", lambda: {"rich": ">=999"})
    (finding,) = installation.examine((Part("rich", "tables"),))
    assert finding.status == "version differs"
    assert finding.detail == ">=999 is asked for"


def test_every_package_of_the_table_has_an_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real = builtins.__import__

    def refuse(name, *rest):  # type: ignore[no-untyped-def]
        # The operations' own imports stop here: it is asked only whether one is written for every name.
        if sys._getframe(1).f_code.co_name == "operate":
            raise ImportError("stopped")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for part in PARTS:
        if part.kind != PROGRAM and part.name != "gradio":
            with pytest.raises(ImportError, match="stopped"):
                installation.operate(part.name)
    with pytest.raises(AssertionError, match="no operation is written"):
        installation.operate("unknown")


def test_core_of_the_table_is_what_the_package_requires() -> None:
    from importlib import metadata

    from packaging.requirements import Requirement

    required = [Requirement(line) for line in metadata.requires("xllm-speech") or []]
    required_names = {requirement.name for requirement in required if requirement.marker is None}
    core = {part.name for part in PARTS if part.kind == CORE}
    assert core <= required_names
    # imported by others, or of no use to a user by themselves
    assert required_names - core == {"torchcodec", "urllib3", "requests", "pyyaml", "packaging"}


@pytest.mark.parametrize(("status", "expected"), [("ok", 0), ("broken", 1), ("missing", 1)])
def test_exit_status_tells_whether_the_core_works(
    status: str, expected: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = [
        installation.Finding("torch", CORE, "2", "everything", status, None if status == "ok" else "mend-it", None),
        installation.Finding("k2", EXTRA, None, "graphs", "missing", "see-page", None),
    ]
    machine = {"cores": 2, "memory_gib": 4.0, "free_disk_gib": 9.0, "cuda": [{"name": "G", "memory_gib": 8.0}]}
    monkeypatch.setattr(doctor, "examine", lambda: findings)
    monkeypatch.setattr(doctor, "devices", lambda: machine)
    assert doctor.run(argparse.Namespace(json=True)) == expected
    document = json.loads(capsys.readouterr().out)
    assert document["core_ok"] is (expected == 0)
    assert document["devices"] == machine
    assert doctor.run(argparse.Namespace(json=False)) == expected
    text = capsys.readouterr().out
    assert "see-page" in text
    assert "G (8.0 GiB)" in text
    assert ("mend-it" in text) == (expected == 1)


def test_devices_of_this_machine() -> None:
    machine = installation.devices()
    assert machine["cores"] >= 1
    assert machine["memory_gib"] > 0
    assert isinstance(machine["cuda"], list)
