# SPDX-License-Identifier: Apache-2.0
"""What the kernel layer must know of x86-64: registers, call numbers, restarts, gadgets."""

import re
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from ckpt.kernel.ffi import ffi, lib

ERESTART_RESTARTBLOCK = 516

TASK_SIZE = 0x7FFF_FFFF_F000
AUDIT_ARCH = 0xC000_003E
CS_64 = 0x33
CS_32 = 0x23
NT_XSTATE = 0x202


class NR(IntEnum):
    """System call numbers (arch/x86/entry/syscalls/syscall_64.tbl)."""

    read = 0
    write = 1
    fstat = 5
    poll = 7
    lseek = 8
    mmap = 9
    mprotect = 10
    munmap = 11
    brk = 12
    rt_sigaction = 13
    rt_sigprocmask = 14
    ioctl = 16
    pread64 = 17
    select = 23
    mremap = 25
    readv = 19
    writev = 20
    mincore = 27
    madvise = 28
    shmget = 29
    shmat = 30
    shmctl = 31
    dup2 = 33
    pause = 34
    nanosleep = 35
    getitimer = 36
    setitimer = 38
    getpid = 39
    connect = 42
    accept = 43
    sendto = 44
    recvfrom = 45
    sendmsg = 46
    recvmsg = 47
    getsockname = 51
    socketpair = 53
    setsockopt = 54
    getsockopt = 55
    semget = 64
    semop = 65
    semctl = 66
    shmdt = 67
    msgget = 68
    msgsnd = 69
    msgrcv = 70
    msgctl = 71
    fcntl = 72
    flock = 73
    chdir = 80
    fchdir = 81
    readlink = 89
    umask = 95
    clone = 56
    vfork = 58
    wait4 = 61
    setpgid = 109
    setsid = 112
    setgroups = 116
    setresuid = 117
    setresgid = 119
    setfsuid = 122
    setfsgid = 123
    capset = 126
    rt_sigpending = 127
    rt_sigtimedwait = 128
    rt_sigqueueinfo = 129
    sigaltstack = 131
    personality = 135
    sched_setparam = 142
    sched_setscheduler = 144
    mlock = 149
    prctl = 157
    mount = 165
    umount2 = 166
    arch_prctl = 158
    setrlimit = 160
    chroot = 161
    gettid = 186
    futex = 202
    sched_setaffinity = 203
    sched_getaffinity = 204
    io_setup = 206
    io_getevents = 208
    set_tid_address = 218
    getdents64 = 217
    restart_syscall = 219
    semtimedop = 220
    timer_create = 222
    timer_settime = 223
    timer_gettime = 224
    timer_getoverrun = 225
    timer_delete = 226
    clock_nanosleep = 230
    exit = 60
    exit_group = 231
    epoll_wait = 232
    epoll_ctl = 233
    tgkill = 234
    keyctl = 250
    ioprio_set = 251
    ioprio_get = 252
    pselect6 = 270
    ppoll = 271
    unshare = 272
    set_robust_list = 273
    get_robust_list = 274
    inotify_add_watch = 254
    sync_file_range = 277
    inotify_init1 = 294
    bind = 49
    fstatfs = 138
    fanotify_init = 300
    fanotify_mark = 301
    epoll_pwait = 281
    fallocate = 285
    timerfd_settime = 286
    accept4 = 288
    preadv = 295
    rt_tgsigqueueinfo = 297
    recvmmsg = 299
    prlimit64 = 302
    setns = 308
    process_vm_readv = 310
    kcmp = 312
    sched_setattr = 314
    sched_getattr = 315
    seccomp = 317
    userfaultfd = 323
    membarrier = 324
    mlock2 = 325
    io_pgetevents = 333
    rseq = 334
    clone3 = 435
    close_range = 436
    process_madvise = 440
    pidfd_open = 434
    pidfd_getfd = 438
    epoll_pwait2 = 441
    dup3 = 292
    close = 3
    tee = 276
    timerfd_create = 283
    timerfd_gettime = 287
    signalfd4 = 289
    renameat2 = 316
    move_mount = 429
    openat = 257
    newfstatat = 262
    readlinkat = 267
    openat2 = 437
    name_to_handle_at = 303
    open_by_handle_at = 304


class Regs(NamedTuple):
    """struct user_regs_struct, the order of PTRACE_GETREGSET's NT_PRSTATUS."""

    r15: int
    r14: int
    r13: int
    r12: int
    bp: int
    bx: int
    r11: int
    r10: int
    r9: int
    r8: int
    ax: int
    cx: int
    dx: int
    si: int
    di: int
    orig_ax: int
    ip: int
    cs: int
    flags: int
    sp: int
    ss: int
    fs_base: int
    gs_base: int
    ds: int
    es: int
    fs: int
    gs: int

    def pack(self) -> bytes:
        """Return the kernel's bytes of this register set."""
        return _REGS.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> "Regs":
        """Read a register set from the kernel's bytes."""
        return cls(*_REGS.unpack(data))

    @property
    def result(self) -> int:
        """The result of the system call just made, signed."""
        return self.ax - (1 << 64) if self.ax >> 63 else self.ax

    @property
    def syscall(self) -> int | None:
        """The call that this task was stopped in, or None if it was in user mode."""
        return None if self.orig_ax >> 63 else self.orig_ax

    @property
    def args(self) -> tuple[int, int, int, int, int, int]:
        """The six arguments of a system call."""
        return self.di, self.si, self.dx, self.r10, self.r8, self.r9


_REGS = Struct("<27Q")
_AX_ORIG_AX = Struct("<80xq32xq")
_R15_TO_BX, _R10_TO_IP = Struct("<6Q"), Struct("<10Q")
NO_SYSCALL = (1 << 64) - 1


def call_of(regs: bytes) -> tuple[int, int]:
    """Return the call that a task was stopped in, negative if in none, and its result."""
    result, number = _AX_ORIG_AX.unpack_from(regs)
    return number, result


def again(regs: Regs, nr: int) -> Regs:
    """Return regs set back to just before the syscall instruction, for call nr."""
    return regs._replace(ip=regs.ip - 2, ax=nr, orig_ax=NO_SYSCALL)


def home(regs: Regs) -> Regs:
    """Return the registers with which a stopped task goes on by itself.

    An interrupted call is made again just as the kernel would have done on the way out of the
    stop (arch_do_signal_or_restart); its restart_block, if any, is still in the task.
    """
    return Regs.unpack(home_of(regs.pack()))


def home_of(regs: bytes) -> bytes:
    """Return the same, of the kernel's bytes."""
    changed = bytearray(regs)
    lib.core_home(ffi.from_buffer("struct core_regs *", changed))
    return bytes(changed)


# Instructions that may stand between a syscall and its ret: zeroing, stack moves, pops.
_REX, _POP = range(0x40, 0x50), range(0x58, 0x60)


def _bytes_to_ret(code: bytes, at: int) -> int | None:
    """Return by how much the stack rises from code[at] to a ret, None if it is not that plain."""
    risen = 0
    for _ in range(16):
        here = code[at : at + 4]
        rex = int(len(here) > 0 and here[0] in _REX)
        op = here[rex : rex + 1]
        if op == b"\xc3":
            return risen
        if op and op[0] in _POP:
            risen, at = risen + 8, at + rex + 1
        elif op == b"\x31" and len(here) >= rex + 2 and here[rex + 1] >= 0xC0:
            at += rex + 2
        elif here[:3] == b"\x48\x83\xc4" and len(here) == 4 and here[3] < 0x80:
            risen, at = risen + here[3], at + 4
        else:
            return None
    return None


def find_gadget(code: bytes) -> tuple[int, int] | None:
    """Find a `syscall` that is followed by little but a `ret`.

    Returns its offset in code and how many bytes the stack rises before the ret takes its
    address; the calling convention's other registers may be lost on the way. A stray match in
    the middle of another instruction is as good.
    """
    at = code.find(b"\x0f\x05")
    while at >= 0:
        risen = _bytes_to_ret(code, at + 2)
        if risen is not None and risen <= 96:
            return at, risen
        at = code.find(b"\x0f\x05", at + 1)
    return None


# A loop around a syscall that touches no memory, back to where the number comes from a register
# that the kernel keeps: the end of a thread in glibc and musl, or a program's own pause().
_JUMP_BACK = re.compile(rb"\x0f\x05\xeb([\xe8-\xfb])", re.DOTALL)
_SET_DI = rb"(?:\x48?\x31\xff|\xbf....)*"
_SET_AX = (
    rb"(?:\xb8\x22\0\0\0|\x48?\x89[\xd0\xd8\xe8]|[\x44\x4c]\x89[\xc0\xc8\xd0\xe0\xe8\xf0\xf8])"
)
_LOOP = re.compile(_SET_DI + _SET_AX + _SET_DI + rb"\x0f\x05\xeb", re.DOTALL)
_KEPT = ("r15", "r14", "r13", "r12", "bp", "bx", "r10", "r9", "r8")


def find_hold(code: bytes) -> int | None:
    """Find a `syscall` after which a thread goes round for ever, given `hold`'s registers."""
    for match in _JUMP_BACK.finditer(code):
        back = match.start() + 4 + match[1][0] - 256
        if back >= 0 and _LOOP.fullmatch(code, back, match.start() + 3):
            return match.start()
    return None


def hold(regs: bytes, address: int, nr: NR, arg: int, si: int = 0, dx: int = NR.pause) -> bytes:
    """Return the registers that make one call at such an instruction, and then wait there.

    In pause(); or, if the loop takes the number from dx and that is something else, in a call that
    there is not. The stack is the thread's own: signals may come.
    """
    held = bytearray(regs)
    _R15_TO_BX.pack_into(held, 0, *[NR.pause] * 6)
    _R10_TO_IP.pack_into(held, 56, *[NR.pause] * 3, nr, 0, dx, si, arg, NO_SYSCALL, address)
    return bytes(held)


def is_held(regs: Regs, address: int) -> bool:
    """Say whether a thread is where `hold` has led it."""
    led = all(getattr(regs, name) == NR.pause for name in _KEPT)
    return led and abs(regs.ip - address) <= 32
