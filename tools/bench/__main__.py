"""Run the benchmarks, all or those named: python -m monolith_kv_tools.bench [NAME ...]."""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Sequence

import numpy as np
from monolith_kv_tools.bench import lookup, memory, throughput, train_step

import monolith_kv as mkv

ROWS = 1_000_000
ALL: dict[str, Callable[[int, int], bool]] = {
    "lookup": lookup.run,
    "train_step": train_step.run,
    "memory": lambda rows, rounds: memory.run(rows),
    "throughput": throughput.run,
}
# What takes a tenth of a second a round gets fewer of them.
ROUNDS = {"lookup": 301, "train_step": 21, "memory": 1, "throughput": 61}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks that are named, or all; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m monolith_kv_tools.bench",
        description="Ratios against a yardstick in the same process, medians of many rounds.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ALL)}")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"in the table (default: {ROWS:,})")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(ALL):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(ALL)}")
    print(
        f"monolith_kv {mkv.__version__}, Python {platform.python_version()}, NumPy "
        f"{np.__version__}, {platform.machine()}, {os.cpu_count()} cores"
    )
    holds = True
    for name in options.names or ALL:
        rounds = max(5, ROUNDS[name] // 10) if options.quick else ROUNDS[name]
        holds &= ALL[name](options.rows, rounds)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
