# SPDX-License-Identifier: Apache-2.0
"""`check`: what this kernel and these privileges allow, by CRIU's names where it has one."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ckpt.errors import OptionsError
from ckpt.kernel import features, offers


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
    Ability("mem_dirty_track", features.pagemap_scan, "dumps of what has changed since another"),
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

OFFERED = (
    Ability("aio_remap", offers.aio_remap, "AIO contexts"),
    Ability("timerfd", offers.timerfd, "the ticks of a timerfd"),
    Ability("can_map_vdso", offers.can_map_vdso, "a vDSO where there is none"),
    Ability("compat_cr", offers.compat_cr, "a vDSO for 32-bit programs"),
    Ability("seccomp_suspend", offers.seccomp_suspend, "system calls despite a filter"),
    Ability("seccomp_filters", offers.seccomp_filters, "the filters of a task"),
    Ability("breakpoints", offers.breakpoints, "breakpoints of the CPU"),
    Ability("loginuid", offers.loginuid, "who has logged in"),
    Ability("ns_pid", offers.ns_pid, "pids in another namespace"),
    Ability("pidfd_store", offers.pidfd_store, "pidfds, kept by somebody else"),
    Ability("apparmor_stacking", offers.apparmor_stacking, "AppArmor profiles on each other"),
    Ability("move_mount_set_group", offers.move_mount_set_group, "who shares a mount"),
    Ability("autofs", offers.autofs, "autofs mounts"),
    Ability("overlayfs_maps", offers.overlayfs_maps, "mapped files of overlays"),
    Ability("sk_ns", offers.sk_ns, "the namespace of a socket"),
    Ability("sk_unix_file", offers.sk_unix_file, "the file of a unix socket"),
    Ability("net_diag_raw", offers.net_diag_raw, "raw sockets"),
    Ability("ipv6_freebind", offers.ipv6_freebind, "addresses that are not there"),
    Ability("tun", offers.tun, "tun devices"),
    Ability("tun_ns", offers.tun_ns, "their namespaces"),
    Ability("nftables", offers.nftables, "the rules of nft"),
    Ability("network_lock_nftables", offers.nftables, "the same, to lock the network"),
    Ability("has_ipt_legacy", offers.has_ipt_legacy, "the rules of iptables-legacy"),
    Ability("nsid", offers.nsid, "numbers of network namespaces"),
    Ability("link_nsid", offers.link_nsid, "links of another one by it"),
    Ability("newifindex", offers.newifindex, "links with an index of one's choice"),
    Ability("external_net_ns", offers.newifindex, "the same, between namespaces"),
)
"""CRIU's features that we make no use of yet: whether the kernel has them."""


def ability(name: str) -> Ability:
    """Return a feature by name. Raises OptionsError, naming the nearest, if there is none."""
    known = {one.name: one for one in (*ABILITIES, *OFFERED)}
    if name in known:
        return known[name]
    from difflib import get_close_matches

    near = get_close_matches(name, list(known), 1)
    raise OptionsError(
        f"unknown feature {name}",
        hint=f"did you mean {near[0]}?" if near else "they have the names that CRIU gives them",
    )
