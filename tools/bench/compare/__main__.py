"""Compare monolith_kv with what people use today: python -m monolith_kv_tools.bench.compare."""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from monolith_kv_tools.bench.compare import plot, report
from monolith_kv_tools.bench.compare.course import QUICK, Course, Effort
from monolith_kv_tools.bench.compare.registry import ENTRIES, OWN
from monolith_kv_tools.bench.compare.results import GOAL_DIM, GOAL_ROWS, as_json, verdicts
from monolith_kv_tools.bench.compare.work import Scope
from monolith_kv_tools.bench.harness import FAST_FOLDER

BATCH = 8192
ROWS_MIN = 256
INTERRUPTED = 130
TABLES = 10  # As often the rows with their state may be in files at once; 7 were seen.


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m monolith_kv_tools.bench.compare",
        description="The same work on monolith_kv and on what people use today, in turns, each in "
        "a process (where need be an environment) of its own. Prints a table and writes "
        "comparison.md, .json, .png and .svg. 1 if a goal is missed; a contender that is missing "
        "is named and is no error.",
    )
    parser.add_argument(
        "--rows", type=int, default=GOAL_ROWS, help=f"in a table (default: {GOAL_ROWS:,})"
    )
    parser.add_argument("--dim", type=int, default=GOAL_DIM, help="of a row (default: %(default)s)")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=ENTRIES, help=f"of {', '.join(ENTRIES)}"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="that torch, FBGEMM and TensorFlow may compute with; 0: their own choice "
        "(default: %(default)s, as a call of monolith_kv has one)",
    )
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/compare"),
        metavar="FOLDER",
        help="for results, environments and logs (default: %(default)s)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; 1 if monolith_kv misses a goal or cannot be measured."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.rows < ROWS_MIN:
        parser.error(f"--rows must be {ROWS_MIN} or more, got {options.rows}")
    if options.dim < 1:
        parser.error(f"--dim must be 1 or more, got {options.dim}")
    chosen = options.only or list(ENTRIES)
    names = [name for name in ENTRIES if name != OWN and name in chosen]
    scope = Scope(options.rows, options.dim, min(BATCH, options.rows), options.threads)
    output: Path = options.out.absolute()
    output.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()

    def note(line: str) -> None:
        print(f"[{time.monotonic() - begun:6.1f} s] {line}", file=sys.stderr, flush=True)

    # Ended politely or not, the workers have to be ended too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    effort = QUICK if options.quick else Effort()
    try:
        with tempfile.TemporaryDirectory(prefix="mkv-compare-", dir=_fast_folder(scope)) as scratch:
            course = Course(names, scope, effort, output, Path(scratch), note)
            outcomes = course.run()
    except KeyboardInterrupt:
        note("interrupted: all workers are ended, nothing is written")
        return INTERRUPTED
    print(report.text(outcomes, scope), flush=True)
    (output / "comparison.md").write_text(report.markdown(outcomes, scope))
    values = as_json(outcomes, scope.rows, scope.dim, report.machine(scope))
    (output / "comparison.json").write_text(json.dumps(values, indent=2) + "\n")
    note(plot.draw(outcomes, report.machine(scope), output))
    judged = verdicts(outcomes, scope.rows, scope.dim)
    missed = any(v.mark == "MISS" for v in judged) or bool(outcomes[OWN].missing)
    return 1 if missed else 0


def _fast_folder(scope: Scope) -> str | None:
    """Return a place in memory for the tables' files, if they fit; None for the system's own."""
    needed = TABLES * 4 * 2 * scope.dim * scope.rows
    if FAST_FOLDER is None or shutil.disk_usage(FAST_FOLDER).free < needed:
        return None
    return FAST_FOLDER


if __name__ == "__main__":
    sys.exit(main())
