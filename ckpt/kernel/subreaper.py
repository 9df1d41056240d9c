# SPDX-License-Identifier: Apache-2.0
"""Being a subreaper (prctl(2)): orphans among our descendants become our children."""

from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import check, ffi, syscall

_SET, _GET = 36, 37


class Subreaper:
    """While it is open we are one, if we are to be at all; close() leaves us as we were."""

    def __init__(self, *, wanted: bool) -> None:
        self._set = wanted and not _is_set()
        if self._set:
            check(syscall(NR.prctl, _SET, 1, 0, 0, 0), "PR_SET_CHILD_SUBREAPER")

    def close(self) -> None:
        """Be no subreaper any more, if we were not one before."""
        if self._set:
            syscall(NR.prctl, _SET, 0, 0, 0, 0)
            self._set = False


def _is_set() -> bool:
    word = ffi.new("int32_t *")
    check(syscall(NR.prctl, _GET, int(ffi.cast("uintptr_t", word)), 0, 0, 0), "subreaper")
    return bool(word[0])
