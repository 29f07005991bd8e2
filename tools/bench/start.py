"""Import of the package in fresh processes, by turns with NumPy's own.

As those find it who have installed it: compiled. Where Python is told to keep no bytecode, it
compiles all modules each time, and that would be most of what is measured.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from monolith_kv_tools.bench.goals import Figure
from monolith_kv_tools.bench.scale import Scale

PROGRAM = """
import time
begun = time.perf_counter()
import {module}
print(time.perf_counter() - begun)
"""


def run(scale: Scale) -> Iterator[Figure]:
    """Measure both, and how much of the time is ours."""
    ours: list[float] = []
    numpy: list[float] = []
    with tempfile.TemporaryDirectory() as bytecode:
        import_s("monolith_kv", bytecode)  # Compiles both.
        for _ in range(scale.rounds(21)):
            ours.append(import_s("monolith_kv", bytecode))
            numpy.append(import_s("numpy", bytecode))
    value, low, high = (1e3 * each for each in quartiles(ours))
    detail = f"[{low:.3g} {high:.3g}] NumPy alone {1e3 * statistics.median(numpy):.3g} ms"
    yield Figure("import", value, 0, detail)


def import_s(module: str, bytecode: str) -> float:
    """Return the seconds that an import takes in a fresh process; bytecode is kept in a folder."""
    command = [sys.executable, "-c", PROGRAM.format(module=module)]
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(command, capture_output=True, check=True, text=True, env=environment)
    return float(done.stdout)


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return median, lower and upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4)
    return middle, low, high
