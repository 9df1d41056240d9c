# SPDX-License-Identifier: Apache-2.0
"""`check`: what this kernel and these privileges allow, by CRIU's names where it has one."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ckpt.errors import OptionsError
from ckpt.kernel import features


class Ability(NamedTuple):
    """A feature: how to find it out, and what it is for.

    Without `required` ones nothing can be dumped or restored; others matter to some processes.
    """

    name: str
    probe: Callable[[], bool]
    purpose: str
    required: bool = False


ABILITIES = (
    Ability("privileges", features.privileges, "CAP_SYS_PTRACE and CAP_SYS_ADMIN", True),
    Ability("ptrace", features.ptrace, "stop a thread, read its registers", True),
    Ability("pidfd_getfd", features.pidfd, "copies of open files", True),
    Ability("pagemap_scan", features.pagemap_scan, "which pages to save (Linux 6.7)", True),
    Ability("clone3_set_tid", features.clone3_set_tid, "processes with their old pids", True),
    Ability("mm_map", features.mm_map, "where code, heap and arguments are", True),
    Ability("kcmp", features.kcmp_files, "open files that are shared", True),
    Ability("get_rseq_conf", features.get_rseq_conf, "restartable sequences", True),
    Ability("mnt_id", features.mnt_id, "the mount of an open file", True),
    Ability("openat2", features.openat2, "paths below another root", True),
    Ability("timer_cr_ids", features.timer_cr_ids, "POSIX timers with gaps in their ids, fast"),
    Ability("guard_pages", features.guard_pages, "guard pages (MADV_GUARD_INSTALL)"),
    Ability("pagemap_scan_guard_pages", features.pagemap_scan_guard_pages, "where these are"),
    Ability("kcmp_epoll", features.kcmp_epoll, "members of epoll sets"),
    Ability("memfd_hugetlb", features.memfd_hugetlb, "anonymous files of huge pages"),
    Ability("fdinfo_lock", features.fdinfo_lock, "file locks"),
    Ability("tcp_half_closed", features.tcp_repair, "TCP connections"),
    Ability("sockopt_buf_lock", features.sockopt_buf_lock, "sizes of socket buffers"),
    Ability("uffd", lambda: bool(features.uffd()), "page faults answered by us"),
    Ability("uffd-noncoop", features.uffd_events, "the same, while the process forks and unmaps"),
    Ability("uffd_wp", features.uffd_wp, "write-protect faults: live dumps"),
    Ability("uffd_wp_async", features.uffd_wp_async, "what was written since"),
    Ability("uffd_events", features.uffd_events, "forks and unmappings while pages are missing"),
    Ability("userns", partial(features.namespace, "user"), "user namespaces"),
    Ability("timens", partial(features.namespace, "time"), "time namespaces"),
    Ability("cgroupns", partial(features.namespace, "cgroup"), "cgroup namespaces"),
)

NOT_YET = frozenset(
    (
        *("mem_dirty_track", "aio_remap", "timerfd", "tun", "tun_ns", "seccomp_suspend"),
        *("seccomp_filters", "loginuid", "autofs", "compat_cr"),
        *("can_map_vdso", "sk_ns", "sk_unix_file", "net_diag_raw", "nsid", "link_nsid"),
        *("external_net_ns", "newifindex", "nftables", "has_ipt_legacy", "ns_pid"),
        *("apparmor_stacking", "network_lock_nftables", "move_mount_set_group", "ipv6_freebind"),
        *("overlayfs_maps", "breakpoints", "pidfd_store"),
    )
)
"""CRIU's features that we do not use yet, whatever the kernel has."""


def ability(name: str) -> Ability:
    """Return a feature by name; one that we do not use yet is there, but never available.

    Raises OptionsError, naming the nearest, if there is none.
    """
    for one in ABILITIES:
        if one.name == name:
            return one
    if name in NOT_YET:
        return Ability(name, lambda: False, "not used by ckpt yet")
    from difflib import get_close_matches

    near = get_close_matches(name, [*(one.name for one in ABILITIES), *NOT_YET], 1)
    raise OptionsError(
        f"unknown feature {name}",
        hint=f"did you mean {near[0]}?" if near else "ckpt check --all has the names",
    )
