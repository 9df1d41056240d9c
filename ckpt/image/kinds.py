# SPDX-License-Identifier: Apache-2.0
"""The table of image files: name, magic, message, raw tail. Nothing else knows any of them."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from ckpt.image import pb

COMMON_MAGIC = 0x54564319
"""First word of an image file; the inventory alone goes without."""
SERVICE_MAGIC = 0x55105940
"""First word of a file beside the image proper: statistics, caches."""


class Reader(Protocol):
    """What a tail rule needs of a file, placed behind the message: see `records.Source`."""

    size: int
    offset: int

    def message(self, type_: type[Any]) -> Any:
        """Read a sized message."""

    def take(self, length: int, expected: str) -> bytes:
        """Read bytes."""


TailRule = Callable[[Any, Reader], int]
"""Length in bytes of the raw tail of a record, from its message. May read ahead."""


class Kind(NamedTuple):
    """One kind of image file; a raw one has neither magic nor messages.

    `messages` are the names of the first record's message and, if they differ, the others'.
    """

    pattern: str
    magic: int = 0
    messages: tuple[str, ...] = ()
    tail: TailRule | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """The file name without id and suffix."""
        return self.pattern.partition("-%")[0].removesuffix(".img")

    @property
    def magics(self) -> tuple[int, ...]:
        """The words that such a file begins with."""
        if self.pattern == "inventory.img":
            return (self.magic,)
        return (COMMON_MAGIC if self.pattern.endswith(".img") else SERVICE_MAGIC, self.magic)

    def message_types(self) -> list[type[Any]]:
        """Return the classes of `messages`."""
        return [getattr(pb, name) for name in self.messages]

    def file_name(self, id_: int | None) -> str:
        """Return the name of one such file; `id_` is None for kinds that have a single file."""
        return self.pattern if id_ is None else self.pattern % id_


def _padded(length: int, to: int) -> int:
    return -(-length // to) * to


def _ghost_tail(message: Any, file: Reader) -> int:
    """All the rest belongs to a ghost file, unless it comes in chunks."""
    if isinstance(message, pb.ghost_chunk_entry):
        return message.len
    return 0 if message.chunks else file.size - file.offset


def _messages_tail(message: Any, file: Reader) -> int:
    """Walk over the messages of a System V queue."""
    start = file.offset
    for _ in range(message.qnum):
        file.take(_padded(file.message(pb.ipc_msg).msize, 8), "a System V message")
    return file.offset - start


_TABLE = (
    Kind("inventory.img", 0x58313116, ("inventory_entry",)),
    Kind("stats-dump", 0x57093306, ("stats_entry",)),
    Kind("stats-restore", 0x57093306, ("stats_entry",)),
    Kind("irmap-cache", 0x57004059, ("irmap_cache_entry",)),
    # the tasks
    Kind("pstree.img", 0x50273030, ("pstree_entry",)),
    Kind("core-%u.img", 0x55053847, ("core_entry",)),
    Kind("ids-%u.img", 0x54432030, ("task_kobj_ids_entry",)),
    Kind("fs-%u.img", 0x51403912, ("fs_entry",)),
    Kind("creds-%u.img", 0x54023547, ("creds_entry",)),
    Kind("rlimit-%u.img", 0x57113925, ("rlimit_entry",)),
    Kind("sigacts-%u.img", 0x55344201, ("sa_entry",)),
    Kind("signal-s-%u.img", 0x59255647, ("signal_queue_entry",)),
    Kind("signal-p-%u.img", 0x59255647, ("signal_queue_entry",)),
    Kind("itimers-%u.img", 0x57464056, ("itimer_entry",)),
    Kind("posix-timers-%u.img", 0x52603957, ("posix_timer_entry",)),
    Kind("seccomp.img", 0x64413049, ("seccomp_entry",)),
    Kind("apparmor.img", 0x59423047, ("apparmor_entry",)),
    Kind("cgroup.img", 0x59383330, ("cgroup_entry",)),
    Kind("cpuinfo.img", 0x61404013, ("cpuinfo_entry",)),
    # memory
    Kind("mm-%u.img", 0x57492820, ("mm_entry",)),
    Kind("vmas-%u.img", 0x54123737, ("vma_entry",)),
    Kind("pagemap-%u.img", 0x56084025, ("pagemap_head", "pagemap_entry")),
    Kind("pagemap-shmem-%u.img", 0x56084025, ("pagemap_head", "pagemap_entry")),
    Kind("pages-%u.img"),
    # files; those that have become a field of file_entry are read only
    Kind("files.img", 0x56303138, ("file_entry",)),
    Kind("fdinfo-%u.img", 0x56213732, ("fdinfo_entry",)),
    Kind("reg-files.img", 0x50363636, ("reg_file_entry",)),
    Kind("ext-files.img", 0x59255641, ("ext_file_entry",)),
    Kind("ns-files.img", 0x61394011, ("ns_file_entry",)),
    Kind("remap-fpath.img", 0x59133954, ("remap_file_path_entry",)),
    Kind("ghost-file-%x.img", 0x52583605, ("ghost_file_entry", "ghost_chunk_entry"), _ghost_tail),
    Kind("filelocks.img", 0x54323616, ("file_lock_entry",)),
    Kind("eventfd.img", 0x44523722, ("eventfd_file_entry",)),
    Kind("eventpoll.img", 0x45023858, ("eventpoll_file_entry",)),
    Kind("eventpoll-tfd.img", 0x44433746, ("eventpoll_tfd_entry",)),
    Kind("signalfd.img", 0x57323820, ("signalfd_entry",)),
    Kind("timerfd.img", 0x50493712, ("timerfd_entry",)),
    Kind("inotify.img", 0x48424431, ("inotify_file_entry",)),
    Kind("inotify-wd.img", 0x54562009, ("inotify_wd_entry",)),
    Kind("fanotify.img", 0x55096122, ("fanotify_file_entry",)),
    Kind("fanotify-mark.img", 0x56506035, ("fanotify_mark_entry",)),
    Kind("memfd.img", 0x48453499, ("memfd_inode_entry",)),
    Kind("pidfd.img", 0x54435556, ("pidfd_entry",)),
    Kind("pipes.img", 0x56513555, ("pipe_entry",)),
    Kind("pipes-data.img", 0x56453709, ("pipe_data_entry",), lambda m, _: m.bytes),
    Kind("fifo.img", 0x58364939, ("fifo_entry",)),
    Kind("fifo-data.img", 0x59333054, ("pipe_data_entry",), lambda m, _: m.bytes),
    Kind("tty.img", 0x59433025, ("tty_file_entry",)),
    Kind("tty-info.img", 0x59453036, ("tty_info_entry",)),
    Kind("tty-data.img", 0x59413026, ("tty_data_entry",)),
    Kind("bpfmap-file.img", 0x57506142, ("bpfmap_file_entry",)),
    Kind(
        "bpfmap-data.img",
        0x64324033,
        ("bpfmap_data_entry",),
        lambda m, _: m.keys_bytes + m.values_bytes,
    ),
    # sockets
    Kind("unixsk.img", 0x54373943, ("unix_sk_entry",)),
    Kind("inetsk.img", 0x56443851, ("inet_sk_entry",)),
    Kind("packetsk.img", 0x60454618, ("packet_sock_entry",)),
    Kind("netlinksk.img", 0x58005614, ("netlink_sk_entry",)),
    Kind("sk-queues.img", 0x56264026, ("sk_packet_entry",), lambda m, _: m.length),
    Kind(
        "tcp-stream-%x.img",
        0x51465506,
        ("tcp_stream_entry",),
        lambda m, _: m.inq_len + m.outq_len,
    ),
    Kind("tunfile.img", 0x57143751, ("tunfile_entry",)),
    # namespaces
    Kind("utsns-%u.img", 0x54473203, ("utsns_entry",)),
    Kind("ipcns-var-%u.img", 0x53115007, ("ipc_var_entry",)),
    Kind(
        "ipcns-shm-%u.img",
        0x46283044,
        ("ipc_shm_entry",),
        lambda m, _: 0 if m.in_pagemaps else _padded(m.size, 4),
    ),
    Kind("ipcns-msg-%u.img", 0x55453737, ("ipc_msg_entry",), _messages_tail),
    Kind("ipcns-sem-%u.img", 0x59573019, ("ipc_sem_entry",), lambda m, _: _padded(2 * m.nsems, 8)),
    Kind("userns-%u.img", 0x55474906, ("userns_entry",)),
    Kind("timens-%u.img", 0x43114433, ("timens_entry",)),
    Kind("pidns-%u.img", 0x61157326, ("pidns_entry",)),
    Kind("mountpoints-%u.img", 0x55563928, ("mnt_entry",)),
    Kind("autofs-%u.img", 0x49353943, ("autofs_entry",)),
    Kind("binfmt-misc.img", 0x67343323, ("binfmt_misc_entry",)),
    Kind("tmpfs-%u.tar.gz"),
    Kind("tmpfs-dev-%u.tar.gz"),
    Kind("netns-%u.img", 0x55933752, ("netns_entry",)),
    Kind("netdev-%u.img", 0x57373951, ("net_device_entry",)),
    # what ip, iptables, nft and conntrack print, as it is
    Kind("ifaddr-%u.img"),
    Kind("route-%u.img"),
    Kind("route6-%u.img"),
    Kind("rule-%u.img"),
    Kind("iptables-%u.img"),
    Kind("ip6tables-%u.img"),
    Kind("nftables-%u.img"),
    Kind("netns-ct-%u.img"),
    Kind("netns-exp-%u.img"),
)

KINDS = {kind.name: kind for kind in _TABLE}
"""Every kind by name: the file name without id and suffix."""

BY_MAGIC = {kind.magic: kind for kind in reversed(_TABLE) if kind.magic}
"""Every kind by magic; the first one where several share it."""
