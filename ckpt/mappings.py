# SPDX-License-Identifier: Apache-2.0
"""The mappings of a process, looked at while it runs: in the freeze it takes one comparison.

smaps tells all, but walks the page tables for it; maps is quick to read and shows which mappings
there are. What only madvise(2) changes shows in smaps alone, so that is taken just before.
"""

import errno
from functools import partial

from ckpt.errors import KernelError
from ckpt.image import pb
from ckpt.kernel import procfs
from ckpt.kernel.glance import NOTHING, Glance, Seen
from ckpt.kernel.maps import MapsEntry, SmapsEntry, parse_maps, smaps
from ckpt.memory import vmas
from ckpt.snapshot import Led, TaskSnapshot, led, mapped_file

_DELETED = " (deleted)"


class Mappings:
    """Which mappings there were when we looked, and their records."""

    def __init__(self, snapshot: TaskSnapshot) -> None:
        self._snapshot = snapshot
        self._text = b""
        self._known: dict[MapsEntry, pb.vma_entry] = {}
        self._unsaved: list[tuple[SmapsEntry, pb.vma_entry]] = []
        self._files: dict[MapsEntry, tuple[SmapsEntry, Led]] = {}
        self._links = NOTHING
        self.vmas: list[pb.vma_entry] = []

    def look_ahead(self, glance: Glance) -> None:
        """Look, and open what will be read in the freeze."""
        glance.add(f"/proc/{self._snapshot.tid}/maps")
        self.look()
        begin = glance.mark()
        for mapping, _ in self._files.values():
            glance.link(self._link(mapping))
        self._links = glance.since(begin)

    def look(self) -> None:
        """Take them down; one may go while the process runs, and is then left out."""
        self._text = procfs.read(self._snapshot.tid, "maps")
        self._known, self._unsaved, self._files = {}, [], {}
        for mapping in smaps(self._snapshot.tid):
            try:
                self._known[_plain(mapping)] = self._record(mapping)
            except KernelError as error:
                if error.errno != errno.ENOENT:
                    raise
        self.vmas = list(self._known.values())
        if [*self._known] != parse_maps(self._text):  # one came or went between the two files
            self._text = b""

    def _record(self, mapping: SmapsEntry) -> pb.vma_entry:
        """Return the record of a mapping; what is to be saved of its file has to wait."""
        lost = mapping.shared and mapping.path.endswith(_DELETED)
        if lost or vmas.is_memory_file(mapping):
            entry = vmas.dump(mapping, lambda mapping, flags: 0)
            self._unsaved.append((mapping, entry))
            return entry
        if mapping.shared and mapping.inode:  # its size may change, or its name
            self._files[_plain(mapping)] = mapping, led(self._link(mapping))
        return vmas.dump(mapping, partial(mapped_file, self._snapshot))

    def are(self, seen: Seen) -> bool:
        """Say whether a glance shows the same."""
        return seen.read(self._snapshot.tid, "maps") == self._text

    def take(self, seen: Seen) -> bool:
        """Bring vmas up to date with what a glance has just told; say whether they were."""
        text = seen.read(self._snapshot.tid, "maps")
        same = text == self._text
        if not same:
            now = parse_maps(text)
            if any(mapping not in self._known for mapping in now):
                self.look()
            if any(mapping not in self._known for mapping in now):
                raise KernelError(errno.ESRCH, f"reading /proc/{self._snapshot.tid}/smaps")
            self.vmas = [self._known[mapping] for mapping in now]
            self._unsaved = [one for one in self._unsaved if _plain(one[0]) in now]
            self._files = {one: file for one, file in self._files.items() if one in now}
        for mapping, entry in self._unsaved:
            if entry.status & vmas.FILE_BACKED:
                entry.shmid = mapped_file(self._snapshot, mapping, entry.fdflags)
        if not same or not seen.same_answers(self._snapshot.opened.ahead, self._links):
            self.look_at_files()
        return same

    def look_at_files(self) -> None:
        """Save those anew whose files are not what they were.

        Once after look_ahead, too: it has looked at them before the glance has. One may be gone
        then, which shows in maps.
        """
        for plain, (mapping, before) in self._files.items():
            now = self._led(mapping)
            if now and now != before:
                entry = self._known[plain]
                entry.shmid = mapped_file(self._snapshot, mapping, entry.fdflags)
                self._files[plain] = mapping, now

    def _led(self, mapping: SmapsEntry) -> Led | None:
        try:
            return led(self._link(mapping))
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            return None

    def _link(self, mapping: SmapsEntry) -> str:
        return f"/proc/{self._snapshot.tid}/map_files/{mapping.start:x}-{mapping.end:x}"


def _plain(mapping: SmapsEntry) -> MapsEntry:
    """Return what maps, which is quick to read, shows of a mapping in smaps."""
    return MapsEntry(*(getattr(mapping, field) for field in MapsEntry._fields))
