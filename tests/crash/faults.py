"""Faults at every call on files, and what `make crash` says about them.

    python -m crash faults

`attempts` runs points.py with the shim preloaded and yields what it says, a scenario at a time.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from checks import FAST_FOLDER
from crash.figures import Figure
from crash.shim import build, preloaded

SMALL_SAMPLE = 3  # points of a scenario


def attempts(
    names: Sequence[str] = (), *, sample: int = 0, seed: str = "", more: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Try points of the scenarios whose names contain one of `names`; all by default.

    Yields
    ------
    dict
        Of each scenario its name, how many points were tried, and in words what was wrong.
    """
    with tempfile.TemporaryDirectory(prefix="mkv-faults-", dir=FAST_FOLDER) as folder:
        command = [sys.executable, "-m", "crash.points", "--folder", folder]
        command += ["--sample", str(sample), "--seed", seed, *more, *names]
        environment = preloaded(build(Path(folder)))
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for line in process.stdout:
                yield json.loads(line)
        if process.returncode:
            raise RuntimeError(f"crash.points ended with {process.returncode}, see above")


def figure(
    what: str, goal: str, tried: Iterator[dict[str, Any]], scenarios_min: int
) -> Iterator[Figure]:
    """Sum up attempts in one line; what was wrong goes to standard error."""
    started, scenarios, points, wrong = time.monotonic(), 0, 0, 0
    for found in tried:
        scenarios, points = scenarios + bool(found["points"]), points + found["points"]
        wrong += len(found["wrong"])
        for text in found["wrong"]:
            print(text, file=sys.stderr, flush=True)
    yield Figure(
        what,
        f"{points:,} of {scenarios} scenarios, {wrong} violations",
        goal,
        not wrong and scenarios >= scenarios_min,
        time.monotonic() - started,
    )


def measure(full: bool) -> Iterator[Figure]:
    """Every point of every scenario; in small, some of each."""
    yield from figure(
        "fault points (call x error x once or sticky)",
        "all of >= 40 scenarios, 0 acknowledged lost",
        attempts(sample=0 if full else SMALL_SAMPLE),
        scenarios_min=40,
    )
