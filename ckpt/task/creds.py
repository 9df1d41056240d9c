# SPDX-License-Identifier: Apache-2.0
"""Credentials of a thread: ids, groups, capabilities, securebits, no_new_privs.

They belong to each thread (credentials(7)); glibc only makes it look otherwise.

So do keyrings. Whether a thread has one of its own, or one of its process, is asked without making
any (KEYCTL_GET_KEYRING_ID), and such a one is refused: a key may be read by who possesses it alone,
or by nobody. The session keyring is not asked for: a task that is has one from then on.
"""

import errno
from collections.abc import Callable

from ckpt.errors import Unsupported
from ckpt.image import pb
from ckpt.kernel.arch import NR
from ckpt.kernel.procfs import Status
from ckpt.kernel.remote import Batch, Call

PR_SET_NO_NEW_PRIVS = 38
_PR_CAPBSET_DROP, _PR_GET_SECUREBITS, _PR_SET_SECUREBITS, _PR_CAP_AMBIENT = 24, 27, 28, 47
_AMBIENT_RAISE, _AMBIENT_CLEAR_ALL = 2, 4
_NO_SETUID_FIXUP = 1 << 2
_CAPABILITY_V3 = 0x20080522
_KEYCTL_GET_KEYRING_ID = 0
_KEYRINGS = {"thread": -1, "process": -2}  # KEY_SPEC_THREAD_KEYRING, KEY_SPEC_PROCESS_KEYRING
_NO_KEYRING = (-errno.ENOKEY, -errno.ENOSYS, -errno.EPERM)  # none; no keys in this kernel, or here


def ask(batch: Batch) -> Call:
    """Add the call whose result is the securebits: all that /proc does not show."""
    return batch.call(NR.prctl, _PR_GET_SECUREBITS)


def ask_keyrings(batch: Batch) -> Callable[[Status], None]:
    """Add the calls that tell whether a thread has keyrings.

    Returns what raises Unsupported if it has, once the batch has run.
    """
    asked = [
        (kind, batch.call(NR.keyctl, _KEYCTL_GET_KEYRING_ID, ring, 0))
        for kind, ring in _KEYRINGS.items()
    ]

    def check(status: Status) -> None:
        for kind, call in asked:
            if call.ret not in _NO_KEYRING:  # which includes one that is revoked, or expired
                raise Unsupported(
                    f"thread {status.pid} of pid {status.tgid} has a {kind} keyring: not supported",
                    hint="keys in the user keyring (KEY_SPEC_USER_KEYRING) are not part of a dump",
                )

    return check


def dump(status: Status, securebits: int) -> pb.creds_entry:
    """Return the record of a thread's credentials."""
    entry = pb.creds_entry(secbits=securebits, no_new_privs=status.no_new_privs or None)
    entry.uid, entry.euid, entry.suid, entry.fsuid = status.uids
    entry.gid, entry.egid, entry.sgid, entry.fsgid = status.gids
    entry.groups.extend(status.groups)
    entry.cap_inh.extend(_words(status.cap_inh))
    entry.cap_prm.extend(_words(status.cap_prm))
    entry.cap_eff.extend(_words(status.cap_eff))
    entry.cap_bnd.extend(_words(status.cap_bnd))
    entry.cap_amb.extend(_words(status.cap_amb))
    return entry


def _words(mask: int) -> list[int]:
    return [mask & 0xFFFF_FFFF, mask >> 32]


def _mask(words: "list[int]") -> int:
    return sum(word << 32 * i for i, word in enumerate(words))


def restore(entry: pb.creds_entry, ours: Status, batch: Batch) -> None:
    """Add the calls that give a thread its credentials; ours are those it was born with.

    Capabilities go last: everything before needs them. Changing ids clears dumpable and the
    parent death signal, so those come later still.
    """
    if _same(entry, ours):
        return
    # Without this, leaving uid 0 would empty the capability sets (capabilities(7)).
    batch.call(NR.prctl, _PR_SET_SECUREBITS, _NO_SETUID_FIXUP, must=True)
    _restore_ids(entry, batch)
    bounding = _mask(list(entry.cap_bnd))
    for cap in range(64):
        if ours.cap_bnd >> cap & 1 and not bounding >> cap & 1:
            batch.call(NR.prctl, _PR_CAPBSET_DROP, cap, must=True)
    batch.call(NR.prctl, _PR_SET_SECUREBITS, entry.secbits, must=True)
    _restore_caps(entry, batch)


def _restore_ids(entry: pb.creds_entry, batch: Batch) -> None:
    groups = b"".join(group.to_bytes(4, "little") for group in entry.groups)
    batch.call(NR.setgroups, len(entry.groups), batch.data(groups), must=True)
    batch.call(NR.setresgid, entry.gid, entry.egid, entry.sgid, must=True)
    batch.call(NR.setfsgid, entry.fsgid)
    batch.call(NR.setresuid, entry.uid, entry.euid, entry.suid, must=True)
    batch.call(NR.setfsuid, entry.fsuid)


def _restore_caps(entry: pb.creds_entry, batch: Batch) -> None:
    sets = zip(entry.cap_eff, entry.cap_prm, entry.cap_inh, strict=False)
    words = [_CAPABILITY_V3, 0, *(word for triple in sets for word in triple)]
    data = batch.data(b"".join(word.to_bytes(4, "little") for word in words))
    batch.call(NR.capset, data, data.address + 8, must=True)
    ambient = _mask(list(entry.cap_amb))
    batch.call(NR.prctl, _PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL, 0, 0, 0)
    for cap in range(64):
        if ambient >> cap & 1:
            batch.call(NR.prctl, _PR_CAP_AMBIENT, _AMBIENT_RAISE, cap, 0, 0, must=True)


def _same(entry: pb.creds_entry, ours: Status) -> bool:
    wanted = dump(ours, 0)
    wanted.ClearField("no_new_privs")
    other = pb.creds_entry()
    other.CopyFrom(entry)
    for field in ("no_new_privs", "lsm_profile", "lsm_sockcreate", "apparmor_data"):
        other.ClearField(field)
    return bool(wanted == other)
