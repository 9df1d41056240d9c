# SPDX-License-Identifier: Apache-2.0
"""Plugins: what they may be, and which are installed. docs/writing-a-plugin.md walks through one.

A plugin is an instance of `Plugin` that an installed distribution names in the entry point group
`ckpt.plugins`. Most have none, and importlib.metadata takes 40 ms to say so: hence a look of our
own at what it would read, for the name of the group.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import ClassVar

from ckpt.errors import CkptError
from ckpt.files.kind import Dump, OpenFile, Restore
from ckpt.files.plugged import PluggedKind
from ckpt.image.directory import ImageDir

__all__ = ["Dump", "OpenFile", "PluggedKind", "Plugin", "Restore", "installed"]

GROUP = "ckpt.plugins"
_LARGEST = 1 << 20


class Plugin:
    """What a plugin has: kinds of open files, and what it does around a freeze.

    The methods are given the processes of a dump or restore. One that raises CkptError before the
    process is let go ends the dump or restore; then `resume` undoes what `pause` has done.
    """

    kinds: ClassVar[Sequence[type[PluggedKind]]] = ()
    """They are asked before ours, in this order."""

    def pause(self, pids: Sequence[int]) -> None:
        """The processes run, and are about to be stopped."""

    def dump(self, pids: Sequence[int], image: ImageDir) -> None:
        """They stand still; files of its own (image.open_ext) become part of the image."""

    def restore(self, pids: Sequence[int], image: ImageDir) -> None:
        """They are nearly what they were, and do not run yet."""

    def resume(self, pids: Sequence[int]) -> None:
        """They run, or are about to; after a dump or its failure, and after a restore."""


def installed(path: Iterable[str] | None = None) -> tuple[Plugin, ...]:
    """Return the installed plugins, by name. Raises CkptError for one that cannot be loaded."""
    found = dict(_entries(sys.path if path is None else path))
    return tuple(_load(name, found[name]) for name in sorted(found))


def _entries(path: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the name and the place, `module:object`, of each plugin on the path."""
    for directory in path:
        with suppress(OSError):
            for name in os.listdir(directory or "."):
                if name.endswith((".dist-info", ".egg-info")):
                    yield from _parse(_read(f"{directory or '.'}/{name}/entry_points.txt"))


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, _LARGEST)
    finally:
        os.close(fd)


def _parse(text: bytes) -> Iterator[tuple[str, str]]:
    """Yield what an entry_points.txt, an INI file, has in our group."""
    if GROUP.encode() not in text:
        return
    section = ""
    for line in text.decode(errors="replace").splitlines():
        name, equals, place = line.partition("=")
        if line.startswith("["):
            section = line.strip()[1:-1].strip()
        elif equals and section == GROUP:
            yield name.strip(), place.strip()


def _load(name: str, place: str) -> Plugin:
    from importlib import import_module

    module, _, attribute = place.partition(":")
    try:
        plugin = getattr(import_module(module), attribute.strip())
    except Exception as error:  # a plugin may be of any quality
        raise CkptError(
            f"plugin {name} ({place}) cannot be loaded: {type(error).__name__}: {error}",
            hint="mend it or uninstall it, or leave plugins out with --no-plugins",
        ) from error
    if not isinstance(plugin, Plugin):
        raise CkptError(f"plugin {name}: {place} is no ckpt.plugin.Plugin")
    return plugin
