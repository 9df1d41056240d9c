# SPDX-License-Identifier: Apache-2.0
"""Says at once why tests of real processes cannot run here, before hundreds of them fail."""

import importlib.util
import os
import signal

import pytest


def pytest_sessionstart() -> None:
    """A shell's background jobs ignore it, and so would all that we start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish(session: pytest.Session) -> None:
    if any(item.get_closest_marker("process") for item in session.items):
        reason = why_no_processes()
        if reason:
            raise pytest.UsageError(f'{reason} (or run the others: pytest -m "not process")')


def why_no_processes() -> str:
    """What keeps us from dumping processes here; empty if nothing does."""
    if os.geteuid() != 0:
        return "tests marked `process` need root"
    if os.environ.get("CKPT_PROVE_PROGRAMS"):
        return ""  # criu only
    if importlib.util.find_spec("ckpt.kernel._core") is None:
        return "the extension is not built: pip install -e ."
    return ""
