# SPDX-License-Identifier: Apache-2.0
"""The test programs, and what is known of real CRIU 4.2 and each of them.

A program that needs a feature of the kernel or a privilege says so itself, by the verdict `skip`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Program:
    """A program in tests/programs, and how it is run."""

    name: str
    source: str
    args: tuple[str, ...] = ()
    options: tuple[str, ...] = ()  # of dump and restore, as criu spells them
    criu_options: tuple[str, ...] = ()  # that only real criu needs
    criu: str = ""  # why real criu can neither dump nor restore it
    criu_dump: str = ""  # why real criu cannot dump it
    criu_restore: str = ""  # why real criu cannot restore it
    criu_running: str = ""  # why it cannot restore it when the target ran on
    refused: str = ""  # what our dump refuses it for, untouched: a part of the message
    restored: bool = False  # though our dump refuses it, our restore knows it: by real criu's dump
    peers_only: bool = False  # another entry does as much and more, but is too much for criu
    huge_pages: int = 0  # of 2 MiB, that it needs
    terminal: bool = False  # runs in a shell's session on a pseudo terminal


def program(name: str, *args: str, source: str = "", **marks) -> Program:
    """A table entry; the source is the file of that name, unless said otherwise."""
    return Program(name, source or name, args, **marks)


# Where a machine withholds it, as in many containers.
OTHER_USER = "its prlimit() of another user's task needs CAP_SYS_RESOURCE"
INTERRUPTED = "answers EINTR where the kernel would go on with the rest, or fails of itself"

PROGRAMS = (
    # Memory
    program("anon_private"),
    program("anon_shared"),
    program("file_private"),
    program("file_shared"),
    program("file_deleted_map"),
    program("memfd_map"),
    program("memfd_seals"),
    program("sysv_shm"),
    program("sysv_shm_host", criu="refuses segments that are not in a namespace of the target's"),
    program("ipcns"),
    program("ipcns_all", "all", source="ipcns", criu="neither limits below their use nor creators"),
    program("hugetlb", huge_pages=8),
    program("growsdown"),
    program("heap_brk"),
    program("mlock"),
    program("mlock_onfault", criu="locks and populates all of it"),
    program("madvise"),
    program("thp_disable"),
    program("vdso"),
    program("mm_fields", "old"),
    program("maps"),
    # Tasks
    program("regs"),
    program("tls_threads"),
    program("threads_many"),
    program("leader_gone", criu="refuses zombies with threads"),
    program("comm"),
    program("clear_tid"),
    program("robust_rseq"),
    program("sigactions"),
    program("sigpending"),
    program("sigaltstack"),
    program("itimers"),
    program("posix_timers"),
    program("timers_counts", "counts", source="posix_timers", criu_restore="loses the counts"),
    program("timerslack", criu="not kept"),
    program("sched"),
    program("sched_affinity", criu="not kept"),
    program("ioprio", criu="not kept"),
    program("rlimits"),
    program("umask"),
    program("cwd"),
    program("cwd_deleted"),
    program("chroot"),
    program("personality", criu="takes its digits for decimal ones, and does not restore it"),
    program("dumpable"),
    program("pdeath_sig"),
    program("no_new_privs"),
    program("creds_caps", "caps", source="creds"),
    program("creds_ids", "ids", source="creds", criu=OTHER_USER),
    program("creds_nobody", "nobody", source="creds", criu=OTHER_USER),
    program("creds_threads", "threads", source="creds"),
    program("seccomp"),
    program("seccomp_threads", "threads", source="seccomp"),
    program("seccomp_list", "list", source="seccomp"),
    program("seccomp_short", "short", source="seccomp", refused="could be harmed", restored=True),
    program("seccomp_asleep", "asleep", source="seccomp", refused="forbids restart", restored=True),
    program("seccomp_strict", "strict", source="seccomp", refused="could be harmed", restored=True),
    program(
        "seccomp_notify",
        "notify",
        source="seccomp",
        refused="asks another",
        criu="loses the other",
    ),
    program("mdwe", refused="written and executed", criu="cannot infect it either"),
    program("dispatch", refused="Syscall User Dispatch", criu="loses it"),
    program(
        "keyrings_thread",
        "thread",
        source="keyrings",
        refused="has a thread keyring",
        criu="loses it",
    ),
    program(
        "keyrings_process",
        "process",
        source="keyrings",
        refused="has a process keyring",
        criu="loses it",
    ),
    program(
        "keyrings_revoked",
        "revoked",
        source="keyrings",
        refused="has a thread keyring",
        criu="loses it",
    ),
    program("oom_score_adj"),
    program("subreaper"),
    # Interrupted system calls
    program("restart_sleep", criu=INTERRUPTED),
    program("restart_sleep_simple", "simple", peers_only=True, source="restart_sleep"),
    program("restart_poll", criu=INTERRUPTED),
    program("restart_poll_simple", "simple", peers_only=True, source="restart_poll"),
    program("restart_futex", criu=INTERRUPTED),
    program("restart_futex_simple", "simple", peers_only=True, source="restart_futex"),
    program("restart_signal", criu=INTERRUPTED),
    program("restart_signal_simple", "simple", peers_only=True, source="restart_signal"),
    program("restart_io", criu=INTERRUPTED),
    program("restart_io_simple", "simple", peers_only=True, source="restart_io"),
    program("restart_sysv", criu=INTERRUPTED),
    program("restart_sysv_simple", "simple", peers_only=True, source="restart_sysv"),
    # Descriptors
    program("reg"),
    program("reg_deleted"),
    program(
        "reg_deleted_link",
        options=("--link-remap",),
        criu_running="takes its link away when the target runs on",
    ),
    program("o_path"),
    program("directory"),
    program("directory_flag", "flag", source="directory", criu="drops O_DIRECTORY"),
    program("file_locks", options=("--file-locks",)),
    program("file_leases", options=("--file-locks",)),
    program("devices"),
    program("proc_files"),
    program("file_moved"),
    program("mqueue", refused="a POSIX message queue", criu="refuses it, too"),
    program("fifo"),
    program("epoll"),
    program("epoll_closed"),
    program("timerfd"),
    program("timerfd_ticking", criu_dump="takes it to be disarmed"),
    program("signalfd"),
    program("pidfd", "process"),
    program("pidfd_thread", "thread", source="pidfd", criu="PIDFD_THREAD"),
    program("pidfd_outside", "outside", source="pidfd", refused="outside of what is dumped"),
    program("inotify"),
    program("inotify_link", "link", source="inotify", criu="follows a link, and drops flags"),
    program("inotify_deleted", "deleted", source="inotify", criu="loses the watch"),
    program(
        "inotify_irmap",
        source="inotify",
        options=("--force-irmap",),
        criu_dump="searches only where it is told to, and in a few other places",
    ),
    program("fanotify"),
    program("fanotify_filesystem", "filesystem", source="fanotify", criu="no such marks"),
    program("fanotify_permission", "permission", source="fanotify", refused="it gives permissions"),
    program("fown"),
    program("fds", "12"),
    program("fds_many", "2000", source="fds"),
    # Sockets
    program("unix_pairs"),
    program("unix_listen"),
    program("unix_connected"),
    program(
        "unix_connected_names",
        "names",
        source="unix_connected",
        criu="loses the name of an accepted socket",
    ),
    program("unix_options"),
    program("unix_scm"),
    program("unix_scm_nested", "nested", source="unix_scm"),
    program(
        "unix_scm_stream",
        "stream",
        source="unix_scm",
        criu_dump="sends them along with what came before",
    ),
    program("unix_scm_epoll", "epoll", source="unix_scm", refused="a descriptor in flight"),
    program(
        "unix_scm_senders",
        "senders",
        source="unix_scm",
        criu_dump="refuses credentials",
        criu_restore="knows no senders",
    ),
    program(
        "unix_scm_pidfd",
        "pidfd",
        source="unix_scm",
        refused="a pidfd of a sender",
        criu="refuses it, too",
    ),
    program(
        "unix_backlog", criu="a connection that was not accepted", refused="before it was accepted"
    ),
    program("unix_backlog_order", "order", source="unix_backlog", criu="keeps no order"),
    program("tcp_listen"),
    program(
        "tcp_connected", options=("--tcp-established",), criu_options=("--network-lock", "skip")
    ),
    program(
        "tcp_half_closed", options=("--tcp-established",), criu_options=("--network-lock", "skip")
    ),
    program(
        "tcp_reset",
        options=("--tcp-established",),
        criu_options=("--network-lock", "skip"),
    ),
    program("tcp_close", options=("--tcp-close", "--skip-in-flight")),
    program(
        "tcp_in_flight", source="tcp_close", refused="wait to be accepted", criu="refuses it, too"
    ),
    program("udp"),
    program(
        "udp_corked", "corked", source="udp", refused="a corked UDP socket", criu="refuses it, too"
    ),
    program("socket_options", criu="has no place for them"),
    program("packet"),
    program("packet_ring", "ring", source="packet", refused="packet socket with a ring"),
    program("raw"),
    program("raw_connected", "connected", source="raw", criu="loses peer and checksum"),
    program("counter_server", "16"),
    program("demo", "16"),
    # Terminals
    program("tty", options=("--shell-job",), terminal=True),
    program("pty"),
    program("pty_odd", "odd", source="pty", criu="takes a closed slave to have never been open"),
    program("pty_session", "session", source="pty"),
    program("pty_unread", "unread", source="pty", criu="mixes up lines"),
    program("pty_raw", "raw", peers_only=True, source="pty"),
    program("eventfd"),
    program("eventfd_semaphore", criu="loses the mode"),
    program("eventfd_full", criu_restore="keeps 32 bits"),
    program("pipe"),
    program("pipe_packet", criu="packet mode"),
)

# Trees of processes.
TREES = (
    program("tree"),
    program("tree_job", source="tree", options=("--shell-job",), terminal=True),
    program("tree_sessions", criu_restore="takes children from before setsid(2) away"),
    program("tree_zombie", criu_restore="has 255 be 127"),
    program("tree_stopped", criu_restore="tells the parent once more"),
    program("tree_shared"),
    program("tree_shared_sysv", "sysv", source="tree_shared"),
    program("tree_files"),
    program("tree_files_fs", "fs", source="tree_files", criu="refuses tasks with CLONE_FS"),
    program("tree_vm", criu="refuses tasks with CLONE_VM"),
    program("tree_cow"),
    program("tree_state", criu="keeps no CPUs, I/O priority and timer slack"),
    program("tree_state_simple", "simple", peers_only=True, source="tree_state"),
    program("tree_robust"),
    program("tree_locks", options=("--file-locks",)),
    program("tree_pidfd"),
    program("tree_deaths"),
    program("tree_leaders", "tree", source="leader_gone", criu="refuses zombies with threads"),
    program("tree_vm_leaders", "memory", source="leader_gone", criu="refuses tasks with CLONE_VM"),
    program("tree_tty", criu_restore="gives the terminal to the leader alone"),
    program("tree_tty_name", "tty", source="tree_tty", criu="finds no peer of /dev/tty"),
)
