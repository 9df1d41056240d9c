# SPDX-License-Identifier: Apache-2.0
"""The classic BPF program that a socket filters what it receives with (SO_ATTACH_FILTER).

A system call of its own, since getsockopt of the socket module would overrun its buffer: for
SO_GET_FILTER alone the length is in instructions, not in bytes (sk_get_filter, net/core/filter.c).
"""

import errno
import socket

from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import check, ffi, syscall

_SO_ATTACH_FILTER = SO_GET_FILTER = 26
_INSTRUCTION = 8


def get_filter(fd: int) -> bytes | None:
    """Return the filter's struct sock_filter array, b"" for none, None for an eBPF program."""
    length = ffi.new("uint32_t *", 0)
    where = int(ffi.cast("uintptr_t", length))
    ret = syscall(NR.getsockopt, fd, socket.SOL_SOCKET, SO_GET_FILTER, 0, where)
    if ret == -errno.EACCES:
        return None
    check(ret, "getsockopt SO_GET_FILTER")
    if not length[0]:
        return b""
    program = ffi.new("uint8_t[]", length[0] * _INSTRUCTION)
    at = int(ffi.cast("uintptr_t", program))
    check(syscall(NR.getsockopt, fd, socket.SOL_SOCKET, SO_GET_FILTER, at, where), "SO_GET_FILTER")
    return bytes(ffi.buffer(program))


def attach_filter(fd: int, program: bytes) -> None:
    """Attach an array of struct sock_filter; it takes no privilege."""
    code = ffi.from_buffer(program)
    address = int(ffi.cast("uintptr_t", code))
    # struct sock_fprog: a 16-bit count, padding, a pointer
    request = (len(program) // _INSTRUCTION).to_bytes(8, "little") + address.to_bytes(8, "little")
    holder = ffi.from_buffer(request)
    at = int(ffi.cast("uintptr_t", holder))
    args = (socket.SOL_SOCKET, _SO_ATTACH_FILTER, at, len(request))
    check(syscall(NR.setsockopt, fd, *args), "setsockopt SO_ATTACH_FILTER")
