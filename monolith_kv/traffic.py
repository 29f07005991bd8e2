"""What goes between memory and overflow, and how a writer tells other processes of it.

What must hold: the file is for people. Nothing is recovered from it, it is not flushed, it lies in
the folder of the tier, which is wiped whenever a store is opened, and who cannot write or read it
goes on without.
"""

import contextlib
import json
import os
from typing import Any

from monolith_kv.state import StoreState
from monolith_kv.storage import files
from monolith_kv.storage.format import OVERFLOW_FOLDER, TRAFFIC_NAME

FILE_BYTES_MAX = 1 << 16
FORMAT = 1  # A reader passes over any other.
PERIOD_S = 5.0

Counts = dict[str, int]


def count(state: StoreState) -> Counts:
    """Return what went between the tiers since the store was opened; of a store that has both."""
    overflow = state.overflow
    assert overflow is not None
    tables = [entry.core.counters() for entry in state.tables.values()]
    names = ("evicted", "promoted", "hits", "cold_hits")
    return {
        **{name: sum(table[name] for table in tables) for name in names},
        "evicted_bytes": overflow.evicted_bytes,
        "written_bytes": overflow.written_bytes,
    }


def hit_rate(counts: Counts) -> float | None:
    """Return which share of the ids with a row had it in memory; None: there were none."""
    if not counts["hits"]:
        return None
    # What was promoted ahead of its use is no hit, either.
    return max(0.0, 1.0 - (counts["cold_hits"] + counts["promoted"]) / counts["hits"])


def write_amplification(counts: Counts) -> float | None:
    """Return bytes written to files for each byte of rows that left memory; None: none did."""
    size = counts["evicted_bytes"]
    return counts["written_bytes"] / size if size else None


def rates(before: Counts, after: Counts, seconds: float) -> dict[str, float | None]:
    """Return what went between the tiers between two counts."""
    # A table that is dropped takes its counts along.
    counts = {name: max(0, after[name] - before[name]) for name in after}
    return {
        "seconds": seconds,
        **counts,
        "promoted_per_s": counts["promoted"] / seconds,
        "evicted_per_s": counts["evicted"] / seconds,
        "hit_rate": hit_rate(counts),
        "write_amplification": write_amplification(counts),
    }


class Reporter:
    """Writes the file of a store that has both tiers, again and again.

    Parameters
    ----------
    state : StoreState
        Of the store.
    now : float
        On the monotonic clock, as in `step`.
    """

    def __init__(self, state: StoreState, now: float) -> None:
        self._state = state
        self._begun = self._last = now
        self._first = self._before = count(state)

    def step(self, now: float) -> None:
        """Write the file anew if a period is over. For one thread."""
        overflow = self._state.overflow
        if overflow is None or now - self._last < PERIOD_S:
            return
        counts = count(self._state)
        report = {
            "format": FORMAT,
            "period_s": PERIOD_S,
            **self._tiers(),
            "lately": rates(self._before, counts, now - self._last),
            "since_opening": rates(self._first, counts, now - self._begun),
        }
        self._last, self._before = now, counts
        with contextlib.suppress(OSError):
            files.write_loosely(
                os.path.join(overflow.folder, TRAFFIC_NAME), json.dumps(report).encode()
            )

    def _tiers(self) -> dict[str, Any]:
        state, cores = self._state, [entry.core for entry in self._state.tables.values()]
        overflow, budget = state.overflow, state.budget
        assert overflow is not None
        assert budget is not None
        cold_rows = sum(core.cold_rows for core in cores)
        return {
            "memory": {
                "rows": sum(core.rows for core in cores) - cold_rows,
                "bytes": budget.used(),
                "limit": state.settings.memory_limit,
            },
            "overflow": {
                "rows": cold_rows,
                "bytes": overflow.bytes,
                "dead_bytes": overflow.dead_bytes,
                "limit": state.settings.overflow_limit,
            },
        }


def read_report(path: str) -> dict[str, Any] | None:
    """Return what was written last beside the store at `path`.

    Returns
    -------
    dict or None
        With "at", when that was by the clock of the file system, in seconds since the epoch. None
        where no store with both tiers is open, or its first period is not over.
    """
    with contextlib.suppress(OSError, ValueError, RecursionError):
        with open(
            files.open_readable(os.path.join(path, OVERFLOW_FOLDER, TRAFFIC_NAME)), "rb"
        ) as file:
            found = json.loads(file.read(FILE_BYTES_MAX))
            if isinstance(found, dict) and found.get("format") == FORMAT:
                return {"at": os.fstat(file.fileno()).st_mtime, **found}
    return None
