# SPDX-License-Identifier: Apache-2.0
"""Who may import whom in ckpt, and who may talk to the user. docs/layers.md says why."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each layer imports from those before it. Members of one layer are strangers, but the modules
# of one package may import each other.
LAYERS = (
    {"errors", "interrupt", "log"},
    {"kernel", "image", "pstree", "options"},
    {"task", "memory", "files", "namespaces"},
    {"freeze", "plugin"},
    {"guard", "hooks", "sandbox"},
    {"infect", "lazy", "refuse", "saved", "snapshot"},
    {"child", "mappings", "rebuild", "round"},
    {"live", "tree"},
    {"fork"},
    {"engine"},
    {"targets"},
    {"write"},
    {"dump", "restore", "check", "cpuinfo", "dedup", "lazypages"},
    {"rpc"},
    {"cli"},
    {"__init__", "__main__"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
FACES = {"cli", "rpc", "__main__"}
PLUGINS_MAY = ("errors", "kernel", "image", "pstree", "options", "plugin", "files.kind")
PLUGINS_MAY += ("namespaces.kind",)


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every imported name in full, with its line; `from ckpt import x` gives `ckpt.x`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def forbidden_import(path: str, name: str) -> bool:
    """May the file at this path, relative to the project, not import this name?"""
    if name.startswith("."):
        return True
    if name.startswith("ckpt.kernel._core"):
        return path != "ckpt/kernel/ffi.py"
    if name.split(".")[0] != "ckpt":
        return False
    wanted = name.removeprefix("ckpt.")
    if path.startswith("plugins/"):
        return not any(f"{wanted}.".startswith(f"{may}.") for may in PLUGINS_MAY)
    here, there = top(path), wanted.split(".")[0]
    return here != there and RANK.get(there, 99) >= RANK[here]


def top(path: str) -> str:
    """The part of ckpt that a file belongs to: `ckpt/image/pages.py` to `image`."""
    return Path(path).parts[1].removesuffix(".py")


def talks(node: ast.AST) -> bool:
    """Does this print, exit, or read what only the command line and the RPC may?"""
    match node:
        case ast.Call(func=ast.Name("print" | "input" | "exit" | "quit")):
            return True
        case ast.Attribute(ast.Name("sys"), "exit" | "argv" | "stdout" | "stderr"):
            return True
        case ast.Attribute(ast.Name("os"), "environ" | "getenv" | "putenv"):
            return True
        case ast.ImportFrom(module="sys" | "os", names=names):
            return any(alias.name in ("exit", "argv", "environ", "getenv") for alias in names)
        case ast.Name("SystemExit"):
            return True
    return False


def violations(root: Path) -> list[str]:
    """Every breach of the rules below root, as `file:line: what`."""
    found = []
    for file in sorted([*root.glob("ckpt/**/*.py"), *root.glob("plugins/**/*.py")]):
        path = file.relative_to(root).as_posix()
        tree = ast.parse(file.read_text(), path)
        if path.startswith("ckpt/") and top(path) not in RANK:
            found.append(f"{path}:1: has no layer yet: give it one in tests/test_layers.py")
            continue
        for line, name in imports(tree):
            if forbidden_import(path, name):
                found.append(f"{path}:{line}: may not import {name}")
        if path.startswith("ckpt/") and top(path) not in FACES:
            spoken = (n for n in ast.walk(tree) if talks(n))
            found += [f"{path}:{n.lineno}: {ast.unparse(n)}: only cli and rpc may" for n in spoken]
    return found


def test_layers_hold() -> None:
    assert not violations(ROOT)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ckpt/errors.py", "import ckpt.options"),
        ("ckpt/kernel/mem.py", "from ckpt.image.pages import PageReader"),
        ("ckpt/kernel/mem.py", "from ckpt import pstree"),
        ("ckpt/kernel/mem.py", "import ckpt"),
        ("ckpt/kernel/mem.py", "from ckpt.kernel._core import lib"),
        ("ckpt/kernel/mem.py", "from .ffi import lib"),
        ("ckpt/kernel/mem.py", "def f():\n    from ckpt.dump import dump"),
        ("ckpt/files/pipe.py", "from ckpt.task import creds"),
        ("ckpt/dump.py", "from ckpt.restore import restore"),
        ("ckpt/dump.py", "import sys\nsys.exit(1)"),
        ("ckpt/dump.py", "raise SystemExit"),
        ("ckpt/task/fs.py", "print('here')"),
        ("ckpt/options.py", "from os import environ"),
        ("ckpt/oddments.py", "X = 1"),
        ("plugins/cuda/plugin.py", "from ckpt.files import pipe"),
    ],
)
def test_a_breach_is_found(tmp_path: Path, path: str, source: str) -> None:
    write(tmp_path, path, source)
    assert len(violations(tmp_path)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ckpt/kernel/ffi.py", "from ckpt.kernel._core import ffi, lib"),
        (
            "ckpt/kernel/mem.py",
            "from ckpt.kernel.ffi import lib\nfrom ckpt.errors import CkptError",
        ),
        ("ckpt/files/pipe.py", "from ckpt.image.pb import pipe_pb2\nimport ckpt.kernel.pidfd"),
        ("ckpt/dump.py", "from ckpt.freeze import freeze\nfrom ckpt import errors"),
        ("ckpt/cli.py", "import sys\nfrom ckpt.rpc import serve\nprint(sys.argv)"),
        ("plugins/cuda/plugin.py", "from ckpt.files.kind import FileKind"),
    ],
)
def test_what_is_allowed_passes(tmp_path: Path, path: str, source: str) -> None:
    write(tmp_path, path, source)
    assert not violations(tmp_path)


def write(root: Path, path: str, source: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True)
    file.write_text(source)
