# SPDX-License-Identifier: Apache-2.0
"""A few bytes of another task's memory (process_vm_readv(2), process_vm_writev(2)).

Not by /proc/PID/mem: a write there to a page that a userfaultfd protects fails with EIO, while
these wait until the fault has been answered.
"""

from ckpt.kernel.ffi import check, ffi, lib


def read(pid: int, address: int, size: int) -> bytes:
    """Return size bytes at address; raises KernelError (EFAULT) if they cannot be read."""
    buffer = ffi.new("uint8_t[]", size)
    ranges = ffi.new("struct core_range[]", [(address, size)])
    check(lib.core_vm_read(pid, ranges, 1, buffer), "process_vm_readv", pid=pid, addr=address)
    return bytes(ffi.buffer(buffer))


def write(pid: int, address: int, data: bytes) -> None:
    """Write data at address; raises KernelError (EFAULT) if it may not be written to."""
    ranges = ffi.new("struct core_range[]", [(address, len(data))])
    ret = lib.core_vm_write(pid, ranges, 1, ffi.from_buffer(data))
    check(ret, "process_vm_writev", pid=pid, addr=address)
