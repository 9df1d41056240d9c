# SPDX-License-Identifier: Apache-2.0
"""stats-dump and stats-restore: figures that runtimes show. They stand beside the image."""

import os

from ckpt.errors import ImageError
from ckpt.image import pb
from ckpt.image.kinds import KINDS
from ckpt.image.records import RecordWriter
from ckpt.log import Log

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def write_stats(directory: str, stats: pb.stats_entry, log: Log) -> None:
    """Write the figures of a dump or restore that is done: that they fail is no failure of it."""
    kind = KINDS["stats-dump" if stats.HasField("dump") else "stats-restore"]
    path = os.path.join(directory, kind.pattern)
    try:
        with RecordWriter(os.open(path, _FLAGS, 0o644), path, kind) as writer:
            writer.append(stats)
    except (OSError, ImageError) as error:
        log.warning("stats", f"{path}: {error}")
