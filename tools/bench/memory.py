"""Bytes a row beyond embedding and optimizer state, counted by the engine and by the system.

The engine's own count is rows + index + touched set, from stats(), before and after a seal: all
rows were just inserted, so before it the touched set is as large as it can be. The resident set of
a process of its own, before and after filling, checks it. 32 bytes a row is the goal to start with.
"""

import contextlib
import ctypes
import os
import subprocess
import sys
import tempfile
from typing import Any

from monolith_kv_tools.bench.harness import FAST_FOLDER, scrambled_ids, verdict
from monolith_kv_tools.bench.tables import BLOCK, DIM

import monolith_kv as mkv

GOAL = 32.0
PAYLOAD = 2 * 4 * DIM  # Embedding and Adagrad's accumulator.


def run(rows: int) -> bool:
    """Measure in processes of their own, print, and return whether the goal is met."""
    print(f"\nmemory: bytes a row beyond {PAYLOAD} of embedding and Adagrad state")
    holds = True
    # Just before and after growth, too: an index that has just doubled is at its emptiest.
    for count in (rows // 4, int(rows * 0.6), rows, int(rows * 1.1)):
        command = [sys.executable, "-m", "monolith_kv_tools.bench.memory", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        counted, resident, touched = (float(part) for part in done.stdout.split())
        print(
            f"  {count:>10,} rows: {counted:6.1f} counted, {resident:6.1f} by RSS; before the "
            f"seal {touched:.1f} more for a table of which every row was just touched"
        )
        if count >= rows:  # Smaller tables pay for slabs that are not full; they are small.
            holds &= verdict(f"{count:,} rows, counted", counted, GOAL, at_least=False)
            holds &= verdict(f"{count:,} rows, by RSS", resident, GOAL, at_least=False)
        if count == rows:
            all_touched = counted + touched
            holds &= verdict(f"{count:,} rows, unsealed", all_touched, GOAL, at_least=False)
    return holds


def measure(count: int) -> str:
    """Fill a table and return bytes a row: counted, by RSS, and the touched set's part."""
    import numpy as np

    ids = scrambled_ids(count)
    block = np.ones((BLOCK, DIM), np.float32)
    with (
        tempfile.TemporaryDirectory(dir=FAST_FOLDER) as folder,
        mkv.open(f"{folder}/store", durability="none", delta_interval=None) as store,
    ):
        table = store.create_table("item", DIM)
        table.upsert(ids[:1], block[:1])
        store.seal()
        before = resident_bytes()
        for start in range(0, count, BLOCK):
            part = ids[start : start + BLOCK]
            table.upsert(part, block[: len(part)])
        touched = store.stats()["tables"]["item"]["memory"]["touched"]
        store.seal()
        grown = resident_bytes() - before
        memory: dict[str, Any] = store.stats()["tables"]["item"]["memory"]
    counted = sum(memory.values()) / count - PAYLOAD
    return f"{counted} {grown / count - PAYLOAD} {touched / count}"


def resident_bytes() -> int:
    """Return the resident set of this process, without what malloc keeps for the next caller."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)  # Of glibc alone.
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    print(measure(int(sys.argv[1])))
