"""Run a store through growth, churn, seal and snapshot, and watch what its process takes.

    python memory_watch.py FOLDER LIMIT_BYTES ROWS CHURN_STEPS

Prints one JSON object: for each phase the largest resident set seen, without pages of the tier's
files that are mapped (they belong to the page cache, which gives them up when it must), and the
bytes that the store itself counted at the end of it. "begin" is the process before the store.
"""

import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

import monolith_kv as mkv

DIM = 64
BATCH = 4096
EVERY_S = 0.01


def main(folder: str, limit_bytes: int, rows: int, steps: int) -> None:
    """Go through all phases."""
    rng = np.random.default_rng(1)
    options: dict[str, Any] = {"durability": "none", "delta_interval": "1h"}
    found: dict[str, Any] = {"begin": {"resident": resident_bytes(Path(folder, "overflow"))}}
    with mkv.open(folder, memory_limit=limit_bytes, **options) as store:
        table = store.create_table(
            "item", DIM, admission=mkv.FrequencyGate(1, capacity=rows), ttl="30d"
        )

        def train(batch: Any) -> None:
            table.push(batch, 1e-3 * table.pull(batch))

        def growth() -> None:
            for start in range(0, rows, BATCH):
                train(ids_of(np.arange(start, min(start + BATCH, rows))))

        def churn() -> None:
            for _ in range(steps):
                train(ids_of(rng.integers(0, rows, BATCH)))

        def removal() -> None:
            for start in range(0, rows // 2, BATCH):
                table.remove(ids_of(np.arange(start, start + BATCH)))

        def beside(work: Any) -> None:
            # What changes before a seal or snapshot has read it is kept for it: that counts, too.
            thread = threading.Thread(target=work)
            thread.start()
            while thread.is_alive():
                train(ids_of(rng.integers(0, rows, BATCH)))
            thread.join()

        phases = {
            "growth": growth,
            "churn": churn,
            "seal": lambda: beside(store.seal),
            "snapshot": lambda: beside(store.snapshot),
            "removal": removal,
            "growth again": growth,
        }
        for name, work in phases.items():
            with Watch(Path(folder, "overflow")) as watch:
                work()
            memory = store.stats()["memory"]
            found[name] = {
                "resident": watch.highest,
                "used": memory["used"],
                "kinds": memory["kinds"],
                "rows": table_rows(store),
            }
    print(json.dumps(found))


def ids_of(numbers: Any) -> Any:
    """Return ids that are spread over all of them; no array of all is kept: it would count, too."""
    return numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def table_rows(store: mkv.Store) -> int:
    """How many rows memory holds."""
    table = store.stats()["tables"]["item"]
    return int(table["rows"] - table["cold_rows"])


class Watch:
    """A thread that looks at the resident set, and keeps the highest."""

    def __init__(self, tier: Path) -> None:
        self._tier = tier
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.highest = 0

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self.highest = max(self.highest, resident_bytes(self._tier))
            if self._end.wait(EVERY_S):
                return


def resident_bytes(tier: Path) -> int:
    """The resident set of this process, without maps of files below a folder."""
    total, counts = 0, True
    for line in Path("/proc/self/smaps").read_text().splitlines():
        word = line.split(maxsplit=1)[0]
        if not word.endswith(":"):
            counts = str(tier) not in line
        elif word == "Rss:" and counts:
            total += 1024 * int(line.split()[1])
    return total


if __name__ == "__main__":
    main(sys.argv[1], *(int(number) for number in sys.argv[2:]))
