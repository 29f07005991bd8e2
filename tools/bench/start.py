"""Import of the package in fresh processes, by turns with NumPy's own."""

import statistics
import subprocess
import sys
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
    import_s("monolith_kv")  # Compiles what Python keeps compiled.
    for _ in range(scale.rounds(21)):
        ours.append(import_s("monolith_kv"))
        numpy.append(import_s("numpy"))
    value, low, high = (1e3 * each for each in quartiles(ours))
    detail = f"[{low:.3g} {high:.3g}] NumPy alone {1e3 * statistics.median(numpy):.3g} ms"
    yield Figure("import", value, 0, detail)


def import_s(module: str) -> float:
    """Return the seconds that an import takes in a fresh process."""
    command = [sys.executable, "-c", PROGRAM.format(module=module)]
    return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return median, lower and upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4)
    return middle, low, high
