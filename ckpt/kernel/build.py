# SPDX-License-Identifier: Apache-2.0
"""The cffi build of the C core: core/core.h is both its header and its cdef.

cffi's parser takes no preprocessor lines, so those are dropped; the constants that Python needs
from the kernel's headers are listed here and compiled in, never copied as numbers.
"""

import platform
from pathlib import Path

from cffi import FFI

CORE = Path("ckpt/kernel/core")
ARCH = platform.machine()
COMMON = ("aside.c", "calls.c", "many.c", "threads.c", "userfaultfd.c")


def declarations(header: str) -> str:
    """Return the text of a C header without its preprocessor lines."""
    return "\n".join(line for line in header.splitlines() if not line.startswith("#"))


ffi = FFI()
ffi.cdef(declarations((Path(__file__).parent / "core/core.h").read_text()))
ffi.set_source(
    "ckpt.kernel._core",
    '#include "core.h"',
    sources=[str(CORE / name) for name in (*COMMON, f"cpu_{ARCH}.c", f"remote_{ARCH}.c")],
    include_dirs=[str(CORE)],
    depends=[str(CORE / "core.h")],
    extra_compile_args=["-O2", "-Wall", "-Wextra", "-Wno-unused-parameter"],
)
