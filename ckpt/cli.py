# SPDX-License-Identifier: Apache-2.0
"""The command line, spelled as CRIU's: verbs and options to a story, errors to exit codes."""

import argparse
import os
import sys

from ckpt.errors import CkptError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ckpt", allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True)
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    common.add_argument("-D", "--images-dir", default=".")
    common.add_argument("-W", "--work-dir")
    common.add_argument("-o", "--log-file")
    common.add_argument("-v", "--verbosity", nargs="?", const="1", default="2")
    common.add_argument("-j", "--shell-job", action="store_true")
    common.add_argument("--pidfile")
    common.add_argument("--ext-unix-sk", action="store_true")
    common.add_argument("--tcp-established", action="store_true")
    common.add_argument("--file-locks", action="store_true")
    common.add_argument("--link-remap", action="store_true")
    common.add_argument("--json", action="store_true")
    dump = verbs.add_parser("dump", parents=[common])
    dump.add_argument("-t", "--tree", type=int, required=True, dest="pid")
    dump.add_argument("-R", "--leave-running", action="store_true")
    dump.add_argument("-s", "--leave-stopped", action="store_true")
    dump.add_argument("--prev-images-dir")
    dump.add_argument("--ghost-limit", type=int, default=1 << 20)
    restore = verbs.add_parser("restore", parents=[common])
    restore.add_argument("-d", "--restore-detached", action="store_true", dest="detached")
    restore.add_argument("-S", "--restore-sibling", action="store_true", dest="sibling")
    show = verbs.add_parser("show")
    show.add_argument("path")
    return parser


_COMMON = (
    "images_dir", "work_dir", "shell_job", "ext_unix_sk", "tcp_established", "file_locks",
    "link_remap", "json",
)  # fmt: skip


def _dump(args: argparse.Namespace) -> int:
    from ckpt.dump import dump
    from ckpt.options import DumpOptions

    names = (*_COMMON, "pid", "leave_running", "leave_stopped", "prev_images_dir", "ghost_limit")
    dump(DumpOptions(**{name: getattr(args, name) for name in names}))
    return 0


def _restore(args: argparse.Namespace) -> int:
    from ckpt.options import RestoreOptions
    from ckpt.restore import restore

    names = (*_COMMON, "detached", "sibling", "pidfile")
    report = restore(RestoreOptions(**{name: getattr(args, name) for name in names}))
    if args.pidfile:
        with open(args.pidfile, "w") as file:
            file.write(str(report.pid))
    if args.detached or args.sibling:
        return 0
    _, status = os.waitpid(report.pid, 0)
    return os.waitstatus_to_exitcode(status) & 0xFF


def _show(args: argparse.Namespace) -> int:
    from ckpt.image.show import render_text

    for line in render_text(args.path):
        print(line)
    return 0


_VERBS = {"dump": _dump, "restore": _restore, "show": _show}


def main() -> int:
    """Do what the command line asks; returns the exit code."""
    args = _parser().parse_args()
    try:
        return _VERBS[args.verb](args)
    except CkptError as error:
        print(f"ckpt: {error}", file=sys.stderr)
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)
        return error.exit_code
