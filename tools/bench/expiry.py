"""Expiry of half of a table in slices, beside a reader; and the memory that comes back."""

from collections.abc import Iterator

import numpy as np
from monolith_kv_tools.bench.goals import Figure
from monolith_kv_tools.bench.harness import Disturber, beside, resident_bytes
from monolith_kv_tools.bench.scale import Scale
from monolith_kv_tools.bench.tables import BLOCK, DIM, scratch_store
from monolith_kv_tools.bench.traffic import Batches, scrambled_ids, uniform_positions

SLICE_S = 0.005
TTL_S = 86_400
SMALL_BATCH = 256
WINDOW_S = 0.02


def run(scale: Scale) -> Iterator[Figure]:
    """Fill, let the clock jump by more than the older half may live, and compact beside a reader.

    Slices follow each other without a pause, which is more than the background ever does: it rests
    for nineteen twentieths of the time.
    """
    rows = scale.big_rows
    ids = scrambled_ids(rows)
    block = np.ones((BLOCK, DIM), np.float32)
    now = [1e9]
    before = resident_bytes()
    with scratch_store(lambda: now[0]) as store:
        table = store.create_table("item", DIM, ttl=TTL_S)
        for half in (ids[: rows // 2], ids[rows // 2 :]):
            now[0] += TTL_S / 2 + 1
            for start in range(0, len(half), BLOCK):
                part = half[start : start + BLOCK]
                table.upsert(part, block[: len(part)])
        full = resident_bytes() - before
        young = ids[rows // 2 :]
        positions = uniform_positions(np.random.default_rng(13), len(young), SMALL_BATCH * 1000)
        batches = Batches(positions, young, SMALL_BATCH)
        out = np.empty((SMALL_BATCH, DIM), np.float32)
        now[0] += TTL_S / 2
        expired: list[int] = []

        def look() -> None:
            batches.turn()
            table.lookup(batches.ids, out=out)

        def compact() -> bool:
            done = store.compact(budget=SLICE_S)
            expired.append(done.expired)
            return not done.finished

        with Disturber(compact) as compactor:
            result = beside(look, compactor, windows=10**6, window_s=WINDOW_S)
        assert sum(expired) == rows // 2
        assert len(table) == rows - rows // 2
        detail = f"{result.detail()}, {len(expired)} slices"
        yield Figure("p99 expiry", result.ratio, rows, detail)
        left = resident_bytes() - before
        text = f"{left / 2**20:.0f} of {full / 2**20:.0f} MiB"
        yield Figure("memory expiry", left / full, rows, text)
