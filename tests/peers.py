# SPDX-License-Identifier: Apache-2.0
"""What a test needs and a machine may lack: find it, or skip with a reason.

`tests/install-peers` puts real CRIU, redis and others into `.cache/peers`; a machine without a
network has none of them. CKPT_STRICT=1 turns every such skip into a failure.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest

PEERS = Path(__file__).parents[1] / ".cache/peers/bin"


def missing(reason: str) -> NoReturn:
    """Skip this test, or fail it where nothing may be skipped."""
    if os.environ.get("CKPT_STRICT") == "1":
        pytest.fail(f"CKPT_STRICT=1 and {reason}", pytrace=False)
    pytest.skip(reason)


def peer(name: str) -> str:
    """The path of a program: one of ours, of the virtual environment, or of the machine."""
    places = f"{PEERS}:{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
    return shutil.which(name, path=places) or missing(f"no {name}: run `make dev peers`")
