"""Growth of a table: how fast, what the longest call costs, and what a row takes meanwhile."""

import time
from collections.abc import Iterator

import numpy as np
from monolith_kv_tools.bench.goals import Figure
from monolith_kv_tools.bench.harness import (
    no_collection,
    percentile,
    time_text,
)
from monolith_kv_tools.bench.scale import Scale
from monolith_kv_tools.bench.tables import BLOCK, DIM, scratch_store
from monolith_kv_tools.bench.traffic import scrambled_ids

from monolith_kv import _yardsticks

SMALL_BATCH = 256
PAYLOAD = 2 * 4 * DIM  # Embedding and Adagrad's accumulator.


def insert(scale: Scale) -> Iterator[Figure]:
    """Compare insertion, empty to full, with touching as many fresh bytes of plain memory.

    The bytes are those of embedding and state alone: header and index are the engine's own cost.
    In blocks by turns, so that both meet the same memory; the ratio is of the sums over all blocks,
    for one that is slow because the index grows is part of the price.
    """
    rows = scale.big_rows
    ids = scrambled_ids(rows)
    out = np.empty((BLOCK, DIM), np.float32)
    insert_s = touch_s = 0.0
    ratios = []
    with no_collection(), scratch_store() as store:
        table = store.create_table("item", DIM)
        for start in range(0, rows, BLOCK):
            part = ids[start : start + BLOCK]
            times = [time.perf_counter()]
            table.pull(part, out=out[: len(part)])
            times.append(time.perf_counter())
            _yardsticks.first_touch(len(part) * PAYLOAD)
            times.append(time.perf_counter())
            insert_s += times[1] - times[0]
            touch_s += times[2] - times[1]
            ratios.append((times[2] - times[1]) / (times[1] - times[0]))
    low, high = percentile(ratios, 0.25), percentile(ratios, 0.75)
    detail = (
        f"[{low:.3g} {high:.3g}] {time_text(insert_s / rows)} : {time_text(touch_s / rows)} a row"
    )
    yield Figure("insert", touch_s / insert_s, rows, detail)


def longest(scale: Scale) -> Iterator[Figure]:
    """Return the longest CPU time of a small pull while the table grows."""
    rows = scale.big_rows
    ids = scrambled_ids(rows)
    out = np.empty((SMALL_BATCH, DIM), np.float32)
    times = []
    with no_collection(), scratch_store() as store:
        table = store.create_table("item", DIM)
        for start in range(0, rows - SMALL_BATCH + 1, SMALL_BATCH):
            part = ids[start : start + SMALL_BATCH]
            begun = time.thread_time()
            table.pull(part, out=out)
            times.append(time.thread_time() - begun)
    detail = (
        f"median {time_text(percentile(times, 0.5))}, p99 {time_text(percentile(times, 0.99))}, "
        f"p99.9 {time_text(percentile(times, 0.999))}"
    )
    yield Figure("longest pull", 1e3 * max(times), rows, detail)
