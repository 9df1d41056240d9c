# SPDX-License-Identifier: Apache-2.0
"""The command line without a target: words, exit codes, the log; start-up stays cheap."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ckpt import cli, errors
from ckpt.check import ABILITIES, OFFERED
from ckpt.cli import stories
from ckpt.cli.arguments import parse
from ckpt.cli.table import IGNORED, LATER, OPTIONS, VERBS
from ckpt.errors import CkptError, ImageError, OptionsError
from ckpt.log import DEBUG, INFO, LineLog

ROOT = Path(__file__).parents[2]
LOG = LineLog(-1)


def dump_options(*words):
    return stories.dump_options(parse(["dump", *words]), LOG)


def restore_options(*words):
    return stories.restore_options(parse(["restore", *words]), LOG)


@pytest.mark.parametrize(
    "words",
    [
        "dump -t 12 -D x -R -j",
        "-D x dump -jRt 12",
        "-t12 -Dx -R -j dump",
        "--tree=12 --images-dir=x --leave-running --shell-job dump",
        "dump --tree 12 --images-dir x --leave-r --shell",
        "dump --no-default-config -t 7 -t 12 -D x -R -j --link-remap --no-link-remap",
        "-t=12 -D=x dump -R -j --manage-cgroups=ignore --log-pid --track-mem",
    ],
)
def test_one_request_in_many_words(words):
    options = stories.dump_options(parse(words.split()), LOG)
    assert (options.pid, options.images_dir) == (12, "x")
    assert options.leave_running and options.shell_job and not options.link_remap
    assert parse(words.split()).verb == "dump"


def test_values_of_every_sort():
    options = dump_options("-t", "1", "--ghost-limit", "64K", "--external", "a", "--external", "b")
    assert options.ghost_limit == 64 << 10
    assert options.external == ("a", "b")
    assert dump_options("-t1").ghost_limit == 1 << 20
    assert dump_options("-t1", "--ghost-limit", "10M").ghost_limit == 10 << 20
    options = restore_options("--inherit-fd", "fd[5]:pipe:[99]", "-S", "--pidfile", "p", "-W", "/w")
    assert options.inherit_fd == {"pipe:[99]": 5}
    assert options.sibling and options.detached
    assert options.pidfile == "/w/p"


def test_words_after_two_dashes_are_no_options():
    assert parse(["show", "--", "-D"]).operands == ["-D"]


@pytest.mark.parametrize(
    ("words", "level"),
    [
        ("", 2), ("-v", 3), ("-vv", 4), ("-v4", 4), ("-v0", 0), ("--verbosity=4", 4),
        ("--verbosity", 3), ("-verbosity=0", 0), ("-v1 -v", 2),
    ],
)  # fmt: skip
def test_verbosity(words, level):
    assert stories._open_log(parse(["dump", *words.split()])).level == level


WRONG = [
    ("", "no verb", "dump, restore"),
    ("dmp", "unknown verb dmp", "did you mean dump?"),
    ("dump --leave-runing", "unknown option --leave-runing", "did you mean --leave-running?"),
    ("dump -q", "unknown option -q", "--help"),
    ("dump --l", "unknown option --l", ""),
    ("dump", "dump of what?", "-t PID"),
    ("dump -t", "--tree needs a value: PID", ""),
    ("dump -t x", "--tree: 'x' is not a number", ""),
    ("dump -t -5", "--tree: '-5' is not a number", ""),
    ("dump -t 1 -R -s", "exclude each other", ""),
    ("dump -t 1 --ghost-limit 1X", "--ghost-limit: '1X' is not a number", ""),
    ("dump -t 1 -vfoo", "unknown option -f", ""),
    ("dump -t 1 --verbosity=x", "--verbosity: 'x' is not a number", ""),
    ("dump -t 1 --shell-job=yes", "--shell-job takes no value", ""),
    ("dump -t 1 -r /", "--root: not supported yet", ""),
    ("dump -t 1 --manage-cgroups=fully", "--manage-cgroups=fully: not supported yet", "ignore"),
    ("dump 12", "dump: what is '12' for?", ""),
    ("page-server -D x", "page-server: not supported yet", ""),
    ("restore --feature uffd", "--feature is an option of check, not of restore", ""),
    ("restore --inherit-fd 5:x", "--inherit-fd '5:x'", "fd[N]:KEY"),
    ("show", "show needs PATH", ""),
    ("check --feature timen", "unknown feature timen", "did you mean timens?"),
]


@pytest.mark.parametrize(("words", "message", "hint"), WRONG, ids=[words for words, *_ in WRONG])
def test_what_is_wrong_is_said_with_exit_code_2(words, message, hint, capsys):
    assert cli.run(words.split()) == OptionsError.exit_code == 2
    said = capsys.readouterr().err
    assert said.startswith("ckpt: ") and message in said
    assert not hint or hint in said.partition("hint: ")[2]
    assert "Traceback" not in said


def test_names_are_in_one_table_only():
    names = [option.name for option in (*OPTIONS, *IGNORED)] + list(LATER)
    shorts = [option.short for option in OPTIONS if option.short]
    assert len(names) == len(set(names)) and len(shorts) == len(set(shorts))
    features = [one.name for one in (*ABILITIES, *OFFERED)]
    assert len(features) == len(set(features))


@pytest.mark.parametrize("words", [["--help"], ["-h"], *([verb, "--help"] for verb in VERBS)])
def test_help(words, capsys):
    assert cli.run(words) == 0
    said = capsys.readouterr().out
    assert "usage: ckpt" in said and "--verbosity" in said
    assert all(len(line) <= 100 for line in said.splitlines())


def test_version(capsys):
    assert cli.run(["-V"]) == 0
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert capsys.readouterr().out.split() == ["Version:", project["version"], "(ckpt)"]


def every_class(of):
    yield of
    for kind in of.__subclasses__():
        yield from every_class(kind)


def test_exit_codes_are_documented():
    text = (ROOT / "docs/cli.md").read_text()
    ours = [kind for kind in every_class(CkptError) if kind.__module__ == errors.__name__]
    codes = {kind.__name__: kind.exit_code for kind in ours}
    assert len(set(codes.values())) == len(codes)
    for name, code in codes.items():
        assert re.search(rf"\| {code} \| `?{name}`? \|", text), f"{code} {name}"
    for option in OPTIONS:
        assert f"`--{option.name}" in text, option.name


def test_a_bug_is_one_line_and_a_file(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cli, "_do", lambda arguments: 1 // 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cli.run(["check"]) == 70
    said = capsys.readouterr().err
    assert "internal error: ZeroDivisionError" in said and "Traceback" not in said
    (report,) = tmp_path.iterdir()
    assert str(report) in said and "Traceback" in report.read_text()


# --- the log


def test_the_log_has_criu_s_form(tmp_path):
    with open(tmp_path / "log", "w") as file:
        log = LineLog(file.fileno(), INFO)
        log.stage("first")
        log.stage("second")
        log.stage("")
        log.error("dump", "pid 1: no")
        log.line(DEBUG, "not asked for")
    lines = (tmp_path / "log").read_text().splitlines()
    assert all(re.match(r"\(\d\d\.\d{6}\) ", line) for line in lines)
    assert [line.split(maxsplit=1)[1].split(":")[0] for line in lines] == [
        "first", "second", "Error (dump)",
    ]  # fmt: skip
    assert list(log.stages) == ["first", "second"]


def test_a_log_that_cannot_be_written_stops_nothing():
    log = LineLog(os.open("/dev/full", os.O_WRONLY), INFO)
    fd = log.fd
    log.error("dump", "a")
    log.error("dump", "b")
    assert log.fd == -1
    os.close(fd)


def test_a_failure_is_in_the_log_file_and_on_stderr(tmp_path, capsys):
    assert cli.run(["restore", "-D", str(tmp_path), "-o", "r.log"]) == ImageError.exit_code
    assert "no inventory.img" in capsys.readouterr().err
    assert "Error (restore): " in (tmp_path / "r.log").read_text()


def test_logs_go_to_the_work_dir(tmp_path):
    work, images = tmp_path / "work", tmp_path / "images"
    work.mkdir(), images.mkdir()
    cli.run(["restore", "-D", str(images), "-W", str(work), "-o", "r.log"])
    assert [entry.name for entry in work.iterdir()] == ["r.log"]
    assert not list(images.iterdir())


# --- start-up: what each run would pay for

SLOW = {
    "argparse", "asyncio", "dataclasses", "datetime", "difflib", "inspect", "ipaddress", "json",
    "logging", "pathlib", "psutil", "rich", "secrets", "subprocess", "tempfile", "uuid",
}  # fmt: skip


@pytest.mark.parametrize("story", ["dump", "restore"])
def test_a_start_imports_nothing_slow(story):
    program = (
        "import sys; sys.path += eval(sys.argv[1]); from ckpt import cli\n"
        f"cli._no_well_known_types(); import ckpt.cli.stories, ckpt.{story}\n"
        "print(*sys.modules)"
    )
    argv = [sys.executable, "-IS", "-c", program, repr([str(ROOT), *sys.path])]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert not SLOW.intersection(done.stdout.split())


def test_check_by_json(capsys):
    code = cli.run(["check", "--all", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == (0 if all(found.values()) else 1)
    assert set(found) == {one.name for one in ABILITIES}


def test_check_of_a_feature_that_we_do_not_use_yet():
    assert cli.run(["check", "-verbosity=0", "--feature", "ns_pid"]) == 0
    assert cli.run(["check", "-verbosity=0", "--feature", "apparmor_stacking"]) in (0, 1)
