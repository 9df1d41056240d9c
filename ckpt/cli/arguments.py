# SPDX-License-Identifier: Apache-2.0
"""The words of a command line, by one table that is also the help: CRIU's names and habits.

Options stand before or after the verb, values after a space or `=`, long names may be cut short
as long as one option is meant, and `--no-NAME` takes a switch back. No argparse: its import alone
takes a third of the time that CRIU takes for a whole dump.
"""

from collections.abc import Iterator
from typing import NamedTuple, NoReturn

from ckpt.cli.table import (
    IGNORED,
    LATER,
    LATER_SHORTS,
    LATER_VERBS,
    OPTIONS,
    VERBS,
    Option,
)
from ckpt.errors import OptionsError

_BY_SHORT = {option.short: option for option in OPTIONS if option.short}
_BY_NAME = {option.name: option for option in (*OPTIONS, *IGNORED)}
_STORIES = ("dump", "pre-dump", "restore")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Arguments(NamedTuple):
    """A command line, taken apart: values of options by their long names, in order."""

    verb: str
    operands: list[str]
    values: dict[str, list[str]]

    def has(self, name: str) -> bool:
        """Was this switch given?"""
        return name in self.values

    def text(self, name: str) -> str | None:
        """Return the value of an option, the last one where it is given twice."""
        return self.values[name][-1] if name in self.values else None

    def number(self, name: str) -> int | None:
        """Return a value that is a number, not negative."""
        text = self.text(name)
        return None if text is None else int(text)

    def size(self, name: str) -> int | None:
        """Return a value that is a size in bytes; 64K, 1M and 2G are understood."""
        text = self.text(name)
        if text is None:
            return None
        unit = _UNITS.get(text[-1:].upper(), 0)
        return _number(name, text[:-1] if unit else text) * (unit or 1)


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise OptionsError(f"--{name}: {text!r} is not a number")
    return int(text)


def parse(words: list[str]) -> Arguments:
    """Take a command line apart, without the program's name. Raises OptionsError."""
    operands: list[str] = []
    values: dict[str, list[str]] = {}
    rest = iter(words)
    for word in rest:
        if word == "--":
            operands += rest
        elif word.startswith(("--", "-verbosity")):  # CRIU's own tests say -verbosity=0
            _long(word.lstrip("-"), rest, values)
        elif word.startswith("-") and len(word) > 1:
            _shorts(word[1:], rest, values)
        else:
            operands.append(word)
    verb = _verb(operands, values)
    if verb and "help" not in values:
        _check_verb(verb, operands[1:], values)
    return Arguments(verb, operands[1:], values)


def option_word(name: str, value: str | None, verb: str) -> str:
    """Return `--NAME=VALUE` if it is an option of the verb, else nothing. Raises OptionsError."""
    word = f"--{name}" if value is None else f"--{name}={value}"
    scratch: dict[str, list[str]] = {}
    _long(word[2:], iter(()), scratch)
    verbs = [_BY_NAME[known].verbs for known in scratch]
    foreign = verbs and verbs[0] and not set(_group(verb)).intersection(verbs[0])
    return "" if foreign else word


def _long(word: str, rest: Iterator[str], values: dict[str, list[str]]) -> None:
    name, equals, value = word.partition("=")
    option = _find(name)
    if option is None and name.startswith("no-"):
        switch = _find(name[3:])
        if switch and not switch.metavar:
            values.pop(switch.name, None)
            return
    if option is None:
        _unknown(f"--{name}", [f"--{known}" for known in _BY_NAME])
    if equals and not option.metavar:
        raise OptionsError(f"--{option.name} takes no value")
    _add(option, value if equals else None, rest, values)


def _find(name: str) -> Option | None:
    """Return the option of this name, or the only one that begins like this."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    if name in LATER:
        raise OptionsError(f"--{name}: not supported yet", hint="ckpt --help has what is")
    found = [known for known in (*_BY_NAME, *LATER) if known.startswith(name)] if name else []
    return _find(found[0]) if len(found) == 1 else None


def _shorts(letters: str, rest: Iterator[str], values: dict[str, list[str]]) -> None:
    """Take `-jR`, `-t12`, `-v4` or `-vvvv` apart."""
    while letters:
        option = _BY_SHORT.get(letters[0])
        if option is None:
            _find(LATER_SHORTS.get(letters[0], ""))
            _unknown(f"-{letters[0]}", [])
        letters = letters[1:]
        if option.optional:
            value = letters[: len(letters) - len(letters.lstrip("0123456789"))]
            _add(option, value, rest, values)
            letters = letters[len(value) :]
        elif option.metavar:
            _add(option, letters.removeprefix("=") or None, rest, values)
            return
        else:
            _add(option, None, rest, values)


def _add(
    option: Option, value: str | None, rest: Iterator[str], values: dict[str, list[str]]
) -> None:
    if value is None and option.metavar and not option.optional:
        value = next(rest, None)
        if value is None:
            raise OptionsError(f"--{option.name} needs a value: {option.metavar}")
    if option.metavar in ("N", "PID", "FD", "SECONDS") and value:
        _number(option.name, value)
    if option.accepts and value not in option.accepts:
        raise OptionsError(
            f"--{option.name}{f'={value}' if value else ''}: not supported yet",
            hint=f"supported: {', '.join(filter(None, option.accepts))}",
        )
    values.setdefault(option.name, []).append(value or "")


def _verb(operands: list[str], values: dict[str, list[str]]) -> str:
    if not operands:
        if "help" in values or "version" in values:
            return ""
        raise OptionsError("no verb", hint=f"one of {', '.join(VERBS)}; see ckpt --help")
    verb = operands[0]
    if verb in LATER_VERBS:
        raise OptionsError(f"{verb}: not supported yet", hint="ckpt --help has what is")
    if verb not in VERBS:
        _unknown(verb, list(VERBS))
    return verb


def _check_verb(verb: str, operands: list[str], values: dict[str, list[str]]) -> None:
    """An option of dump may go with restore, as with CRIU; any other clash is a slip."""
    for name in values:
        verbs = _BY_NAME[name].verbs
        if verbs and not set(_group(verb)).intersection(verbs):
            raise OptionsError(f"--{name} is an option of {' and '.join(verbs)}, not of {verb}")
    wanted = VERBS[verb].operands
    if len(operands) < len(wanted):
        raise OptionsError(f"{verb} needs {wanted[len(operands)]}")
    if len(operands) > len(wanted):
        raise OptionsError(f"{verb}: what is {operands[len(wanted)]!r} for?")


def _group(verb: str) -> tuple[str, ...]:
    return _STORIES if verb in _STORIES else (verb,)


def _unknown(word: str, known: list[str]) -> NoReturn:
    """Name the nearest; difflib is imported only here, where nobody waits for it."""
    from difflib import get_close_matches

    near = get_close_matches(word, known, 1)
    what = "option" if word.startswith("-") else "verb"
    hint = f"did you mean {near[0]}?" if near else "ckpt --help has them all"
    raise OptionsError(f"unknown {what} {word}", hint=hint)
