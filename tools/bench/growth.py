"""Growth of a table: how fast, what the longest call costs, and what a row takes meanwhile."""

import contextlib
import mmap
import time
from collections.abc import Iterator

import numpy as np
from monolith_kv_tools.bench.goals import Figure
from monolith_kv_tools.bench.harness import (
    no_collection,
    percentile,
    time_text,
    timed,
)
from monolith_kv_tools.bench.scale import Scale
from monolith_kv_tools.bench.tables import DIM, scratch_store
from monolith_kv_tools.bench.traffic import BATCH, scrambled_ids

SMALL_BATCH = 256
HUGE_PAGE_BYTES = 2 << 20
PAGE_EVERY = 128  # Small batches.
TOUCH_EVERY = 8  # Batches, so that what is kept stays a quarter of the table.
PAYLOAD = 2 * 4 * DIM  # Embedding and Adagrad's accumulator.


def insert(scale: Scale) -> Iterator[Figure]:
    """Compare insertion, empty to full, with first writes to fresh memory.

    The bytes are those of embedding and state alone: header and index are the engine's own cost.
    Memory is touched between batches, by turns plain, which is judged, and from huge pages, and
    kept until the end: what was just given back would be in the caches, and the engine's is not.
    Insertion counts as a whole: a batch that is slow because the index grows is part of its price.
    """
    rows = scale.big_rows
    ids = scrambled_ids(rows)
    out = np.empty((BATCH, DIM), np.float32)
    inserts: list[float] = []
    plain: list[float] = []
    huge: list[float] = []
    kept: list[mmap.mmap] = []
    warm(rows)
    with no_collection(), scratch_store() as store:
        table = store.create_table("item", DIM)
        for number in range(rows // BATCH):
            part = ids[number * BATCH : (number + 1) * BATCH]
            begun = time.perf_counter()
            table.pull(part, out=out)
            inserts.append(time.perf_counter() - begun)
            if number % TOUCH_EVERY == 0:
                kept.append(fresh(BATCH * PAYLOAD))
                plain.append(timed(lambda: write_all(kept[-1])))
            elif number % TOUCH_EVERY == TOUCH_EVERY // 2:
                kept.append(fresh(BATCH * PAYLOAD))
                ask_huge(kept[-1])
                huge.append(timed(lambda: write_all(kept[-1])))
    mean, touch, touch_huge = (sum(each) / len(each) for each in (inserts, plain, huge))
    detail = (
        f"{time_text(mean / BATCH)} : {time_text(touch / BATCH)} a row; "
        f"huge pages {time_text(touch_huge / BATCH)}: {touch_huge / mean:.3g}"
    )
    yield Figure("insert", touch / mean, rows, detail)


def warm(rows: int) -> None:
    """Write to as much memory as a table will take, and give it back.

    On a virtual machine the host gives memory when it is first written to, at a third of a GB/s,
    and takes it back when it likes: that is not the engine's doing, nor the same from run to run.
    """
    memory = fresh(rows * (PAYLOAD + PAYLOAD // 8))
    ask_huge(memory)
    write_all(memory)


def fresh(size_bytes: int) -> mmap.mmap:
    """Map memory that nobody has written to."""
    return mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def ask_huge(memory: mmap.mmap) -> None:
    """Ask for huge pages, where the system knows them."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)


def write_all(memory: mmap.mmap) -> None:
    """Write every byte, as memset does."""
    np.frombuffer(memory, np.uint8).fill(1)


def longest(scale: Scale) -> Iterator[Figure]:
    """Return the longest CPU time of a small pull while the table grows.

    Beside it, now and then, a first write to a fresh huge page: what the machine asks for each.
    """
    rows = scale.big_rows
    ids = scrambled_ids(rows)
    out = np.empty((SMALL_BATCH, DIM), np.float32)
    times: list[float] = []
    pages: list[float] = []
    kept: list[mmap.mmap] = []
    warm(rows)
    with no_collection(), scratch_store() as store:
        table = store.create_table("item", DIM)
        for start in range(0, rows - SMALL_BATCH + 1, SMALL_BATCH):
            part = ids[start : start + SMALL_BATCH]
            begun = time.thread_time()
            table.pull(part, out=out)
            times.append(time.thread_time() - begun)
            if len(times) % PAGE_EVERY == 1:
                kept.append(fresh(HUGE_PAGE_BYTES))
                ask_huge(kept[-1])
                begun = time.thread_time()
                write_all(kept[-1])
                pages.append(time.thread_time() - begun)
    detail = (
        f"median {time_text(percentile(times, 0.5))}, p99 {time_text(percentile(times, 0.99))}, "
        f"p99.9 {time_text(percentile(times, 0.999))}; longest first write to 2 MiB "
        f"{time_text(max(pages))}"
    )
    yield Figure("longest pull", 1e3 * max(times), rows, detail)
