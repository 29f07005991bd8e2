"""Bytes a row beyond embedding and optimizer state, counted by the engine and by the system.

The engine's own count comes from stats(); the resident set of a process of its own, before and
after filling, checks it, and the larger of the two is judged. Before the seal every row is in the
touched set, which so is as large as it can be.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from monolith_kv_tools.bench.goals import MILLION, Figure
from monolith_kv_tools.bench.harness import FAST_FOLDER, resident_bytes
from monolith_kv_tools.bench.scale import Scale
from monolith_kv_tools.bench.tables import BLOCK, DIM
from monolith_kv_tools.bench.traffic import scrambled_ids

import monolith_kv as mkv

PAYLOAD = 2 * 4 * DIM  # Embedding and Adagrad's accumulator.
# Below this, slabs that are not full yet weigh more than rows; below a quarter of what it is sized
# for, the gate's sketch. Growth is watched from there on, over two doublings.
SETTLED_ROWS = 250_000
# Of the gate's sketch. It is sized for ids that have no row yet, which a window sees few of.
GATE_SHARE = 0.05


def run(scale: Scale) -> Iterator[Figure]:
    """Measure in processes of their own: without a gate and sealed, then with all and growing."""
    rows = min(MILLION, scale.big_rows)
    plain = measured(rows, gated=False)
    for key, at in (("bytes 1M", plain["sealed"]), ("bytes 1M unsealed", plain["unsealed"])):
        yield Figure(key, max(at), rows, detail(at))
    grown = measured(scale.big_rows, gated=True)
    yield Figure("bytes steady", max(grown["sealed"]), scale.big_rows, detail(grown["sealed"]))
    worst = f"{detail(grown['worst'])}, at {grown['worst_rows'][0] / MILLION:.3g}M rows"
    yield Figure("bytes worst", max(grown["worst"]), scale.big_rows, worst)


def detail(pair: list[float]) -> str:
    """Return both figures in words."""
    return f"{pair[0]:.1f} counted, {pair[1]:.1f} by RSS"


def measured(rows: int, *, gated: bool) -> dict[str, list[float]]:
    """Return what a process of its own found."""
    command = [sys.executable, "-m", "monolith_kv_tools.bench.memory", str(rows), str(int(gated))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


def measure(rows: int, *, gated: bool) -> dict[str, list[float]]:
    """Fill a table and return bytes a row, [counted, by RSS]: unsealed, sealed and at worst."""
    import numpy as np

    ids = scrambled_ids(rows)
    block = np.ones((BLOCK, DIM), np.float32)
    gate = mkv.FrequencyGate(2, capacity=max(1000, int(rows * GATE_SHARE))) if gated else None
    # A seal of gigabytes belongs on a disk: the folder in memory would be full of it.
    folder_in = FAST_FOLDER if rows <= MILLION else None
    with tempfile.TemporaryDirectory(dir=folder_in) as folder:
        store = mkv.open(f"{folder}/store", durability="none", delta_interval=None)
        before = resident_bytes()
        table = store.create_table("item", DIM, admission=gate, ttl="30d" if gated else None)

        def beyond() -> list[float]:
            memory = store.stats()["tables"]["item"]["memory"]
            resident = resident_bytes() - before
            return [size / len(table) - PAYLOAD for size in (sum(memory.values()), resident)]

        worst, worst_rows = [0.0, 0.0], 0
        for start in range(0, rows, BLOCK):
            part = ids[start : start + BLOCK]
            table.upsert(part, block[: len(part)])
            if len(table) >= max(rows // 4, min(rows, SETTLED_ROWS)):
                now = beyond()
                if max(now) > max(worst):
                    worst, worst_rows = now, len(table)
        unsealed = beyond()
        store.seal()
        sealed = beyond()
        store.close()
    return {
        "unsealed": unsealed,
        "sealed": sealed,
        "worst": worst,
        "worst_rows": [float(worst_rows)],
    }


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), gated=sys.argv[2] == "1")))
