"""Every verb of the command line answers `--help` at once, without the libraries that take seconds to import."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from xllm_speech.bin.main import VERBS, load_verb

HEAVY = ("torch", "torchaudio", "torchvision", "transformers", "lhotse", "lightning", "timm", "scipy", "matplotlib", "espnet2")

PROBE = """
import json, sys
from xllm_speech.bin.main import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
print("\\nPROBE " + json.dumps([status, sorted(sys.modules)]))
"""


def probe(*words: str) -> tuple[int, set[str], str]:
    child = subprocess.run([sys.executable, "-c", PROBE, *words], capture_output=True, text=True, timeout=60, check=False)
    assert child.returncode == 0, child.stderr
    text, _, last = child.stdout.rpartition("\nPROBE ")
    status, modules = json.loads(last)
    return status, set(modules), text


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_answers_without_heavy_imports(verb: str) -> None:
    status, modules, text = probe(*([verb] if verb else []), "--help")
    assert status == 0
    assert f"usage: xllm-speech {verb}".rstrip() in text
    assert modules.isdisjoint(HEAVY), sorted(modules & set(HEAVY))


def test_overview_names_every_verb() -> None:
    _, _, text = probe("--help")
    for verb, line in VERBS.items():
        assert verb in text
        assert line in text


def test_importing_the_package_is_light() -> None:
    code = "import json, sys, xllm_speech; print(json.dumps(sorted(sys.modules)))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert set(json.loads(child.stdout)).isdisjoint(HEAVY)


def test_every_verb_has_its_module_and_the_table_is_complete(top: Path) -> None:
    for verb in VERBS:
        module = load_verb(verb)
        assert callable(module.add_arguments)
        assert callable(module.run)
    with_run = set()
    for path in (top / "xllm_speech/bin").glob("*.py"):
        names = {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}
        if {"add_arguments", "run"} <= names:
            with_run.add(path.stem)
    assert with_run == set(VERBS)


def test_every_option_of_every_verb_has_help() -> None:
    import argparse

    def silent(parser: argparse.ArgumentParser) -> list[str]:
        found = []
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, inner in action.choices.items():
                    found += [f"{name} {option}" for option in silent(inner)]
            elif not action.help:
                found.append("/".join(action.option_strings) or action.dest)
        return found

    without = {}
    for verb in VERBS:
        parser = argparse.ArgumentParser(prog=verb)
        load_verb(verb).add_arguments(parser)
        parser.format_help()  # a stray % in a help text fails here
        if found := silent(parser):
            without[verb] = found
    assert without == {}
