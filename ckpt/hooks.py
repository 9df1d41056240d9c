# SPDX-License-Identifier: Apache-2.0
"""The points of a story at which others have a say: action scripts, an RPC's client, plugins.

Points have CRIU's names. Who is told at them is a `Notify`, made by the face and handed down in the
options: `Scripts` for --action-script, what sends a NOTIFY and waits for the answer for an RPC. A
story only says where it is. What a point may still stop, and what it finds, is said at each method.

Nobody is told inside the freeze of a process that is to run on: pre-dump comes before anything is
done to it, post-dump when it runs again. Where it is not to run on, it stands still at post-dump.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ckpt.errors import CkptError
from ckpt.image.directory import ImageDir
from ckpt.options import CommonOptions

if TYPE_CHECKING:
    from subprocess import Popen

PRE_DUMP, POST_DUMP = "pre-dump", "post-dump"
PRE_RESTORE, POST_RESTORE = "pre-restore", "post-restore"
PRE_RESUME, POST_RESUME = "pre-resume", "post-resume"
SETUP_NAMESPACES, POST_SETUP_NAMESPACES = "setup-namespaces", "post-setup-namespaces"
NETWORK_LOCK, NETWORK_UNLOCK = "network-lock", "network-unlock"
"""For a network namespace of the target's own; as long as there are none, nobody is told."""


class Hooks:
    """Who has a say in one dump or restore. pids are all processes of it, the root first."""

    def __init__(self, options: CommonOptions) -> None:
        self._notify, self._plugins, self._log = options.notify, options.plugins, options.log
        self._paused: list[Callable[[], None]] = []
        self._begun = False

    def _tell(self, point: str, pid: int) -> None:
        """Tell everybody, even if the first objects; then raise the first objection."""
        objection: CkptError | None = None
        for notify in self._notify:
            try:
                notify(point, pid)
            except CkptError as error:
                self._log.error(point, str(error))
                objection = objection or error
        if objection:
            raise objection

    def _just_tell(self, point: str, pid: int) -> None:
        """Tell everybody; it is too late for objections."""
        try:
            self._tell(point, pid)
        except CkptError as error:
            self._log.warning(point, f"ignored: {error}")

    # --- of a dump

    def pre_dump(self, pid: int) -> None:
        """There is a process to be dumped, and a directory; an objection ends it here.

        Told once, though it may take a dump several attempts.
        """
        if not self._begun:
            self._begun = True
            self._tell(PRE_DUMP, pid)

    @contextmanager
    def paused(self, pids: list[int]) -> Iterator[None]:
        """Have plugins pause what they answer for, and resume it unless all are killed."""
        try:
            for plugin in self._plugins:
                self._paused.append(partial(plugin.resume, pids))
                plugin.pause(pids)
            yield
        finally:
            self.resume()

    def dump(self, pids: list[int], image: ImageDir) -> None:
        """Have plugins write what is theirs; the processes stand still."""
        for plugin in self._plugins:
            plugin.dump(pids, image)

    def resume(self) -> None:
        """Have plugins resume what they have paused: the process runs again, or is about to."""
        while self._paused:
            self._try(self._paused.pop())

    def killed(self) -> None:
        """There is nothing to resume any more."""
        self._paused.clear()

    def post_dump(self, pid: int, image: ImageDir) -> None:
        """Tell that the image is complete; an objection, or our end meanwhile, takes it away."""
        try:
            self._tell(POST_DUMP, pid)
        except BaseException:
            image.unseal()
            raise

    def _try(self, resume: Callable[[], None]) -> None:
        try:
            resume()
        except Exception as error:  # it concerns a device, not the image, and others are to follow
            self._log.warning("plugin", f"{type(error).__name__}: {error}")

    # --- of a restore

    def pre_restore(self) -> None:
        """The image can be read; there is no process yet."""
        self._tell(PRE_RESTORE, 0)

    def namespaces(self, pid: int, own: Mapping[str, int]) -> None:
        """Tell that the process, which has no memory yet, is in namespaces of its own, if so."""
        if own:
            self._tell(SETUP_NAMESPACES, pid)
            self._tell(POST_SETUP_NAMESPACES, pid)

    def post_restore(self, pids: list[int], image: ImageDir) -> None:
        """All is there but timers and registers. The last point that may object."""
        for plugin in self._plugins:
            plugin.restore(pids, image)
        self._tell(POST_RESTORE, pids[0])

    def pre_resume(self, pid: int) -> None:
        """Tell that it is what it was, and still stopped."""
        self._just_tell(PRE_RESUME, pid)

    def post_resume(self, pids: list[int]) -> None:
        """Tell that they run."""
        for plugin in self._plugins:
            self._try(partial(plugin.resume, pids))
        self._just_tell(POST_RESUME, pids[0])


class Scripts(NamedTuple):
    """Runs action scripts, as CRIU does: in the work directory, told by three variables.

    CRTOOLS_SCRIPT_ACTION is the point, CRTOOLS_IMAGE_DIR the directory, CRTOOLS_INIT_PID the
    process, once there is one. environment is what else they see; what they print goes to output.
    """

    paths: Sequence[str]
    environment: Mapping[str, str]
    images_dir: str
    work_dir: str
    output: int

    def __call__(self, point: str, pid: int) -> None:
        """Run all of them, one after the other; raise CkptError for the first that fails."""
        told = {"CRTOOLS_SCRIPT_ACTION": point, "CRTOOLS_IMAGE_DIR": self.images_dir}
        if pid:
            told["CRTOOLS_INIT_PID"] = str(pid)
        failed = [path for path in self.paths if self._run(path, told)]
        if failed:
            raise CkptError(
                f"action script {failed[0]} failed at {point}",
                hint="it has to exit with 0; what it printed is in the log",
            )

    def _run(self, path: str, told: dict[str, str]) -> bool:
        """Say whether it failed; that it cannot be run is a failure, too."""
        from subprocess import DEVNULL, Popen

        environment = {**self.environment, **told}
        try:
            script = Popen(
                [path],
                stdin=DEVNULL,
                stdout=self.output,
                stderr=self.output,
                cwd=self.work_dir,
                env=environment,
            )
        except OSError as error:
            os.write(self.output, f"{path}: {error.strerror}\n".encode(errors="backslashreplace"))
            return True
        return _wait(script) != 0


def _wait(script: "Popen[bytes]") -> int:
    """Wait for its end; if we are interrupted it is, too."""
    try:
        return script.wait()
    except BaseException:
        script.kill()
        script.wait()
        raise
