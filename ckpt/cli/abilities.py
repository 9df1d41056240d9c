# SPDX-License-Identifier: Apache-2.0
"""`check`: print what this machine can do; the exit code says whether it is enough."""

from ckpt.check import ABILITIES, ability
from ckpt.cli.arguments import Arguments

_EVERYTHING = ("all", "extra", "experimental")


def check(arguments: Arguments) -> int:
    """Print the required abilities, or all, or those asked for; return the exit code."""
    names = arguments.values.get("feature")
    if names:
        wanted = [ability(name) for name in names]
    else:
        everything = any(map(arguments.has, _EVERYTHING))
        wanted = [one for one in ABILITIES if one.required or everything]
    found = {one.name: one.probe() for one in wanted}
    if arguments.has("json"):
        import json

        print(json.dumps(found))
    elif arguments.text("verbosity") != "0":
        for one in wanted:
            print(f"{'yes' if found[one.name] else 'no ':3}  {one.name:26}{one.purpose}")
    return 0 if all(found.values()) else 1
