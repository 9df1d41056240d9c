# SPDX-License-Identifier: Apache-2.0
"""`ckpt check --feature` says of this kernel what real criu says, of every feature it knows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt.check import ABILITIES, OFFERED
from tests.peers import peer

NAMES = [one.name for one in (*ABILITIES, *OFFERED)]
OPTIONS = ["--no-default-config", "--no-default-config", "-verbosity=0"]
ASKED = (
    *("userns", "uffd", "uffd-noncoop", "mem_dirty_track", "mnt_id", "tcp_half_closed"),
    *("has_ipt_legacy", "fdinfo_lock", "move_mount_set_group", "network_lock_nftables"),
    *("seccomp_filters", "cgroupns", "get_rseq_conf", "aio_remap", "kcmp_epoll", "nftables"),
    *("ipv6_freebind", "timens", "tun", "pidfd_store", "overlayfs_maps", "breakpoints"),
    *("pagemap_scan_guard_pages", "timer_cr_ids", "compat_cr", "external_net_ns"),
)
"""By CRIU's own test harness."""


def code(program: list[str], name: str) -> tuple[int, bool]:
    argv = [*program, "check", *OPTIONS, "--feature", name]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, "Unknown feature" in done.stderr


@pytest.mark.parametrize("name", sorted({*NAMES, *ASKED}))
def test_feature(name: str) -> None:
    if os.geteuid():
        pytest.skip("real criu needs root")
    ours, _ = code([sys.executable, "-m", "ckpt"], name)
    theirs, unknown = code([peer("criu")], name)
    assert ours in (0, 1)
    if name == "mem_dirty_track":  # theirs takes soft-dirty bits, ours needs none
        assert ours <= theirs
    else:
        assert unknown or ours == theirs


def test_nothing_is_left() -> None:
    """Probes are made in namespaces of their own: no mount, no link, no child."""

    def all_there_is() -> list[object]:
        links = sorted(os.listdir("/sys/class/net"))
        return [
            Path("/proc/self/mountinfo").read_text(),
            links,
            sorted(os.listdir("/proc/self/fd")),
            Path(f"/proc/self/task/{os.getpid()}/children").read_text(),
        ]

    before = all_there_is()
    for one in OFFERED:
        one.probe()
    assert all_there_is() == before
