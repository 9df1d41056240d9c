# SPDX-License-Identifier: Apache-2.0
"""Which plugins are found, and what is said of one that is broken."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt.errors import CkptError
from ckpt.plugin import Plugin, installed


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A directory on the path, whose modules are forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)
    yield str(tmp_path)
    for name in set(sys.modules) - known:
        del sys.modules[name]


def install(path: str, name: str, source: str, entry_points: str = "") -> None:
    place = Path(path)
    (place / f"plugin_{name}.py").write_text(source)
    (place / f"{name}-1.dist-info").mkdir()
    text = entry_points or f"[ckpt.plugins]\n{name} = plugin_{name}:PLUGIN\n"
    (place / f"{name}-1.dist-info" / "entry_points.txt").write_text(text)


GOOD = "from ckpt.plugin import Plugin\nclass P(Plugin):\n    pass\nPLUGIN = P()\n"


def test_none(path: str) -> None:
    (Path(path) / "empty-1.dist-info").mkdir()
    assert installed([path, "/nonexistent", ""]) == ()


def test_by_name(path: str) -> None:
    install(path, "b", GOOD)
    install(path, "a", GOOD)
    found = installed([path])
    assert [type(one).__module__ for one in found] == ["plugin_a", "plugin_b"]
    assert all(isinstance(one, Plugin) for one in found)


def test_other_groups_are_none_of_ours(path: str) -> None:
    text = "[console_scripts]\nckpt.plugins = x:y\n\n[ckpt.plugins]\n# c\nc=plugin_c:PLUGIN\n"
    text += "[z]\nd=e:f\n"
    install(path, "c", GOOD, text)
    assert len(installed([path])) == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import nonsense_that_is_not_there", "cannot be loaded: ModuleNotFoundError"),
        ("1 / 0", "cannot be loaded: ZeroDivisionError"),
        ("", "cannot be loaded: AttributeError"),
        ("PLUGIN = 1", "is no ckpt.plugin.Plugin"),
    ],
)
def test_a_broken_one_is_named(source: str, message: str, path: str) -> None:
    install(path, "broken", source)
    with pytest.raises(CkptError, match=f"plugin broken.*{message}"):
        installed([path])


def test_looking_for_them_is_cheap() -> None:
    """importlib.metadata would take longer than all other imports of ours."""
    code = "import sys; from ckpt.plugin import installed; installed()"
    code += "; sys.exit('importlib.metadata' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
