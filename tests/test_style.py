# SPDX-License-Identifier: Apache-2.0
"""The rules of docs/style.md that a machine can hold: `make check` runs them."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers import peer

ROOT = Path(__file__).parents[1]
FOLDERS = ("ckpt", "plugins", "protos", "tests", "tools", ".ci")
SUFFIXES = {".py", ".c", ".h", ".S", ".proto", ".sh"}
GENERATED = {ROOT / "ckpt/image/pb", ROOT / "ckpt/kernel/_core.c", ROOT / "tests/programs/bin"}

LONGEST_FILE = 600
LONGEST_FUNCTION = 60
LONG_FUNCTION = 40
LONG_SHARE = 0.03
BANNED = {"manager", "helper", "helpers", "util", "utils"}


def sources() -> list[Path]:
    """Every file written by hand that is code: by its suffix, or by its #! line."""
    files = [ROOT / "Makefile", ROOT / "setup.py"]
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*")):
            generated = GENERATED.intersection((file, *file.parents))
            if not generated and file.is_file() and is_code(file):
                files.append(file)
    return files


def is_code(file: Path) -> bool:
    if file.suffix:
        return file.suffix in SUFFIXES
    with file.open("rb") as opened:
        return opened.read(2) == b"#!"


def python_sources() -> list[Path]:
    return [file for file in sources() if file.suffix == ".py"]


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(source: str) -> Iterator[Function]:
    yield from (node for node in ast.walk(ast.parse(source)) if isinstance(node, Function))


def length(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def words(name: str) -> set[str]:
    """The words of a name, lower case: FooBar and foo_bar both give foo, bar."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def run(tool: str, *arguments: str) -> None:
    done = subprocess.run(
        [peer(tool), *arguments], cwd=ROOT, text=True, capture_output=True, check=False
    )
    if done.returncode:
        pytest.fail(f"{tool} {' '.join(arguments)}\n{done.stdout}{done.stderr}", pytrace=False)


def test_ruff_check() -> None:
    run("ruff", "check", "--quiet", ".")


def test_ruff_format() -> None:
    run("ruff", "format", "--check", ".")


def test_types() -> None:
    run("mypy", "--no-error-summary")


def test_licence_line() -> None:
    without = [
        str(file.relative_to(ROOT))
        for file in sources()
        if "SPDX-License-Identifier: Apache-2.0" not in "".join(file.read_text()[:300])
    ]
    assert not without


def test_no_file_is_too_big_to_know() -> None:
    sizes = {file: len(file.read_text().splitlines()) for file in sources()}
    assert not {str(file): lines for file, lines in sizes.items() if lines > LONGEST_FILE}


def test_functions_are_short() -> None:
    sizes = {
        f"{file.relative_to(ROOT)}:{function.lineno} {function.name}": length(function)
        for file in python_sources()
        for function in functions(file.read_text())
    }
    long = {name: size for name, size in sizes.items() if size > LONG_FUNCTION}
    assert not {name: size for name, size in long.items() if size > LONGEST_FUNCTION}
    assert len(long) <= LONG_SHARE * len(sizes), long


def test_names_say_something() -> None:
    found = []
    for file in python_sources():
        nodes = ast.walk(ast.parse(file.read_text()))
        named = [node.name for node in nodes if isinstance(node, Function | ast.ClassDef)]
        path = str(file.relative_to(ROOT))
        found += [f"{path}: {name}" for name in (file.stem, *named) if words(name) & BANNED]
    assert not found


def test_the_measures_measure() -> None:
    (function,) = functions("def f():\n    '''d'''\n\n    return 1\n")
    assert length(function) == 4
    assert words("PageManager") & words("do_manager_work") == {"manager"}
    assert not words("managed_cgroups") & BANNED
