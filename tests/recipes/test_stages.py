"""utils/stages.sh: what runs, what is skipped, what a failure says, and that a killed stage is never taken for done."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.recipes.shell import run, write_script

# Two stages: the first copies `input`, the second works on that; every run leaves a line in `calls`.
RECIPE = """\
# A recipe for the test.
set -euo pipefail
stage=0        # first stage
stop_stage=99  # last stage
dry_run=false  # show only
force=false    # run anyway
size=3         # an option the result depends on
nj=1           # an option it does not depend on
. @UTILS@/parse_options.sh
parse_options "$@"
. @UTILS@/stages.sh

copy() {
  echo "copy with $nj jobs" >>calls
  cat input >made/a
}
stage 1 "copy" --needs input --makes made/a --with "size=$size" -- copy
grow() {
  echo grow >>calls
  cat made/a made/a >made/b
}
stage 12 "grow" --needs made/a --makes made/b -- grow
end_stages
"""


GROW = "cat made/a made/a >made/b"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "made").mkdir()
    (tmp_path / "input").write_text("x\n")
    return write_script(tmp_path / "run.sh", RECIPE)


def change(recipe: Path, old: str, new: str) -> None:
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new))


def calls(recipe: Path) -> list[str]:
    path = recipe.parent / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [line.split()[0] for line in lines]


def good(recipe: Path, *words: str) -> str:
    result = run(recipe, *words)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_second_run_is_up_to_date(recipe: Path) -> None:
    good(recipe)
    assert calls(recipe) == ["copy", "grow"]
    assert (recipe.parent / "made/b").read_text() == "x\nx\n"
    output = good(recipe)
    assert calls(recipe) == []
    assert output.count("up to date") == 4  # a line and a row of the table for each stage


def test_only_what_depends_on_a_change_runs(recipe: Path) -> None:
    good(recipe)
    calls(recipe)
    output = good(recipe, "--size", "4")
    assert calls(recipe) == ["copy"]  # it made the same bytes, so that nothing changed for stage 12
    assert "size=4 (it was 3)" in output
    good(recipe, "--size", "4", "--nj", "8")
    assert calls(recipe) == []
    (recipe.parent / "input").write_text("y\n")
    assert "input changed" in good(recipe, "--size", "4")
    assert calls(recipe) == ["copy", "grow"]
    (recipe.parent / "input").touch()
    good(recipe, "--size", "4")
    assert calls(recipe) == []


def test_missing_output_and_changed_command_run_again(recipe: Path) -> None:
    good(recipe)
    calls(recipe)
    (recipe.parent / "made/b").unlink()
    assert "made/b is missing" in good(recipe)
    assert calls(recipe) == ["grow"]
    change(recipe, GROW, "cat made/a made/a made/a >made/b")
    assert "its command changed" in good(recipe)
    assert calls(recipe) == ["grow"]


def test_range_and_force(recipe: Path) -> None:
    good(recipe, "--stop-stage", "11")
    assert calls(recipe) == ["copy"]
    good(recipe, "--stage", "12", "--force")
    assert calls(recipe) == ["grow"]
    good(recipe, "--force")
    assert calls(recipe) == ["copy", "grow"]
    empty = run(recipe, "--stage", "2", "--stop-stage", "11")
    assert empty.returncode == 2
    assert "no stage lies between --stage 2 and --stop-stage 11" in empty.stderr


def test_dry_run_tells_and_touches_nothing(recipe: Path) -> None:
    output = good(recipe, "--dry-run")
    assert "would run: not done yet" in output
    assert "would run: stage 1 would make made/a anew" in output
    assert not (recipe.parent / "exp").exists()
    assert calls(recipe) == []
    good(recipe)
    assert good(recipe, "--dry-run").count("up to date") == 2
    output = good(recipe, "--dry-run", "--size", "4")
    assert "would run: size=4 (it was 3)" in output


def test_missing_input_names_the_stage_that_makes_it(recipe: Path) -> None:
    for words in (["--stage", "12"], ["--stage", "12", "--dry-run"]):
        result = run(recipe, *words, "--size", "4")
        assert result.returncode == 1
        text = result.stdout + result.stderr
        assert "made/a is missing; stage 1 makes it" in text
        assert f"{recipe} --stage 1 --size=4" in text
    (recipe.parent / "input").unlink()
    result = run(recipe)
    assert result.returncode == 1
    assert "stage 1 (copy) cannot run: input is missing" in result.stderr


def test_failure_is_one_line_with_status_log_and_retry(recipe: Path) -> None:
    change(recipe, GROW, "echo half >made/b\n  bash -c 'exit 7'\n  echo after >>calls")
    result = run(recipe, "--size", "5", "--force")
    assert result.returncode == 7
    assert calls(recipe) == ["copy", "grow"]  # `set -e` holds inside the stage
    (line,) = result.stderr.splitlines()
    assert "stage 12 (grow) failed with exit status 7" in line
    assert line.endswith(f"to retry: {recipe} --stage 12 --size=5")
    log = recipe.parent / "exp/log/stage_12.log"
    assert str(log) in line
    again = run(recipe, "--size", "5")
    assert again.returncode == 7
    assert calls(recipe) == ["grow"]  # a failed stage is not done, although what it makes is there


def test_output_goes_to_console_and_log(recipe: Path) -> None:
    change(recipe, "echo grow >>calls", "echo 到这里; echo trouble >&2")
    output = good(recipe)
    log = (recipe.parent / "exp/log/stage_12.log").read_text()
    for word in ("到这里", "trouble"):
        assert word in output
        assert word in log


def test_promised_output_must_be_there(recipe: Path) -> None:
    change(recipe, GROW, "true")
    result = run(recipe)
    assert result.returncode == 1
    assert "ended without an error but did not make made/b" in result.stderr
    assert not (recipe.parent / "exp/.stages/12").exists()


def test_minutes_are_kept_per_stage(recipe: Path) -> None:
    good(recipe)
    good(recipe, "--force", "--stage", "12")
    rows = [line.split("\t") for line in (recipe.parent / "exp/minutes.tsv").read_text().splitlines()]
    assert [row[:2] for row in rows] == [["stage", "title"], ["1", "copy"], ["12", "grow"]]
    assert all(float(row[2]) < 1 for row in rows[1:])


def test_stage_inside_a_condition_is_refused(recipe: Path) -> None:
    change(recipe, 'stage 12 "grow"', 'true && stage 12 "grow"')
    change(recipe, "-- grow", "-- grow || exit 3")
    result = run(recipe)
    assert result.returncode == 1
    assert "stage 12 is called in an if, && or ||" in result.stderr
    assert calls(recipe) == ["copy"]


def wait_for(path: Path) -> None:
    for _ in range(400):
        if path.exists():
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} did not appear")


# The stage writes its output first and then works on; `go` lets it end.
SLOW = """echo half >made/b
  touch started
  for i in $(seq 500); do if [ -e go ]; then break; fi; sleep 0.02; done
  cat made/a made/a >made/b"""


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_stage_runs_again(recipe: Path, signal_number: signal.Signals) -> None:
    change(recipe, GROW, SLOW)
    process = subprocess.Popen([str(recipe)], cwd=recipe.parent, start_new_session=True, stderr=subprocess.PIPE, text=True)
    wait_for(recipe.parent / "started")
    os.killpg(process.pid, signal_number)
    _, error = process.communicate(timeout=30)
    assert process.returncode != 0
    if signal_number == signal.SIGINT:
        assert process.returncode == 130
        assert f"interrupted in stage 12; go on with: {recipe} --stage 12" in error
    assert (recipe.parent / "made/b").read_text() == "half\n"
    (recipe.parent / "go").touch()
    assert calls(recipe) == ["copy", "grow"]
    assert "(unfinished last time)" in good(recipe)
    assert calls(recipe) == ["grow"]
    assert (recipe.parent / "made/b").read_text() == "x\nx\n"


def test_second_run_waits_for_the_stage_that_outlived_a_killed_one(recipe: Path) -> None:
    change(recipe, GROW, SLOW)
    first = subprocess.Popen([str(recipe)], cwd=recipe.parent, start_new_session=True, stdout=subprocess.DEVNULL)
    wait_for(recipe.parent / "started")
    os.kill(first.pid, signal.SIGKILL)  # run.sh alone: its stage goes on
    first.wait(timeout=30)
    second = subprocess.Popen([str(recipe)], cwd=recipe.parent, stdout=subprocess.PIPE, text=True)
    assert second.stdout is not None
    assert "another run is still at work" in second.stdout.readline()
    assert calls(recipe) == ["copy", "grow"]
    (recipe.parent / "go").touch()
    output, _ = second.communicate(timeout=30)
    assert second.returncode == 0
    assert "unfinished last time" in output
    assert (recipe.parent / "made/b").read_text() == "x\nx\n"


RESUMING = """\
set -euo pipefail
stage=0
stop_stage=99
dry_run=false
force=false
size=3
fail=false
. @UTILS@/parse_options.sh
parse_options "$@"
. @UTILS@/stages.sh
work() {
  mkdir -p exp/model
  echo "$size" >>exp/model/history
  if [ "$fail" = true ]; then false; fi
  touch exp/model/final
}
stage 11 "train" --with "size=$size" --resumes exp/model --makes exp/model/final -- work
end_stages
"""


def test_interrupted_work_is_resumed_and_other_work_set_aside(tmp_path: Path) -> None:
    script = write_script(tmp_path / "run.sh", RESUMING)
    model = tmp_path / "exp/model"
    assert run(script, "--fail").returncode == 1
    good(script)
    assert (model / "history").read_text() == "3\n3\n"  # taken up where it was left
    output = good(script, "--size", "4")
    assert "exp/model is set aside as exp/model.1" in output
    assert (model / "history").read_text() == "4\n"
    assert (tmp_path / "exp/model.1/history").read_text() == "3\n3\n"
    assert run(script, "--size", "5", "--fail").returncode == 1
    good(script, "--size", "6")  # the interrupted work was another's
    assert (model / "history").read_text() == "6\n"
    assert (tmp_path / "exp/model.3/history").read_text() == "5\n"
    good(script, "--size", "6", "--force")
    assert (model / "history").read_text() == "6\n"
    assert "up to date" in good(script, "--size", "6")
    assert (model / "history").read_text() == "6\n"
    (model / "final").unlink()
    good(script, "--size", "6")
    assert (model / "history").read_text() == "6\n6\n"


def test_folders_and_large_files_count_as_needs(recipe: Path) -> None:
    folder = recipe.parent / "input"
    folder.unlink()
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/x").write_text("1")
    change(recipe, "cat input >made/a", "cat input/sub/* >made/a")
    good(recipe)
    calls(recipe)
    good(recipe)
    assert calls(recipe) == []
    (folder / "sub/x").write_text("2")
    assert "input changed" in good(recipe)
    calls(recipe)
    (folder / "big").write_bytes(b"")
    os.truncate(folder / "big", 1 << 27)
    assert "input changed" in good(recipe, "--stop-stage", "1")
    good(recipe)
    calls(recipe)
    good(recipe)
    assert calls(recipe) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ('stage 1 "x" --need a -- true', "unknown word --need"),
        ('stage 1 "x" a -- true', "stands before"),
        ('stage 1 "x" --needs a', "has no command"),
    ],
)
def test_slips_of_a_recipe_writer_are_named(recipe: Path, call: str, message: str) -> None:
    change(recipe, 'stage 1 "copy" --needs input --makes made/a --with "size=$size" -- copy', call)
    result = run(recipe)
    assert result.returncode == 1
    assert message in result.stderr


def test_bases_of_a_configuration_are_needs_too(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/mine.yaml").write_text("# base: not-this\nbase: '../shared/middle.yaml'  # comment\nx: {base: 1}\n")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/middle.yaml").write_text("y: 1\nbase: last.yaml\n")
    script = write_script(tmp_path / "s.sh", 'set -euo pipefail\n. @UTILS@/stages.sh\nconfig_with_bases "$1"\n')
    middle = "conf/../shared/middle.yaml"
    expected = ["conf/mine.yaml", middle, "conf/../shared/last.yaml"]
    assert run(script, "conf/mine.yaml").stdout.splitlines() == expected  # the last is absent, and named all the same
    (tmp_path / "shared/last.yaml").write_text("base: middle.yaml\n")
    assert len(run(script, "conf/mine.yaml").stdout.splitlines()) == 20  # a circle ends
