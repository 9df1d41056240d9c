# SPDX-License-Identifier: Apache-2.0
"""The story of a restore: read, make the files, make a stopped task what it was, let go."""

import time
from contextlib import ExitStack
from typing import NamedTuple

from ckpt.image.directory import ImageDir
from ckpt.image.pages import PageReader
from ckpt.options import RestoreOptions
from ckpt.rebuild import Task
from ckpt.saved import Files, read


class RestoreReport(NamedTuple):
    """What a restore did. Times in ns; pages of 4096 bytes."""

    pid: int
    forking_ns: int
    total_ns: int
    pages: int


def restore(options: RestoreOptions) -> RestoreReport:
    """Make the process of options.images_dir again; it runs when this returns.

    It is our child (our sibling with options.sibling). Raises CkptError; then there is no
    process, and nothing of it is left.
    """
    begun = time.monotonic_ns()
    with ExitStack() as stack:
        image = stack.enter_context(ImageDir.open(options.images_dir))
        saved = read(image)
        reader = stack.enter_context(PageReader(image, "pagemap", saved.pid))
        files = stack.enter_context(Files(image, saved, options))
        task = stack.enter_context(Task(saved, options))
        task.begin(files)
        task.map(files, reader)
        task.become(files)
        task.make_threads()
        task.open(files)
        task.finish()
        task.run()
    return RestoreReport(saved.pid, task.forking_ns, time.monotonic_ns() - begun, task.pages)
