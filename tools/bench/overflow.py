"""Tables larger than memory: reads and training from two tiers, eviction, disk, opening.

The figures are for 10 M rows of 64 float32 with Adagrad's state and memory for a tenth of them.
"""

import shutil
import time
from collections.abc import Iterator
from functools import partial
from statistics import median

import numpy as np
from monolith_kv_tools.bench.goals import MILLION, Figure
from monolith_kv_tools.bench.harness import (
    Disturber,
    beside,
    compare,
    no_collection,
    percentile,
    time_text,
    timed,
)
from monolith_kv_tools.bench.overflow_bed import (
    RECORD_BYTES,
    YARDSTICK_ROWS,
    Bed,
    Ids,
    OneByOne,
    RawLmdb,
    evict,
    scratch,
    written_bytes,
)
from monolith_kv_tools.bench.overflow_rocksdb import beside_rocksdb
from monolith_kv_tools.bench.scale import Scale
from monolith_kv_tools.bench.tables import DIM
from monolith_kv_tools.bench.traffic import BATCH, zipf_ranks
from numpy.typing import NDArray

import monolith_kv as mkv

ZIPF = 1.05
COLD_IDS = 1024  # Of a batch from a cold cache: one at a time, that is a second of a slow disk.
SERVED_IDS = 256  # Of a server's call.
WARM_PULLS = 4  # As warm as a row gets.
WARM_TURNS = 2  # Rows that come back, of those that memory holds, until who is hot has settled.
STEPS = 16  # Of training in a round.
HIDDEN = 256  # Width of the layer that stands for the trainer's model.


def run(scale: Scale) -> Iterator[Figure]:
    """Measure all."""
    rows = scale.big_rows
    with scratch() as folder:
        bed = Bed(f"{folder}/s", rows)
        yield from eviction(bed)
        yield from reads(bed, folder, scale)
        yield from training(bed, scale)
        yield from beside_rocksdb(bed, folder, ZIPF, scale)
        bed.throw_away()
        shutil.rmtree(bed.folder)
        yield opening(folder, rows, scale)


# --- out of memory -----------------------------------------------------------------------------


def eviction(bed: Bed) -> Iterator[Figure]:
    """Fill the table: all but a tenth of its rows leave memory again, each call's as it comes.

    The time of the calls is counted as a whole, insertion with it.
    """
    rows = len(bed.ids)
    written = written_bytes()
    taken = timed(bed.fill)
    counters = bed.counters()
    evicted = counters["evicted"]
    size = evicted * RECORD_BYTES
    yield Figure("overflow eviction", evicted / taken / MILLION, rows, f"{time_text(taken)}")
    written = written_bytes() - written
    yield Figure("overflow writes", written / size, rows, f"{written / 1e6:.0f} MB")
    cold = rows - bed.resident()
    disk = bed.disk_bytes()
    yield Figure(
        "overflow disk", disk / (cold * RECORD_BYTES), rows, f"{disk / cold:.0f} bytes a row"
    )


# --- reads -------------------------------------------------------------------------------------


def reads(bed: Bed, folder: str, scale: Scale) -> Iterator[Figure]:
    """Read what memory does not hold, page cache warm and cold, and what it holds beside that."""
    rows = len(bed.ids)
    hot, cold = split(bed)
    rng = np.random.default_rng(6)
    out = np.empty((BATCH, DIM), np.float32)
    known = min(rows, YARDSTICK_ROWS)
    lmdb = RawLmdb(f"{folder}/lmdb", bed.ids[:known])
    batch, other = cold[:BATCH], bed.ids[:BATCH]

    def choose() -> None:
        nonlocal batch, other
        batch, other = rng.choice(cold, BATCH), rng.choice(bed.ids[:known], BATCH)

    before = bed.counters()
    found = compare(
        "warm",
        lambda: bed.table.lookup(batch, out=out[: len(batch)]),
        lambda: lmdb.read(other),
        rounds=scale.rounds(31),
        before=choose,
    )
    share = missed(before, bed.counters())
    rates = f"{1e-6 * BATCH / found.seconds:.3g} M rows/s, {share:.3f} from the tier"
    yield Figure("overflow warm", found.ratio, rows, f"{found.detail()}, {rates}")
    lmdb.close()
    shutil.rmtree(lmdb.path.parent)
    yield cold_reads(bed, folder, cold, scale)
    few = rng.choice(hot, SERVED_IDS)
    place = np.empty((SERVED_IDS, DIM), np.float32)

    def miss() -> bool:
        bed.table.lookup(rng.choice(cold, BATCH))
        return True

    with Disturber(miss) as disturber:
        result = beside(
            lambda: bed.table.lookup(few, out=place),
            disturber,
            windows=scale.rounds(9),
            window_s=0.5 * min(1.0, 10 * scale.share),
        )
    yield Figure("overflow p99", result.ratio, rows, result.detail())


def split(bed: Bed) -> tuple[Ids, Ids]:
    """Make some ids hot, and return them and those that have left memory for them."""
    hot = bed.ids[: int(0.9 * bed.resident())]
    for _ in range(WARM_PULLS):
        for start in range(0, len(hot), BATCH):
            bed.table.pull(hot[start : start + BATCH])
    return hot, bed.ids[len(hot) :]


def missed(before: dict[str, int], after: dict[str, int]) -> float:
    """Return which share of the ids that have a row was not in memory when it was asked for."""
    found = {key: after[key] - before[key] for key in after}
    return (found["cold_hits"] + found["promoted"]) / max(1, found["hits"])


def cold_reads(bed: Bed, folder: str, cold: Ids, scale: Scale) -> Figure:
    """Read from a cold page cache; the yardstick reads as many records one after the other."""
    rows = len(bed.ids)
    rng = np.random.default_rng(7)
    known = min(rows, YARDSTICK_ROWS)
    plain = OneByOne(f"{folder}/plain", known)
    batch, positions = cold[:COLD_IDS], np.arange(COLD_IDS)

    def choose() -> None:
        nonlocal batch, positions
        batch, positions = rng.choice(cold, COLD_IDS), rng.integers(0, known, COLD_IDS)
        bed.evict_cache()
        evict(plain.path)

    found = compare(
        "cold",
        lambda: bed.table.lookup(batch),
        lambda: plain.read(positions),
        rounds=scale.rounds(9),
        before=choose,
        warm_up=1,
    )
    plain.close()
    plain.path.unlink()
    return Figure(
        "overflow cold",
        found.ratio,
        rows,
        f"{found.detail()}, {COLD_IDS / found.seconds:,.0f} rows/s",
    )


# --- training ----------------------------------------------------------------------------------


def training(bed: Bed, scale: Scale) -> Iterator[Figure]:
    """Train by Zipf until who is hot has settled, then read and train on."""
    rng = np.random.default_rng(8)
    rows = len(bed.ids)
    until = bed.counters()["promoted"] + int(WARM_TURNS * bed.resident() * min(1, scale.share))
    while bed.counters()["promoted"] < until:
        for batch in bed.ids[zipf_ranks(rng, rows, 64 * BATCH, ZIPF)].reshape(-1, BATCH):
            bed.table.pull(batch)
    fast = rate(bed, bed.ids[zipf_ranks(rng, rows // 40, 64 * BATCH, ZIPF)], scale)
    tail = bed.ids[rows // 2 :]
    before = bed.counters()
    slow = rate(bed, rng.choice(tail, 16 * BATCH), scale)
    away = missed(before, bed.counters())
    # The tail has some rows in memory too: what all of them take, less the time of those.
    slow = away / (1 / slow - (1 - away) / fast)
    fresh = bed.ids[zipf_ranks(rng, rows, 64 * BATCH, ZIPF)]
    before = bed.counters()
    seen = rate(bed, fresh, scale)
    hit = 1 - missed(before, bed.counters())
    allowed = 1 / (hit / fast + (1 - hit) / slow)
    yield Figure(
        "overflow zipf",
        seen / allowed,
        rows,
        f"{seen / 1e6:.3g} of {allowed / 1e6:.3g} M rows/s, hit rate {hit:.4f}, in memory "
        f"{fast / 1e6:.3g}, from the tier {slow / 1e6:.3g}",
    )
    yield prefetching(bed, scale)
    yield prefetching(bed, scale, is_cold=True)


def rate(bed: Bed, ids: Ids, scale: Scale) -> float:
    """Return ids that are looked up in a second, the median of many batches."""
    out = np.empty((BATCH, DIM), np.float32)
    batches = ids.reshape(-1, BATCH)[: scale.rounds(64)]
    with no_collection():
        return BATCH / median(timed(partial(bed.table.lookup, b, out=out)) for b in batches)


def prefetching(bed: Bed, scale: Scale, *, is_cold: bool = False) -> Figure:
    """Train in turns with and without prefetching the next batch while the model computes.

    What counts is the time that the trainer waits in pull, push and prefetch: how long the model
    takes is not the engine's affair, and a model that computes on all cores takes longer while a
    prefetch has one of them. Batches are new ones each time: those that come again soon would be
    in memory. The first step of a turn has its rows from the other way, and is left out.
    """
    rng = np.random.default_rng(9 + is_cold)
    weights = rng.standard_normal((DIM, HIDDEN), np.float32)
    turns = 2 * scale.rounds(8 if is_cold else 24)
    ranks = zipf_ranks(rng, len(bed.ids), (turns * (STEPS + 1) + 1) * BATCH, ZIPF)
    batches = iter(bed.ids[ranks].reshape(-1, BATCH))
    times: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    coming = next(batches)
    with no_collection():
        for turn in range(turns):
            is_ahead = bool(turn % 2)
            for number in range(STEPS + 1):
                ids, coming = coming, next(batches)
                taken = train(bed, ids, coming if is_ahead else None, weights, is_cold=is_cold)
                if number:
                    times[is_ahead].append(taken)
    waits, models = ({key: [t[i] for t in times[key]] for key in times} for i in (0, 1))
    without, ahead = (sum(waits[key]) / len(waits[key]) for key in (False, True))
    whole = (sum(waits[False]) + sum(models[False])) / (sum(waits[True]) + sum(models[True]))
    return Figure(
        "overflow prefetch cold" if is_cold else "overflow prefetch",
        without / ahead,
        len(bed.ids),
        f"{time_text(without)} : {time_text(ahead)}, medians {time_text(median(waits[False]))} : "
        f"{time_text(median(waits[True]))}, p99 {time_text(percentile(waits[False], 0.99))} : "
        f"{time_text(percentile(waits[True], 0.99))}; with the model's time {whole:.2f}",
    )


def train(
    bed: Bed, ids: Ids, coming: Ids | None, weights: NDArray[np.float32], *, is_cold: bool
) -> tuple[float, float]:
    """Make one step; return how long the trainer waited, and how long the model took."""
    begun = time.perf_counter()
    rows = bed.table.pull(ids)
    wait = time.perf_counter() - begun
    if is_cold:
        bed.evict_cache()  # Before the prefetch begins: this takes time in which it would go on.
    begun = time.perf_counter()
    if coming is not None:
        bed.table.prefetch(coming)
    pulled = time.perf_counter()
    gradients = 1e-3 * (rows @ weights) @ weights.T
    computed = time.perf_counter()
    bed.table.push(ids, gradients)
    return wait + pulled - begun + time.perf_counter() - computed, computed - pulled


# --- opening -----------------------------------------------------------------------------------


def opening(folder: str, rows: int, scale: Scale) -> Figure:
    """Open a store with ten times as many rows as memory holds, and one with those alone.

    All is sealed before the snapshot is taken: else closing would put all rows into a delta.
    """
    beds = [Bed(f"{folder}/whole", rows), Bed(f"{folder}/part", rows)]
    beds[1].ids = beds[1].ids[: rows // 10]
    for bed in beds:
        bed.fill()
        bed.store.seal()
        bed.store.snapshot()
        bed.store.close()

    stores: list[mkv.Store] = []

    def close() -> None:
        while stores:
            stores.pop().close()

    found = compare(
        "open",
        lambda: stores.append(beds[0].open()),
        lambda: stores.append(beds[1].open()),
        rounds=scale.rounds(3),
        before=close,
        warm_up=0,
    )
    close()
    return Figure("overflow open", 1 / found.ratio, rows, found.detail())
