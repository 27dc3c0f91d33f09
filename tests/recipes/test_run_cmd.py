"""utils/run_cmd.sh: where commands run, and loops over items side by side."""

from __future__ import annotations

from pathlib import Path

from tests.recipes.shell import run, write_script

HEAD = "set -euo pipefail\n. @UTILS@/run_cmd.sh\n"


def test_backends_put_their_launcher_before_the_command(tmp_path: Path) -> None:
    for name in ("torchrun", "srun"):
        write_script(tmp_path / "bin" / name, f'printf "{name}"; printf " <%s>" "$@"; echo\n')
    body = HEAD + 'PATH="$PWD/bin:$PATH"\nfor backend in local "torchrun 2" "srun -p gpu --gres gpu:1"; do\n' \
        '  run_cmd "$backend" echo "a b" c\ndone\n'
    result = run(write_script(tmp_path / "s.sh", body))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "a b c",
        "torchrun <--standalone> <--nproc-per-node> <2> <--no-python> <echo> <a b> <c>",
        "srun <-p> <gpu> <--gres> <gpu:1> <echo> <a b> <c>",
    ]


def test_wrong_backend_is_named(tmp_path: Path) -> None:
    for backend, message in (("qsub", "choose local"), ("torchrun", "number of processes"), ("torchrun x", "number of")):
        result = run(write_script(tmp_path / "s.sh", HEAD + f'run_cmd "{backend}" echo ran\n'))
        assert result.returncode == 2
        assert message in result.stderr
        assert "ran" not in result.stdout


def test_exit_status_of_the_command_comes_back(tmp_path: Path) -> None:
    result = run(write_script(tmp_path / "s.sh", HEAD + 'run_cmd local bash -c "exit 7"\necho survived\n'))
    assert result.returncode == 7
    assert "survived" not in result.stdout


def test_for_each_runs_every_item_and_no_more_than_asked_at_once(tmp_path: Path) -> None:
    body = HEAD + """
one() {
  touch "running.$1"
  local -a found=(running.*)
  echo "${#found[@]}" >>most
  sleep 0.1
  rm "running.$1"
  echo "did $1"
}
for_each 2 one a "b c" d e f
echo end
"""
    result = run(write_script(tmp_path / "s.sh", body))
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert sorted(lines[:-1]) == sorted(f"[{item}] did {item}" for item in ("a", "b c", "d", "e", "f"))
    assert lines[-1] == "end"
    counts = [int(number) for number in (tmp_path / "most").read_text().split()]
    assert len(counts) == 5
    assert max(counts) == 2


def test_for_each_names_the_failed_items_and_finishes_the_others(tmp_path: Path) -> None:
    body = HEAD + """
one() {
  if [ "$1" = bad ]; then false; echo "after the error"; fi
  if [ "$1" = worse ]; then exit 5; fi
  echo "did $1"
}
for_each 2 one bad a worse b
echo survived
"""
    result = run(write_script(tmp_path / "s.sh", body))
    assert result.returncode == 1
    assert "[a] did a" in result.stdout
    assert "[b] did b" in result.stdout
    assert "after the error" not in result.stdout
    assert "survived" not in result.stdout
    assert "bad (exit status 1)" in result.stderr
    assert "worse (exit status 5)" in result.stderr
