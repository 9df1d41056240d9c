# SPDX-License-Identifier: Apache-2.0
"""Every verb and option: what we do, what we may ignore, and what we do not do yet."""

from typing import NamedTuple

VERSION = "0.1.0"


class Verb(NamedTuple):
    """A verb; `operands` are words that follow it, as the help names them."""

    summary: str
    operands: tuple[str, ...] = ()


class Option(NamedTuple):
    """An option: a switch, or one with a value if it has a metavar.

    `optional` values are only taken from the same word. `verbs` are those it belongs to, all if
    empty. `accepts` are the only values that we take.
    """

    name: str
    short: str = ""
    metavar: str = ""
    help: str = ""
    verbs: tuple[str, ...] = ()
    optional: bool = False
    accepts: tuple[str, ...] = ()


VERBS = {
    "dump": Verb("write a running process into a directory of image files"),
    "pre-dump": Verb("write it and let it run on: the next dump will have less to write"),
    "restore": Verb("make the process in a directory of image files again"),
    "lazy-pages": Verb("bring the pages of a restore that is lazy; ends when all are in"),
    "check": Verb("tell what this kernel and these privileges allow"),
    "cpuinfo": Verb("write what this CPU is, or check it against that", ("dump|check",)),
    "dedup": Verb("free the pages of older images that the one in -D has anew"),
    "show": Verb("print an image file, or a directory of them, readably", ("PATH",)),
}

_DUMP, _RESTORE, _BOTH = ("dump",), ("restore",), ("dump", "restore")
_DAEMONS = ("lazy-pages",)
_IMAGES = (*_BOTH, "cpuinfo", "dedup", *_DAEMONS)

OPTIONS = (
    Option("tree", "t", "PID", "the process to dump", _DUMP),
    Option("images-dir", "D", "DIR", "where the image files are; default: here", _IMAGES),
    Option("work-dir", "W", "DIR", "where logs, pid files and statistics go; default: -D", _IMAGES),
    Option("leave-running", "R", "", "let the process run on after the dump", _DUMP),
    Option("leave-stopped", "s", "", "leave the process stopped after the dump", _DUMP),
    Option(
        "engine",
        "",
        "NAME",
        "stop, live (copy while it runs), fork (copy a copy) or auto",
        _DUMP,
    ),
    Option(
        "precopy", "", "PASSES", "passes over the memory before the freeze; default: auto", _DUMP
    ),
    Option("max-rate", "", "SIZE", "bytes a second to copy while the process runs", _DUMP),
    Option("buffer", "", "SIZE", "memory of the process to hold at once; default: 64M", _DUMP),
    Option(
        "restore-detached",
        "d",
        "",
        "do not wait for its end; lazy-pages: in the background",
        (*_RESTORE, *_DAEMONS),
    ),
    Option("daemon", "", "", "the same, of lazy-pages", _DAEMONS),
    Option("status-fd", "", "FD", "write a zero byte to FD when a restore may begin", _DAEMONS),
    Option("lazy-pages", "", "", "run at once, pages come as they are touched", _RESTORE),
    Option(
        "no-record",
        "",
        "",
        "do not keep what a lazy restore missed, for the next",
        (*_RESTORE, *_DAEMONS),
    ),
    Option("restore-sibling", "S", "", "make it a child of our parent, not of us", _RESTORE),
    Option(
        "pidfile",
        "",
        "FILE",
        "write the pid of what is restored, or of the daemon, to FILE",
        (*_BOTH, *_DAEMONS),
    ),
    Option("shell-job", "j", "", "its session is a shell's, which is not dumped with it", _BOTH),
    Option("prev-images-dir", "", "DIR", "the image before this one, seen from -D", _DUMP),
    Option("auto-dedup", "", "", "free what older images have and this one has anew", _DUMP),
    Option("ext-unix-sk", "x", "", "leave out unix sockets' peers outside", _BOTH),
    Option("tcp-established", "", "", "keep TCP connections", _BOTH),
    Option("tcp-close", "", "", "leave TCP connections out: they have ended then", _BOTH),
    Option("skip-in-flight", "", "", "leave out TCP connections not accepted yet", _DUMP),
    Option("file-locks", "l", "", "keep file locks", _BOTH),
    Option("link-remap", "", "", "give unlinked files a name again while they are away", _BOTH),
    Option("ghost-limit", "", "SIZE", "largest deleted file that is saved; default: 1M", _DUMP),
    Option("force-irmap", "", "", "find what is watched by its path, not by its handle", _DUMP),
    Option("irmap-scan-path", "", "DIR", "where to search what is watched; may be repeated", _DUMP),
    Option("evasive-devices", "", "", "any path to a device will do", _BOTH),
    Option("external", "", "RES", "what is outside of the image; may be repeated", _BOTH),
    Option("inherit-fd", "", "fd[N]:KEY", "descriptor N of ours is the resource KEY", _RESTORE),
    Option("action-script", "", "FILE", "run it at CRIU's points; may be repeated", _BOTH),
    Option("no-plugins", "", "", "do without the plugins that are installed", _BOTH),
    Option(
        "manage-cgroups",
        "",
        "MODE",
        "soft (default), full, strict, props, none or ignore",
        _BOTH,
        True,
        ("", "ignore", "none", "props", "soft", "full", "strict"),
    ),
    Option(
        "cgroup-root", "", "[CTL:]PATH", "the cgroup to be in, of one hierarchy or all", _RESTORE
    ),
    Option("timeout", "", "SECONDS", "how long stopping it may take; default: 10", _DUMP),
    Option("feature", "", "NAME", "tell by the exit code: 0 if there is this one", ("check",)),
    Option("all", "", "", "also what only some processes need", ("check",)),
    Option("extra", "", "", "the same", ("check",)),
    Option("experimental", "", "", "the same", ("check",)),
    Option("log-file", "o", "FILE", "write the log to FILE in -W", _IMAGES),
    Option("verbosity", "v", "N", "1 errors, 2 warnings, 3 stages, 4 all; -v: one more", (), True),
    Option("display-stats", "", "", "print the figures", _IMAGES),
    Option("json", "", "", "print the figures, or the image, as JSON"),
    Option("config", "", "FILE", "take options from FILE, too"),
    Option("no-default-config", "", "", "leave /etc/criu/ and ~/.criu/default.conf alone"),
    Option("help", "h", "", "print this"),
    Option("version", "V", "", "print the version"),
)

# What asks for nothing that we would do differently: we have no parasite whose pages to splice,
# and every dump is complete without tracking.
IGNORED = (
    Option("log-pid"),
    Option("track-mem"),
    Option("pre-dump-mode", "", "MODE"),
)

LATER_VERBS = frozenset(("page-server", "service", "swrk"))

LATER = frozenset(
    (
        *("root", "cpu-cap", "exec-cmd", "freeze-cgroup", "weak-sysctls", "stream"),
        *("mntns-compat-mode", "network-lock", "unprivileged", "allow-uprobes"),
        *("ghost-fiemap", "libdir", "cgroup-props", "cgroup-props-file", "cgroup-yard"),
        *("cgroup-dump-controller", "lsm-profile", "lsm-mount-context", "skip-mnt", "enable-fs"),
        *("ext-mount-map", "enable-external-masters", "enable-external-sharing", "empty-ns"),
        *("join-ns", "file-validation", "skip-file-rwx-check", "page-server"),
        *("address", "port", "ps-socket", "pidfd-store", "tls"),
        *("tls-cacert", "tls-cacrl", "tls-cert", "tls-key", "tls-no-cn-verify", "veth-pair"),
    )
)
"""CRIU's options that we do not have yet."""

LATER_SHORTS = {"r": "root", "L": "libdir", "J": "join-ns", "M": "ext-mount-map"}
