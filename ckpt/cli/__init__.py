# SPDX-License-Identifier: Apache-2.0
"""The command line, spelled as CRIU's: verbs and options to a story, errors to exit codes."""

import gc
import os
import sys
from types import ModuleType
from typing import NoReturn

from ckpt.cli.arguments import Arguments
from ckpt.cli.config import configured
from ckpt.errors import CkptError

_INTERRUPTED, _BUG, _BROKEN_PIPE = 128, 70, 141


def main() -> NoReturn:
    """Do what the command line asks and exit, at once: taking an interpreter down costs 10 ms."""
    # References alone free what we make; a collection would take longer than a freeze may.
    gc.disable()
    _no_well_known_types()
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = _BROKEN_PIPE
    sys.stderr.flush()
    os._exit(code)


def _no_well_known_types() -> None:
    """Keep protobuf from importing 10 ms of calendars for messages that are not among ours."""
    module = ModuleType("google.protobuf.internal.well_known_types")
    module.__dict__["WKTBASES"] = {}
    sys.modules[module.__name__] = module


def run(words: list[str]) -> int:
    """Do what these words ask; return the exit code."""
    try:
        arguments = configured(words, os.environ)
        return _do(arguments)
    except CkptError as error:
        return say(error)
    except BrokenPipeError:
        return _BROKEN_PIPE
    except KeyboardInterrupt as interrupt:
        return _INTERRUPTED + _told(interrupt)
    except Exception as error:
        return _bug(error)


def _do(arguments: Arguments) -> int:
    if arguments.has("version"):
        from ckpt.cli.help import version

        print(version())
        return 0
    if arguments.has("help"):
        from ckpt.cli.help import usage

        print(usage(arguments.verb))
        return 0
    if arguments.verb == "show":
        return _show(arguments)
    if arguments.verb == "check":
        from ckpt.cli.abilities import check

        return check(arguments)
    from ckpt.cli.stories import tell

    return tell(arguments)


def _show(arguments: Arguments) -> int:
    from ckpt.image.show import render_text, show

    path = arguments.operands[0]
    if arguments.has("json"):
        import json

        for file in show(path):
            print(json.dumps(file))
        return 0
    for line in render_text(path):
        print(line)
    return 0


def say(error: CkptError) -> int:
    """Print what went wrong and what to do about it; return the exit code."""
    print(f"ckpt: {error}", file=sys.stderr)
    if error.hint:
        print(f"  hint: {error.hint}", file=sys.stderr)
    return error.exit_code


def _told(interrupt: KeyboardInterrupt) -> int:
    """Print that a signal ended us; return its number."""
    from signal import SIGINT, Signals

    number: int = interrupt.args[0] if interrupt.args else SIGINT
    print(f"ckpt: interrupted by {Signals(number).name}", file=sys.stderr)
    return number


def _bug(error: Exception) -> int:
    """Print one line about a mistake of ours; the traceback goes to a file."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="ckpt-bug-", suffix=".txt", delete=False, errors="backslashreplace"
    ) as file:
        traceback.print_exception(error, file=file)
    print(f"ckpt: internal error: {type(error).__name__}: {error}", file=sys.stderr)
    print(f"  hint: this is a bug of ckpt; the traceback is in {file.name}", file=sys.stderr)
    return _BUG
