"""What stands in the repository: recipes that dry-run from a bare clone, pages that name real paths, nothing private."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
RECIPES = sorted(path.relative_to(TOP).as_posix() for path in TOP.glob("egs/*/run.sh"))
PAGES = ["README.md", "CONTRIBUTING.md", "docs/where.md", *(f"{Path(recipe).parent}/README.md" for recipe in RECIPES)]
MADE_BY_RUNS = re.compile(r"(^|/)(exp|data|dump|\.venv)(/|$)")


def tracked(top: Path) -> list[Path]:
    """Every file that belongs to the repository: what git tracks or would track."""
    listed = subprocess.run(
        ["git", "-C", str(top), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout: there is no list of the repository's files")
    return [path for name in listed.stdout.split("\0") if name and (path := top / name).is_file()]


def test_there_is_a_recipe() -> None:
    assert "egs/mini_vsdial/run.sh" in RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_dry_runs_in_a_bare_clone(recipe: str, top: Path, tmp_path: Path) -> None:
    """Nothing but git's files, bash and the base system: no environment is needed or made."""
    clone = tmp_path / "clone"
    for path in tracked(top):
        copy = clone / path.relative_to(top)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
        copy.chmod(path.stat().st_mode)
    before = {path.relative_to(clone) for path in clone.rglob("*")}
    result = subprocess.run(
        [str(clone / recipe), "--dry-run"], env={"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")},
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) >= 5
    assert all(re.match(r"stage +\d+  .* would run: ", line) for line in lines), result.stdout
    numbers = [int(line.split()[1]) for line in lines]
    assert numbers == sorted(set(numbers))
    assert {path.relative_to(clone) for path in clone.rglob("*")} == before


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_calls_only_verbs_and_local_scripts(recipe: str, top: Path) -> None:
    from xllm_speech.bin.main import VERBS

    text = re.sub(r"(^|\s)#.*", "", (top / recipe).read_text(encoding="utf-8"))
    verbs = re.findall(r"\bxllm-speech\s+(\S+)", text)
    assert verbs
    assert set(verbs) <= set(VERBS)
    for script in re.findall(r"\bpython3?\s+(\S+)", text):
        assert re.match(r"(\.\./\.\./)?local/\w+\.py$", script), f"{recipe} calls {script}"
        assert (top / recipe).parent.joinpath(script).is_file()


@pytest.mark.parametrize("page", PAGES)
def test_paths_named_in_pages_exist(page: str, top: Path) -> None:
    text = (top / page).read_text(encoding="utf-8")
    words = set()
    for code in re.findall(r"`([^`\n]+)`", text) + re.findall(r"\]\(([^)#]+)\)", text):
        if '="' in code:
            continue  # a command line with settings before it, to be typed in a folder that the page names
        words |= {word.split("#")[0].rstrip(":,;") for word in code.split()}
    # A path has a slash and no sign of a command line, a pattern or an address.
    paths = {word for word in words if "/" in word and not re.search(r"[<>*{}$=|()]|://|^-|^/|\.\.\.", word)}
    paths = {path.removeprefix("./") for path in paths if not MADE_BY_RUNS.search(path)}
    lost = [path for path in sorted(paths) if not (top / path).exists() and not (top / page).parent.joinpath(path).exists()]
    assert lost == []
    if page.startswith("docs"):
        assert len(paths) >= 15


# Written in pieces, so that this file does not hold what it looks for.
FORBIDDEN = {
    "a path of one machine": re.compile("(?<![A-Za-z0-9_.$}])/(?:wo" + r"rk|ro" + r"ot|ho" + r"me/\w+|mn" + "t)(?:/|\\b)"),
    "the address of a package index": re.compile("py" + r"pi\.org|python" + r"hosted\.org|--(?:extra-)?index-u" + "rl"),
}
FORBIDDEN_IN_CODE = {
    "remote code": re.compile("trust_remote" + r"_code\s*=\s*True"),
    "unpickling of weights": re.compile("weights" + r"_only\s*=\s*False"),
}


def test_nothing_private_or_unsafe_in_the_files(top: Path) -> None:
    found = []
    for path in tracked(top):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        rules = {**FORBIDDEN, **FORBIDDEN_IN_CODE} if path.suffix in (".py", ".sh", ".yaml", "") else FORBIDDEN
        for name, pattern in rules.items():
            for number, line in enumerate(text.splitlines(), 1):
                if pattern.search(line):
                    found.append(f"{path.relative_to(top)}:{number}: {name}: {line.strip()[:80]}")
    assert found == []


def test_scripts_are_executable(top: Path) -> None:
    scripts = [*RECIPES, "utils/setup_env.sh", "utils/test.sh", ".ci/run"]
    assert [script for script in scripts if not os.access(top / script, os.X_OK)] == []


def test_every_page_is_there(top: Path) -> None:
    wanted = ["LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/where.md", "docs/glossary.md"]
    assert [name for name in wanted if not (top / name).is_file()] == []
