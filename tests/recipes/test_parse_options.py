"""utils/parse_options.sh: what a user may type, and what a mistake costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipes.shell import run, write_script

SCRIPT = """\
# A script for the test.
#   ./script.sh --name x

# this comment is no help
set -euo pipefail
stage=0          # first stage
out_dir=exp/out  # where results go
flag=false       # a switch
on=true
name="a b"       # shadows a local of the parser
value=v
word=w
line=l
number=
nj=$((1 + 1))
. @UTILS@/parse_options.sh
parse_options "$@"
late=not-an-option
for key in stage out_dir flag on name value word line number nj late; do printf '%s=<%s>\\n' "$key" "${!key}"; done
printf 'given <%s>\\n' "${given_options[@]}"
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return write_script(tmp_path / "script.sh", SCRIPT)


def values(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines() if "=<" in line and not line.startswith("given"))
    return {key: value[1:-1] for key, _, value in pairs}


def test_defaults_stand(script: Path) -> None:
    found = values(run(script).stdout)
    assert found["stage"] == "0"
    assert found["name"] == "a b"
    assert found["nj"] == "2"


@pytest.mark.parametrize(
    ("words", "key", "expected"),
    [
        (["--stage", "7"], "stage", "7"),
        (["--stage=7"], "stage", "7"),
        (["--stage", "-1"], "stage", "-1"),
        (["--out-dir", "x"], "out_dir", "x"),
        (["--out_dir=x"], "out_dir", "x"),
        (["--out-dir=a=b"], "out_dir", "a=b"),
        (["--out-dir", "two words"], "out_dir", "two words"),
        (["--out-dir", "it's \"quoted\" $HOME `date` \\ *"], "out_dir", "it's \"quoted\" $HOME `date` \\ *"),
        (["--out-dir=--dashes"], "out_dir", "--dashes"),
        (["--out-dir", ""], "out_dir", ""),
        (["--out-dir="], "out_dir", ""),
        (["--out-dir", "一 二"], "out_dir", "一 二"),
        (["--flag"], "flag", "true"),
        (["--flag", "--stage", "3"], "flag", "true"),
        (["--flag", "false"], "flag", "false"),
        (["--on=false"], "on", "false"),
        (["--stage", "1", "--stage", "2"], "stage", "2"),
        (["--name", "n"], "name", "n"),
        (["--value", "n"], "value", "n"),
        (["--word", "n"], "word", "n"),
        (["--line", "n"], "line", "n"),
        (["--number", "n"], "number", "n"),
    ],
)
def test_options_are_assigned(script: Path, words: list[str], key: str, expected: str) -> None:
    result = run(script, *words)
    assert result.returncode == 0, result.stderr
    assert values(result.stdout)[key] == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stage"], "--stage needs a value"),
        (["--out-dir", "--flag"], "--out-dir needs a value"),
        (["--stge", "3"], "did you mean --stage?"),
        (["--dir", "3"], "did you mean --out-dir?"),
        (["--wholly-unlike-anything", "3"], "known here: --stage --out-dir --flag"),
        (["--late", "3"], "unknown option --late"),
        (["--PATH", "/tmp"], "unknown option --PATH"),
        (["--", "--stage"], "unexpected word `--stage`"),
        (["--=x"], "unknown option --"),
        (["--x[$(touch pwned)]=1"], "unknown option"),
        (["--stage", "three"], "takes a whole number, not `three`"),
        (["--flag=maybe"], "is true or false, not `maybe`"),
        (["word"], "unexpected word `word`"),
        (["--options", "absent"], "--options absent: no such file"),
    ],
)
def test_mistakes_are_named(script: Path, words: list[str], message: str) -> None:
    result = run(script, *words)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert not (script.parent / "pwned").exists()


def test_nothing_typed_is_evaluated(script: Path) -> None:
    attack = "$(touch pwned); touch pwned; `touch pwned`"
    (script.parent / "file").write_text(f"out_dir={attack}\n", encoding="utf-8")
    assert values(run(script, "--out-dir", attack).stdout)["out_dir"] == attack
    assert values(run(script, "--options", "file").stdout)["out_dir"] == attack
    assert not (script.parent / "pwned").exists()


def test_options_file(script: Path) -> None:
    (script.parent / "mine").write_text(
        "# comment\n\nstage = 4\r\n--out-dir='a b'\nflag=true\nname=\"with # hash\"", encoding="utf-8"
    )
    found = values(run(script, "--options", "mine", "--stage", "5").stdout)
    assert found["stage"] == "5"  # later words win
    assert found["out_dir"] == "a b"
    assert found["flag"] == "true"
    assert found["name"] == "with # hash"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage=1\nstge=2\n", "mine:2: unknown option `stge`"),
        ("\nrm -rf x\n", "mine:2: expected name=value"),
        ("stage=x\n", "mine:1: --stage takes a whole number"),
    ],
)
def test_options_file_mistakes_name_the_line(script: Path, text: str, message: str) -> None:
    (script.parent / "mine").write_text(text, encoding="utf-8")
    result = run(script, "--options", "mine")
    assert result.returncode == 2
    assert message in result.stderr


def test_help_shows_the_leading_comment_and_the_defaults(script: Path) -> None:
    result = run(script, "--help")
    assert result.returncode == 0
    assert "A script for the test." in result.stdout
    assert "this comment is no help" not in result.stdout
    assert "--out-dir" in result.stdout
    assert "where results go [exp/out]" in result.stdout
    assert "late" not in result.stdout


def test_given_options_are_kept_for_messages(script: Path) -> None:
    result = run(script, "--flag", "--out_dir", "a b")
    assert "given <--flag=true>\ngiven <--out-dir=a b>" in result.stdout


def test_other_words_are_arguments_where_the_script_wants_them(tmp_path: Path) -> None:
    script = write_script(
        tmp_path / "s.sh",
        'set -euo pipefail\nnj=1\narguments=()\n. @UTILS@/parse_options.sh\nparse_options "$@"\n'
        'printf "%s|" "$nj" "${arguments[@]}"\n',
    )
    assert run(script, "a b", "--nj", "2", "c", "--", "--d").stdout == "2|a b|c|--d|"
