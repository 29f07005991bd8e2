"""Run the benchmarks, all or those named: python -m monolith_kv_tools.bench [NAME ...]."""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from monolith_kv_tools.bench import (
    checkpoints,
    durability,
    expiry,
    files,
    goals,
    growth,
    hit_rate,
    memory,
    overflow,
    reads,
    start,
    threads,
    train_step,
    writes,
)
from monolith_kv_tools.bench.goals import MILLION, Figure
from monolith_kv_tools.bench.scale import Scale, missing_memory, scale_of, torch_or_none
from monolith_kv_tools.bench.tables import filled

import monolith_kv as mkv


def calls(scale: Scale) -> Iterator[Figure]:
    """Measure calls on rows that are there, on each size of table."""
    for rows in scale.sizes:
        with filled(rows) as bed:
            yield from reads.on_bed(bed, scale)
            yield from writes.on_bed(bed, scale, with_push=rows <= MILLION)


GROUPS: dict[str, Callable[[Scale], Iterator[Figure]]] = {
    "calls": calls,
    "widths": reads.widths,
    "step": train_step.run,
    "insert": growth.insert,
    "growth": growth.longest,
    "memory": memory.run,
    "threads": threads.run,
    "expiry": expiry.run,
    "import": start.run,
    "files": files.run,
    "durability": durability.run,
    "checkpoints": checkpoints.run,
    "overflow": overflow.run,
    "hits": hit_rate.run,
}


ROWS_MIN = 50_000  # Some batches of each kind.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the groups that are named, or all; 1 if a goal is missed."""
    options = parse(arguments)
    if options.here:
        for figure in GROUPS[options.names[0]](scale_of(options.rows, options.rounds)):
            print(goals.line(figure), flush=True)
            goals.append(options.figures, figure)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = options.figures or os.path.join(folder, "figures")
        with open(path, "w"):
            pass
        for name in options.names or GROUPS:
            print(f"\n{name}", flush=True)
            apart(name, options, path)
        figures = goals.read(path)
    print(f"\n{machine()}\n{goals.table(figures, whole=not options.names)}")
    missed = goals.misses(figures)
    if missed:
        print(f"missed: {', '.join(missed)}")
    return 1 if missed else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m monolith_kv_tools.bench",
        description="Figures against yardsticks in the same process, held against their goals.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(GROUPS)}")
    parser.add_argument(
        "--rows",
        type=lambda text: int(float(text)),
        default=MILLION,
        metavar="N",
        help="of the largest table (default: 1e6; the goals are for 20e6, which takes 17 GB)",
    )
    parser.add_argument(
        "--rounds", type=float, default=1.0, metavar="X", help="times as many rounds (default: 1)"
    )
    parser.add_argument("--figures", metavar="FILE", help="leave the figures there, as JSON lines")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(GROUPS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    if options.rows < ROWS_MIN:
        parser.error(f"--rows must be at least {ROWS_MIN:,}, got {options.rows:,}")
    if not options.here and (why := missing_memory(options.rows)) is not None:
        parser.error(why)
    return options


def apart(name: str, options: argparse.Namespace, path: str) -> None:
    """Run a group in a process of its own: memory that another has used would not be fresh."""
    command = [sys.executable, "-m", "monolith_kv_tools.bench", name, "--here", "--figures", path]
    command += ["--rows", str(options.rows), "--rounds", str(options.rounds)]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise SystemExit(
            f"{name} ended with {code}" + ", killed for want of memory?" * (code == -9)
        )


def machine() -> str:
    """Return what was measured, and on what."""
    torch = torch_or_none()
    parts = [
        f"monolith_kv {mkv.__version__}",
        f"Python {platform.python_version()}",
        f"NumPy {np.__version__}",
        f"torch {torch.__version__}" if torch else "torch is not installed",
        f"{platform.machine()}, {os.cpu_count()} cores",
    ]
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
