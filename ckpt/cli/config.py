# SPDX-License-Identifier: Apache-2.0
"""Configuration files, those of CRIU: options that a command line need not repeat.

One option a line, by its long name without the dashes, its value behind blanks or `=`. A value with
blanks stands in double quotes, and a double quote in it behind a backslash. `#` begins a comment.
What the command line says comes later, and so wins.
"""

import os
from collections.abc import Iterator, Mapping

from ckpt.cli.arguments import Arguments, option_word, parse
from ckpt.errors import OptionsError

_SYSTEM, _OF_USER = "/etc/criu/default.conf", ".criu/default.conf"
_LARGEST = 1 << 20


def configured(words: list[str], environment: Mapping[str, str]) -> Arguments:
    """Take a command line apart, with what configuration files say before it."""
    arguments = parse(words)
    before = [
        word
        for path in _files(arguments, environment)
        for line, name, value in _options(path)
        if (word := _word(path, line, name, value, arguments.verb))
    ]
    return parse([*before, *words]) if before else arguments


def _files(arguments: Arguments, environment: Mapping[str, str]) -> Iterator[str]:
    """Yield the files that there are; those that are asked for have to be there."""
    if not arguments.has("no-default-config"):
        home = environment.get("HOME")
        default = [_SYSTEM, os.path.join(home, _OF_USER)] if home else [_SYSTEM]
        yield from filter(os.path.exists, default)
    if given := arguments.text("config") or environment.get("CRIU_CONFIG_FILE"):
        yield given


def _options(path: str) -> Iterator[tuple[int, str, str | None]]:
    """Yield the number of each line, the option and its value."""
    try:
        with open(path, errors="surrogateescape") as file:
            text = file.read(_LARGEST)
    except OSError as error:
        raise OptionsError(f"configuration file {path}: {error.strerror}") from error
    for number, line in enumerate(text.splitlines(), 1):
        words = _split(path, number, line)
        if len(words) > 2:
            raise OptionsError(f"{path}:{number}: what is {words[2]!r} for?", hint=_HINT)
        if words:
            name, equals, value = words[0].partition("=")
            yield number, name, words[1] if len(words) > 1 else value if equals else None


_HINT = "an option, and its value, in double quotes if there are blanks in it"


def _split(path: str, number: int, line: str) -> list[str]:
    """Take a line apart, at blanks outside of quotes."""
    found: list[str] = []
    at = 0
    while at < len(line) and line[at] != "#":
        if line[at].isspace():
            at += 1
            continue
        quoted = line[at] == '"'
        end = _end_of_quoted(line, at) if quoted else _end_of_word(line, at)
        if end < 0:
            raise OptionsError(f"{path}:{number}: a double quote is missing", hint=_HINT)
        found.append(line[at + 1 : end].replace('\\"', '"') if quoted else line[at:end])
        at = end + quoted
    return found


def _end_of_quoted(line: str, start: int) -> int:
    end = line.find('"', start + 1)
    while end > 0 and line[end - 1] == "\\":
        end = line.find('"', end + 1)
    return end


def _end_of_word(line: str, start: int) -> int:
    ends = (at for at in range(start, len(line)) if line[at] == "#" or line[at].isspace())
    return next(ends, len(line))


def _word(path: str, line: int, name: str, value: str | None, verb: str) -> str:
    """Return the option as a word of the command line, empty if it is for another verb."""
    try:
        if name in ("config", "no-default-config"):
            raise OptionsError(f"{name} is for the command line")
        return option_word(name, value, verb)
    except OptionsError as error:
        raise OptionsError(f"{path}:{line}: {error}", hint=error.hint) from error
