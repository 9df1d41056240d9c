# SPDX-License-Identifier: Apache-2.0
"""The help, made from the table of options."""

from ckpt.cli.table import OPTIONS, VERBS, VERSION, Option

_COLUMN = 30


def version() -> str:
    """Return name and version, with the word that who asks CRIU looks for."""
    return f"Version: {VERSION} (ckpt)"


def usage(verb: str) -> str:
    """Return the help of one verb, or of all."""
    if verb:
        words = " ".join([f"usage: ckpt {verb} [options]", *VERBS[verb].operands])
        lines = [words, "", VERBS[verb].summary.capitalize() + ".", ""]
    else:
        lines = ["usage: ckpt VERB [options]", ""]
        lines += [_row(f"  {name}", one.summary) for name, one in VERBS.items()]
        lines.append("")
    lines += [_line(one, verb) for one in OPTIONS if not verb or not one.verbs or verb in one.verbs]
    return "\n".join(lines)


def _line(option: Option, verb: str) -> str:
    short = f"-{option.short}, " if option.short else "    "
    value = f"[={option.metavar}]" if option.optional else f" {option.metavar}"
    where = "" if verb or len(option.verbs) != 1 else f"{option.verbs[0]}: "
    return _row(f"  {short}--{option.name}{value if option.metavar else ''}", where + option.help)


def _row(left: str, right: str) -> str:
    gap = " " * max(1, _COLUMN - len(left))
    return f"{left}{gap}{right}"
