# SPDX-License-Identifier: Apache-2.0
"""Action scripts: when they are run, what they are told, and what comes of one that fails."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from attempts import others_gone
from programs import PROGRAMS
from target import REPO, Ckpt, Criu, Target, Tool, pagers, wait_until

from ckpt.kernel import procfs

pytestmark = pytest.mark.process
PROGRAM = next(program for program in PROGRAMS if program.name == "pipe")
NAMESPACE = next(program for program in PROGRAMS if program.name == "ipcns")

SCRIPT = """#!{python}
import json, os, sys
name, told = "{place}", {{k[8:]: v for k, v in os.environ.items() if k.startswith("CRTOOLS_")}}
state = open(f"/proc/{{told['INIT_PID']}}/stat").read().split()[2] if "INIT_PID" in told else ""
# To real CRIU's post-resume the directory is a descriptor that is closed by then.
sealed = os.path.exists(told["IMAGE_DIR"] + "/inventory.img")
line = [told["SCRIPT_ACTION"], int(told.get("INIT_PID", 0)), state, os.getcwd(), sealed]
with open(name + "/told", "a") as file:
    print(json.dumps(line), file=file)
print("this is what", told["SCRIPT_ACTION"], "printed", flush=True)
sys.exit(os.path.exists(name + "/fail-" + told["SCRIPT_ACTION"]))
"""
TOOLS = pytest.mark.parametrize("tool", [Ckpt, Criu], ids=["ckpt", "criu"])


@pytest.fixture
def script(place: Path) -> Path:
    path = place / "script"
    path.write_text(SCRIPT.format(python=sys.executable, place=place))
    path.chmod(0o755)
    return path


def told(script: Path) -> list[list[object]]:
    """What was told since we asked last."""
    file = script.parent / "told"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    file.unlink(missing_ok=True)
    return lines


def points(script: Path) -> list[object]:
    return [line[0] for line in told(script)]


@TOOLS
def test_points_of_a_dump_and_a_restore(tool: type[Tool], place: Path, script: Path) -> None:
    images = place / "images"
    images.mkdir()
    option = ("--action-script", str(script))
    with Target(PROGRAM, place / "target") as target:
        tool().dump(target, images, *option)
        stopped = [target.pid, "t", str(images), True]
        (before, complete) = told(script)
        assert before[:2] == ["pre-dump", target.pid]
        assert before[2] != "t"
        assert complete == ["post-dump", *stopped]
        tool().restore(target, images, *option)
        (before, restored, ready, runs) = told(script)
        assert before == ["pre-restore", 0, "", str(images), True]
        assert restored[:2] == ["post-restore", target.pid]
        assert ready == ["pre-resume", *stopped]
        assert runs[:2] == ["post-resume", target.pid]
        assert runs[2] != "t"
        target.judge("the restored copy", images)


@pytest.mark.parametrize("engine", ["stop", "live", "fork"])
def test_a_process_that_runs_on_is_never_held_up(engine: str, place: Path, script: Path) -> None:
    images = place / "images"
    with Target(PROGRAM, place / "target") as target:
        Ckpt().dump(target, images, "-R", "--engine", engine, "--action-script", str(script))
        (before, after) = told(script)
        assert (before[0], before[4], after[0], after[4]) == ("pre-dump", False, "post-dump", True)
        assert not {before[2], after[2]} & {"t", "T"}
        target.judge("the target itself, running on", images)


@TOOLS
def test_namespaces_of_its_own(tool: type[Tool], place: Path, script: Path) -> None:
    images = place / "images"
    with Target(NAMESPACE, place / "target") as target:
        tool().dump(target, images)
        tool().restore(target, images, "--action-script", str(script))
        assert points(script) == [
            *("pre-restore", "setup-namespaces", "post-setup-namespaces"),
            *("post-restore", "pre-resume", "post-resume"),
        ]
        target.judge("the restored copy", images)


def test_what_it_prints_is_in_the_log(place: Path, script: Path) -> None:
    images = place / "images"
    with Target(PROGRAM, place / "target") as target:
        Ckpt().dump(target, images, "-R", "--action-script", str(script))
        log = (images / "dump.ckpt.log").read_text()
        assert "this is what pre-dump printed\n" in log
        target.judge("the target itself, running on", images)


@pytest.mark.parametrize("running", [["-R"], []], ids=["running", "killed"])
@pytest.mark.parametrize("point", ["pre-dump", "post-dump"])
def test_a_failure_fails_the_dump(
    point: str, running: list[str], place: Path, script: Path
) -> None:
    (place / f"fail-{point}").touch()
    with Target(PROGRAM, place / "target") as target:
        code, said = ckpt("dump", "-t", target.pid, "-D", place / "new", *running, script=script)
        assert (code, f"action script {script} failed at {point}" in said) == (1, True)
        assert points(script)[-1] == point
        assert not (place / "new").exists(), "and so the image is gone, with its directory"
        assert procfs.stat(target.pid).state in "RSD"
        target.judge("the target itself, running on", place)


@pytest.mark.parametrize("point", ["pre-restore", "post-restore"])
def test_a_failure_fails_the_restore(point: str, place: Path, script: Path) -> None:
    images = place / "images"
    with Target(PROGRAM, place / "target") as target:
        Ckpt().dump(target, images)
        (place / f"fail-{point}").touch()
        code, said = ckpt("restore", "-d", "-D", images, script=script)
        assert (code, f"failed at {point}" in said) == (1, True)
        assert points(script)[-1] == point
        assert not os.path.exists(f"/proc/{target.pid}/exe")
        Ckpt().restore(target, images)
        target.judge("the restored copy", images)


@TOOLS
@pytest.mark.parametrize("point", ["pre-resume", "post-resume"])
def test_too_late_to_object(point: str, tool: type[Tool], place: Path, script: Path) -> None:
    images = place / "images"
    with Target(PROGRAM, place / "target") as target:
        tool().dump(target, images)
        (place / f"fail-{point}").touch()
        tool().restore(target, images, "--action-script", str(script))
        target.judge("the restored copy", images)


@TOOLS
def test_all_are_run_though_the_first_fails(tool: type[Tool], place: Path, script: Path) -> None:
    images = place / "images"
    (place / "fail-pre-dump").touch()
    with Target(PROGRAM, place / "target") as target:
        with pytest.raises(pytest.fail.Exception, match="exit code 1"):
            tool().dump(target, images, "-R", *2 * ("--action-script", str(script)))
        assert points(script) == ["pre-dump", "pre-dump"]
        target.judge("the target itself, running on", images)


def test_a_script_that_is_not_there(place: Path) -> None:
    with Target(PROGRAM, place / "target") as target:
        code, said = ckpt("dump", "-t", target.pid, "-D", place / "new", "-R", script=place / "x")
        assert code == 1
        assert said.startswith(f"{place}/x: No such file or directory\n")
        target.judge("the target itself, running on", place)


def test_nobody_is_asked_about_what_is_refused(place: Path, script: Path) -> None:
    with Target(next(p for p in PROGRAMS if p.refused), place / "target") as target:
        code, _ = ckpt("dump", "-t", target.pid, "-D", place / "new", "-R", script=script)
        assert (code, told(script)) == (3, [])
        target.judge("the target itself, running on", place)


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGKILL], ids=["term", "kill"])
@pytest.mark.parametrize("point", ["pre-dump", "post-dump"])
@pytest.mark.parametrize("running", [["-R"], []], ids=["running", "killed"])
def test_who_ends_us_while_a_script_runs(
    signo: int, point: str, running: list[str], place: Path
) -> None:
    script = place / "script"
    text = f"#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION = {point} ] || exit 0\n"
    script.write_text(text + f"echo $$ > {place}/new; mv {place}/new {place}/pid; exec sleep 999")
    script.chmod(0o755)
    with Target(PROGRAM, place / "target") as target:
        words = ["dump", "-t", str(target.pid), "-D", str(place / "images"), *running]
        argv = [*Ckpt.command, *words, "--action-script", str(script)]
        with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as command:
            wait_until((place / "pid").exists, "a script that runs")
            command.send_signal(signo)
            assert command.wait(60) == (128 + signo if signo == signal.SIGTERM else -signo)
        pid = int((place / "pid").read_text())
        if signo == signal.SIGTERM:
            assert not os.path.exists(f"/proc/{pid}")
            assert not (place / "images").exists()
        else:  # we could not end it
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            others_gone(target.pid)  # who puts the target right has ended
        target.judge("the target itself, running on", place)


def test_a_lazy_restore(place: Path, script: Path) -> None:
    images = place / "images"
    with Target(PROGRAM, place / "target") as target:
        Ckpt().dump(target, images)
        Ckpt().restore(target, images, "--lazy-pages", "--action-script", str(script))
        assert points(script) == ["pre-restore", "post-restore", "pre-resume", "post-resume"]
        target.judge("the restored copy", images)
    wait_until(lambda: not pagers(), "end of the pager")


def ckpt(*words: object, script: Path) -> tuple[int, str]:
    argv = [*Ckpt.command, *map(str, words), "--action-script", str(script)]
    done = subprocess.run(argv, text=True, stderr=subprocess.PIPE, timeout=60, check=False)
    return done.returncode, done.stderr


PLUGIN = """
from ckpt.kernel import procfs
from ckpt.plugin import Plugin


class Witness(Plugin):
    def _note(self, what, pids):
        with open("{place}/noted", "a") as file:
            print(what, *pids, procfs.stat(pids[0]).state, file=file)

    def pause(self, pids):
        self._note("pause", pids)

    def dump(self, pids, image):
        self._note("dump", pids)
        open(image.open_ext("witness", 1, write=True), "w").write("seen")

    def restore(self, pids, image):
        self._note("restore", pids)
        assert open(image.open_ext("witness", 1)).read() == "seen"

    def resume(self, pids):
        self._note("resume", pids)


PLUGIN = Witness()
"""


@pytest.fixture
def plugin(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where an installed plugin says what it is called for."""
    site = place / "site"
    (site / "witness-1.dist-info").mkdir(parents=True)
    (site / "witness.py").write_text(PLUGIN.format(place=place))
    entry_points = site / "witness-1.dist-info" / "entry_points.txt"
    entry_points.write_text("[ckpt.plugins]\nwitness = witness:PLUGIN\n")
    monkeypatch.setenv("PYTHONPATH", f"{REPO}:{site}")
    return place / "noted"


@pytest.mark.parametrize("engine", ["stop", "live"])
def test_plugins(engine: str, place: Path, plugin: Path) -> None:
    images = place / "images"
    with Target(PROGRAM, place / "target") as target:
        Ckpt().dump(target, images, "-R", "--engine", engine)
        calls = [line.split() for line in plugin.read_text().splitlines()]
        assert [call[:2] for call in calls] == [
            [name, str(target.pid)] for name in ("pause", "dump", "resume")
        ]
        assert [call[2] == "t" for call in calls] == [False, True, False]
        target.judge("the target itself, running on", images)
        plugin.unlink()
        Ckpt().restore(target, images)
        calls = [line.split() for line in plugin.read_text().splitlines()]
        assert calls[0] == ["restore", str(target.pid), "t"]
        assert calls[1][0] == "resume"
        target.judge("the restored copy", images)
