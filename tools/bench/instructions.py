"""Instructions a row, counted by callgrind: figures that do not depend on how busy a machine is.

python -m monolith_kv_tools.bench.instructions runs a fixed script of calls under valgrind, prints
what each takes a row, and fails where lookup, pull or push take more than what is recorded and five
in a hundred. The same build gives the same counts, those three to a thousandth, on a busy machine.
They depend on compiler, C library and processor (which decides between kernels), and a little on
Python and NumPy; what they were recorded with stands beside them. Elsewhere they are held to the
same ceilings, and a failure says what differs: a change that takes more with one compiler only is
worth a look as well.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import monolith_kv as mkv

JUDGED = ("lookup", "pull", "push")
SLACK = 1.05
WORKER = "monolith_kv_tools.bench.instructions_worker"
RECORD = Path("tests/instructions.json")
TOTALS = re.compile(r"^totals: (\d+)$", re.MULTILINE)
FAILED, UNABLE = 1, 2

Counts = dict[str, float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, print and judge, or record; 1 if a ceiling is passed, 2 if nothing can be counted."""
    parser = argparse.ArgumentParser(
        prog="python -m monolith_kv_tools.bench.instructions",
        description="Instructions a row under callgrind, held against what is recorded.",
    )
    parser.add_argument("--record", action="store_true", help="write what is counted to the file")
    parser.add_argument(
        "--file", type=Path, default=RECORD, help=f"what is recorded (default: {RECORD})"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="leave callgrind's files there, to look into"
    )
    options = parser.parse_args(arguments)
    if not options.record and not options.file.exists():
        return unable(f"{options.file} is not there: run this in a source tree, or give --file")
    if shutil.which("valgrind") is None:
        return unable("valgrind is not there: install it, with apt-get install valgrind, say")
    with tempfile.TemporaryDirectory() as folder:
        if options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
        counts = count(options.keep or Path(folder))
    if options.record:
        write(options.file, counts, surroundings())
        print(f"recorded in {options.file}")
    recorded = json.loads(options.file.read_text())
    lines, passed = judged(counts, recorded["instructions_a_row"])
    print("\n".join(lines))
    if passed:
        print("\n".join(explained(recorded["with"], surroundings())))
    return FAILED if passed else 0


def unable(why: str) -> int:
    """Say why nothing was counted."""
    print(f"instructions: {why}", file=sys.stderr)
    return UNABLE


# --- counting --------------------------------------------------------------------------------


def count(folder: Path) -> Counts:
    """Run the script and return instructions a row of each kind of call."""
    output = folder / "callgrind.out"
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={output}"]
    command += ["--dump-before=getsid", sys.executable, "-m", WORKER]
    # Python's hashes and the threads of libraries must not differ from run to run.
    fixed = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env={**os.environ, **fixed}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the script failed under valgrind:\n{done.stdout}{done.stderr}")
    kinds = [json.loads(line) for line in done.stdout.splitlines()]
    return by_kind(
        kinds, [total(folder / f"callgrind.out.{part + 1}") for part in range(2 * len(kinds))]
    )


def total(path: Path) -> int:
    """Return the instructions of one dump."""
    found = TOTALS.search(path.read_text())
    if found is None:
        raise RuntimeError(f"{path} has no line of totals")
    return int(found[1])


def by_kind(kinds: Sequence[tuple[str, int]], totals: Sequence[int]) -> Counts:
    """Return instructions a row of each kind.

    Parameters
    ----------
    kinds : sequence of (str, int)
        Name, and rows between its two marks.
    totals : sequence of int
        Of what lies before and after each mark: preparation, the first kind, preparation, ...
    """
    if len(totals) != 2 * len(kinds):
        raise ValueError(f"{len(kinds)} kinds need {2 * len(kinds)} dumps, got {len(totals)}")
    return {
        name: round(totals[2 * place + 1] / rows, 2) for place, (name, rows) in enumerate(kinds)
    }


# --- judging ---------------------------------------------------------------------------------


def judged(counts: Counts, recorded: Mapping[str, float]) -> tuple[list[str], list[str]]:
    """Return a line for each kind, and the kinds that pass their ceiling."""
    lines = [f"  {'':<4} {'instructions a row':<22} {'recorded':>9} {'ceiling':>9} {'counted':>9}"]
    passed = []
    for name, value in counts.items():
        was = recorded.get(name)
        ceiling = was * SLACK if was is not None and name in JUDGED else None
        mark = ""
        if name in JUDGED:
            is_over = ceiling is None or value > ceiling
            mark = "MISS" if is_over else "ok"
            passed += [name] if is_over else []
        change = "" if was is None else f"  {100 * (value / was - 1):+.1f} %"
        lines.append(
            f"  {mark:<4} {name:<22} {_number(was)} {_number(ceiling)} {_number(value)}{change}"
        )
    missing = [name for name in JUDGED if name not in counts]
    lines += [f"  MISS {name}: not counted" for name in missing]
    return lines, passed + missing


def _number(value: float | None) -> str:
    return f"{'':>9}" if value is None else f"{value:>9.1f}"


def explained(recorded: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return what may be the reason of a ceiling that is passed, and what to do."""
    differ = [
        f"{name} {recorded.get(name, 'unknown')}, here {value}"
        for name, value in now.items()
        if recorded.get(name) != value
    ]
    if differ:
        yours = "; ".join(differ)
        first = f"  recorded with {yours}:"
        return [first, "  count the commit before yours here, to tell machine from code"]
    return [
        "  counted with what it was recorded with: the code takes more. Look with --keep and",
        "  callgrind_annotate; if it is worth it, --record and say why in the commit",
    ]


# --- what is recorded ------------------------------------------------------------------------


def surroundings() -> dict[str, str]:
    """Return what counts depend on beside the code."""
    valgrind = subprocess.run(["valgrind", "--version"], capture_output=True, text=True, check=True)
    return {
        "machine": platform.machine(),
        "vector": vector_class(),
        "compiler": compiler(),
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "valgrind": valgrind.stdout.strip().removeprefix("valgrind-"),
    }


def vector_class() -> str:
    """Return the widest vectors that valgrind shows to a program here: it hides AVX-512."""
    with open("/proc/cpuinfo") as file:
        flags = set(file.read().split())
    return next((name for name in ("avx2", "asimd", "sse4_2") if name in flags), "baseline")


def compiler() -> str:
    """Return what compiled the engine, as it wrote into the extension."""
    [path] = Path(mkv.__file__).parent.glob("_table.*.so")
    found = re.search(rb"GCC: \([^)]*\) [\d.]+|clang version [\d.]+", path.read_bytes())
    return found[0].decode() if found else "unknown"


def write(path: Path, counts: Counts, found: Mapping[str, str]) -> None:
    """Record counts and what they were taken with."""
    record = {"with": dict(found), "instructions_a_row": counts}
    path.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
