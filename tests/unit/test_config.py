# SPDX-License-Identifier: Apache-2.0
"""Configuration files: their syntax, which are read, and what wins."""

import os
import subprocess
from pathlib import Path

import pytest

from ckpt.cli.config import configured
from ckpt.errors import OptionsError
from tests.peers import peer


def values(text: str, tmp_path: Path, words: str = "restore") -> dict[str, list[str]]:
    """The options that a file and a command line make."""
    path = tmp_path / "some.conf"
    path.write_text(text)
    found = configured([*words.split(), "--config", str(path)], {}).values
    return {name: value for name, value in found.items() if name != "config"}


SYNTAX = [
    ("log-file x.log\n", "x.log"),
    ("\tlog-file \t x.log   # comment", "x.log"),
    ('log-file "a b.log"\n', "a b.log"),
    ('log-file "a\\"b.log"\n', 'a"b.log'),
    ('log-file "a\\nb.log"\n', "a\\nb.log"),
    ("log-file=x.log\n", "x.log"),
    ("log-file x#y.log\n", "x"),
    ("# comment\n\nlog-file 'q.log'\n", "'q.log'"),
    ("log-f x.log\n", "x.log"),
]


@pytest.mark.parametrize(("text", "name"), SYNTAX)
def test_syntax(text: str, name: str, tmp_path: Path) -> None:
    assert values(text, tmp_path) == {"log-file": [name]}


def test_no_comment_in_quotes(tmp_path: Path) -> None:
    """To real criu it is one, though its value is to be taken literally."""
    assert values('log-file "a#b.log" # comment\n', tmp_path) == {"log-file": ["a#b.log"]}


@pytest.mark.parametrize(("text", "name"), SYNTAX)
def test_real_criu_agrees(text: str, name: str, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("real criu needs root")
    (tmp_path / "some.conf").write_text(text)
    argv = [peer("criu"), "restore", "-D", tmp_path, "--config", tmp_path / "some.conf"]
    subprocess.run(argv, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nnonsense\n", "some.conf:2: unknown option --nonsense"),
        ("log-file\n", "some.conf:1: --log-file needs a value"),
        ("log-file a b\n", "some.conf:1: what is 'b' for"),
        ('log-file "a\n', "some.conf:1: a double quote is missing"),
        ("shell-job yes\n", "some.conf:1: --shell-job takes no value"),
        ("config other.conf\n", "some.conf:1: config is for the command line"),
        ("stream\n", "some.conf:1: --stream: not supported yet"),
    ],
)
def test_mistakes_are_named_with_their_place(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match=message):
        values(text, tmp_path)


def test_the_command_line_wins(tmp_path: Path) -> None:
    text = "shell-job\ntcp-established\nlog-file a\nexternal file[1:2]\nverbosity 4\n"
    found = values(text, tmp_path, "restore --no-shell-job -o b --external file[3:4]")
    assert "shell-job" not in found
    assert found["log-file"][-1] == "b"
    assert found["external"] == ["file[1:2]", "file[3:4]"]
    assert found["tcp-established"] == [""]
    assert found["verbosity"] == ["4"]


def test_options_of_other_verbs_are_passed_over(tmp_path: Path) -> None:
    assert values("leave-running\nverbosity 0\n", tmp_path, "check") == {"verbosity": ["0"]}
    assert "leave-running" in values("leave-running\n", tmp_path, "dump -t 1")


def test_which_files(tmp_path: Path) -> None:
    (tmp_path / ".criu").mkdir()
    (tmp_path / ".criu" / "default.conf").write_text("log-file home\n")
    (tmp_path / "given.conf").write_text("log-file given\n")
    home, given = {"HOME": str(tmp_path)}, str(tmp_path / "given.conf")

    def logs(words: list[str], environment: dict[str, str]) -> list[str]:
        return configured(["restore", *words], environment).values.get("log-file", [])

    assert logs([], home)[-1:] == ["home"]
    assert logs(["--config", given], home)[-2:] == ["home", "given"]
    assert logs([], home | {"CRIU_CONFIG_FILE": given})[-2:] == ["home", "given"]
    assert logs(["--no-default-config"], home) == []
    assert logs(["--no-default-config", "--config", given], home) == ["given"]


def test_a_file_that_is_asked_for_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match=r"none\.conf: No such file"):
        configured(["restore", "--config", str(tmp_path / "none.conf")], {})
    with pytest.raises(OptionsError, match="Is a directory"):
        configured(["restore", "--config", str(tmp_path)], {})
