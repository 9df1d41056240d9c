# SPDX-License-Identifier: Apache-2.0
"""The test programs, and what is known of real CRIU 4.2 and each of them.

A program that needs a feature of the kernel or a privilege says so itself, by the verdict `skip`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Program:
    """A program in tests/programs, and how it is run."""

    name: str
    source: str
    args: tuple[str, ...] = ()
    options: tuple[str, ...] = ()  # of dump and restore, as criu spells them
    criu: str = ""  # why real criu can neither dump nor restore it
    criu_dump: str = ""  # why real criu cannot dump it
    criu_restore: str = ""  # why real criu cannot restore it
    huge_pages: int = 0  # of 2 MiB, that it needs
    terminal: bool = False  # runs in a shell's session on a pseudo terminal


def program(name: str, *args: str, source: str = "", **marks) -> Program:
    """A table entry; the source is the file of that name, unless said otherwise."""
    return Program(name, source or name, args, **marks)


PROGRAMS = (
    # Memory
    program("anon_private"),
    program("anon_shared"),
    program("file_private"),
    program("file_shared"),
    program("file_deleted_map"),
    program("memfd_map"),
    program("memfd_seals"),
    program("sysv_shm"),
    program("hugetlb", huge_pages=8),
    program("growsdown"),
    program("heap_brk"),
    program("mlock"),
    program("mlock_onfault", criu="locks and populates all of it"),
    program("madvise"),
    program("thp_disable"),
    program("vdso"),
    program("mm_fields", "old"),
    program("maps"),
    # Tasks
    program("tls_threads"),
    program("umask"),
    # Descriptors
    program("eventfd"),
    program("eventfd_semaphore", criu="loses the mode"),
    program("eventfd_full", criu_restore="keeps 32 bits"),
    program("pipe"),
    program("pipe_packet", criu="packet mode"),
)
