"""Run the crash kit, all parts or those named, and print what came of it: make crash.

A part is a module beside this one with `measure(full)`, which yields Figures; its tests run the
same code in small. Exit code 1: a goal was not reached.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from crash.figures import Figure, table

PARTS = {
    "states": "power cuts in a traced run: every prefix, any subset of what was not flushed",
    "faults": "an error, a short write or a kill at every call on files, once and from there on",
    "memory": "no memory at every allocation",
    "damage": "every bit flipped, every length cut, records spliced, in each type of file",
    "sigkill": "kills at random instants",
    "seeded": "bugs put in on purpose: is each caught?",
    "fuzz": "random bytes into every parser, checksums left out",
    "power": "power cuts on a real kernel in user mode; not among the default parts",
}
BY_REQUEST = {"power"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="make crash",
        description="Try to lose what was promised.",
        epilog="parts: " + "; ".join(f"{name}: {what}" for name, what in PARTS.items()),
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--small", action="store_true", help="as much as CI does: minutes")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    figures: list[Figure] = []
    for name in options.parts or [name for name in PARTS if name not in BY_REQUEST]:
        print(f"{name}: {PARTS[name]}", file=sys.stderr, flush=True)
        for figure in importlib.import_module(f"crash.{name}").measure(full=not options.small):
            print(f"  {figure.what}: {figure.measured}", file=sys.stderr, flush=True)
            figures.append(figure)
    print(table(figures))
    return 0 if all(figure.is_reached for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
