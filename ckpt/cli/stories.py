# SPDX-License-Identifier: Apache-2.0
"""What takes a log: a request from the arguments, the log around it, figures after it."""

import os
import signal
from functools import partial
from types import FrameType
from typing import Any, NoReturn

from ckpt.cli.arguments import Arguments
from ckpt.cli.progress import Terminal
from ckpt.errors import CkptError, ImageError, OptionsError
from ckpt.interrupt import heed, interrupt, is_too_late
from ckpt.log import ERROR, INFO, WARNING, LineLog
from ckpt.options import DumpOptions, Notify, RestoreOptions

_PAGE, _TIMEOUT = 4096, 10
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LET_GO, _CLEAN_UP = 1, 10
_ENDINGS = ("leave-stopped", "action-script")  # what a pre-dump does not have
_STUCK = "stopping the process takes too long: it is in the kernel, which does not let go of it"


def tell(arguments: Arguments) -> int:
    """Do a dump or a restore, or what goes with them; return the exit code."""
    story = _STORIES[arguments.verb]
    log = _open_log(arguments)
    for signo in _SIGNALS:
        if signal.getsignal(signo) is not signal.SIG_IGN:  # nohup
            signal.signal(signo, _interrupt)
    if story is not _restore:  # what the process writes would wait for an answer until we go on
        signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, _too_long)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else there is nobody to wait for
    try:
        return story(arguments, log)
    except BaseException as error:
        _log_end(error, arguments, log)
        raise


def _interrupt(signo: int, _: FrameType | None) -> None:
    """Unwind, so that the target is let go; the unwinding itself is not interrupted."""
    if is_too_late():
        return
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    interrupt(signo)


def _too_long(*_: object) -> NoReturn:
    """Give the freeze up, and then letting go of what has not stopped; in the end just leave."""
    signal.signal(signal.SIGALRM, _much_too_long)
    signal.alarm(_LET_GO)
    raise CkptError(_STUCK, hint="--timeout SECONDS gives it more time")


def _much_too_long(*_: object) -> NoReturn:
    """Clean up without it: the kernel lets go of whatever we trace when we end."""
    signal.signal(signal.SIGALRM, _leave)
    signal.alarm(_CLEAN_UP)
    raise CkptError(_STUCK, hint="--timeout SECONDS gives it more time")


def _leave(*_: object) -> NoReturn:
    """End at once."""
    os.write(2, f"ckpt: {_STUCK}\n".encode())
    os._exit(CkptError.exit_code)


# --- the stories


def _dump(arguments: Arguments, log: LineLog) -> int:
    from ckpt.dump import dump

    options = dump_options(arguments, log)
    report = dump(options)
    skipped = sum(report.skipped)
    pages = report.memory.written + report.shared.written - skipped
    figures = {
        "pid": report.pid,
        "images_dir": os.path.abspath(options.images_dir),
        "freed_bytes": _dedup_now(arguments, options, log),
        "freezing_ns": report.freezing_ns,
        "frozen_ns": report.frozen_ns,
        "copying_ns": report.copying_ns,
        "total_ns": report.total_ns,
        "pages": pages,
        "bytes": pages * _PAGE,
        "skipped_pages": skipped,
        "frozen_pages": report.frozen_pages,
        "faults": report.faults,
        "passes": [
            {"pages": one.pages, "bytes": one.pages * _PAGE, "again": one.again, "ns": one.took_ns}
            for one in report.passes
        ],
    }
    _print_figures(figures, arguments, log)
    return 0


def _dedup_now(arguments: Arguments, options: DumpOptions, log: LineLog) -> int:
    """Free what the dump before has and this one, too, if that is asked for."""
    if not arguments.has("auto-dedup"):
        return 0
    from ckpt.dedup import dedup

    return dedup(options.images_dir, log).freed


def _pre_dump(arguments: Arguments, log: LineLog) -> int:
    """Do a dump of a process that runs on; its image is good by itself, and as a parent."""
    values = {name: arguments.values[name] for name in arguments.values if name not in _ENDINGS}
    return _dump(arguments._replace(values={**values, "leave-running": [""]}), log)


def _restore(arguments: Arguments, log: LineLog) -> int:
    from ckpt.restore import restore

    options = restore_options(arguments, log)
    _check_inherited(options)
    pidfile = _create_pidfile(options.pidfile)
    try:
        report = restore(options)
    except BaseException:
        if options.pidfile:
            os.close(pidfile)
            os.unlink(options.pidfile)
        raise
    _write_pid(pidfile, report.pid)
    figures = {
        "pid": report.pid,
        "images_dir": os.path.abspath(options.images_dir),
        "forking_ns": report.forking_ns,
        "total_ns": report.total_ns,
        "pages": report.pages,
        "bytes": report.pages * _PAGE,
        "late_pages": report.late_pages,
    }
    _print_figures(figures, arguments, log)
    return 0 if options.detached else _wait(report.pid)


def _lazy_pages(arguments: Arguments, log: LineLog) -> int:
    from ckpt.lazypages import lazy_pages

    options = RestoreOptions(
        images_dir=os.path.abspath(arguments.text("images-dir") or "."),
        work_dir=os.path.abspath(_work_dir(arguments)),
        record=not arguments.has("no-record"),
        log=log,
    )
    report = lazy_pages(options, partial(_ready, arguments, _create_pidfile(_pidfile(arguments))))
    figures = {
        "images_dir": options.images_dir,
        "tasks": report.tasks,
        "late_pages": report.pages,
    }
    _print_figures(figures, arguments, log)
    return 0


def _ready(arguments: Arguments, pidfile: int) -> None:
    """Go on in the background, if that is asked for, and tell that whoever needs us may begin."""
    if arguments.has("restore-detached") or arguments.has("daemon"):
        if child := os.fork():
            _write_pid(pidfile, child)
            os._exit(0)
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        os.close(null)
    else:
        _write_pid(pidfile, os.getpid())
    status = arguments.number("status-fd")
    if status is not None:
        os.write(status, b"\0")
        os.close(status)


def _cpuinfo(arguments: Arguments, log: LineLog) -> int:
    from ckpt import cpuinfo

    verbs = {"dump": cpuinfo.dump, "check": cpuinfo.check}
    verb = arguments.operands[0]
    if verb not in verbs:
        raise OptionsError(f"cpuinfo {verb}", hint="there are cpuinfo dump and cpuinfo check")
    verbs[verb](arguments.text("images-dir") or ".")
    return 0


def _dedup(arguments: Arguments, log: LineLog) -> int:
    from ckpt.dedup import dedup

    images_dir = arguments.text("images-dir") or "."
    report = dedup(images_dir, log)
    figures = {
        "images_dir": os.path.abspath(images_dir),
        "pages": report.pages,
        "bytes": report.pages * _PAGE,
        "freed_bytes": report.freed,
    }
    _print_figures(figures, arguments, log)
    return 0


_STORIES = {
    "dump": _dump,
    "pre-dump": _pre_dump,
    "restore": _restore,
    "lazy-pages": _lazy_pages,
    "cpuinfo": _cpuinfo,
    "dedup": _dedup,
}


def _check_inherited(options: RestoreOptions) -> None:
    """Refuse descriptors that we were not given: what we open ourselves is closed at exec."""
    for key, fd in options.inherit_fd.items():
        try:
            given = os.get_inheritable(fd)
        except OSError:
            given = False
        if not given:
            raise OptionsError(f"--inherit-fd fd[{fd}]:{key}: we have no descriptor {fd}")


def _create_pidfile(path: str | None) -> int:
    """Open it before anything is restored, so that its failure is not found out afterwards."""
    if not path:
        return -1
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise OptionsError(f"--pidfile {path}: {error.strerror}") from error


def _write_pid(pidfile: int, pid: int) -> None:
    if pidfile >= 0:
        os.write(pidfile, str(pid).encode())
        os.close(pidfile)


def _wait(pid: int) -> int:
    """Wait for the end of what was restored; return its exit status as a shell has it."""
    heed()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


# --- the request

ENGINES = ("auto", "stop", "live", "fork")


def dump_options(arguments: Arguments, log: LineLog) -> DumpOptions:
    """Return what `dump` is asked to do. Raises OptionsError."""
    pid = arguments.number("tree")
    if pid is None:
        raise OptionsError("dump of what?", hint="-t PID says which process")
    if arguments.has("leave-running") and arguments.has("leave-stopped"):
        raise OptionsError("--leave-running and --leave-stopped exclude each other")
    limit, buffer = arguments.size("ghost-limit"), arguments.size("buffer")
    running = arguments.has("leave-running")
    engine = arguments.text("engine") or ("auto" if running else "stop")
    if engine not in ENGINES:
        raise OptionsError(f"no engine {engine!r}", hint=f"there are {', '.join(ENGINES)}")
    return DumpOptions(
        pid=pid,
        leave_running=running,
        leave_stopped=arguments.has("leave-stopped"),
        skip_in_flight=arguments.has("skip-in-flight"),
        force_irmap=arguments.has("force-irmap"),
        irmap_scan_path=tuple(arguments.values.get("irmap-scan-path", ())),
        prev_images_dir=arguments.text("prev-images-dir"),
        ghost_limit=DumpOptions.ghost_limit if limit is None else limit,
        engine=engine,
        precopy=_passes(arguments, engine),
        max_rate=arguments.size("max-rate") or 0,
        buffer=DumpOptions.buffer if buffer is None else buffer,
        **_common(arguments, log),
    )


def _passes(arguments: Arguments, engine: str) -> int | None:
    """Return how often memory is copied before the freeze; None for as often as it pays."""
    if arguments.text("precopy") in (None, "auto"):
        return None if engine != "stop" else 0
    passes = arguments.size("precopy")
    if engine == "fork" and passes:
        raise OptionsError("--engine fork copies after its instant: there is nothing to --precopy")
    if engine in ("live", "auto") and not passes:
        raise OptionsError(
            "--precopy 0: a live dump has copied nearly everything when its instant comes",
            hint="--engine fork copies everything after it, --engine stop in the freeze",
        )
    return passes


def restore_options(arguments: Arguments, log: LineLog) -> RestoreOptions:
    """Return what `restore` is asked to do; a sibling cannot be waited for. Raises OptionsError."""
    sibling = arguments.has("restore-sibling")
    return RestoreOptions(
        detached=arguments.has("restore-detached") or sibling,
        sibling=sibling,
        lazy_pages=arguments.has("lazy-pages"),
        record=not arguments.has("no-record"),
        pidfile=_pidfile(arguments),
        cgroup_roots=dict(map(_cgroup_root, arguments.values.get("cgroup-root", []))),
        inherit_fd=dict(map(_inherited, arguments.values.get("inherit-fd", []))),
        **_common(arguments, log),
    )


def _common(arguments: Arguments, log: LineLog) -> dict[str, Any]:
    switches = (
        *("shell-job", "ext-unix-sk", "tcp-established", "tcp-close", "file-locks"),
        *("evasive-devices", "link-remap"),
    )
    return {
        "images_dir": arguments.text("images-dir") or ".",
        "work_dir": arguments.text("work-dir"),
        "manage_cgroups": arguments.text("manage-cgroups") or "soft",
        "external": tuple(arguments.values.get("external", ())),
        "plugins": _plugins(arguments),
        "notify": _scripts(arguments, log),
        "log": log,
        **{name.replace("-", "_"): arguments.has(name) for name in switches},
    }


def _cgroup_root(text: str) -> tuple[str, str]:
    """Take `pids:/a/b` apart: the controller, empty for all, and the path."""
    controller, colon, path = text.rpartition(":")
    if not path or ".." in path.split("/") or (colon and not controller):
        raise OptionsError(f"--cgroup-root {text!r}", hint="write it as [CONTROLLER:]/PATH")
    return controller, f"/{path.strip('/')}"


def _plugins(arguments: Arguments) -> tuple[Any, ...]:
    if arguments.has("no-plugins"):
        return ()
    from ckpt.plugin import installed

    return installed()


def _scripts(arguments: Arguments, log: LineLog) -> tuple[Notify, ...]:
    """Return who runs the action scripts, if there are any."""
    paths = arguments.values.get("action-script")
    if not paths:
        return ()
    from ckpt.hooks import Scripts

    # One with a slash is sought from here, any other along PATH; it runs in the work directory.
    found = [os.path.abspath(path) if "/" in path else path for path in paths]
    images_dir = os.path.abspath(arguments.text("images-dir") or ".")
    return (Scripts(found, dict(os.environ), images_dir, _work_dir(arguments), log.fd),)


def _inherited(text: str) -> tuple[str, int]:
    """Take `fd[3]:pipe:[1234]` apart: the resource, and our descriptor."""
    number, colon, key = text.removeprefix("fd[").partition("]:")
    if not (text.startswith("fd[") and number.isdecimal() and colon and key):
        raise OptionsError(f"--inherit-fd {text!r}", hint="write it as fd[N]:KEY")
    return key, int(number)


# --- what is said


def _work_dir(arguments: Arguments) -> str:
    return arguments.text("work-dir") or arguments.text("images-dir") or "."


def _pidfile(arguments: Arguments) -> str | None:
    name = arguments.text("pidfile")
    return os.path.join(_work_dir(arguments), name) if name else None


def _open_log(arguments: Arguments) -> LineLog:
    """Open the log: a file if there is --log-file, else stderr."""
    level = WARNING
    for value in arguments.values.get("verbosity", ()):
        level = int(value) if value else level + 1
    name = arguments.text("log-file")
    timeout = arguments.number("timeout")
    return Terminal(
        2 if name is None else _create_log(name, arguments),
        level,
        _TIMEOUT if timeout is None else timeout,
    )


def _create_log(name: str, arguments: Arguments) -> int:
    directory = _work_dir(arguments)
    path = os.path.join(directory, name)
    try:
        if arguments.verb in ("dump", "pre-dump") and not os.path.exists(directory):
            os.mkdir(directory)  # the dump would, but only later
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error


def _log_end(error: BaseException, arguments: Arguments, log: LineLog) -> None:
    """Put into a log file why it ended; stderr will have it anyway."""
    if not arguments.has("log-file"):
        return
    log.error(arguments.verb, str(error) or type(error).__name__)
    if not isinstance(error, CkptError | KeyboardInterrupt):
        import traceback

        log.line(ERROR, "".join(traceback.format_exception(error)).rstrip())


def _print_figures(figures: dict[str, Any], arguments: Arguments, log: LineLog) -> None:
    log.stage("")
    log.line(INFO, f"{arguments.verb} finished: {figures}")
    if arguments.has("json"):
        import json

        print(json.dumps(figures | {"stages": log.stages}), flush=True)
    elif arguments.has("display-stats"):
        for name, value in figures.items():
            print(f"{name}: {value}", flush=True)
