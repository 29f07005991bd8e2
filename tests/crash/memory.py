"""No memory at every allocation of the data plane, and what `make crash` says about it."""

from collections.abc import Iterator

from crash.faults import attempts, figure
from crash.figures import Figure

SMALL_SAMPLE = 3  # allocations of a scenario


def measure(full: bool) -> Iterator[Figure]:
    """Every allocation of every scenario; in small, some of each."""
    yield from figure(
        "allocations failed",
        "all of >= 40 scenarios, once and from there on, 0 violations",
        attempts(sample=0 if full else SMALL_SAMPLE, more=["--memory"]),
        scenarios_min=40,
    )
